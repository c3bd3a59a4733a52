"""What the ranks of one job tell whoever started them, and where they begin: the only way from them to the record.

A `Mailbox` is one small object in a process of its own, called one call at a time; nothing here needs Ray or torch.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

from tasks.errors import ShardlineError
from tasks.facts import RankTimes

R = TypeVar("R")


class Told(Protocol):
    """Something that a rank has done, of which the record is to know."""

    def advance(self, state: Any) -> Any:
        """Return the state to begin again from, once this is done, from that before."""


@dataclass(frozen=True, kw_only=True)
class News(Generic[R]):
    """What has come in since it was last asked for, and how the ranks are.

    attempt: how often they have begun
    size: how many they are in this attempt
    silent: for how many seconds nothing was heard of each rank since they began last
    ended: by rank, what those that have done their part hand in
    controller: the process that starts the ranks, on the driver's machine; None before it is there
    """

    told: tuple[Any, ...]
    attempt: int
    size: int
    silent: Mapping[int, float]
    times: Mapping[int, RankTimes]
    ended: Mapping[int, R]
    error: ShardlineError | None
    controller: int | None = None

    @property
    def is_over(self) -> bool:
        """Return whether every rank has done its part."""
        return self.attempt > 0 and len(self.ended) == self.size


@dataclass
class Mailbox(Generic[R]):
    """Keeps what ranks tell until it is taken, and the state after it, from which they begin again."""

    state: Any
    size: int = 0
    attempt: int = 0
    told: list[Told] = field(default_factory=list)
    heard: dict[int, float] = field(default_factory=dict)
    times: dict[int, RankTimes] = field(default_factory=dict)
    ended: dict[int, R] = field(default_factory=dict)
    error: ShardlineError | None = None
    controller: int | None = None

    def know(self, controller: int) -> None:
        """Take in which process starts the ranks."""
        self.controller = controller

    def begin(self, size: int) -> tuple[int, Any]:
        """Return the number of this attempt and the state after all that was told, recorded or not.

        Asked by rank 0 of `size`, which may be other than before.
        """
        self.attempt, self.size = self.attempt + 1, size
        self.heard = dict.fromkeys(range(size), time.monotonic())
        self.times = {rank: times for rank, times in self.times.items() if rank < size}
        self.ended = {}
        return self.attempt, self.state

    def tell(self, attempt: int, told: Told) -> int:
        """Take in what was done, unless a rank tells it that is none any more; return how much waits to be taken."""
        if attempt == self.attempt:
            self.told.append(told)
            self.state = told.advance(self.state)
        return len(self.told)

    def beat(self, times: RankTimes) -> None:
        """Take in that a rank lives, and where its time went."""
        if self.attempt and times.rank >= self.size:
            return  # of a rank that is none any more
        self.heard[times.rank] = time.monotonic()
        self.times[times.rank] = times

    def end(self, attempt: int, times: RankTimes, result: R) -> None:
        """Take in that a rank has done its part."""
        if attempt == self.attempt:
            self.beat(times)
            self.ended[times.rank] = result

    def fail(self, error: ShardlineError) -> None:
        """Take in why a rank cannot go on, where another attempt would end alike; the first to say so is heard."""
        self.error = self.error or error

    def take(self) -> News[R]:
        """Return what was told since, and how the ranks are."""
        now = time.monotonic()
        told, self.told = tuple(self.told), []
        return News(
            told=told,
            attempt=self.attempt,
            size=self.size,
            silent={rank: now - heard for rank, heard in self.heard.items() if rank not in self.ended},
            times=dict(self.times),
            ended=dict(self.ended),
            error=self.error,
            controller=self.controller,
        )
