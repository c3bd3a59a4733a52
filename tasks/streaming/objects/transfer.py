"""One object's bytes, whole and as listed, or an error: a read that resumes where it was broken off.

Checked: If-Match and ranges by the store, the number of bytes against the listed size, the MD5 where the store vouches
for one, the time against one total deadline, the throughput of each connection against a minimum.
"""

import hashlib
import threading
import time
from collections.abc import Iterator

from tasks.errors import ShardChangedError
from tasks.streaming.objects.retrying import Attempts, ClosedError, PassingError, Patience
from tasks.streaming.objects.store import Body, Listed, Store

READ_SIZE = 2**18


def read_object(
    store: Store,
    listed: Listed,
    patience: Patience,
    *,
    begin: int = 0,
    end: int | None = None,
    stop: threading.Event | None = None,
) -> Iterator[bytes]:
    """The object's bytes, or those of [begin, end), in pieces of at most 256 KiB.

    The last piece is handed out before the MD5 is compared: what was read may be used only once the iteration has ended
    without an error. Raises TransferError past the deadline, ShardChangedError where it is not the listed object.
    """
    end = listed.size if end is None else min(end, listed.size)
    whole = (begin, end) == (0, listed.size)
    attempts = Attempts(listed.uri, patience.seconds_for(end - begin), patience.stall_seconds, stop)
    digest = hashlib.md5(usedforsecurity=False)
    expected: str | None = None
    offset = begin
    while offset < end:
        try:
            body = store.open(listed.uri, offset=offset, stop=end, size=listed.size, etag=listed.etag)
            try:
                if whole and offset == 0:
                    expected = body.content_md5
                for data in _drain(body, end - offset, patience, attempts, stop):
                    offset += len(data)
                    if expected is not None:
                        digest.update(data)
                    yield data
            finally:
                body.close()
        except PassingError as error:
            attempts.again(error)
    if expected is not None and digest.hexdigest() != expected:
        raise ShardChangedError(
            f"{listed.uri}: the content's MD5 is {digest.hexdigest()}, its ETag {expected}: the bytes were damaged on "
            "the way, or the object was replaced. Locate the shards again."
        )


def _drain(
    body: Body, length: int, patience: Patience, attempts: Attempts, stop: threading.Event | None
) -> Iterator[bytes]:
    """`length` bytes of one response; PassingError where it ends early, or brings less than the minimum throughput."""
    waited = 0.0  # in read() alone: that decoding takes its time is not the connection's fault
    window_bytes = 0
    while length:
        if stop is not None and stop.is_set():
            raise ClosedError
        if attempts.left < patience.stall_seconds:
            body.limit(max(0.01, attempts.left))
        began = time.monotonic()
        data = body.read(min(READ_SIZE, length))
        waited += time.monotonic() - began
        if not data:
            raise PassingError(f"the answer ended {length} bytes early")
        attempts.progress()
        length -= len(data)
        window_bytes += len(data)
        yield data
        if attempts.left <= 0:
            raise PassingError("the deadline passed")
        if waited >= patience.stall_seconds:
            if window_bytes < patience.minimum_throughput * waited:
                raise PassingError(f"only {window_bytes / waited:.0f} bytes a second came")
            waited, window_bytes = 0.0, 0
