"""How much this process has asked of stores, counted where it is asked: every attempt, whoever's dataset it is for.

A request is what S3 bills as one: a page of a listing, an object or a range of one opened. Of other schemes, whose
filesystems ask in their own way, a listing and an opened object count as one each.
"""

import threading
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Traffic:
    """Requests made, and bytes of objects that came."""

    requests: int = 0
    bytes: int = 0

    def __add__(self, other: "Traffic") -> "Traffic":
        return Traffic(requests=self.requests + other.requests, bytes=self.bytes + other.bytes)

    def __sub__(self, other: "Traffic") -> "Traffic":
        return Traffic(requests=self.requests - other.requests, bytes=self.bytes - other.bytes)


_lock = threading.Lock()
_counted = Traffic()
_tell: Callable[[Traffic], None] | None = None


def count(*, requests: int = 0, received: int = 0) -> None:
    """Add requests and bytes to what this process has counted; from any thread."""
    global _counted
    with _lock:
        _counted += Traffic(requests=requests, bytes=received)
        if _tell:
            _tell(_counted)


def tell_each(tell: Callable[[Traffic], None]) -> None:
    """Let `tell` be called with all that this process has counted, each time that it is more."""
    global _tell
    _tell = tell


def read_traffic() -> Traffic:
    """Return what was counted since the process began; what a part of it took is the difference of two."""
    return _counted
