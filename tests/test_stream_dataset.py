"""The stream as a torch dataset: the same rows in the same order, whatever the topology, the depth and the cache."""

import itertools
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import closing
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from tasks.errors import ConfigurationError, RowError
from tasks.streaming import CacheSettings, ObjectStorageDataset, Placement, locate
from tests.shards import draw_rows, hash_rows, to_csv, write_shards

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")  # more workers than cores, on purpose

COUNTS = (7, 31, 2, 18, 25, 1, 40, 13)  # 137 rows
BATCH = 24
EPOCHS = 2


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """The folder's glob, and its rows."""
    folder = tmp_path_factory.mktemp("shards")
    return f"{folder}/part*.csv", write_shards(folder, COUNTS, metadata=True)


def read_ranks(glob, *, world_size=1, num_workers=0, first=0, last=None, **options):
    """Batches first … last of all ranks, the parts of each batch put together again."""
    parts = []
    for rank in range(world_size):
        dataset = ObjectStorageDataset(
            glob,
            batch_size=BATCH,
            epochs=EPOCHS,
            placement=Placement(rank=rank, world_size=world_size),
            start=first,
            **options,
        )
        loader = DataLoader(dataset, batch_size=None, num_workers=num_workers) if num_workers else dataset
        parts.append(list(itertools.islice(loader, None if last is None else last - first)))
    assert len({len(part) for part in parts}) == 1, "every rank has as many batches"
    return [torch.cat(batch) for batch in zip(*parts, strict=True)]


RANKS, WORKERS, PREFETCH, CACHE, SHUFFLE = (1, 2, 4), (0, 1, 3), (1, 4), ("off", "cold", "warm"), (False, True)
AXES = (RANKS, WORKERS, PREFETCH, CACHE, SHUFFLE)


def cover_pairs(axes):
    """Combinations in which every pair of values of two axes occurs (greedily few)."""
    everything = list(itertools.product(*axes))

    def pairs_of(case):
        return {(i, case[i], j, case[j]) for i in range(len(case)) for j in range(i)}

    missing = set().union(*map(pairs_of, everything))
    chosen = []
    while missing:
        chosen.append(max(everything, key=lambda case: len(pairs_of(case) & missing)))
        missing -= pairs_of(chosen[-1])
    return chosen


def check_order(shards, tmp_path, world_size, num_workers, prefetch, cache, shuffle):
    glob, rows = shards
    settings = CacheSettings(enabled=cache != "off", folder=tmp_path)
    options = {"prefetch": prefetch, "shuffle": shuffle, "seed": 5, "cache": settings}
    if cache == "warm":
        read_ranks(glob, **options)
    batches = read_ranks(glob, world_size=world_size, num_workers=num_workers, **options)
    expected = (
        hash_rows(read_ranks(glob, shuffle=True, seed=5)) if shuffle else hash_array(np.concatenate([rows] * EPOCHS))
    )
    assert hash_rows(batches) == expected


def hash_array(rows):
    return hash_rows([torch.from_numpy(rows)])


@pytest.mark.parametrize(("world_size", "num_workers", "prefetch", "cache", "shuffle"), cover_pairs(AXES))
def test_every_topology_depth_and_cache_gives_the_same_rows(
    shards, tmp_path, world_size, num_workers, prefetch, cache, shuffle
):
    check_order(shards, tmp_path, world_size, num_workers, prefetch, cache, shuffle)


@pytest.mark.long
@pytest.mark.parametrize(
    ("world_size", "num_workers", "prefetch", "cache", "shuffle"),
    sorted(set(itertools.product(*AXES)) - set(cover_pairs(AXES))),
)
def test_every_combination_gives_the_same_rows(shards, tmp_path, world_size, num_workers, prefetch, cache, shuffle):
    check_order(shards, tmp_path, world_size, num_workers, prefetch, cache, shuffle)


def test_shuffled_epochs_hold_every_row_once_and_differ(shards):
    glob, rows = shards
    read = torch.cat(read_ranks(glob, shuffle=True)).numpy()
    epochs = read[: len(rows)], read[len(rows) :]
    for epoch in epochs:
        assert np.array_equal(epoch[np.argsort(epoch[:, 0])], rows)
    assert not np.array_equal(*epochs)


