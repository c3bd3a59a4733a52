"""The linear model y = x · w + b: its first weights, and what it predicts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from tasks.learning.features import Features


def initial_weights(features: int, seed: int | None, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Return w [features, 1] and b [1, 1]: zeros without a seed, else Kaiming-uniform from one seeded generator.

    It is the CPU's whatever the device, so that a GPU starts from the same weights.
    """
    if seed is None:
        return torch.zeros(features, 1, dtype=dtype), torch.zeros(1, 1, dtype=dtype)
    generator = torch.Generator().manual_seed(seed)
    w = torch.nn.init.kaiming_uniform_(torch.empty(features, 1, dtype=dtype), generator=generator)
    b = torch.nn.init.kaiming_uniform_(torch.empty(1, 1, dtype=dtype), generator=generator)
    return w, b


@dataclass(frozen=True)
class LinearModel:
    """Weights w [features, 1] and bias b [1, 1] in float64 for raw (not standardised) features."""

    features: Features
    w: Tensor
    b: Tensor

    @classmethod
    def of(cls, features: Features, weights: Sequence[float], bias: float) -> Self:
        """Make the model from plain numbers, a weight for each feature."""
        w = torch.tensor(weights, dtype=torch.float64)[:, None]
        return cls(features, w, torch.tensor([[bias]], dtype=torch.float64))

    def predict(self, batch: Tensor) -> Tensor:
        """Return predictions [rows, 1] in float64 for a [rows, columns] batch."""
        return self.features.of(batch.double()) @ self.w + self.b

    def describe(self) -> str:
        """Return the weights as text, a line for each feature."""
        names = (*self.features.names, "(bias)")
        values = (*self.w.flatten().tolist(), self.b.item())
        width = max(map(len, names))
        return "\n".join(f"{name:<{width}}  {value:+.17g}" for name, value in zip(names, values, strict=True)) + "\n"
