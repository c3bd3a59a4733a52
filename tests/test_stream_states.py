"""torch's conventions: state_dict and load_state_dict, set_epoch, lengths, worker processes that persist."""

import json
import os
import subprocess
import sys
import time
from contextlib import closing
from itertools import islice
from pathlib import Path

import pytest
import torch
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.stateful import Stateful
from torch.utils.data import DataLoader

from tasks.errors import ConfigurationError
from tasks.streaming import ObjectStorageDataset, Placement
from tests.shards import hash_rows, write_shards

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")  # more workers than cores, on purpose

COUNTS = (7, 31, 2, 18, 25, 1, 40, 13)  # 137 rows
BATCH = 24
PASS = 6  # batches


@pytest.fixture(scope="module")
def glob(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards")
    write_shards(folder, COUNTS, metadata=True)
    return f"{folder}/part*.csv"


@pytest.fixture
def opened(glob):
    """A function that opens a shuffled stream of two epochs."""

    def make(**options):
        return ObjectStorageDataset(glob, **{"batch_size": BATCH, "epochs": 2, "shuffle": True, "seed": 5} | options)

    return make


def hand_out(dataset, batches):
    """The first batches, as lists, and the state after them as JSON keeps it."""
    with closing(iter(dataset)) as stream:
        rows = [batch.tolist() for batch in islice(stream, batches)]
        return rows, json.loads(json.dumps(dataset.state_dict()))


def put_together(parts):
    return [torch.cat(part).tolist() for part in zip(*parts, strict=True)]


@pytest.mark.parametrize("stop", [0, 1, 5, 6, 11, 12])
@pytest.mark.parametrize(("world_size", "workers"), [(1, 0), (3, 0), (2, 3)])
def test_first_part_and_what_follows_its_state_are_the_whole(opened, stop, world_size, workers):
    whole = [batch.tolist() for batch in opened()]
    first, state = hand_out(opened(), stop)
    assert state == {"iteration": stop, "fingerprint": state["fingerprint"]}
    parts = []
    for rank in range(world_size):
        dataset = opened(placement=Placement(rank=rank, world_size=world_size))
        dataset.load_state_dict(state)
        assert len(dataset) == 12 - stop
        parts.append(list(DataLoader(dataset, batch_size=None, num_workers=workers) if workers else dataset))
    assert first + put_together(parts) == whole


def test_every_rank_is_in_the_same_state(opened):
    states = [hand_out(opened(placement=Placement(rank=rank, world_size=3)), 4)[1] for rank in range(3)]
    assert states == [hand_out(opened(), 4)[1]] * 3


def test_a_state_counts_for_one_iteration_and_the_next_begins_anew(opened):
    dataset, whole = opened(), hash_rows(opened())
    dataset.load_state_dict(hand_out(opened(), 7)[1])
    assert len(list(dataset)) == 5
    assert dataset.state_dict()["iteration"] == 12
    assert hash_rows(dataset) == whole


def test_an_endless_stream_goes_on_from_its_state(opened):
    rows, _ = hand_out(opened(epochs=None), 20)
    first, state = hand_out(opened(epochs=None), 9)
    dataset = opened(epochs=None)
    dataset.load_state_dict(state)
    assert first + hand_out(dataset, 11)[0] == rows


@pytest.mark.parametrize(
    "other", [{"batch_size": 25}, {"seed": 6}, {"shuffle": False}, {"max_shards": 5}, {"columns": ["fare"]}]
)
def test_the_state_of_another_stream_is_refused(glob, opened, other):
    dataset = ObjectStorageDataset.from_url(
        glob, **{"batch_size": BATCH, "epochs": 2, "shuffle": True, "seed": 5} | other
    )
    with pytest.raises(ConfigurationError, match="the state is of another stream: its shards, columns, batch_size"):
        dataset.load_state_dict(opened().state_dict())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"iteration": -1}, "the state's iteration is -1"),
        ({"iteration": None}, "the state has no 'iteration'"),
        ({"fingerprint": None}, "the state has no 'fingerprint'"),
    ],
)
def test_what_is_no_state_is_refused(opened, change, message):
    state = {name: value for name, value in (opened().state_dict() | change).items() if value is not None}
    with pytest.raises(ConfigurationError, match=message):
        opened().load_state_dict(state)


