"""What each rank of a training over several processes does; who starts them is another's.

torch.distributed is initialised before, by Ray Train, torchrun or a test; nothing here knows which.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from tasks.facts import TrainingJob
from tasks.ranks.parts import Tally
from tasks.training.start import Started, start_trainer

if TYPE_CHECKING:
    from tasks.learning.checkpoints import Checkpoint
    from tasks.learning.loop import Iteration


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
