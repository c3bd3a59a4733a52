"""What the ranks of one training tell whoever started them, and where they begin: the only way from them to the record.

A `Mailbox` is one small object in a process of its own, called one call at a time; nothing here needs Ray or torch.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from tasks.errors import ShardlineError
from tasks.facts import RankTimes, StreamTimes
from tasks.learning.sums import MomentSums


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


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What a rank that has ended read, and how: see `ObjectStorageDataset` and `Fit`.

    moments: of all rows, where it was to take them and nothing else; equal on every rank
    """

    device: str
    stream: StreamTimes | None
    checks: Mapping[str, str]
    damaged: tuple[str, ...]
    moments: MomentSums | None = None


@dataclass(frozen=True, kw_only=True)
class News:
    """What has come in since it was last asked for, and how the ranks are.

    attempt: how often they have begun
    silent: for how many seconds nothing was heard of each rank since they began last
    """

    told: tuple[Told, ...]
    attempt: int
    silent: Mapping[int, float]
    times: Mapping[int, RankTimes]
    ended: Mapping[int, Reading]
    error: ShardlineError | None


@dataclass
class Mailbox:
    """Keeps what `size` ranks tell until it is taken, and the last state told, from which they begin again."""

    size: int
    state: State | None
    attempt: int = 0
    told: list[Told] = field(default_factory=list)
    heard: dict[int, float] = field(default_factory=dict)
    times: dict[int, RankTimes] = field(default_factory=dict)
    ended: dict[int, Reading] = field(default_factory=dict)
    error: ShardlineError | None = None

    def begin(self) -> tuple[int, State | None]:
        """Return the number of this attempt and the last state that was told, recorded or not; asked by rank 0."""
        self.attempt += 1
        self.heard = dict.fromkeys(range(self.size), time.monotonic())
        self.ended = {}
        return self.attempt, self.state

    def tell(self, attempt: int, told: Told) -> int:
        """Take in an iteration, unless a rank tells it that is none any more; return how many wait to be taken."""
        if attempt == self.attempt:
            self.told.append(told)
            known = self.state.moments if self.state else None
            self.state = replace(told.after, moments=told.after.moments or known)
        return len(self.told)

    def beat(self, times: RankTimes) -> None:
        """Take in that a rank lives, and where its time went."""
        self.heard[times.rank] = time.monotonic()
        self.times[times.rank] = times

    def end(self, attempt: int, times: RankTimes, reading: Reading) -> None:
        """Take in that a rank has done its part."""
        if attempt == self.attempt:
            self.beat(times)
            self.ended[times.rank] = reading

    def fail(self, error: ShardlineError) -> None:
        """Take in why a rank cannot go on, where another attempt would end alike; the first to say so is heard."""
        self.error = self.error or error

    def take(self) -> News:
        """Return what was told since, and how the ranks are."""
        now = time.monotonic()
        told, self.told = tuple(self.told), []
        return News(
            told=told,
            attempt=self.attempt,
            silent={rank: now - heard for rank, heard in self.heard.items() if rank not in self.ended},
            times=dict(self.times),
            ended=dict(self.ended),
            error=self.error,
        )
