"""The cache of decoded shards: never stale, never damaged, never too large, and never in the way."""

import errno
import logging
import multiprocessing
import os
import resource
import signal
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch

from tasks.streaming import CacheSettings, ObjectStorageDataset, cache, dataset
from tests.shards import draw_rows, hash_rows, to_csv, write_shards

ROW = 3 * 8  # bytes of a decoded row
FILE = cache.PAGE + 100 * ROW  # of a shard of 100 rows


@pytest.fixture
def data(tmp_path):
    """Five shards of 100 rows each, and where to cache them."""
    rows = write_shards(tmp_path / "data", [100] * 5, metadata=True)
    return f"{tmp_path}/data/part*.csv", rows, tmp_path / "cache"


def read(glob, folder, *, limit_bytes=None, **options):
    settings = CacheSettings(folder=folder, limit_bytes=limit_bytes)
    dataset = ObjectStorageDataset.from_url(glob, batch_size=64, epochs=1, cache=settings, **options)
    return torch.cat(list(dataset)).numpy()


def files(folder):
    return sorted(folder.glob("*.rows"))


def spoil_shards(glob):
    """The shards' bytes are gone; what can still be read comes from the cache."""
    for path in Path(glob).parent.glob("part*.csv"):
        path.write_bytes(b"#" * path.stat().st_size)


def test_the_second_time_nothing_is_fetched(data):
    glob, _, folder = data
    dataset = ObjectStorageDataset(glob, batch_size=64, epochs=1, cache=CacheSettings(folder=folder))
    first = hash_rows(dataset)
    spoil_shards(glob)
    assert hash_rows(dataset) == first
    assert sum(batch.times.fetch_seconds for batch in dataset.batches()) == 0
    assert len(files(folder)) == 5 and not list(folder.glob("*.partial"))


def test_a_shard_that_was_overwritten_is_not_served_stale(data):
    glob, _, folder = data
    read(glob, folder)
    other = draw_rows(100, seed=9)
    Path(glob.replace("part*", "part-00002")).write_bytes(to_csv(other))
    assert np.array_equal(read(glob, folder)[200:300], other)


@pytest.mark.parametrize(
    "other",
    [{"dtype": torch.float32}, {"columns": ["hour", "fare"]}, {"columns": ["latitude", "fare", "hour"]}],
    ids=["dtype", "columns", "order"],
)
def test_another_dtype_or_contract_has_its_own_files(other, data):
    glob, _, folder = data
    read(glob, folder)
    uncached = ObjectStorageDataset.from_url(glob, batch_size=64, epochs=1, **other)
    assert np.array_equal(read(glob, folder, **other), torch.cat(list(uncached)).numpy())
    assert len(files(folder)) == 10


def damage(path, how):
    content = bytearray(path.read_bytes())
    match how:
        case "flipped bit":
            content[cache.PAGE + 1234] ^= 4
        case "zeroed page":
            content[cache.PAGE :] = bytes(len(content) - cache.PAGE)
        case "cut short":
            del content[-8:]
        case "grown":
            content += b"12345678"
        case "empty":
            content.clear()
        case "no facts":
            content[: cache.PAGE] = bytes(cache.PAGE)
        case "another shard's":
            content = next(other for other in files(path.parent) if other != path).read_bytes()
    path.write_bytes(content)


@pytest.mark.parametrize(
    "how", ["flipped bit", "zeroed page", "cut short", "grown", "empty", "no facts", "another shard's"]
)
def test_a_damaged_file_is_noticed_and_fetched_again(how, data, caplog):
    glob, _, folder = data
    dataset = ObjectStorageDataset(glob, batch_size=64, epochs=1, cache=CacheSettings(folder=folder))
    expected = hash_rows(dataset)
    damage(files(folder)[1], how)
    assert hash_rows(dataset) == expected
    assert "is damaged and will be fetched again" in caplog.text
    caplog.clear()
    spoil_shards(glob)
    assert hash_rows(dataset) == expected and not caplog.text


def flip(path):
    content = bytearray(path.read_bytes())
    content[-20] ^= 4
    with path.open("r+b") as file:
        file.write(content)