TOPOLOGIES = ((1, 0), (2, 0), (4, 1), (1, 3))
BATCHES = -(-sum(COUNTS) * EPOCHS // BATCH)


def check_resumed(shards, before, after, stop, shuffle):
    glob, _ = shards
    whole = read_ranks(glob, shuffle=shuffle)
    first = read_ranks(glob, world_size=before[0], num_workers=before[1], last=stop, shuffle=shuffle)
    rest = read_ranks(glob, world_size=after[0], num_workers=after[1], first=stop, shuffle=shuffle)
    assert [batch.tolist() for batch in first + rest] == [batch.tolist() for batch in whole]


@pytest.mark.parametrize("stop", [1, sum(COUNTS) // BATCH, sum(COUNTS) // BATCH + 1, BATCHES - 1, BATCHES])
@pytest.mark.parametrize("shuffle", SHUFFLE)
def test_first_part_and_rest_are_the_whole(shards, stop, shuffle):
    check_resumed(shards, (1, 0), (2, 0), stop, shuffle)


@pytest.mark.long
@pytest.mark.parametrize("shuffle", SHUFFLE)
@pytest.mark.parametrize("stop", [1, 5, 6, 11])
@pytest.mark.parametrize(("before", "after"), list(itertools.permutations(TOPOLOGIES, 2)))
def test_first_part_and_rest_are_the_whole_for_every_change_of_topology(shards, before, after, stop, shuffle):
    check_resumed(shards, before, after, stop, shuffle)


def test_starting_late_reads_no_shard_that_is_not_needed(tmp_path):
    rows = write_shards(tmp_path, [10] * 10)
    manifest = locate(f"{tmp_path}/part*.csv")
    for number in (0, 1, 2, 3, 4, 7, 8, 9):
        (tmp_path / f"part-{number:05d}.csv").unlink()
    with closing(ObjectStorageDataset.from_manifest(manifest, batch_size=5, start=11, prefetch=1).batches()) as batches:
        first = next(batches)
    assert first.iteration == 11
    assert np.array_equal(first.tensor.numpy(), rows[55:60])


def test_an_endless_stream_wraps_and_has_no_length(shards):
    glob, rows = shards
    dataset = ObjectStorageDataset(glob, batch_size=50)
    for iteration, batch in enumerate(itertools.islice(dataset, 12)):
        assert np.array_equal(batch.numpy(), rows[np.arange(iteration * 50, (iteration + 1) * 50) % len(rows)])
    with pytest.raises(TypeError, match="endless"):
        len(dataset)


def test_by_default_a_batch_has_2_to_the_20_rows_beginning_again_where_they_end(shards):
    glob, rows = shards
    batch = next(iter(ObjectStorageDataset(glob, prefetch=1)))
    assert np.array_equal(batch.numpy(), rows[np.arange(2**20) % len(rows)])


@pytest.mark.parametrize("batch_size", [64, 1000])
def test_298_rows_follow_the_formula_of_kaen(dctaxi, batch_size):
    files = [dctaxi / name for name in ("train.csv", "valid.csv", "test.csv")]
    rows = np.concatenate([np.loadtxt(file, delimiter=",", skiprows=1) for file in files])
    dataset = ObjectStorageDataset([str(file) for file in files], batch_size=batch_size)
    assert dataset.manifest.rows == 298
    for iteration, batch in enumerate(itertools.islice(dataset, 50)):
        assert batch.dtype == torch.float64
        assert np.array_equal(
            batch.numpy(), rows[np.arange(iteration * batch_size, (iteration + 1) * batch_size) % 298]
        )


def test_a_batch_larger_than_the_data_repeats_it(shards):
    glob, rows = shards
    batch = next(iter(ObjectStorageDataset(glob, batch_size=1000)))
    assert np.array_equal(batch.numpy(), rows[np.arange(1000) % len(rows)])


@pytest.mark.parametrize(("epochs", "start", "batches"), [(1, 0, 6), (2, 0, 12), (2, 5, 7), (1, 6, 0), (1, 9, 0)])
def test_a_finite_stream_has_as_many_batches_as_it_says(shards, epochs, start, batches):
    dataset = ObjectStorageDataset(shards[0], batch_size=24, epochs=epochs, start=start)
    assert len(dataset) == len(list(dataset)) == batches


@pytest.mark.parametrize(
    ("epochs", "stop", "batches"), [(None, 8, 8), (None, 3, 3), (1, 4, 4), (1, 9, 6), (None, 0, 0)]
)
def test_a_stream_ends_where_it_is_to_stop_and_reads_no_shard_for_later_batches(shards, epochs, stop, batches):
    dataset = ObjectStorageDataset(shards[0], batch_size=24, epochs=epochs, stop=stop)
    assert len(dataset) == len(list(dataset)) == batches
    rows = np.concatenate([shards[1]] * 2)[: 24 * stop] if epochs is None else shards[1][: 24 * stop]
    assert hash_rows(dataset) == hash_array(rows)


def test_a_short_last_batch_reaches_every_rank(shards):
    """137 rows in batches of 136: one row is left, which one of four ranks gets, and all have two batches."""
    lengths = []
    for rank in range(4):
        placement = Placement(rank=rank, world_size=4)
        dataset = ObjectStorageDataset(shards[0], batch_size=136, epochs=1, placement=placement)
        lengths.append([len(batch) for batch in dataset])
    assert lengths == [[34, 0], [34, 0], [34, 0], [34, 1]]


def test_a_data_loader_without_arguments_adds_its_dimension(shards):
    dataset = ObjectStorageDataset(shards[0], batch_size=24, epochs=1)
    loader = DataLoader(dataset)
    assert len(loader) == 6
    assert [tuple(batch.shape) for batch in loader] == [(1, 24, 3)] * 5 + [(1, 17, 3)]


def test_rank_and_world_size_come_from_the_environment(shards, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    dataset = ObjectStorageDataset(shards[0], batch_size=24)
    assert np.array_equal(next(iter(dataset)).numpy(), shards[1][12:24])


def test_rank_and_world_size_come_from_torch_distributed(shards, tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "7")
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)  # type: ignore[attr-defined]
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        dataset = ObjectStorageDataset(shards[0], batch_size=24)
    finally:
        torch.distributed.destroy_process_group()
    assert (dataset.rank, dataset.world_size) == (0, 1)


def test_a_manifest_may_be_read_in_part(shards):
    manifest = locate(shards[0])
    dataset = ObjectStorageDataset.from_manifest(
        manifest, columns=["hour", "fare"], max_shards=3, batch_size=100, epochs=1
    )
    assert dataset.manifest.columns == ("hour", "fare")
    assert np.array_equal(torch.cat(list(dataset)).numpy(), shards[1][:40, [2, 0]])
    with pytest.raises(ConfigurationError, match="columns names 'tip', which the shards do not have"):
        ObjectStorageDataset.from_manifest(manifest, columns=["tip"])
    with pytest.raises(ConfigurationError, match="max_shards is 0; it must be at least 1"):
        ObjectStorageDataset.from_manifest(manifest, max_shards=0)


def test_each_batch_says_what_it_took(shards):
    dataset = ObjectStorageDataset(shards[0], batch_size=24, epochs=1)
    batches = list(dataset.batches())
    assert [batch.iteration for batch in batches] == list(range(6))
    assert all(batch.wait_seconds > 0 and batch.times.assemble_seconds > 0 for batch in batches)
    assert batches[0].times.fetch_seconds > 0 and batches[0].times.decode_seconds > 0
    assert dataset.times == batches[-1].times


def test_batches_may_be_written_to(shards, tmp_path):
    opened = partial(ObjectStorageDataset, shards[0], batch_size=24, epochs=1, cache=CacheSettings(folder=tmp_path))
    for batch in opened():
        batch.zero_()
    assert hash_rows(opened()) == hash_array(shards[1])


def stream_threads():
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("shardline")]


@pytest.mark.parametrize("ending", ["break", "exception", "close", "end"])
def test_when_the_loop_ends_threads_are_gone_and_the_next_one_starts_afresh(shards, ending):
    glob, rows = shards
    dataset = ObjectStorageDataset(glob, batch_size=10, epochs=1)
    batches = dataset.batches()
    with pytest.raises(ZeroDivisionError) if ending == "exception" else closing(batches):
        for batch in batches:
            assert stream_threads()
            if ending == "break" and batch.iteration == 1:
                break
            if ending == "exception":
                raise ZeroDivisionError
    batches.close()
    assert not stream_threads()
    assert hash_rows(dataset) == hash_array(rows)


def test_an_error_ends_the_threads_too(tmp_path):
    write_shards(tmp_path, [5, 5])
    (tmp_path / "part-00001.csv").write_bytes(b"fare,latitude,hour\n1,2,x\n")
    batches = iter(ObjectStorageDataset(f"{tmp_path}/part*.csv", batch_size=5))
    assert len(next(batches)) == 5, "rows before the bad ones are good"
    with pytest.raises(RowError):
        next(batches)
    assert not stream_threads()


def test_two_iterations_may_go_on_at_once(shards):
    dataset = ObjectStorageDataset(shards[0], batch_size=24, epochs=1)
    assert all(torch.equal(one, other) for one, other in zip(dataset, dataset, strict=True))


def test_it_pickles_after_use(shards):
    dataset = ObjectStorageDataset(shards[0], batch_size=24, epochs=1)
    first = hash_rows(dataset)
    assert hash_rows(pickle.loads(pickle.dumps(dataset))) == first


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_that_are_forked_or_spawned_after_use_give_the_same_rows(shards, method):
    dataset = ObjectStorageDataset(shards[0], batch_size=24, epochs=1)
    expected = hash_rows(dataset)
    loader = DataLoader(dataset, batch_size=None, num_workers=2, multiprocessing_context=method)
    assert hash_rows(loader) == expected


def test_a_shard_larger_than_memory_allows_is_staged_in_a_file_that_is_gone_afterwards(tmp_path, monkeypatch):
    from tasks.streaming import dataset as module

    monkeypatch.setattr(module, "IN_MEMORY", 1000)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "staging"))
    (tmp_path / "staging").mkdir()
    rows = write_shards(tmp_path / "data", [500, 10, 600])
    assert hash_rows(ObjectStorageDataset(f"{tmp_path}/data/part*.csv", batch_size=64, epochs=1)) == hash_array(rows)
    assert not list((tmp_path / "staging").iterdir())


