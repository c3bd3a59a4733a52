"""What a run will take: plain facts, and the arithmetic that they come from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A part of a run, and what it asks the store for; `passes` over its data set, those in memory included."""

    name: str
    requests: int
    bytes: int
    passes: float


@dataclass(frozen=True, kw_only=True)
class Need:
    """Bytes that a run takes somewhere at most, those that are free there, and what to change where it needs more."""

    name: str
    place: str
    bytes: int
    free: int
    remedy: str

    @property
    def fits(self) -> bool:
        """Whether there is room."""
        return self.bytes <= self.free


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """What a run will take.

    shards, rows: those that it learns from and those that it is judged on
    stages: its parts, in order; what had been asked for before the forecast was made is the first
    memory: most bytes of its processes at a time
    seconds: from the forecast on, None where nothing is known of this machine; `pace` says what they follow from
    gpus: that are held meanwhile
    """

    shards: int
    rows: int
    stages: tuple[Stage, ...]
    memory: Need
    disk: tuple[Need, ...]
    seconds: float | None
    pace: str
    gpus: int

    @property
    def requests(self) -> int:
        """Requests of all stages."""
        return sum(stage.requests for stage in self.stages)

    @property
    def bytes(self) -> int:
        """Bytes that all stages ask for."""
        return sum(stage.bytes for stage in self.stages)

    @property
    def needs(self) -> tuple[Need, ...]:
        """Memory, and disks."""
        return (self.memory, *self.disk)

    @property
    def short(self) -> tuple[Need, ...]:
        """The needs for which there is no room."""
        return tuple(need for need in self.needs if not need.fits)

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Forecast:
        """Return the forecast that plain JSON types were made of by `asdict`."""
        stages = tuple(Stage(**each) for each in plain["stages"])
        disk = tuple(Need(**each) for each in plain["disk"])
        return cls(**{**plain, "stages": stages, "memory": Need(**plain["memory"]), "disk": disk})


@dataclass(frozen=True, kw_only=True)
class Pace:
    """Seconds that a row of training takes: streamed from the store, streamed from the cache, and kept in memory.

    source: where they come from, in words
    """

    streamed: float
    cached: float
    resident: float
    source: str


@dataclass(frozen=True, kw_only=True)
class Work:
    """Rows that are gone through: `fetched` from the store, read again from the cache, and kept in memory."""

    fetched: int
    cached: int
    resident: int

    def __add__(self, other: Work) -> Work:
        return Work(
            fetched=self.fetched + other.fetched,
            cached=self.cached + other.cached,
            resident=self.resident + other.resident,
        )

    def seconds_at(self, pace: Pace) -> float:
        """Return how long they take."""
        return self.fetched * pace.streamed + self.cached * pace.cached + self.resident * pace.resident