def flip_unseen(path):
    """As a disk does it: the time of change stays."""
    found = path.stat()
    flip(path)
    os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns))


SPOILING = {
    "flipped bit": flip,
    "flipped bit, time of change kept": flip_unseen,
    "zeroed": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "cut to a half": lambda path: os.truncate(path, path.stat().st_size // 2),
    "cut to nothing": lambda path: os.truncate(path, 0),
    "removed": Path.unlink,
}


@pytest.mark.parametrize("how", SPOILING)
@pytest.mark.parametrize("shuffle", [False, True])
def test_a_file_that_is_spoilt_while_the_stream_is_open_never_reaches_a_batch(how, shuffle, tmp_path, caplog):
    """No signal ends the process either, as it would if files were mapped."""
    write_shards(tmp_path / "data", [20_000] * 6)
    given = {"batch_size": 3000, "epochs": 3, "shuffle": shuffle, "cache": CacheSettings(folder=tmp_path / "cache")}
    dataset = ObjectStorageDataset(f"{tmp_path}/data/part*.csv", **given)
    expected = hash_rows(dataset)
    with closing(dataset.batches()) as batches:
        streamed = [next(batches).tensor.clone()]
        for path in files(tmp_path / "cache"):
            SPOILING[how](path)
        streamed += [batch.tensor.clone() for batch in batches]
    assert hash_rows(streamed) == expected
    assert bool(dataset.damaged) == (how != "removed")
    assert ("is damaged and will be fetched again" in caplog.text) == bool(dataset.damaged)
    assert hash_rows(dataset) == expected
    assert len(files(tmp_path / "cache")) == 6


def test_many_small_files_are_not_all_open_at_once(tmp_path):
    rows = write_shards(tmp_path / "data", [3] * 200)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    read(f"{tmp_path}/data/part*.csv", tmp_path / "cache")
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(list(Path("/proc/self/fd").iterdir())) + 60, hard))
    try:
        assert np.array_equal(read(f"{tmp_path}/data/part*.csv", tmp_path / "cache"), rows)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize(("limit", "stored"), [(0, 0), (FILE - 1, 0), (FILE, 1), (3 * FILE + 100, 3), (5 * FILE, 5)])
def test_a_cache_smaller_than_the_data_holds_what_it_may(limit, stored, data):
    glob, rows, folder = data
    for _ in range(2):
        assert np.array_equal(read(glob, folder, limit_bytes=limit), rows)
        assert len(files(folder)) == stored
        assert sum(path.stat().st_size for path in files(folder)) <= limit


def test_files_of_other_data_sets_are_evicted_the_longest_unused_first(data, tmp_path):
    glob, _, folder = data
    read(glob, folder)
    for age, path in enumerate(files(folder)):
        os.utime(path, (1000 - age, 1000 - age))
    kept = files(folder)[:2]
    write_shards(tmp_path / "other", [100] * 3, seed=4)
    read(f"{tmp_path}/other/part*.csv", folder, limit_bytes=5 * FILE)
    assert len(files(folder)) == 5 and set(kept) < set(files(folder))


def test_what_a_killed_process_left_is_removed(data):
    glob, rows, folder = data
    folder.mkdir()
    (folder / "0123.partial").write_bytes(bytes(10 * FILE))
    assert np.array_equal(read(glob, folder, limit_bytes=5 * FILE), rows)
    assert len(files(folder)) == 5 and not list(folder.glob("*.partial"))


class Kept(logging.Handler):
    """Keeps what is logged in a list."""

    def __init__(self, records):
        super().__init__()
        self.records = records

    def emit(self, record):
        self.records.append(record.getMessage())


