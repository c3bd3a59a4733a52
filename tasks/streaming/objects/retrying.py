"""How long to keep trying: one loop, one total deadline, for every request that this library makes.

No layer below retries (botocore is told not to), so attempts do not multiply. What is worth another attempt is said by
the store that knows its errors, by raising `TransientError`.
"""

import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

from tasks.errors import ConfigurationError, TransferError

T = TypeVar("T")
FIRST_PAUSE = 0.2  # seconds before the second attempt; doubled each time, with jitter
LONGEST_PAUSE = 10.0


class TransientError(Exception):
    """A request that failed in a way that may pass: a broken connection, throttling, a server's own fault."""


class ClosedError(Exception):
    """The stream was closed while this work was going on."""


@dataclass(frozen=True, kw_only=True)
class RetryPolicy:
    """How long one listing, or one object, may take. Raises ConfigurationError where that is no time at all.

    deadline_seconds: all attempts together, on top of the time that `minimum_throughput` allows for the bytes
    minimum_throughput: bytes a second that a connection must bring, or it is given up and another one is opened
    """

    deadline_seconds: float = 60.0
    minimum_throughput: float = 2**20

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not value > 0:
                raise ConfigurationError(f"{name} is {value}; it must be more than 0")

    @property
    def stall_seconds(self) -> float:
        """How long a connection may bring nothing, or too little, before it is given up."""
        return min(15.0, self.deadline_seconds / 4)

    def seconds_for(self, size: int) -> float:
        """Return the whole time for `size` bytes, retries included."""
        return self.deadline_seconds + size / self.minimum_throughput


class Attempts:
    """Attempts at one thing: `pause_after(error)` pauses before the next one, or raises TransferError.

    None is begun that could end after the deadline, should it bring nothing for `stall` seconds.
    """

    def __init__(self, what: str, seconds: float, stall: float, stop: threading.Event | None = None) -> None:
        self.what = what
        self.stall = stall
        self.seconds = seconds
        self.ends = time.monotonic() + seconds
        self.failed = 0
        self._in_row = 0
        self._stop = stop or threading.Event()
        self._lock = threading.Lock()  # several ranges of one object share the attempts at it

    @property
    def left(self) -> float:
        return self.ends - time.monotonic()

    def note_progress(self) -> None:
        """Note that bytes came since the last failure: the next pause is a short one again."""
        self._in_row = 0

    @contextmanager
    def suspended(self) -> Iterator[None]:
        """Let the time that passes inside not count."""
        began = time.monotonic()
        try:
            yield
        finally:
            self.ends += time.monotonic() - began

    def pause_after(self, error: BaseException) -> None:
        with self._lock:
            self.failed += 1
            pause = min(LONGEST_PAUSE, FIRST_PAUSE * 2**self._in_row) * random.uniform(0.5, 1.0)
            self._in_row += 1
        if pause + self.stall >= self.left:
            raise TransferError(
                f"{self.what}: gave up after {self.failed} failed attempts, {self.seconds:.0f} s being allowed; "
                f"the last one: {error}; check the network and the store, or allow more with deadline_seconds"
            ) from error
        if self._stop.wait(pause):
            raise ClosedError from error


def call_with_retries(what: str, retry: RetryPolicy, call: Callable[[], T], stop: threading.Event | None = None) -> T:
    """Return `call()`, tried again while it raises TransientError. Raises TransferError past the deadline."""
    attempts = Attempts(what, retry.deadline_seconds, retry.stall_seconds, stop)
    while True:
        try:
            return call()
        except TransientError as error:
            attempts.pause_after(error)
