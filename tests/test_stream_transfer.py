"""One object's bytes from a store that does as it is told: which are asked for, what is compared, and when it ends."""

import hashlib
import threading
import time
import zlib
from typing import Any

import pytest

from tasks.errors import ShardChangedError, TransferError
from tasks.streaming.objects.digests import NO_DIGEST, Digest
from tasks.streaming.objects.retrying import Attempts, ClosedError, RetryPolicy, TransientError
from tasks.streaming.objects.store import Listed
from tasks.streaming.objects.transfer import READ_SIZE, list_objects, read_object, read_range

DATA = bytes(range(256)) * 4096  # four pieces
MD5 = Digest("MD5", hashlib.md5(DATA).hexdigest())
PATIENT = RetryPolicy(deadline_seconds=8.0)
QUICK = RetryPolicy(deadline_seconds=0.8)  # a connection may bring too little for 0.2 s


class Body:
    """Hands out bytes up to `after`, then does `ending`: raises it, or ends the answer where it is None."""

    def __init__(self, store, data):
        self.store, self.left, self.content_digest = store, data, store.digest
        self.after: int
        self.ending: Exception | None
        self.after, self.ending = store.endings.pop(0) if store.endings else (len(data), None)
        self.limits = []

    def read(self, most):
        time.sleep(self.store.seconds_a_read)
        data = self.left[: min(most, self.store.most, self.after)]
        if not data and self.ending:
            raise self.ending
        self.left, self.after = self.left[len(data) :], self.after - len(data)
        return data

    def limit(self, seconds):
        self.limits.append(seconds)

    def close(self):
        self.store.closed += 1


class Store:
    """`asked`: offset and stop of each request; `endings`: what befalls the answers, in turn."""

    def __init__(self, digest=MD5, endings=()):
        self.digest, self.endings = digest, list(endings)
        self.asked, self.bodies, self.closed = [], [], 0
        self.seconds_a_read, self.most = 0.0, READ_SIZE

    def open(self, uri, *, offset, stop, size, etag):
        assert (uri, size, etag) == ("s3://b/x.csv", len(DATA), "e")
        self.asked.append((offset, stop))
        self.bodies.append(Body(self, DATA[offset:stop]))
        return self.bodies[-1]


LISTED = Listed("s3://b/x.csv", len(DATA), "e")


def begin_to_read(store, retry=PATIENT, **options):
    return read_object(store, LISTED, retry, **options)


def read(store, retry=PATIENT, **options):
    return list(begin_to_read(store, retry, **options))


def test_the_whole_is_asked_for_once_and_its_digest_is_told():
    told: list[str] = []
    store = Store()
    pieces = read(store, tell=told.append)
    assert b"".join(pieces) == DATA and {len(piece) for piece in pieces} == {READ_SIZE}
    assert (store.asked, store.closed, told) == ([(0, len(DATA))], 1, ["MD5"])


@pytest.mark.parametrize("digest", [None, Digest("CRC32", f"{zlib.crc32(DATA):08x}")])
def test_another_digest_or_none_is_told(digest):
    told: list[str] = []
    read(Store(digest), tell=told.append)
    assert told == [digest.kind if digest else NO_DIGEST]


@pytest.mark.parametrize(("begin", "end"), [(0, 100), (100, 200), (100, None), (100, len(DATA) + 5)])
def test_a_part_is_asked_for_as_it_is_and_compared_with_no_digest(begin, end):
    told: list[str] = []
    store = Store(Digest("MD5", "0" * 32))
    assert b"".join(read(store, begin=begin, end=end, tell=told.append)) == DATA[begin:end]
    assert store.asked == [(begin, min(end or len(DATA), len(DATA)))]
    assert told == []


@pytest.mark.parametrize("ending", [TransientError("reset"), None])
def test_what_broke_off_is_read_on_from_there_and_compared_as_a_whole(ending):
    told: list[str] = []
    store = Store(endings=[(0, ending), (1000, ending), (READ_SIZE, ending)])
    assert b"".join(read(store, tell=told.append)) == DATA
    assert [offset for offset, _ in store.asked] == [0, 0, 1000, 1000 + READ_SIZE]
    assert {stop for _, stop in store.asked} == {len(DATA)}
    assert (store.closed, told) == (4, ["MD5"])


