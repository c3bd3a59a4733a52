"""A training's states as its ranks tell them: tensors as bytes, so that whoever passes them on needs no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING

from tasks.facts import TrainingJob
from tasks.learning.sums import MOMENTS, MomentSums

if TYPE_CHECKING:
    from tasks.learning.checkpoints import Checkpoint


@dataclass(frozen=True, kw_only=True)
class State:
    """A loop's state before an iteration: its tensors as safetensors, and plain facts.

    moments: what the first pass had taken in; None: nothing, or no more than in the state told before
    """

    iteration: int
    tensors: bytes
    facts: Mapping[str, float | None]
    moments: MomentSums | None = None


@dataclass(frozen=True, kw_only=True)
class Told:
    """One iteration: its facts by their names in `tasks.learning.loop.Iteration`, and the state after it."""

    facts: Mapping[str, float]
    after: State

    def advance(self, state: State | None) -> State:
        """Return the state after the iteration, with the moments of that before where it brings none."""
        return replace(self.after, moments=self.after.moments or (state.moments if state else None))


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
