"""From the columns of a batch to what a linear model sees: target, raw features, derived features, their scale."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

from tasks.errors import ConfigurationError

EARTH_RADIUS_KM = 6371.0088  # mean radius R1 of the WGS 84 ellipsoid (Moritz 2000, Geodetic Reference System 1980)

ORIGIN_AND_DESTINATION = (
    "origin_block_latitude_double",
    "origin_block_longitude_double",
    "destination_block_latitude_double",
    "destination_block_longitude_double",
)


def distance_km(latitude: Tensor, longitude: Tensor, to_latitude: Tensor, to_longitude: Tensor) -> Tensor:
    """Great-circle distance in kilometres between points in degrees, elementwise (haversine formula)."""
    phi, to_phi = torch.deg2rad(latitude), torch.deg2rad(to_latitude)
    half_north = torch.sin((to_phi - phi) / 2)
    half_east = torch.sin(torch.deg2rad(to_longitude - longitude) / 2)
    chord = half_north**2 + torch.cos(phi) * torch.cos(to_phi) * half_east**2
    return 2 * EARTH_RADIUS_KM * torch.asin(torch.sqrt(chord.clamp(max=1)))


@dataclass(frozen=True)
class Derivation:
    """An engineered feature: the columns that it is made of, and how."""

    columns: tuple[str, ...]
    compute: Callable[..., Tensor]


DERIVATIONS: dict[str, Derivation] = {
    "distance_km": Derivation(ORIGIN_AND_DESTINATION, distance_km),
    "hour_sine": Derivation(("hour_integer",), lambda hour: torch.sin(hour * (2 * math.pi / 24))),
    "hour_cosine": Derivation(("hour_integer",), lambda hour: torch.cos(hour * (2 * math.pi / 24))),
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
        """The target (by default the first column), the features (by default all others), and derived ones.

        `skip_missing` leaves out derivations whose columns are not there (a preset's); otherwise, and for a column or
        derivation that does not exist, raises ConfigurationError.
        """
        target = target or columns[0]
        raw = tuple(features or (name for name in columns if name != target))
        for name in (target, *raw):
            if name not in columns:
                raise ConfigurationError(f"no column {name!r} in the shards: they have {', '.join(columns)}")
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
        """Names of the features in the order of the weights: raw, then derived."""
        return self.raw + self.derived

    @property
    def inputs(self) -> tuple[str, ...]:
        """The columns that predicting takes: the raw features, then those that only derived ones are made of."""
        made_of = (column for name in self.derived for column in DERIVATIONS[name].columns)
        return tuple(dict.fromkeys((*self.raw, *made_of)))

    def target_of(self, batch: Tensor) -> Tensor:
        """The target of a [rows, columns] batch, as [rows, 1]."""
        at = self.columns.index(self.target)
        return batch[:, at : at + 1]

    def of(self, batch: Tensor) -> Tensor:
        """The features of a [rows, columns] batch, as [rows, features]; a view where that is possible."""
        at = [self.columns.index(name) for name in self.raw]
        contiguous = at == list(range(at[0], at[0] + len(at)))
        raw = batch[:, at[0] : at[0] + len(at)] if contiguous else batch[:, at]
        if not self.derived:
            return raw
        by_name = {name: batch[:, index] for index, name in enumerate(self.columns)}
        return torch.cat([raw, *(self.derive(name, by_name)[:, None] for name in self.derived)], dim=1)

    @staticmethod
    def derive(name: str, by_name: Mapping[str, Tensor]) -> Tensor:
        """One derived feature, [rows], from columns by name."""
        derivation = DERIVATIONS[name]
        return derivation.compute(*(by_name[column] for column in derivation.columns))

    def to_dict(self) -> dict[str, Any]:
        """The same as plain JSON types."""
        return {
            "columns": list(self.columns),
            "target": self.target,
            "raw": list(self.raw),
            "derived": list(self.derived),
        }

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Self:
        """The inverse of `to_dict`."""
        return cls(
            columns=tuple(plain["columns"]),
            target=plain["target"],
            raw=tuple(plain["raw"]),
            derived=tuple(plain["derived"]),
        )


@dataclass(frozen=True)
class Scaling:
    """What a feature is shifted and divided by before training: two [features] tensors of float64."""

    mean: Tensor
    scale: Tensor

    @classmethod
    def none(cls, features: int) -> Self:
        """Features as they are."""
        return cls(torch.zeros(features, dtype=torch.float64), torch.ones(features, dtype=torch.float64))

    @classmethod
    def of(cls, x: Tensor, known: Mapping[int, tuple[float, float]] | None = None) -> Self:
        """Mean and standard deviation of the columns of x [rows, features]; a constant one gets scale 1.

        `known` replaces columns by index with (mean, standard deviation) of the whole data.
        """
        mean, scale = x.double().mean(dim=0), x.double().std(dim=0, correction=0)
        for index, (known_mean, known_scale) in (known or {}).items():
            mean[index], scale[index] = known_mean, known_scale
        # a constant column's deviation is rounding noise of its mean, not always exactly zero
        constant = ~(scale > 1e-12 * mean.abs().clamp(min=torch.finfo(torch.float64).tiny))
        return cls(mean, torch.where(constant, torch.ones_like(scale), scale))

    @property
    def is_none(self) -> bool:
        """Whether it changes nothing."""
        return not self.mean.any() and bool((self.scale == 1).all())

    def apply(self, x: Tensor) -> Tensor:
        """Standardised features, in the shape and dtype of x."""
        if self.is_none:
            return x
        return (x - self.mean.to(x)).div_(self.scale.to(x))

    def fold(self, weights: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """Weights [features, 1] and bias [1, 1] for raw features, from those for standardised ones (float64)."""
        raw = weights.detach().cpu().double() / self.scale[:, None]
        return raw, bias.detach().cpu().double() - self.mean[None, :] @ raw


def suit_learning_rate(x: Tensor) -> float:
    """The step size 1/L of gradient descent on the mean squared error over x [rows, features] with a bias.

    L is the largest eigenvalue of the loss's Hessian, 2/rows · [x, 1]ᵀ[x, 1]; a step below 2/L converges
    (Nesterov 2004, Introductory Lectures on Convex Optimization, theorem 2.1.14).
    """
    design = torch.cat([x.double(), torch.ones(len(x), 1, dtype=torch.float64, device=x.device)], dim=1)
    hessian = 2 / len(x) * design.T @ design
    return float(1 / torch.linalg.eigvalsh(hessian)[-1])