@pytest.mark.parametrize(
    ("digest", "stated"),
    [(Digest("MD5", "0" * 32), "its ETag 000"), (Digest("CRC32", "0" * 8), "the one that is stated 000")],
)
def test_another_content_is_told_once_all_of_it_came(digest, stated):
    pieces: list[bytes] = []
    told: list[str] = []
    with pytest.raises(ShardChangedError, match=rf"^s3://b/x.csv: the content's {digest.kind} is \w+, {stated}"):
        pieces.extend(begin_to_read(Store(digest), tell=told.append))
    assert b"".join(pieces) == DATA
    assert told == []


def test_an_answer_that_ends_early_says_by_how_much():
    store = Store(endings=[(100, None)] * 99)
    with pytest.raises(TransferError, match="bytes early") as raised:
        read(store, QUICK)
    assert f"the answer ended {len(DATA) - 100 * len(store.asked)} bytes early" in str(raised.value)


def test_what_never_comes_is_given_up_in_the_time_that_its_bytes_are_allowed():
    store = Store(endings=[(0, TransientError("reset"))] * 99)
    began = time.monotonic()
    with pytest.raises(
        TransferError, match=r"s3://b/x.csv: gave up after \d failed attempts, 1 s being allowed; .*reset"
    ):
        read(store, RetryPolicy(deadline_seconds=0.4, minimum_throughput=100), begin=100_000, end=100_050)
    assert time.monotonic() - began < 1.8  # the deadline once more


@pytest.mark.parametrize("when", ["before", "while reading", "while it pauses"])
def test_a_stream_that_is_closed_reads_no_further(when):
    pauses = when == "while it pauses"
    store, stop = Store(endings=[(READ_SIZE, TransientError("reset"))] if pauses else []), threading.Event()
    if when == "before":
        stop.set()

    def close_meanwhile():
        threading.Timer(0.02, stop.set).start() if pauses else stop.set()

    pieces = begin_to_read(store, RetryPolicy(deadline_seconds=600.0), stop=stop)
    with pytest.raises(ClosedError):
        list(map(lambda _: close_meanwhile(), pieces))  # noqa: C417
    assert (len(store.asked), store.closed) == (1, 1)


def test_a_connection_that_brings_too_little_is_given_up_for_another():
    store = Store()
    store.seconds_a_read, store.most = 0.05, 1000
    with pytest.raises(TransferError, match=r"the last one: (only \d+ bytes a second came|the deadline passed)"):
        read(store, QUICK)
    assert len(store.asked) > 1
    assert store.closed == len(store.asked)


def test_a_connection_that_brings_enough_is_kept():
    store = Store()
    store.seconds_a_read, store.most = 0.02, READ_SIZE // 4  # of 0.2 s at least, several reads bring enough, not one
    assert b"".join(read(store, QUICK)) == DATA
    assert store.asked == [(0, len(DATA))]


@pytest.mark.parametrize(("seconds", "limited"), [(0.9, True), (5.0, True), (500.0, False)])
def test_a_read_may_wait_no_longer_than_is_left(seconds, limited):
    store: Any = Store()
    attempts = Attempts("x", seconds, 10.0)
    assert b"".join(read_range(store, LISTED, RetryPolicy(), attempts, 0, len(DATA), None, None)) == DATA
    assert len(store.bodies[0].limits) == (4 if limited else 0)
    assert all(0 < limit <= seconds for limit in store.bodies[0].limits)


def test_time_in_which_nobody_asks_for_bytes_does_not_count():
    pieces = []
    for piece in begin_to_read(Store(), RetryPolicy(deadline_seconds=0.3)):
        time.sleep(0.4)
        pieces.append(piece)
    assert b"".join(pieces) == DATA


def test_a_listing_that_fails_names_its_pattern():
    class Away:
        def list(self, pattern):
            raise TransientError(f"no answer about {pattern}")

    away: Any = Away()
    with pytest.raises(TransferError, match=r"listing s3://b/\*.csv: gave up .* no answer about s3://b/\*.csv"):
        list_objects(away, "s3://b/*.csv", RetryPolicy(deadline_seconds=0.3))
