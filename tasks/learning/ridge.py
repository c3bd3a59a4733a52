"""Exact linear models with a penalty, for every strength of it, and how each would do on rows that it has not seen.

All follows from the matrices of the data's parts (`tasks.learning.grams`): no model costs a pass over the rows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor

from tasks.learning.grams import Gram, Units
from tasks.learning.scoring import solve_penalised

STRENGTHS = (0.0, *(10 ** (exponent / 5) for exponent in range(-30, 11)))  # 0, then 1e-6 to 100


@dataclass(frozen=True, kw_only=True)
class RidgePath:
    """The exact model's weights by strength of the penalty, and its cross-validated error, in plain numbers.

    weights: of each strength, by feature, in deviations of the feature
    mse: of each strength, the mean squared error over all rows, each predicted by the model of the other folds
    """

    names: tuple[str, ...]
    strengths: tuple[float, ...]
    weights: tuple[tuple[float, ...], ...]
    mse: tuple[float, ...]
    folds: int

    @property
    def best(self) -> int:
        """Which of the strengths has the least error."""
        return min(range(len(self.mse)), key=lambda at: self.mse[at])


def trace_path(folds: Sequence[Gram], units: Units, *, standardise: bool) -> RidgePath:
    """Return the whole path, cross-validated over two folds or more, each left out in turn."""
    whole = reduce(Gram.add, folds)
    all_rows, others = _centred(whole, units), [_centred(whole.less(fold), units) for fold in folds]
    deviation = all_rows[0].diagonal()[:-1].clamp(min=0).sqrt()
    weights, errors = [], []
    for strength in STRENGTHS:
        w, _ = solve_penalised(*all_rows, strength, standardise=standardise)
        weights.append(tuple((w.flatten() * deviation).tolist()))
        left_out = (solve_penalised(*each, strength, standardise=standardise) for each in others)
        errors.append(math.fsum(units.add_errors(fold, *model) for fold, model in zip(folds, left_out, strict=True)))
    return RidgePath(
        names=units.features.names,
        strengths=STRENGTHS,
        weights=tuple(weights),
        mse=tuple(error / whole.rows for error in errors),
        folds=len(folds),
    )


def _centred(gram: Gram, units: Units) -> tuple[Tensor, Tensor]:
    """Return covariance and mean of features, then target, as they are in the data."""
    keep = [*range(len(units.mean)), len(units.mean) + 1]
    centre = gram.products[-2, keep] / gram.rows
    scale = torch.cat([units.scale, torch.ones(1, dtype=torch.float64)])
    covariance = gram.products[keep][:, keep] / gram.rows - torch.outer(centre, centre)
    shift = torch.cat([units.mean, torch.tensor([units.target_mean], dtype=torch.float64)])
    return covariance * torch.outer(scale, scale), shift + centre * scale
