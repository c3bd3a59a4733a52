"""A large shard, fetched in ranges and decoded in blocks side by side: the rows, and the errors, of one thread."""

import bz2
import gzip
import hashlib
import threading
import time
from contextlib import closing

import pytest
import torch

from deployments.processes import wait_until
from tasks.errors import BucketError, RowError, ShardChangedError, ShardlineError, TransferError
from tasks.streaming import CacheSettings, ObjectStorageDataset, RetryPolicy, loading, locate, splitting
from tasks.streaming.formats import csv
from tasks.streaming.formats.contract import Contract
from tasks.streaming.formats.diagnosing import decode_csv
from tasks.streaming.formats.rows import HeldRows
from tasks.streaming.handover import HandOver
from tasks.streaming.objects.digests import Digest
from tasks.streaming.objects.retrying import ClosedError
from tasks.streaming.objects.store import Listed
from tasks.streaming.objects.transfer import read_object
from tasks.streaming.splitting import Helpers, decode_in_blocks, read_in_ranges
from tests.faults import (
    AddHeaders,
    BreakOff,
    Fault,
    FaultProxy,
    FlipBit,
    IgnoreRange,
    Refuse,
    Sequence,
    ShiftRange,
)
from tests.servers import BUCKET, make_client, serve_moto, serve_rclone
from tests.shards import draw_rows, hash_rows, to_csv, write_metadata, write_shards

hypothesis = pytest.importorskip("hypothesis")
given, settings, st = hypothesis.given, hypothesis.settings, hypothesis.strategies

ROWS = 3000
KEY = "part-00000.csv"
URI = f"s3://{BUCKET}/{KEY}"
PATIENT, DEADLINE, AT_ONCE = 8.0, 5.0, 2.0  # seconds: where all is to end well, where it is to pass, where none counts


class Memory:
    """A store of one object; `asked` has the ranges that were asked for."""

    by_ranges = True

    def __init__(self, data, digest=None):
        self.data, self.asked = data, []
        self.digest = digest or Digest("MD5", hashlib.md5(data).hexdigest())
        self.listed = Listed("memory://shard", len(data), "etag")

    def list(self, pattern):
        raise NotImplementedError

    def matches(self, pattern, uri):
        raise NotImplementedError

    def open(self, uri, *, offset, stop, size, etag):
        self.asked.append((offset, stop))
        return Body(self.data[offset:stop], self.digest)


class Body:
    def __init__(self, data, digest):
        self.left, self.content_digest = data, digest

    def read(self, most):
        data, self.left = self.left[:most], self.left[most:]
        return data

    def limit(self, seconds):
        pass

    def close(self):
        pass


def read(data, names, *, split, drops=False, digest=None):
    """The rows of a CSV as bytes, and its bad lines, or the error that it gives."""
    store, stop, told = Memory(data, digest), threading.Event(), list[str]()
    contract = Contract(columns=names, header=names, cells=None, drops_bad_rows=drops)
    rows = Gathered(len(names), "float64")
    try:
        if split:
            ranges = read_in_ranges(store, store.listed, RetryPolicy(), Helpers(2), stop=stop, tell=told.append)
            with closing(ranges) as pieces:  # whose threads would else go on behind an error of decoding
                bad = list(decode_in_blocks("u", pieces, contract, "float64", rows, Helpers(2), stop))
        else:
            whole = b"".join(read_object(store, store.listed, RetryPolicy(), stop=stop, tell=told.append))
            pieces = (whole[at : at + splitting.RANGE] for at in range(0, len(whole), splitting.RANGE))
            bad = list(decode_csv("u", pieces, contract, "float64", rows))
    except ShardlineError as error:
        return type(error), str(error)
    return rows.content, bad, told


class Gathered(HeldRows):
    """Keeps the bytes of all rows."""

    content = b""

    def keep(self, rows):
        self.content += self._block[:rows].tobytes()
        super().keep(rows)


NUMBERS = st.sampled_from(["1", "-2.5", "3e4", "0.1", "123456.789", '"7"', '" 8"'])
LINES = st.lists(st.tuples(NUMBERS, NUMBERS).map(",".join), max_size=30)
ODD = st.lists(
    st.sampled_from(["", "x,1", "1,2,3", "nan,1", '"1\n2",3', '1,"2', "1,,", "a,b", "\r", "1,2\r"]), max_size=2
)


@settings(max_examples=60, deadline=None)
@given(LINES, ODD, st.integers(0, 30), st.integers(1, 200), st.integers(1, 120), st.booleans(), st.sampled_from("\r\n"))
def test_rows_bad_lines_and_errors_are_those_of_one_thread(lines, odd, at, size, block, drops, end):
    """Quoted line ends, which the format has not, among them: refused with the same words."""
    at = min(at, len(lines))
    data = "\n".join(["a,b", *lines[:at], *odd, *lines[at:]]).encode() + (b"\n" if end == "\n" else b"")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(splitting, "RANGE", size)
        patch.setattr(csv, "BLOCK_SIZE", block)
        assert read(data, ("a", "b"), split=True, drops=drops) == read(data, ("a", "b"), split=False, drops=drops)


