"""What all parameter models share, and the marks that say, beside a parameter's definition, what it touches."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import ClassVar

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


class Parameters(BaseModel):
    """The base of all parameter models: frozen, closed, and finite where it is a number."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
    group: ClassVar[str] = ""  # what forms and --help put a class's own fields under

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
    def telling(cls, recorded: Mapping[str, JsonValue]) -> dict[str, JsonValue]:
        """Return those of the recorded parameters that the loss curve depends on.

        One that came later is left out where it is its default, so that runs recorded before it have the same ones.
        """
        neutral, later = cls.marked(SPEED, PLACE, RECORD), cls.marked(LATER)
        return {
            name: value
            for name, value in recorded.items()
            if name not in neutral and not (name in later and value == cls.model_fields[name].default)
        }
