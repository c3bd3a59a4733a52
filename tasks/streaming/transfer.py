"""One object's bytes, whole and as listed, or an error: a read that resumes where it was broken off.

Checked: If-Match and ranges by the store, the number of bytes against the listed size, the MD5 where the store vouches
for one, the time against one total deadline, the throughput of each connection against a minimum.
"""

import hashlib
import threading
import time
from collections.abc import Iterator

from tasks.errors import ShardChangedError
from tasks.streaming.patience import Attempts, Interrupted, Patience, Stopped
from tasks.streaming.stores import Body, Listed, Store

READ_SIZE = 2**18


def read_object(
    store: Store, listed: Listed, patience: Patience, *, first: int | None = None, stop: threading.Event | None = None
) -> Iterator[bytes]:
    """The object's bytes in pieces of at most 256 KiB; only its `first` bytes where that is given.

    The last piece is handed out before the MD5 is compared: what was read may be used only once the iteration has ended
    without an error. Raises TransferError past the deadline, ShardChangedError where it is not the listed object.
    """
    length = listed.size if first is None else min(first, listed.size)
    attempts = Attempts(listed.uri, patience.seconds_for(length), stop)
    digest = hashlib.md5(usedforsecurity=False)
    expected: str | None = None
    offset = 0
    while offset < length:
        try:
            body = store.open(listed.uri, offset=offset, stop=length, size=listed.size, etag=listed.etag)
            try:
                if offset == 0 and length == listed.size:
                    expected = body.content_md5
                for data in _drain(body, length - offset, patience, attempts, stop):
                    offset += len(data)
                    if expected is not None:
                        digest.update(data)
                    yield data
            finally:
                body.close()
        except Interrupted as error:
            attempts.again(error)
    if expected is not None and digest.hexdigest() != expected:
        raise ShardChangedError(
            f"{listed.uri}: the content's MD5 is {digest.hexdigest()}, its ETag {expected}: the bytes were damaged on the way, "
            "or the object was replaced. Locate the shards again."
        )


def _drain(
    body: Body, length: int, patience: Patience, attempts: Attempts, stop: threading.Event | None
) -> Iterator[bytes]:
    """`length` bytes of one response; Interrupted where it ends early, or brings less than the minimum throughput."""
    waited = 0.0  # in read() alone: that decoding takes its time is not the connection's fault
    window_bytes = 0
    while length:
        if stop is not None and stop.is_set():
            raise Stopped
        began = time.monotonic()
        data = body.read(min(READ_SIZE, length))
        waited += time.monotonic() - began
        if not data:
            raise Interrupted(f"the answer ended {length} bytes early")
        attempts.progress()
        length -= len(data)
        window_bytes += len(data)
        yield data
        if attempts.left <= 0:
            raise Interrupted("the deadline passed")
        if waited >= patience.stall_seconds:
            if window_bytes < patience.minimum_throughput * waited:
                raise Interrupted(f"only {window_bytes / waited:.0f} bytes a second came")
            waited, window_bytes = 0.0, 0
