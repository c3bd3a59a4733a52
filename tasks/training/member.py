"""What a rank of a training does: it trains from where the mailbox says, and rank 0 tells each iteration."""

from __future__ import annotations

from collections import deque
from dataclasses import asdict, replace
from typing import TYPE_CHECKING

from tasks.facts import TrainingJob
from tasks.ranks.member import Member
from tasks.ranks.passing import Reading, describe_reading
from tasks.training.ranks import train_rank
from tasks.training.states import State, Told, pack_state, resume

if TYPE_CHECKING:
    from tasks.learning.loop import Iteration
    from tasks.training.start import Started


def train(member: Member, job: TrainingJob) -> Reading:
    """Train as a rank, from where the mailbox says."""
    job = without_gpu(job)
    teller = Teller(member)
    started = train_rank(job, resume(member.begin(), job), teller.tell, teller.keep, member.tally)
    return describe_reading(started.dataset, started.clock, device=str(started.trainer.device))


def without_gpu(job: TrainingJob) -> TrainingJob:
    """Return the job on the CPU unless GPUs were asked for, of which then each rank has its own."""
    if job.parameters.device == "cuda":
        return job
    return replace(job, parameters=job.parameters.model_copy(update={"device": "cpu"}))


class Teller:
    """Tells each iteration and the state after it, where the member is rank 0."""

    def __init__(self, member: Member) -> None:
        self._member = member
        self._states: deque[State] = deque()
        self._taken_in = 0  # batches in the moments that were told

    def keep(self, started: Started) -> None:
        """Copy the state after a step, to be told with its iteration."""
        if self._member.rank:
            return
        trainer, first_pass = started.trainer, started.first_pass
        moments = first_pass.sums(trainer.iteration) if first_pass and first_pass.batches != self._taken_in else None
        self._taken_in = first_pass.batches if first_pass else 0
        self._states.append(pack_state(trainer.state(), moments))

    def tell(self, iteration: Iteration) -> None:
        """Tell an iteration and the state after it."""
        if self._member.rank == 0:
            self._member.tell(Told(facts=asdict(iteration), after=self._states.popleft()))