@pytest.mark.parametrize("split", [True, False])
def test_a_digest_that_is_not_of_the_content_is_an_error_either_way(split, monkeypatch):
    monkeypatch.setattr(splitting, "RANGE", 7)
    kind, message = read(b"a\n1\n2\n3\n4\n5\n", ("a",), split=split, digest=Digest("MD5", "0" * 32))
    assert kind is ShardChangedError and "content's MD5 is" in message


def test_the_first_range_asks_for_the_whole_object_so_that_its_digest_is_stated(monkeypatch):
    monkeypatch.setattr(splitting, "RANGE", 10)
    store = Memory(bytes(35))
    pieces = read_in_ranges(store, store.listed, RetryPolicy(), Helpers(2), stop=threading.Event())
    assert b"".join(pieces) == store.data
    assert sorted(store.asked) == [(0, 35), (10, 20), (20, 30), (30, 35)]


def test_helpers_are_shared_and_come_back():
    helpers, stop, at_once, most = Helpers(3), threading.Event(), 0, 0
    lock = threading.Lock()

    def work(item):
        nonlocal at_once, most
        with lock:
            at_once += 1
            most = max(most, at_once)
        time.sleep(0.005)
        with lock:
            at_once -= 1
        return item * item

    def run(found):
        found += helpers.map(work, range(30), "shardline-test", stop)

    several = [list[int]() for _ in range(4)]
    threads = [threading.Thread(target=run, args=(found,)) for found in several]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert several == [[item * item for item in range(30)]] * 4
    assert 4 <= most <= 4 + 3
    first = helpers.map(work, range(30), "shardline-test", stop)
    assert next(first) == 0
    first.close()
    assert all(helpers._free.acquire(blocking=False) for _ in range(3))
    assert not helpers._free.acquire(blocking=False)