def test_a_state_of_one_pass_goes_on_in_its_epoch(opened):
    stopped, whole = opened(epochs=1), opened(epochs=1)
    stopped.set_epoch(3)
    whole.set_epoch(3)
    first, state = hand_out(stopped, 2)
    assert (state["iteration"], state["epoch"]) == (2, 3)
    dataset = opened(epochs=1)
    dataset.load_state_dict(state)
    dataset.set_epoch(3)  # as a training loop does that begins with the epoch it was stopped in
    assert first + [batch.tolist() for batch in dataset] == [batch.tolist() for batch in whole]
    dataset.load_state_dict(state)
    dataset.set_epoch(4)
    assert len(list(dataset)) == PASS


# set_epoch


def test_set_epoch_takes_each_epoch_in_the_order_that_an_endless_stream_takes_it(opened):
    """A batch as large as the data: batch e of the endless stream is epoch e."""
    size = sum(COUNTS)
    endless = list(islice(opened(epochs=None, batch_size=size), 4))
    one_pass = opened(epochs=1, batch_size=size)
    for epoch in (2, 0, 3, 1):
        one_pass.set_epoch(epoch)
        assert torch.equal(next(iter(one_pass)), endless[epoch])


@pytest.mark.parametrize("epochs", [None, 2])
def test_set_epoch_is_for_one_pass_only(opened, epochs):
    with pytest.raises(ConfigurationError, match="set_epoch is for a stream that ends with each epoch: give epochs=1"):
        opened(epochs=epochs).set_epoch(1)


def test_an_epoch_below_0_is_refused(opened):
    with pytest.raises(ConfigurationError, match="epoch is -1; it must be at least 0"):
        opened(epochs=1).set_epoch(-1)


# Lengths


