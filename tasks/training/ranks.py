"""What each rank of a training over several processes does; who starts them is another's.

torch.distributed is initialised before, by Ray Train, torchrun or a test; nothing here knows which.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from tasks.facts import TrainingJob
from tasks.training.start import start_trainer

if TYPE_CHECKING:
    from tasks.learning.checkpoints import Checkpoint
    from tasks.learning.linear import LinearModel
    from tasks.learning.loop import Iteration, Trainer


def train_rank(
    job: TrainingJob,
    kept: Checkpoint | None,
    tell: Callable[[Iteration], None],
    keep: Callable[[Trainer], None] | None = None,
) -> LinearModel:
    """Train on this rank's slices of every batch, from a checkpoint where there is one; return the model.

    `tell` is called with each iteration's facts, in which `mse` and `rows` are those of the whole batch and equal on
    every rank, `keep` as `tasks.learning.loop.train` says. The model is the same for every number of ranks, to the last
    bit.
    """
    from tasks.learning.loop import train

    started = start_trainer(job, kept)
    for iteration in train(started.trainer, started.batches, keep):
        tell(iteration)
    return started.trainer.model()