def test_helpers_end_when_the_stream_is_closed():
    stop, waits = threading.Event(), threading.Event()
    results = Helpers(2).map(lambda item: waits.wait(5), range(9), "shardline-test", stop)
    threading.Timer(0.1, stop.set).start()
    threading.Timer(0.4, waits.set).start()
    with pytest.raises(ClosedError):
        list(results)


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """A server's URL and the manifest of its one shard."""
    folder = tmp_path_factory.mktemp("s3")
    write_shards(folder / BUCKET, [ROWS], metadata=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", "key")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        with serve_rclone(folder) as url:
            yield url, locate(f"s3://{BUCKET}/part*.csv", storage_options={"endpoint_url": url})


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Shards are large from a byte on, and their ranges are small."""
    monkeypatch.setattr(loading, "LARGE", 1)
    monkeypatch.setattr(splitting, "RANGE", 20_000)
    monkeypatch.setattr(csv, "BLOCK_SIZE", 5000)


def stream(url, manifest, deadline=PATIENT, **options):
    return ObjectStorageDataset.from_manifest(
        manifest,
        batch_size=1000,
        epochs=1,
        storage_options={"endpoint_url": url},
        retry=RetryPolicy(deadline_seconds=deadline),
        **options,
    )


EXPECTED = hash_rows([torch.from_numpy(draw_rows(ROWS))])


def stream_threads():
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("shardline")]


@pytest.mark.parametrize("size", [1999, 4096, 65_536, 10**9])
@pytest.mark.parametrize("block", [100, 4096, 10**9])
def test_the_stream_is_the_same_for_every_size_of_range_and_block(size, block, served, monkeypatch):
    monkeypatch.setattr(splitting, "RANGE", size)
    monkeypatch.setattr(csv, "BLOCK_SIZE", block)
    dataset = stream(*served)
    assert hash_rows(dataset) == EXPECTED
    assert dataset.checks == {URI: "MD5"}
    assert not stream_threads()


def test_it_is_cached_and_read_again_from_there(served, tmp_path):
    dataset = stream(*served, cache=CacheSettings(folder=tmp_path))
    assert hash_rows(dataset) == hash_rows(dataset) == EXPECTED


PASSING = {
    "nothing": (Fault(), 0),
    "503 three times": (Refuse(503, "SlowDown"), 3),
    "reset amid ranges": (BreakOff(11_111, "reset"), 3),
    "stall amid a range": (BreakOff(12_345, "stall"), 1),
    "ignored range": (IgnoreRange(), 3),
    "three ways": (Sequence((BreakOff(9000), Refuse(500, "InternalError"), BreakOff(1))), 3),
}


@pytest.mark.parametrize("case", PASSING)
def test_what_passes_leaves_the_stream_identical(case, served):
    url, manifest = served
    fault, times = PASSING[case]
    with FaultProxy(url, fault, key=KEY, times=times) as proxy:
        assert hash_rows(stream(proxy.url, manifest)) == EXPECTED
    ranges = -(-manifest.size // 20_000)
    assert ranges <= proxy.gets <= ranges + times
    assert not stream_threads()


REPLACED = AddHeaders({"ETag": '"0123456789abcdef0123456789abcdef"'})
FINE = (Fault(),) * 3
LASTING = {
    "replaced between ranges": (
        Sequence((*FINE, *[Refuse(412, "PreconditionFailed")] * 9)), ShardChangedError, "was replaced since it was",
    ),
    "replaced, on a server without If-Match": (
        Sequence((*FINE, *[REPLACED] * 9)), ShardChangedError, "was replaced since .* its ETag was",
    ),
    "shorter between ranges": (
        Sequence((*FINE, *[Refuse(416, "InvalidRange")] * 9)), ShardChangedError, "shorter than it was when listed",
    ),
    "deleted between ranges": (
        Sequence((*FINE, *[Refuse(404, "NoSuchKey")] * 9)), ShardChangedError, "is gone: it was listed",
    ),
    "another range": (Sequence((*FINE, *[ShiftRange()] * 9)), ShardChangedError, "asked for bytes .* was sent"),
    "denied between ranges": (
        Sequence((*FINE, *[Refuse(403, "AccessDenied")] * 9)), BucketError, f"denied access to {URI}",
    ),
    "a bit": (Sequence((*FINE, FlipBit(9))), (ShardChangedError, RowError), "the content's MD5 is .*, its ETag|line "),
    "stall for ever": (BreakOff(5000, "stall"), TransferError, "gave up after"),
    "503 for ever": (Refuse(503, "SlowDown"), TransferError, "gave up after .*503 SlowDown"),
}  # fmt: skip


@pytest.mark.parametrize(("fault", "error", "message"), LASTING.values(), ids=LASTING)
def test_what_lasts_is_named_within_the_one_deadline_and_no_row_was_used(fault, error, message, served):
    url, manifest = served
    deadline = DEADLINE if error is TransferError else PATIENT
    began = time.monotonic()
    used = []
    with FaultProxy(url, fault, key=KEY) as proxy, pytest.raises(error, match=message):
        used.extend(stream(proxy.url, manifest, deadline))
    assert not used
    assert time.monotonic() - began < (deadline if error is TransferError else AT_ONCE) + 2.5
    assert proxy.gets < 30
    assert not stream_threads()


def test_a_bad_line_has_its_own_number_wherever_the_ranges_end(served, monkeypatch, tmp_path):
    rows = draw_rows(500)
    lines = to_csv(rows).split(b"\n")
    lines[431] = b"1,x,2"
    (tmp_path / "part-00000.csv").write_bytes(b"\n".join(lines))
    write_metadata(tmp_path, {0: 500})
    for block in (50, 700, 5000):
        monkeypatch.setattr(csv, "BLOCK_SIZE", block)
        with pytest.raises(RowError, match=r"part-00000\.csv, line 432: column 'latitude' is 'x'"):
            list(ObjectStorageDataset(f"{tmp_path}/part*.csv", batch_size=100, epochs=1))
    cache = CacheSettings(enabled=False, folder=tmp_path / "lists")
    glob = f"{tmp_path}/part*.csv"
    dataset = ObjectStorageDataset(glob, batch_size=100, epochs=1, on_bad_rows="quarantine", cache=cache)
    assert dataset.bad_rows == 1
    assert dataset.bad_rows_file and ",432," in dataset.bad_rows_file.read_text()
    assert sum(map(len, dataset)) == 499


@pytest.mark.parametrize("compress", [gzip.compress, bz2.compress])
def test_a_compressed_shard_is_put_together_before_it_is_unpacked(compress, monkeypatch):
    monkeypatch.setattr(splitting, "RANGE", 1000)
    with pytest.MonkeyPatch.context() as patch, serve_moto() as url:
        patch.setenv("AWS_ACCESS_KEY_ID", "key")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        client = make_client(url)
        client.create_bucket(Bucket=BUCKET)
        client.put_object(Bucket=BUCKET, Key=KEY, Body=compress(to_csv(draw_rows(ROWS))))
        manifest = locate(URI, storage_options={"endpoint_url": url})
        assert hash_rows(stream(url, manifest)) == EXPECTED


class Slow(Memory):
    """A store that sends a byte every 10 ms."""

    def open(self, uri, *, offset, stop, size, etag):
        return SlowBody(self.data[offset:stop], self.digest)


class SlowBody(Body):
    def read(self, most):
        time.sleep(0.01)
        return super().read(1)


def test_closing_it_amid_the_ranges_ends_their_threads_at_once(monkeypatch):
    monkeypatch.setattr(splitting, "RANGE", 1000)
    store = Slow(bytes(100_000))
    closed = threading.Event()
    pieces = read_in_ranges(store, store.listed, RetryPolicy(), Helpers(2), stop=closed)
    handed = HandOver(pieces, 2, closed, "shardline-fetch")
    handed.start()
    assert wait_until(lambda: len(stream_threads()) == 4, 10)
    began = time.monotonic()
    closed.set()
    with pytest.raises(ClosedError):
        next(iter(handed))
    handed.join()
    assert not stream_threads()
    assert time.monotonic() - began < 5  # a range takes ten
