"""Torch's optimisers by their names and constants, and how the step size changes from iteration to iteration."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from tasks.learning.importing import begin_importing


def make_optimizer(
    weights: list[Tensor], name: str, learning_rate: float | None, options: Mapping[str, float]
) -> torch.optim.Optimizer:
    """Return torch's optimiser of that name; what is not given is torch's own, but beta1 and beta2 are its `betas`."""
    begin_importing().join()
    make = getattr(torch.optim, name)
    own = make(weights).defaults
    chosen: dict[str, object] = {key: value for key, value in options.items() if key in own}
    if "betas" in own:
        first, second = own["betas"]
        chosen["betas"] = (options.get("beta1", first), options.get("beta2", second))
    optimizer: torch.optim.Optimizer = make(weights, **({"lr": learning_rate} if learning_rate else {}), **chosen)
    return optimizer


def share_of_step(schedule: str, iteration: int, iterations: int) -> float:
    """Return by what the step size is multiplied at an iteration, counted from 0: 1, or falling from 1 towards 0."""
    match schedule:
        case "linear":
            return 1 - iteration / iterations
        case "cosine":
            return (1 + math.cos(math.pi * iteration / iterations)) / 2
    return 1.0
