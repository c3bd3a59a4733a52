"""What a search tries, and how often."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, ClassVar, Literal, Self, cast

from pydantic import Field, JsonValue, model_validator

from tasks.naming import join_names
from tasks.parameters.data import MOST_ROWS
from tasks.parameters.marks import CURVE, RECORD, Searchable
from tasks.parameters.training import TrainingParameters


class SearchParameters(TrainingParameters):
    """All parameters of the searching flow, flat, in the order of its form: its own and the training's."""

    group: ClassVar[str] = "Search"

    trials: Annotated[int, RECORD] = Field(50, ge=1, description="How many models are tried.")
    search: Annotated[list[str], CURVE] = Field(
        ["learning_rate", "schedule", "optimizer", "optimizer_options", "gradient_norm", "l2"],
        min_length=1,
        description="The parameters that are tried: those, features, derive, standardise, iterations, multiples of "
        "batch_size, and seed with the notebook's preset; each in its own range, or in another, as "
        "learning_rate=0.001..0.1 or optimizer=SGD|Adam.",
    )
    generation: Annotated[int, CURVE] = Field(
        10, ge=1, description="So many models are chosen at once, by what the generations before have shown."
    )
    sampler: Annotated[Literal["tpe", "random"], CURVE] = Field(
        "tpe", description="Who chooses: Optuna's tree-structured Parzen estimator, or chance."
    )
    halving: Annotated[bool, CURVE] = Field(
        True,
        description="Go on with the best third of a generation after a ninth and a third of its iterations, by their "
        "errors on the validation shards.",
    )

    @model_validator(mode="after")
    def _search_is_possible(self) -> Self:
        searched = self.searched()
        if self.dtype != "float64":
            raise ValueError("dtype is float32: a search computes all trials in float64")
        if self.solver == "exact":
            raise ValueError("solver is exact, which has nothing to try but l2: a search trains by gradients")
        if "seed" in searched and (self.preset != "notebook" or self.shuffle):
            raise ValueError(
                "search names seed, of which the first weights follow with the notebook's preset alone, and not while "
                "it shuffles: leave it out"
            )
        if "features" in searched and self.on_bad_rows == "quarantine":
            raise ValueError(
                "search names features while bad rows are set aside: other features would train on other rows; use "
                "on_bad_rows=error, or leave features out"
            )
        for size in searched["batch_size"].choices if "batch_size" in searched else ():
            if type(size) is not int or size < 1 or size % (self.batch_size or 1):
                raise ValueError(
                    f"search tries a batch_size of {size}, which is no multiple of batch_size={self.batch_size}: all "
                    "trials learn from the same batches, of which a larger one is several"
                )
        return self

    def searched(self) -> dict[str, Searchable]:
        """Return by name what is tried of each parameter; raises ValueError for one that cannot be."""
        known, found = TrainingParameters.searchable(), {}
        for text in self.search:
            name, sign, bounds = text.partition("=")
            if name not in known:
                raise ValueError(f"search names {name!r}: what can be tried is {join_names(known)}")
            if name in found:
                raise ValueError(f"search names {name} twice: leave one out")
            own = self._multiply(name, known[name]) if known[name].multiples else known[name]
            found[name] = read_bounds(text, own, bounds) if sign else own
        return found

    def _multiply(self, name: str, tried: Searchable) -> Searchable:
        given: int | None = getattr(self, name)
        if not given:
            raise ValueError(f"search names {name}, of which multiples are tried: give {name} too, the smallest one")
        return tried.times(given)

    @property
    def multiples(self) -> tuple[int, ...]:
        """Of how many of the search's batches a trial's may be made."""
        tried = self.searched().get("batch_size")
        return tuple(sorted({self.multiple_of(cast(int, size)) for size in tried.choices})) if tried else (1,)

    def multiple_of(self, batch_size: int | None) -> int:
        """Return of how many of the search's batches one of this size is made."""
        return (batch_size or MOST_ROWS) // (self.batch_size or MOST_ROWS)

    def training(self, changed: Mapping[str, JsonValue]) -> TrainingParameters:
        """Return the parameters of one training, as these say but for what is changed.

        Raises ValueError (pydantic's) where that cannot be.
        """
        shared = self.model_dump(include=set(TrainingParameters.model_fields))
        return TrainingParameters(**(shared | {"resume": "auto", "skip_unchanged": False} | dict(changed)))


def read_bounds(text: str, own: Searchable, bounds: str) -> Searchable:
    """Return another range (`0.001..0.1`) or other choices (`SGD|Adam`); raises ValueError where they are neither."""
    if own.choices:
        choices = tuple(map(_read, bounds.split("|")))
        return replace(own, choices=choices)
    low, sign, high = bounds.partition("..")
    try:
        found = replace(own, low=float(low), high=float(high))
    except ValueError:
        raise ValueError(f"search has {text!r}: write a range as learning_rate=0.001..0.1") from None
    if not own.high or not sign or not found.low < found.high or (own.log and found.low <= 0):
        raise ValueError(f"search has {text!r}: a range goes from a smaller to a larger number, as 0.001..0.1")
    return found


def _read(text: str) -> JsonValue:
    try:
        found: JsonValue = json.loads(text)
    except ValueError:
        return text
    return found
