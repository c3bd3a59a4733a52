"""What all parameter models share, and the marks that say, beside a parameter's definition, what it touches."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, JsonValue


class Mark(Enum):
    """What is said of a parameter in its annotation: one of the first four, and more where it applies."""

    CURVE = "the loss curve depends on it"
    SPEED = "it changes how fast a run is, and nothing else"
    PLACE = "it says where the data is found, or who asks for it"
    RECORD = "it says what is kept of a run, and where"
    OWN = "it is each run's own: a run that repeats another (`like`) does not take it from there"
    LATER = "it came when there were runs without it: in their digest only where it is not its default"


CURVE, SPEED, PLACE, RECORD, OWN, LATER = Mark


@dataclass(frozen=True)
class Formerly:
    """What a null parameter's default was when it could not be null: in the digest it stands for it."""

    value: JsonValue


@dataclass(frozen=True, kw_only=True)
class Searchable:
    """What a search tries of a parameter: numbers from `low` to `high`, evenly or `log`; or `choices`; or subsets.

    subsets: the parameter is a list, and each of its members is tried and left out
    multiples: its choices are so many times what the search itself is given
    nothing of all that: what is tried depends on other parameters, as an optimiser's constants do
    """

    low: float = 0.0
    high: float = 0.0
    log: bool = False
    choices: tuple[JsonValue, ...] = ()
    subsets: bool = False
    multiples: tuple[int, ...] = ()

    def times(self, given: int) -> Searchable:
        """Return the same with the multiples of what the search is given as its choices."""
        return replace(self, choices=tuple(given * multiple for multiple in self.multiples))


FIRST = (
    *("shards", "test_shards", "target", "features", "preset", "iterations", "batch_size", "device"),
    *("mode", "model", "output", "format"),
)


class Parameters(BaseModel):
    """The base of all parameter models: frozen, closed, and finite where it is a number."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
    group: ClassVar[str] = ""  # what forms and --help put a class's own fields under

    @classmethod
    def __pydantic_init_subclass__(cls, **_: Any) -> None:
        """Put first in forms and in --help what people change, and last who asks for the data, and how it streams."""
        rank = {name: at - len(FIRST) for at, name in enumerate(FIRST)} | {"Stream": 1, "Access": 2}
        fields = cls.model_fields
        for name in sorted(fields, key=lambda name: rank.get(name, rank.get(cls.group_of(name), 0))):
            fields[name] = fields.pop(name)

    @classmethod
    def group_of(cls, name: str) -> str:
        """Return the group of the class that brought a field in."""
        bases = (base for base in reversed(cls.__mro__) if issubclass(base, Parameters))
        return next(base.group for base in bases if name in base.__annotations__)

    @classmethod
    def marked(cls, *marks: Mark) -> frozenset[str]:
        """Return the names of the fields that have one of these marks."""
        return frozenset(name for name, field in cls.model_fields.items() if set(marks) & set(field.metadata))

    @classmethod
    def searchable(cls) -> dict[str, Searchable]:
        """Return by name what a search tries of the fields that it may choose."""
        marks = ((name, mark) for name, field in cls.model_fields.items() for mark in field.metadata)
        return {name: mark for name, mark in marks if isinstance(mark, Searchable)}

    @classmethod
    def _formerly(cls, name: str) -> JsonValue:
        return next((mark.value for mark in cls.model_fields[name].metadata if isinstance(mark, Formerly)), None)

    @classmethod
    def telling(cls, recorded: Mapping[str, JsonValue]) -> dict[str, JsonValue]:
        """Return those of the recorded parameters that the loss curve depends on.

        One that came later is left out where it is its default, and a null that came later is what it was before, so
        that runs recorded before have the same ones.
        """
        recorded = {name: cls._formerly(name) if value is None else value for name, value in recorded.items()}
        neutral, later = cls.marked(SPEED, PLACE, RECORD), cls.marked(LATER)
        return {
            name: value
            for name, value in recorded.items()
            if name not in neutral and not (name in later and value == cls.model_fields[name].default)
        }
