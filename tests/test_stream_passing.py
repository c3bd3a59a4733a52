"""Rows as they stand in a shard, on their way through: fetched once, whole or refused, and never many at a time."""

import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from tasks.errors import RowCountError, ShardChangedError
from tasks.streaming import ObjectStorageDataset, RetryPolicy, locate, passing
from tasks.streaming.objects.transfer import READ_SIZE
from tests.faults import BreakOff, Fault, FaultProxy, FlipBit, Refuse
from tests.originals import without_last_cells, write_all
from tests.servers import BUCKET, serve_moto, upload

ROWS = 30_000
PLAIN = b"id,x,name\r\n" + b"".join(b'%d,%d.5,"n,%d"\r\n' % (2**53 + row, row, row) for row in range(ROWS))


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """The URL of a server with two shards, and what was listed there."""
    folder = tmp_path_factory.mktemp("shards")
    (folder / "part-0.csv").write_bytes(PLAIN)
    (folder / "part-1.csv").write_bytes(PLAIN)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (("ACCESS_KEY_ID", "key"), ("SECRET_ACCESS_KEY", "secret"), ("DEFAULT_REGION", "us-east-1")):
            patch.setenv(f"AWS_{name}", value)
        with serve_moto() as url:
            upload(url, folder)
            yield url, locate(f"s3://{BUCKET}/part*.csv", columns=["x"], storage_options={"endpoint_url": url})


def dataset_over(manifest, url):
    retry = RetryPolicy(deadline_seconds=8.0)
    return ObjectStorageDataset.from_manifest(manifest, storage_options={"endpoint_url": url}, retry=retry)


@pytest.mark.parametrize(
    ("fault", "times", "gets"),
    [(Fault(), 0, 1), (Refuse(503, "SlowDown"), 1, 2), (BreakOff(345_678, "reset"), 1, 2), (BreakOff(400_000), 1, 2)],
)
def test_over_s3_each_byte_is_fetched_once_and_what_passes_changes_nothing(fault, times, gets, served, tmp_path):
    url, manifest = served
    with FaultProxy(url, fault, key="part-1.csv", times=times) as proxy:
        written = write_all(dataset_over(manifest, proxy.url), tmp_path, "csv")
    assert [without_last_cells(each) for each in written] == [PLAIN, PLAIN]
    assert proxy.gets == gets
    assert not [thread for thread in threading.enumerate() if thread.name == "shardline-fetch"]


def test_a_damaged_byte_is_found_before_the_shard_counts(served, tmp_path):
    url, manifest = served
    damaged = pytest.raises(ShardChangedError, match=r"part-1\.csv: the content's MD5 is")
    with FaultProxy(url, FlipBit(1_000_003), key="part-1.csv") as proxy, damaged:
        write_all(dataset_over(manifest, proxy.url), tmp_path, "csv")
    assert not [thread for thread in threading.enumerate() if thread.name == "shardline-fetch"]


def test_a_replaced_shard_is_refused(served, tmp_path):
    url, manifest = served
    first, second = manifest.shards
    stale = replace(manifest, shards=(first, replace(second, etag="0" * 32)))
    with pytest.raises(ShardChangedError, match=r"part-1\.csv was replaced"):
        write_all(dataset_over(stale, url), tmp_path, "csv")


def test_other_rows_than_stated_are_refused(served, tmp_path):
    url, manifest = served
    first, second = manifest.shards
    with pytest.raises(RowCountError, match=rf"part-1\.csv: {ROWS} rows, but {ROWS + 1} are stated"):
        write_all(dataset_over(replace(manifest, shards=(first, replace(second, rows=ROWS + 1))), url), tmp_path, "csv")


def test_that_predicting_takes_long_is_not_held_against_the_store(served, monkeypatch):
    url, manifest = served
    monkeypatch.setattr(passing, "HELD", READ_SIZE)  # a queue of one piece, so that the connection waits
    rows = 0
    for _, parts in dataset_over(manifest, url).originals():
        for part in parts:
            time.sleep(2.5)  # an object of this size has two seconds
            rows += len(part.numbers)
    assert rows == 2 * ROWS


@pytest.mark.parametrize(("held", "ahead"), [(len(PLAIN) - 1, 0), (len(PLAIN), 1)])
def test_no_more_is_fetched_ahead_than_may_be_held(held, ahead, served, monkeypatch):
    url, manifest = served
    monkeypatch.setattr(passing, "HELD", held)
    with FaultProxy(url, Fault(), key="part-1.csv") as proxy:
        shards = dataset_over(manifest, proxy.url).originals()
        _, parts = next(shards)
        assert sum(len(part.numbers) for part in parts) == ROWS
        time.sleep(0.5)
        assert proxy.gets == ahead
        shards.close()


GOES_THROUGH = """
import sys, time
from pathlib import Path
from tasks.streaming import ObjectStorageDataset, passing
from tasks.streaming.writing import ShardWriter
passing.HELD = 2**22
folder = Path(sys.argv[1])
def go(name):
    for _, parts in ObjectStorageDataset.from_url(str(folder / name), columns=["x"]).originals():
        with ShardWriter(folder / "written", "csv") as writer:
            for number, part in enumerate(parts):
                time.sleep(0.5 if number < 4 else 0)  # what is fetched meanwhile has to wait
                writer.write(part, part.numbers[:, 0].tolist())
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["VmHWM"].split()[0])
print(go("one.csv"), go("ten.csv"))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the kernel of this system does not say how much")
def test_memory_does_not_grow_with_a_shard(tmp_path):
    header, rows = PLAIN.split(b"\r\n", 1)
    (tmp_path / "one.csv").write_bytes(header + b"\r\n" + 8 * rows)
    (tmp_path / "ten.csv").write_bytes(header + b"\r\n" + 80 * rows)
    done = subprocess.run([sys.executable, "-c", GOES_THROUGH, str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    once, ten = map(int, done.stdout.split())
    assert ten - once < 2**14  # KiB; the larger shard has 80 MiB, the smaller one 8
