"""The scale that features are trained on, and the step size that suits them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Self

import torch
from torch import Tensor

from tasks.learning.reduction import ALONE, Reduction, add_up, count_rows


@dataclass(frozen=True)
class Scaling:
    """What a feature is shifted and divided by before training: two [features] tensors of float64."""

    mean: Tensor
    scale: Tensor

    @classmethod
    def none(cls, features: int) -> Self:
        """Leave features as they are."""
        return cls(torch.zeros(features, dtype=torch.float64), torch.ones(features, dtype=torch.float64))

    @classmethod
    def of(
        cls, x: Tensor, known: Mapping[int, tuple[float, float]] | None = None, reduction: Reduction = ALONE
    ) -> Self:
        """Take mean and standard deviation of the columns of x [rows, features]; a constant one gets scale 1.

        `known` replaces columns by index with (mean, standard deviation) of the whole data.
        """
        x = x.double().contiguous()
        rows = count_rows(x, reduction)
        mean = add_up(lambda x: x.sum(dim=1), x, reduction=reduction) / rows
        scale = (add_up(lambda x: (x - mean).square_().sum(dim=1), x, reduction=reduction) / rows).sqrt_()
        for index, (known_mean, known_scale) in (known or {}).items():
            mean[index], scale[index] = known_mean, known_scale
        # a constant column's deviation is rounding noise of its mean, not always exactly zero
        constant = ~(scale > 1e-12 * mean.abs().clamp(min=torch.finfo(torch.float64).tiny))
        return cls(mean, torch.where(constant, torch.ones_like(scale), scale))

    @cached_property
    def is_none(self) -> bool:
        """Return whether it changes nothing."""
        return not self.mean.any() and bool((self.scale == 1).all())

    def to(self, device: torch.device) -> Self:
        """Return the same on a device, where it is applied to batches."""
        return replace(self, mean=self.mean.to(device), scale=self.scale.to(device))

    def apply(self, x: Tensor) -> Tensor:
        """Return standardised features, in the shape and dtype of x."""
        if self.is_none:
            return x
        return (x - self.mean.to(x)).div_(self.scale.to(x))

    def fold(self, weights: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """Return weights [features, 1] and bias [1, 1] for raw features, from those for standardised ones (float64)."""
        raw = weights.detach().cpu().double() / self.scale[:, None]
        return raw, bias.detach().cpu().double() - self.mean[None, :] @ raw