INTERRUPTED = """
import sys
from tasks.streaming import CacheSettings, ObjectStorageDataset
for batch in ObjectStorageDataset(sys.argv[1], batch_size=3, cache=CacheSettings(folder=sys.argv[2])):
    print("batch", flush=True)
"""


def test_ctrl_c_ends_the_process_at_once_and_leaves_no_unfinished_file(shards, tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED, shards[0], str(tmp_path)],
        cwd=Path(__file__).parents[1],
        env=os.environ | {"TMPDIR": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout
    assert process.stdout.readline() == "batch\n"
    process.send_signal(signal.SIGINT)
    began = time.monotonic()
    _, problems = process.communicate(timeout=30)
    assert process.returncode in (-signal.SIGINT, 1), problems
    assert problems.rstrip().endswith("KeyboardInterrupt")
    assert time.monotonic() - began < 20
    assert {path.suffix for path in tmp_path.iterdir()} <= {".rows", ""}


def test_a_row_has_one_place_only(tmp_path):
    """All rows of a large enough set, over ranks and workers: none twice, none missing."""
    rows = draw_rows(5000)
    for number in range(5):
        (tmp_path / f"part-{number}.csv").write_bytes(to_csv(rows[number * 1000 : (number + 1) * 1000]))
    found = []
    for rank in range(3):
        placement = Placement(rank=rank, world_size=3)
        dataset = ObjectStorageDataset(f"{tmp_path}/part*.csv", batch_size=333, epochs=1, placement=placement)
        found += [batch[:, 0] for batch in DataLoader(dataset, batch_size=None, num_workers=2)]
    assert torch.equal(torch.cat(found).sort().values, torch.from_numpy(rows[:, 0]))
