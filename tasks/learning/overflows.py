"""Why a loss is not a finite number: what a batch's columns reach, or the step size."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tasks.errors import NonFiniteLossError
from tasks.learning.reduction import by_slice, count_rows

if TYPE_CHECKING:
    from tasks.learning.batches import Prepared
    from tasks.learning.loop import Trainer


def explain(mse: float, iteration: int, batch: Prepared, trainer: Trainer) -> NonFiniteLossError:
    """Return why a loss is not a finite number, the same on every rank."""
    rows = count_rows(batch.x, trainer.reduction)
    first, place = iteration * rows, f"the mean squared error of iteration {iteration}"
    columns = (*trainer.features.names, trainer.features.target)
    largest = by_slice(_find_largest, batch.x, batch.y, reduction=trainer.reduction).amax(dim=0)
    value, at = largest.max(dim=0)
    overflows = float(value) > math.sqrt(torch.finfo(batch.x.dtype).max / rows)
    return NonFiniteLossError(
        f"{place} (rows {first} to {first + rows - 1} of the endless stream) is {mse}: "
        + (
            f"column {columns[int(at)]!r} reaches {float(value):g} there, whose squares do not fit this dtype; divide "
            "it by a power of ten, or leave it out"
            if overflows
            else f"the step size {trainer.learning_rate:g} is too large for these features; try a smaller "
            "learning_rate, standardise=true, or a gradient_norm"
        )
    )


def _find_largest(x: Tensor, y: Tensor) -> Tensor:
    """Return the largest magnitude in each column of slices: [slices, features + 1]."""
    return torch.cat([x.abs().amax(dim=1), y.abs().amax(dim=1)], dim=1)