def read_with_little_disk(glob, folder, limit, queue):
    """In a process whose files may not grow beyond `limit`: as on a full disk, a write fails midway."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    records: list[str] = []
    logging.getLogger("tasks.streaming.cache").addHandler(Kept(records))
    queue.put((read(glob, folder), records))


def test_a_full_disk_is_said_once_and_the_stream_goes_on(tmp_path):
    rows = write_shards(tmp_path / "data", [5000] * 4)
    queue = multiprocessing.get_context("fork").SimpleQueue()
    arguments = (f"{tmp_path}/data/part*.csv", tmp_path / "cache", 50_000, queue)
    process = multiprocessing.get_context("fork").Process(target=read_with_little_disk, args=arguments)
    process.start()
    found, records = queue.get()
    process.join()
    assert np.array_equal(found, rows)
    assert [record for record in records if "stores nothing more" in record] == records and len(records) == 1
    assert not list((tmp_path / "cache").glob("*.rows")) and not list((tmp_path / "cache").glob("*.partial"))


def stage_with_little_disk(glob, limit, queue):
    dataset.IN_MEMORY = 0
    stream = ObjectStorageDataset(glob, batch_size=64, epochs=1)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    try:
        list(stream)
    except Exception as error:
        queue.put(repr(error))


@pytest.mark.parametrize("limit", [0, 100, 100 * ROW - 1], ids=["no room", "little room", "a byte too little"])
def test_a_disk_too_full_to_stage_a_shard_is_named_though_it_took_a_part(limit, data):
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    process = context.Process(target=stage_with_little_disk, args=(data[0], limit, queue))
    process.start()
    said = queue.get(timeout=60)
    process.join()
    assert "ConfigurationError('A shard could not be staged in" in said and "set TMPDIR" in said


def test_a_folder_that_cannot_be_made_is_said_and_the_stream_goes_on(data, tmp_path, caplog):
    glob, rows, _ = data
    (tmp_path / "file").write_text("")
    assert np.array_equal(read(glob, tmp_path / "file" / "cache"), rows)
    assert caplog.text.count("stores nothing more") == 1


@pytest.mark.parametrize("error", [errno.EIO, errno.EROFS, errno.ENOSPC])
@pytest.mark.parametrize("call", ["staging.FileStaging.keep", "cache.Path.rename"])
def test_a_disk_that_fails_under_the_cache_is_said_once_and_the_stream_goes_on(
    call, error, data, tmp_path, monkeypatch, caplog
):
    def fail(*_):
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(f"tasks.streaming.{call}", fail)
    assert np.array_equal(read(data[0], tmp_path / "cache"), data[1])
    assert caplog.text.count("stores nothing more") == caplog.text.count(os.strerror(error)) == 1


def test_a_damaged_file_on_a_disk_that_became_read_only_is_not_used(data, tmp_path, monkeypatch, caplog):
    glob, rows, _ = data
    read(glob, tmp_path / "cache")
    for path in files(tmp_path / "cache"):
        path.write_bytes(path.read_bytes()[:-1])

    def fail(*_, **__):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr("tasks.streaming.cache.Path.unlink", fail)
    monkeypatch.setattr("tasks.streaming.cache.os.open", fail)
    assert np.array_equal(read(glob, tmp_path / "cache"), rows)
    assert "is damaged and will be fetched again" in caplog.text and "stores nothing more" in caplog.text


def read_and_count(glob, folder, queue):
    dataset = ObjectStorageDataset(glob, batch_size=64, epochs=1, cache=CacheSettings(folder=folder))
    batches = list(dataset.batches())
    queue.put((hash_rows(batch.tensor for batch in batches), sum(b.times.fetch_seconds > 0 for b in batches)))


def test_processes_share_the_cache_and_all_read_the_same(tmp_path):
    rows = write_shards(tmp_path / "data", [20_000] * 6)
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    arguments = (f"{tmp_path}/data/part*.csv", tmp_path / "cache", queue)
    processes = [context.Process(target=read_and_count, args=arguments) for _ in range(4)]
    for process in processes:
        process.start()
    found = [queue.get() for _ in processes]
    for process in processes:
        process.join()
    assert sum(fetched for _, fetched in found) <= 6, "each shard is fetched by one of them"
    assert {digest for digest, _ in found} == {hash_rows([torch.from_numpy(rows)])}
    assert len(files(tmp_path / "cache")) == 6 and not list((tmp_path / "cache").glob("*.partial"))
