"""From the columns of a batch to what a linear model sees: its target, raw features, and derived ones.

Choosing them needs no torch; what computes imports it, or computes with the tensors' own methods.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Self

from tasks.errors import ConfigurationError
from tasks.naming import join_names, suggest

if TYPE_CHECKING:
    from torch import Tensor

EARTH_RADIUS_KM = 6371.0088  # mean radius R1 of the WGS 84 ellipsoid (Moritz 2000, Geodetic Reference System 1980)

ORIGIN_AND_DESTINATION = (
    "origin_block_latitude_double",
    "origin_block_longitude_double",
    "destination_block_latitude_double",
    "destination_block_longitude_double",
)


def distance_km(latitude: Tensor, longitude: Tensor, to_latitude: Tensor, to_longitude: Tensor) -> Tensor:
    """Return the great-circle distance in kilometres between points in degrees, elementwise (haversine formula)."""
    phi, to_phi = latitude.deg2rad(), to_latitude.deg2rad()
    half_north = ((to_phi - phi) / 2).sin()
    half_east = ((to_longitude - longitude).deg2rad() / 2).sin()
    chord = half_north**2 + phi.cos() * to_phi.cos() * half_east**2
    return 2 * EARTH_RADIUS_KM * chord.clamp(max=1).sqrt().asin()


@dataclass(frozen=True)
class Derivation:
    """An engineered feature: the columns that it is made of, how, and the same as a formula for people."""

    columns: tuple[str, ...]
    compute: Callable[..., Tensor]
    formula: str


DERIVATIONS: dict[str, Derivation] = {
    "distance_km": Derivation(
        ORIGIN_AND_DESTINATION,
        distance_km,
        "2 * 6371.0088 * asin(sqrt(sin((latitude_2 - latitude_1) / 2)**2 + cos(latitude_1) * cos(latitude_2) "
        "* sin((longitude_2 - longitude_1) / 2)**2)), in radians",
    ),
    "hour_sine": Derivation(
        ("hour_integer",), lambda hour: (hour * (2 * math.pi / 24)).sin(), "sin(2 * pi * hour_integer / 24)"
    ),
    "hour_cosine": Derivation(
        ("hour_integer",), lambda hour: (hour * (2 * math.pi / 24)).cos(), "cos(2 * pi * hour_integer / 24)"
    ),
}


@dataclass(frozen=True, kw_only=True)
class Features:
    """Which columns of a batch are the target, the raw features, and what is derived from them."""

    columns: tuple[str, ...]
    target: str
    raw: tuple[str, ...]
    derived: tuple[str, ...] = ()

    @classmethod
    def choose(
        cls,
        columns: Sequence[str],
        *,
        target: str | None = None,
        features: Sequence[str] | None = None,
        derive: Sequence[str] = (),
        skip_missing: bool = False,
    ) -> Self:
        """Choose the target (by default the first column), the features (by default all others), and derived ones.

        `skip_missing` leaves out derivations whose columns are not there (a preset's); otherwise, and for a column or
        derivation that does not exist, raises ConfigurationError.
        """
        target = target or columns[0]
        raw = tuple(features or (name for name in columns if name != target))
        for name in (target, *raw):
            if name not in columns:
                raise ConfigurationError(
                    f"no column {name!r} in the shards: they have {join_names(columns)}{suggest(name, columns)}"
                )
        if not raw:
            raise ConfigurationError(f"the only column, {target!r}, is the target: no feature is left to learn from")
        for name in derive:
            if name not in DERIVATIONS:
                raise ConfigurationError(f"derive names {name!r}: it can be {', '.join(DERIVATIONS)}")
        missing = {name: [c for c in DERIVATIONS[name].columns if c not in columns] for name in derive}
        if any(missing.values()) and not skip_missing:
            name = next(name for name, absent in missing.items() if absent)
            raise ConfigurationError(
                f"derive names {name!r}, which is made of {', '.join(DERIVATIONS[name].columns)}: "
                f"the shards have no {', '.join(missing[name])}"
            )
        derived = tuple(name for name in derive if not missing[name])
        return cls(columns=tuple(columns), target=target, raw=raw, derived=derived)

    @property
    def names(self) -> tuple[str, ...]:
        """Return the names of the features in the order of the weights: raw, then derived."""
        return self.raw + self.derived

    @property
    def inputs(self) -> tuple[str, ...]:
        """Return the columns that predicting takes: the raw features, then those that only derived ones are made of."""
        made_of = (column for name in self.derived for column in DERIVATIONS[name].columns)
        return tuple(dict.fromkeys((*self.raw, *made_of)))

    def explain(self) -> dict[str, str]:
        """Return what weights in this order mean, as the metadata of their file: one text, of the same bytes each time.

        It is JSON: the target, the features in the order of the weights, and the formulas of those that are derived.
        """
        derived = {
            name: {"columns": DERIVATIONS[name].columns, "formula": DERIVATIONS[name].formula} for name in self.derived
        }
        return {"shardline": json.dumps({"target": self.target, "features": self.names, "derived": derived})}

    def target_of(self, batch: Tensor) -> Tensor:
        """Return the target of a [rows, columns] batch, as [rows, 1]."""
        at = self.columns.index(self.target)
        return batch[:, at : at + 1]

    def of(self, batch: Tensor) -> Tensor:
        """Return the features of a [rows, columns] batch, as [rows, features]; a view where that is possible."""
        import torch

        by_name = {name: batch[:, index] for index, name in enumerate(self.columns)}
        derived = (self.derive(name, by_name)[:, None] for name in self.derived)
        parts = [*(batch[:, start:stop] for start, stop in self._runs), *derived]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)

    @cached_property
    def _runs(self) -> list[tuple[int, int]]:
        """Where raw features stand side by side, in their order: a list of columns would be sent to a GPU each time."""
        runs: list[tuple[int, int]] = []
        for at in (self.columns.index(name) for name in self.raw):
            start = runs.pop()[0] if runs and runs[-1][1] == at else at
            runs.append((start, at + 1))
        return runs

    def refuse_overflow(self, batch: Tensor) -> None:
        """Raise ConfigurationError for a column of a [rows, columns] batch whose squares cannot be added up."""
        import torch

        used = [self.columns.index(name) for name in dict.fromkeys((self.target, *self.inputs))]
        largest = batch[:, used].abs().amax(dim=0)
        most = math.sqrt(torch.finfo(batch.dtype).max / len(batch))
        for at, value in zip(used, largest.tolist(), strict=True):
            if value > most:
                raise ConfigurationError(
                    f"column {self.columns[at]!r} holds values up to {value:g}, whose squares do not fit "
                    f"{str(batch.dtype).removeprefix('torch.')}: divide it by a power of ten, or leave it out of the "
                    "features"
                )

    @staticmethod
    def derive(name: str, by_name: Mapping[str, Tensor]) -> Tensor:
        """Return one derived feature, [rows], from columns by name."""
        derivation = DERIVATIONS[name]
        return derivation.compute(*(by_name[column] for column in derivation.columns))

    def to_dict(self) -> dict[str, Any]:
        """Return the same as plain JSON types."""
        return {
            "columns": list(self.columns),
            "target": self.target,
            "raw": list(self.raw),
            "derived": list(self.derived),
        }

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Self:
        """Read what `to_dict` returned."""
        return cls(
            columns=tuple(plain["columns"]),
            target=plain["target"],
            raw=tuple(plain["raw"]),
            derived=tuple(plain["derived"]),
        )
