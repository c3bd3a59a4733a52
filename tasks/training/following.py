"""A training over ranks, followed from the process that writes the record.

What a rank does is in `.ranks`, what it tells in `.states`. Our checkpoints are written from those states here.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from functools import partial
from typing import TYPE_CHECKING

from tasks.facts import TrainingJob
from tasks.ranks.group import Group, note_readings
from tasks.training.member import train
from tasks.training.states import State, pack_state, unpack_state

if TYPE_CHECKING:
    from tasks.learning.loop import Iteration, Trainer
    from tasks.training.start import Started


def follow_ranks(
    job: TrainingJob, started: Started, keep: Callable[[Trainer], None]
) -> Generator[Iteration, None, None]:
    """Yield the iterations that ranks compute, once each; the trainer has the state after it, and `keep` has seen it.

    Raises as `Group` does.
    """
    import torch

    from tasks.learning.loop import Iteration

    trainer = started.trainer
    if trainer.iteration == trainer.settings.iterations:
        return
    moments = started.first_pass.sums(trainer.iteration) if started.first_pass else None
    state = pack_state(trainer.state(), moments) if trainer.iteration else None
    on_gpus = job.parameters.device == "cuda"
    with Group(job.parameters, partial(train, job=job), state=state, on_gpus=on_gpus) as group:
        while trainer.iteration < trainer.settings.iterations:
            for told in group.take().told:
                follow(started, told.after)
                keep(trainer)
                yield Iteration(**told.facts)
        news = group.await_end()
    started.trainer.device = torch.device(news.ended[0].device)
    started.ranks.extend(note_readings(news, started.dataset, started.clock))


def follow(started: Started, state: State) -> None:
    """Give the trainer a state, and the first pass; they are not whole before that is complete."""
    started.trainer.is_whole = False
    if state.moments and started.first_pass:
        started.first_pass.restore(state.moments)
    started.trainer.restore(unpack_state(state))
    started.trainer.is_whole = True
