"""What each rank of a training over several processes does; who starts them is another's.

torch.distributed is initialised before, by Ray Train, torchrun or a test; nothing here knows which.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from tasks.facts import RankTimes, TrainingJob
from tasks.training.start import Started, start_trainer

if TYPE_CHECKING:
    from tasks.learning.batches import Prepared
    from tasks.learning.checkpoints import Checkpoint
    from tasks.learning.loop import Iteration
    from tasks.learning.reduction import Reduction


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
    batches = tally.count(started.batches) if tally else started.batches
    for iteration in train(started.trainer, batches, (lambda _: keep(started)) if keep else None):
        if tally:
            tally.add(iteration, started.trainer.reduction)
        tell(iteration)
    return started


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
            self.times = replace(self.times, rows=self.times.rows + len(batch.x))
            yield batch

    def add(self, iteration: Iteration, reduction: Reduction) -> None:
        """Count an iteration."""
        from tasks.learning.reduction import seconds_gathering

        times = self.times
        self.times = replace(
            times,
            iterations=times.iterations + 1,
            wait_seconds=times.wait_seconds + iteration.wait_seconds,
            copy_seconds=times.copy_seconds + iteration.copy_seconds,
            compute_seconds=times.compute_seconds + iteration.compute_seconds,
            gather_seconds=seconds_gathering(reduction),
        )
