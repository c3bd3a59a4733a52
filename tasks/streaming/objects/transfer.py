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
    whole = (begin, end) == (0, listed.size)
    attempts = Attempts(listed.uri, retry.seconds_for(end - begin), retry.stall_seconds, stop)
    hasher: Hasher | None = None
    expected: Digest | None = None
    offset = begin
    while offset < end:
        try:
            body = store.open(listed.uri, offset=offset, stop=end, size=listed.size, etag=listed.etag)
            try:
                if whole and offset == 0:
                    expected = body.content_digest
                    hasher = make_hasher(expected.kind) if expected else None
                for data in _drain(body, end - offset, retry, attempts, stop):
                    offset += len(data)
                    if hasher is not None:
                        hasher.update(data)
                    began = time.monotonic()
                    yield data
                    attempts.ends += time.monotonic() - began  # that its bytes wait is not the store's fault
            finally:
                body.close()
        except TransientError as error:
            attempts.pause_after(error)
    if expected is not None and hasher is not None and hasher.hexdigest() != expected.value:
        stated = "its ETag" if expected.kind == "MD5" else "the one that is stated"
        raise ShardChangedError(
            f"{listed.uri}: the content's {expected.kind} is {hasher.hexdigest()}, {stated} {expected.value}: "
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
        length -= len(data)
        window_bytes += len(data)
        yield data
        if attempts.left <= 0:
            raise TransientError("the deadline passed")
        if waited >= retry.stall_seconds:
            if window_bytes < retry.minimum_throughput * waited:
                raise TransientError(f"only {window_bytes / waited:.0f} bytes a second came")
            waited, window_bytes = 0.0, 0