@pytest.mark.filterwarnings("error:Length of IterableDataset")  # torch's, where more comes than was said
@pytest.mark.parametrize("workers", [0, 4])
@pytest.mark.parametrize("epochs", [1, 2, 3])
def test_each_rank_yields_as_many_batches_as_it_says(opened, epochs, workers):
    expected = -(-epochs * sum(COUNTS) // BATCH)
    for rank in range(3):
        dataset = opened(epochs=epochs, placement=Placement(rank=rank, world_size=3))
        loader = DataLoader(dataset, batch_size=None, num_workers=workers)
        assert len(dataset) == len(loader) == len(list(loader)) == expected


# Worker processes that persist


def count_held(processes):
    """Threads and open files of each process."""
    return [tuple(len(list(Path(f"/proc/{pid}/{kind}").iterdir())) for kind in ("task", "fd")) for pid in processes]


def check_held(processes, expected):
    """A thread that was joined may be in the system's list a moment longer."""
    for _ in range(100):
        if (held := count_held(processes)) == expected:
            return
        time.sleep(0.05)
    assert held == expected


def test_workers_that_persist_give_the_same_rows_and_leak_nothing(opened):
    dataset, alone = opened(epochs=1), opened(epochs=1)
    loader = DataLoader(dataset, batch_size=None, num_workers=2, persistent_workers=True)
    held, processes = [], []
    for epoch in range(6):
        dataset.set_epoch(epoch)
        alone.set_epoch(epoch)
        assert hash_rows(loader) == hash_rows(alone)
        if epoch == 0:
            processes = [os.getpid(), *(worker.pid for worker in loader._iterator._workers)]  # type: ignore[union-attr]
        elif epoch == 1:  # the first pass makes what is kept
            time.sleep(0.5)
            held = count_held(processes)
    assert len(processes) == 3
    check_held(processes, held)
    assert processes[1:] == [worker.pid for worker in loader._iterator._workers]  # type: ignore[union-attr]


def test_one_stream_gone_through_often_leaks_nothing(opened):
    dataset = opened(epochs=1)
    assert len(list(dataset)) == PASS
    time.sleep(0.5)
    held = count_held([os.getpid()])
    for _ in range(5):
        assert len(list(dataset)) == PASS
    check_held([os.getpid()], held)


# Those who keep states: torch.distributed.checkpoint, torchdata


def test_it_is_what_torch_distributed_checkpoint_calls_stateful(opened):
    assert isinstance(opened(), Stateful)


RANK = """
import sys
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from itertools import islice
from tasks.streaming import ObjectStorageDataset

glob, folder, rank = sys.argv[1], sys.argv[2], int(sys.argv[3])
dist.init_process_group("gloo", store=dist.FileStore(folder + "/store", 2), rank=rank, world_size=2)
dataset = ObjectStorageDataset(glob, batch_size=24, epochs=2, shuffle=True, seed=5)
assert (dataset.rank, dataset.world_size) == (rank, 2)
for batch in islice(dataset, 7):
    pass
dcp.save({"data": dataset}, checkpoint_id=folder + "/kept")
dist.destroy_process_group()
"""


def test_torch_distributed_checkpoint_keeps_its_state_from_two_ranks_to_one(glob, opened, tmp_path):
    commands = [[sys.executable, "-c", RANK, glob, str(tmp_path), str(rank)] for rank in range(2)]
    ranks = [subprocess.Popen(command, cwd=Path(__file__).parents[1]) for command in commands]
    assert [rank.wait(timeout=120) for rank in ranks] == [0, 0]
    dataset = opened()
    load({"data": dataset}, checkpoint_id=tmp_path / "kept")
    assert dataset.state_dict()["iteration"] == 7
    assert [batch.tolist() for batch in dataset] == [batch.tolist() for batch in opened()][7:]


@pytest.mark.parametrize(("workers", "stop"), [(0, 0), (0, 5), (2, 0), (2, 1), (2, 6), (4, 3), (4, 11)])
def test_torchdatas_loader_goes_on_with_as_many_workers(opened, workers, stop):
    stateful = pytest.importorskip("torchdata.stateful_dataloader", reason="torchdata is not installed")

    def make():
        return stateful.StatefulDataLoader(opened(), batch_size=None, num_workers=workers)

    whole = [batch.tolist() for batch in opened()]
    loader = make()
    first = [batch.tolist() for batch in islice(loader, stop)]
    state = loader.state_dict()
    rest = make()
    rest.load_state_dict(state)
    assert first + [batch.tolist() for batch in rest] == whole
    assert [batch.tolist() for batch in rest] == whole


@pytest.mark.parametrize("persistent", [False, True])
def test_torchdatas_loader_goes_on_in_the_epoch_that_it_was_stopped_in(opened, persistent):
    stateful = pytest.importorskip("torchdata.stateful_dataloader", reason="torchdata is not installed")

    def make(dataset):
        return stateful.StatefulDataLoader(dataset, batch_size=None, num_workers=2, persistent_workers=persistent)

    def read(epochs, loader, dataset):
        found = []
        for epoch in epochs:
            dataset.set_epoch(epoch)
            found.append([batch.tolist() for batch in loader])
        return found

    alone, dataset, again = opened(epochs=1), opened(epochs=1), opened(epochs=1)
    whole, loader = read(range(4), alone, alone), make(dataset)
    assert read(range(2), loader, dataset) == whole[:2]
    dataset.set_epoch(2)
    first = [batch.tolist() for batch in islice(loader, 3)]
    rest = make(again)
    rest.load_state_dict(loader.state_dict())
    read_again = read((2, 3), rest, again)
    assert first + read_again[0] == whole[2]
    assert read_again[1] == whole[3]
