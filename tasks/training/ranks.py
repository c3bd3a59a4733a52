"""What each rank of a training over several processes does; who starts them is another's.

torch.distributed is initialised before, by Ray Train, torchrun or a test; nothing here knows which.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from tasks.facts import RankTimes, TrainingJob
from tasks.learning.sums import MomentSums
from tasks.parameters import MOST_ROWS
from tasks.sources import open_dataset
from tasks.training.start import StageClock, Started, start_first_pass, start_trainer, stream_batches

if TYPE_CHECKING:
    from tasks.learning.batches import Prepared
    from tasks.learning.checkpoints import Checkpoint
    from tasks.learning.loop import Iteration
    from tasks.streaming import ObjectStorageDataset


def train_rank(
    job: TrainingJob,
    kept: Checkpoint | None,
    tell: Callable[[Iteration], None],
    keep: Callable[[Started], None] | None = None,
    tally: Tally | None = None,
) -> Started:
    """Train on this rank's slices of every batch, from a checkpoint where there is one; return what was started.

    `tell` is called with each iteration's facts, in which `mse` and `rows` are those of the whole batch and equal on
    every rank, `keep` after each step with what was started, in the state after that step. The model is the same for
    every number of ranks, to the last bit. `tally` counts where this rank's time goes.
    """
    from tasks.learning.loop import train

    started = start_trainer(job, kept)
    reduction = started.trainer.reduction
    gathered = reduction.gather_seconds
    batches = tally.count(started.batches) if tally else started.batches
    for iteration in train(started.trainer, batches, (lambda _: keep(started)) if keep else None):
        if tally:
            before, gathered = gathered, reduction.gather_seconds
            tally.add(iteration.wait_seconds, iteration.copy_seconds, iteration.compute_seconds, gathered - before)
        tell(iteration)
    return started


def pass_rank(job: TrainingJob, tally: Tally) -> Passed:
    """Take in the moments of all training rows, of every batch this rank's slices: they are equal on every rank.

    The last batch goes on at the beginning of the data, so that ranks cut it as any other; what is beyond the end
    counts for nothing.
    """
    from tasks.learning.reduction import find_reduction, slice_rows
    from tasks.streaming import Placement

    size = job.parameters.batch_size or MOST_ROWS
    dataset = open_dataset(
        job.data.train,
        job.sources,
        job.parameters,
        stop=-(-job.data.train.rows // size),
        placement=Placement(slice_rows=slice_rows(size)),
    )
    reduction = find_reduction(dataset.batch_size)
    first_pass = start_first_pass(job, dataset, reduction, None)
    assert first_pass is not None, "there is no checkpoint"
    clock = StageClock()
    asked, gathered = time.perf_counter(), reduction.gather_seconds
    for batch in stream_batches(dataset, job.parameters.num_workers, clock):
        arrived = time.perf_counter()
        first_pass.take(batch)
        waited, asked = arrived - asked, time.perf_counter()
        before, gathered = gathered, reduction.gather_seconds
        tally.count_rows(len(batch))
        tally.add(waited, 0.0, asked - arrived, gathered - before)
    sums = first_pass.sums()
    assert sums is not None, "no data set is without rows"
    return Passed(sums=sums, dataset=dataset, clock=clock)


@dataclass(frozen=True, kw_only=True)
class Passed:
    """The moments of all rows, from one pass over them, and how it read; of several ranks, where their time went."""

    sums: MomentSums
    dataset: ObjectStorageDataset
    clock: StageClock
    ranks: Sequence[RankTimes] = ()


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
