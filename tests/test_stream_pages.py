"""Where batches are assembled, and whether the next one is ready: what a GPU's copies need to know of the stream."""

import pickle
import time
import weakref

import numpy as np
import pytest
import torch

from tasks.streaming import ObjectStorageDataset
from tasks.streaming.memory import BATCHES
from tests.shards import write_shards

BATCH = 50_000  # rows of 24 bytes, and so more than 1 MiB


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards")
    write_shards(folder, [80_000, 70_000])
    return f"{folder}/part-*.csv"


class Page(bytearray):
    """Memory that can be referred to weakly."""


def test_batches_are_assembled_in_the_memory_that_is_given(shards):
    made, alive, places = [], [], []

    def make(size):
        page = Page(size)
        made.append(weakref.ref(page))
        alive.append(sum(each() is not None for each in made))
        places.append(np.frombuffer(page, dtype=np.uint8).ctypes.data)
        assert size % 2**21 == 0
        return memoryview(page)

    plain = ObjectStorageDataset(shards, batch_size=BATCH, epochs=10)
    given = ObjectStorageDataset(shards, batch_size=BATCH, epochs=10, pages=make)
    for expected, batch in zip(plain, given, strict=True):
        assert torch.equal(expected, batch)
        assert batch.data_ptr() in places
    assert max(alive) <= BATCHES
    assert len(made) < 30  # batches: pages are used again


def test_a_stream_says_whether_its_next_batch_can_be_had_without_waiting(shards):
    dataset = ObjectStorageDataset(shards, batch_size=BATCH, epochs=1)
    assert not dataset.is_ready()
    batches = dataset.batches()
    next(batches)
    deadline = time.monotonic() + 20
    while not dataset.is_ready() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert dataset.is_ready()
    assert len(pickle.loads(pickle.dumps(dataset))) == 3
    assert len(list(batches)) == 2
    assert not dataset.is_ready()
