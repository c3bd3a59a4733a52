"""Optimisers by the names and constants of torch's, and how the step size changes from iteration to iteration."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor


class Optimizer(Protocol):
    """What a training needs of torch's optimisers."""

    param_groups: list[dict[str, Any]]
    defaults: dict[str, Any]

    def step(self) -> object:
        """Move the weights by their gradients, with the `lr` of the group."""

    def state_dict(self) -> dict[str, Any]:
        """Return what it remembers, by the number of the tensor and by name, under `state`; and its `param_groups`."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from such a state."""


class SGD:
    """What torch.optim.SGD does to a few tensors, to the last bit: that would import torch's compiler, for seconds."""

    def __init__(self, weights: Sequence[Tensor], lr: float = 1e-3, momentum: float = 0.0) -> None:
        self.weights = weights
        self.defaults: dict[str, Any] = {"lr": lr, "momentum": momentum}
        self.param_groups: list[dict[str, Any]] = [dict(self.defaults)]
        self._buffers: dict[int, Tensor] = {}

    @torch.no_grad()
    def step(self) -> None:
        """Move the weights against their gradients, or the gradients' running sums."""
        lr, momentum = self.param_groups[0]["lr"], self.param_groups[0]["momentum"]
        for index, tensor in enumerate(self.weights):
            step = tensor.grad
            assert step is not None, "the gradient is to be there"
            if momentum:
                known = self._buffers.get(index)
                step = self._buffers[index] = step.clone() if known is None else known.mul_(momentum).add_(step)
            tensor.add_(step, alpha=-lr)

    def state_dict(self) -> dict[str, Any]:
        """Return the running sums, under torch's names."""
        state = {index: {"momentum_buffer": buffer} for index, buffer in self._buffers.items()}
        return {"state": state, "param_groups": [dict(group) for group in self.param_groups]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from them."""
        self.param_groups = [dict(group) for group in state_dict["param_groups"]]
        self._buffers = {
            index: kept["momentum_buffer"].clone().to(self.weights[index])
            for index, kept in state_dict["state"].items()
        }


def make_optimizer(
    weights: list[Tensor], name: str, learning_rate: float | None, options: Mapping[str, float]
) -> Optimizer:
    """Return the optimiser of that name; what is not given is torch's own, but beta1 and beta2 are its `betas`."""
    make: Callable[..., Optimizer] = SGD if name == "SGD" else getattr(torch.optim, name)
    own = make(weights).defaults
    chosen: dict[str, object] = {key: value for key, value in options.items() if key in own}
    if "betas" in own:
        first, second = own["betas"]
        chosen["betas"] = (options.get("beta1", first), options.get("beta2", second))
    return make(weights, **({"lr": learning_rate} if learning_rate else {}), **chosen)


def share_of_step(schedule: str, iteration: int, iterations: int) -> float:
    """Return by what the step size is multiplied at an iteration, counted from 0: 1, or falling from 1 towards 0."""
    match schedule:
        case "linear":
            return 1 - iteration / iterations
        case "cosine":
            return (1 + math.cos(math.pi * iteration / iterations)) / 2
    return 1.0
