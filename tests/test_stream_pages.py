"""Where batches are assembled, and whether the next one is ready: what a GPU's copies need to know of the stream."""

import pickle
import time

import pytest
import torch

from tasks.streaming import ObjectStorageDataset
from tests.shards import write_shards

BATCH = 50_000  # rows of 24 bytes, and so more than 1 MiB


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards")
    write_shards(folder, [80_000, 70_000])
    return f"{folder}/part-*.csv"


def test_batches_are_assembled_in_the_memory_that_is_given(shards):
    made = []

    def make(size):
        made.append(bytearray(size))
        return memoryview(made[-1])

    plain = ObjectStorageDataset(shards, batch_size=BATCH, epochs=2)
    given = ObjectStorageDataset(shards, batch_size=BATCH, epochs=2, pages=make)
    for expected, batch in zip(plain, given, strict=True):
        assert torch.equal(expected, batch)
        assert any(batch.numpy().tobytes() == bytes(pages[: batch.nbytes]) for pages in made)
    assert 1 <= len(made) <= 4  # of six batches: pages are used again
    assert {len(pages) % 2**21 for pages in made} == {0}


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
