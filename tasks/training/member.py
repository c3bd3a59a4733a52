"""One rank as Ray Train runs it: it trains, tells the mailbox, and lets itself be heard of while it does."""

from __future__ import annotations

import threading
import time
from collections import deque
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from tasks.errors import ShardlineError
from tasks.facts import TrainingJob
from tasks.learning.sums import MOMENTS, MomentSums
from tasks.training.mailbox import Reading, State, Told
from tasks.training.ranks import Tally, pass_rank, train_rank

if TYPE_CHECKING:
    from tasks.learning.checkpoints import Checkpoint
    from tasks.learning.loop import Iteration
    from tasks.streaming import ObjectStorageDataset
    from tasks.training.start import StageClock, Started

BEAT_SECONDS = 1.0
UNANSWERED = 8  # iterations told that the mailbox has not taken in yet
UNTAKEN = 256  # iterations that wait in it for the record, from which on the ranks wait too
PAUSE_SECONDS = 0.05


def be_rank(given: dict[str, Any]) -> None:
    """Be the rank of this process: Ray Train calls it in each, with the `job`, the `mailbox`, and what to do."""
    import ray.train

    job, mailbox = without_gpu(given["job"]), given["mailbox"]
    context = ray.train.get_context()
    share_cores(context.get_local_world_size())
    member = Member(mailbox, Tally(context.get_world_rank()))
    try:
        with member:
            member.end(given["work"](member, job))
    except ShardlineError as error:
        ray.get(mailbox.fail.remote(error))
        raise


def train(member: Member, job: TrainingJob) -> Reading:
    """Train as a rank, from where the mailbox says."""
    started = train_rank(job, resume(member.begin(), job), member.tell, member.keep, member.tally)
    return describe_reading(started.dataset, started.clock, device=str(started.trainer.device))


def take_moments(member: Member, job: TrainingJob) -> Reading:
    """Go through the rows once as a rank; after a stop, from the beginning."""
    member.begin()
    passed = pass_rank(job, member.tally)
    return replace(describe_reading(passed.dataset, passed.clock, device="cpu"), moments=passed.sums)


def describe_reading(dataset: ObjectStorageDataset, clock: StageClock, *, device: str) -> Reading:
    """Return how a rank read."""
    return Reading(device=device, stream=clock.total, checks=dict(dataset.checks), damaged=tuple(dataset.damaged))


def share_cores(ranks: int) -> None:
    """Let torch compute with this rank's share of the cores that all ranks of this machine have."""
    import torch

    from tasks.devices import describe_cpu

    torch.set_num_threads(max(1, int(describe_cpu().usable) // ranks))


def without_gpu(job: TrainingJob) -> TrainingJob:
    """Return the job on the CPU unless GPUs were asked for, of which then each rank has its own."""
    if job.parameters.device == "cuda":
        return job
    return replace(job, parameters=job.parameters.model_copy(update={"device": "cpu"}))


class Member:
    """What a rank tells: each iteration where it is rank 0, and every second that it lives."""

    def __init__(self, mailbox: Any, tally: Tally) -> None:
        self.mailbox, self.tally = mailbox, tally
        self.attempt = 0
        self._states: deque[State] = deque()
        self._taken_in = 0  # batches in the moments that were told
        self._unanswered: deque[Any] = deque()
        self._ended = threading.Event()
        self._beating = threading.Thread(target=self._beat, name="beating", daemon=True)

    def __enter__(self) -> Member:
        self._beating.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._beating.join()

    def begin(self) -> State | None:
        """Return the state to begin from, the same for all ranks."""
        import ray
        import torch.distributed

        answer: list[tuple[int, State | None]] = [(0, None)]
        if self.tally.times.rank == 0:
            answer[0] = ray.get(self.mailbox.begin.remote())
        torch.distributed.broadcast_object_list(answer)
        self.attempt, state = answer[0]
        return state

    def keep(self, started: Started) -> None:
        """Copy the state after a step, to be told with its iteration."""
        if self.tally.times.rank:
            return
        trainer, first_pass = started.trainer, started.first_pass
        moments = first_pass.sums(trainer.iteration) if first_pass and first_pass.batches != self._taken_in else None
        self._taken_in = first_pass.batches if first_pass else 0
        self._states.append(pack_state(trainer.state(), moments))

    def tell(self, iteration: Iteration) -> None:
        """Tell an iteration and the state after it; waits where too much that was told is on its way."""
        import ray

        if self.tally.times.rank:
            return
        told = Told(facts=asdict(iteration), after=self._states.popleft())
        self._unanswered.append(self.mailbox.tell.remote(self.attempt, told))
        while len(self._unanswered) > UNANSWERED:
            if ray.get(self._unanswered.popleft()) > UNTAKEN:
                time.sleep(PAUSE_SECONDS)

    def end(self, reading: Reading) -> None:
        """Tell that all is told, and how the data was read."""
        import ray

        ray.get([*self._unanswered, self.mailbox.end.remote(self.attempt, self.tally.times, reading)])

    def _beat(self) -> None:
        while True:
            self.mailbox.beat.remote(self.tally.times)
            if self._ended.wait(BEAT_SECONDS):
                return


def resume(state: State | None, job: TrainingJob) -> Checkpoint | None:
    """Return the checkpoint that a state stands for; whoever told the first one has compared the shards."""
    if state is None:
        return None
    found = unpack_state(state)
    moments = {MOMENTS: asdict(state.moments)} if state.moments else {}
    return replace(found, facts={**found.facts, **moments, "shards": job.data.train.etags})


def pack_state(checkpoint: Checkpoint, moments: MomentSums | None = None) -> State:
    """Return a trainer's state, and the first pass's, in a form that needs no torch to be passed on."""
    from safetensors.torch import save

    tensors = {name: tensor.cpu().contiguous() for name, tensor in checkpoint.tensors.items()}
    facts = dict(checkpoint.facts)
    return State(iteration=checkpoint.iteration, tensors=save(tensors), facts=facts, moments=moments)


def unpack_state(state: State) -> Checkpoint:
    """Return what was packed."""
    from safetensors.torch import load

    from tasks.learning.checkpoints import Checkpoint

    return Checkpoint(state.iteration, load(state.tensors), state.facts)
