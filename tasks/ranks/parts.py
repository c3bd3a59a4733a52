"""This process's part of every batch, as a rank or alone: streamed, and timed."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from tasks.errors import ShardlineError
from tasks.facts import RankTimes, StreamTimes
from tasks.streaming.objects.traffic import Traffic, count, tell_each

if TYPE_CHECKING:
    from torch import Tensor

    from tasks.learning.batches import Prepared
    from tasks.streaming import ObjectStorageDataset


class StageClock:
    """Adds up what the stream's stages take; `total` is None until a batch has passed."""

    def __init__(self) -> None:
        self.total: StreamTimes | None = None

    def watch(self, dataset: ObjectStorageDataset) -> Iterator[Tensor]:
        """Yield the dataset's batches, their times added up."""
        with closing(dataset.batches()) as batches:
            for batch in batches:
                before = self.total or StreamTimes(fetch_seconds=0.0, decode_seconds=0.0, assemble_seconds=0.0)
                self.total = StreamTimes(
                    fetch_seconds=before.fetch_seconds + batch.times.fetch_seconds,
                    decode_seconds=before.decode_seconds + batch.times.decode_seconds,
                    assemble_seconds=before.assemble_seconds + batch.times.assemble_seconds,
                )
                yield batch.tensor


def stream_batches(dataset: ObjectStorageDataset, workers: int, clock: StageClock) -> Iterator[Tensor]:
    """Yield the dataset's batches, through a DataLoader where worker processes are asked for: those are not timed."""
    if not workers:
        yield from clock.watch(dataset)
        return
    import torch
    from torch.utils.data import DataLoader

    counted = torch.zeros(workers, 2, dtype=torch.int64).share_memory_()  # type: ignore[no-untyped-call]
    # spawn: where a flow has run, Prefect's handlers at exit end every forked process with exit code 1
    loader = DataLoader(
        dataset,
        batch_size=None,
        num_workers=workers,
        multiprocessing_context="spawn",
        worker_init_fn=partial(count_in, counted),
    )
    try:
        yield from loader
    except ShardlineError as error:  # torch puts the worker's traceback before the message
        error.__traceback__ = None  # of frames that hold torch's iterator, and with it the worker processes
        raise type(error)(str(error).rpartition(f"{type(error).__name__}: ")[2].strip()) from error
    finally:
        requests, received = counted.sum(dim=0).tolist()
        count(requests=requests, received=received)


def count_in(counted: Tensor, worker: int) -> None:
    """Let a worker process write into its row of `counted` [workers, 2] what it asks of the store: requests, bytes."""

    def note(traffic: Traffic) -> None:
        counted[worker, 0], counted[worker, 1] = traffic.requests, traffic.bytes

    tell_each(note)


class Tally:
    """Adds up where a rank's time goes; `times` may be read by another thread at any moment."""

    def __init__(self, rank: int) -> None:
        self.times = RankTimes(
            rank=rank,
            host=socket.gethostname(),
            process=os.getpid(),
            iterations=0,
            rows=0,
            wait_seconds=0.0,
            copy_seconds=0.0,
            compute_seconds=0.0,
            gather_seconds=0.0,
        )

    def count(self, batches: Iterator[Prepared]) -> Iterator[Prepared]:
        """Yield the batches, their rows counted."""
        for batch in batches:
            self.count_rows(len(batch.x))
            yield batch

    def count_rows(self, rows: int) -> None:
        """Count rows."""
        self.times = replace(self.times, rows=self.times.rows + rows)

    def add(self, wait_seconds: float, copy_seconds: float, compute_seconds: float, gather_seconds: float) -> None:
        """Count a batch."""
        times = self.times
        self.times = replace(
            times,
            iterations=times.iterations + 1,
            wait_seconds=times.wait_seconds + wait_seconds,
            copy_seconds=times.copy_seconds + copy_seconds,
            compute_seconds=times.compute_seconds + compute_seconds,
            gather_seconds=times.gather_seconds + gather_seconds,
        )
