"""One object's bytes, whole and as listed, or an error: a read that resumes where it was broken off.

Checked: If-Match and ranges by the store, the number of bytes against the listed size, a digest where the store states
one, the time against one total deadline, the throughput of each connection against a minimum. Time in which nobody asks
for bytes counts for neither.
"""

import threading
import time
from collections.abc import Callable, Iterator

from tasks.errors import ShardChangedError
from tasks.streaming.objects.digests import NO_DIGEST, Digest, Hasher, make_hasher
from tasks.streaming.objects.retrying import Attempts, ClosedError, RetryPolicy, TransientError, call_with_retries
from tasks.streaming.objects.store import Body, Listed, Store
from tasks.streaming.objects.traffic import count

READ_SIZE = 2**18


def list_objects(store: Store, pattern: str, retry: RetryPolicy) -> list[Listed]:
    """Return every object that the glob matches, in no particular order. Raises TransferError past the deadline."""
    return call_with_retries(f"listing {pattern}", retry, lambda: store.list(pattern))


def read_object(
    store: Store,
    listed: Listed,
    retry: RetryPolicy,
    *,
    begin: int = 0,
    end: int | None = None,
    stop: threading.Event | None = None,
    tell: Callable[[str], None] | None = None,
) -> Iterator[bytes]:
    """Yield the object's bytes, or those of [begin, end), in pieces of at most 256 KiB.

    The last piece is handed out before the digest is compared: what was read may be used only once the iteration has
    ended without an error. `tell` is then told which digest was compared. Raises TransferError past the deadline,
    ShardChangedError where it is not the listed object.
    """
    end = listed.size if end is None else min(end, listed.size)
    attempts = Attempts(listed.uri, retry.seconds_for(end - begin), retry.stall_seconds, stop)
    check = ContentCheck(listed) if (begin, end) == (0, listed.size) else None
    for data in read_range(store, listed, retry, attempts, begin, end, stop, check):
        if check:
            check.update(data)
        with attempts.suspended():  # that its bytes wait is not the store's fault
            yield data
    if check:
        check.finish(tell)


def read_range(
    store: Store,
    listed: Listed,
    retry: RetryPolicy,
    attempts: Attempts,
    begin: int,
    end: int,
    stop: threading.Event | None,
    check: "ContentCheck | None",
) -> Iterator[bytes]:
    """Yield bytes [begin, end) of the object, resumed where they break off for as long as `attempts` allows.

    check: told what the store states of the content; for that the whole object is asked for, where it begins
    """
    offset = begin
    while offset < end:
        asked = check if offset == 0 else None
        try:
            last = listed.size if asked else end
            body = store.open(listed.uri, offset=offset, stop=last, size=listed.size, etag=listed.etag)
            try:
                if asked:
                    asked.expect(body.content_digest)
                for data in _drain(body, end - offset, retry, attempts, stop):
                    offset += len(data)
                    yield data
            finally:
                body.close()
        except TransientError as error:
            attempts.pause_after(error)


class ContentCheck:
    """The digest that a store states of an object's content, and that of what came, in order."""

    def __init__(self, listed: Listed) -> None:
        self._uri = listed.uri
        self._expected: Digest | None = None
        self._hasher: Hasher | None = None

    def expect(self, digest: Digest | None) -> None:
        """Begin anew, with what the store states; None: nothing."""
        self._expected = digest
        self._hasher = make_hasher(digest.kind) if digest else None

    def update(self, data: bytes) -> None:
        """Go on with the next bytes."""
        if self._hasher is not None:
            self._hasher.update(data)

    def finish(self, tell: Callable[[str], None] | None) -> None:
        """Tell which digest was compared. Raises ShardChangedError where it is another than stated."""
        expected = self._expected
        if expected is not None and self._hasher is not None and self._hasher.hexdigest() != expected.value:
            stated = "its ETag" if expected.kind == "MD5" else "the one that is stated"
            raise ShardChangedError(
                f"{self._uri}: the content's {expected.kind} is {self._hasher.hexdigest()}, {stated} {expected.value}: "
                "the bytes were damaged on the way, or the object was replaced: locate the shards again"
            )
        if tell:
            tell(expected.kind if expected else NO_DIGEST)


def _drain(
    body: Body, length: int, retry: RetryPolicy, attempts: Attempts, stop: threading.Event | None
) -> Iterator[bytes]:
    """Yield `length` bytes of one response. Raises TransientError where it ends early or comes too slowly."""
    waited = 0.0  # in read() alone: that decoding takes its time is not the connection's fault
    window_bytes = 0
    while length:
        if stop is not None and stop.is_set():
            raise ClosedError
        if attempts.left < retry.stall_seconds:
            body.limit(max(0.01, attempts.left))
        began = time.monotonic()
        data = body.read(min(READ_SIZE, length))
        waited += time.monotonic() - began
        if not data:
            raise TransientError(f"the answer ended {length} bytes early")
        attempts.note_progress()
        count(received=len(data))
        length -= len(data)
        window_bytes += len(data)
        yield data
        if attempts.left <= 0:
            raise TransientError("the deadline passed")
        if waited >= retry.stall_seconds:
            if window_bytes < retry.minimum_throughput * waited:
                raise TransientError(f"only {window_bytes / waited:.0f} bytes a second came")
            waited, window_bytes = 0.0, 0
