"""Many linear models trained at once, each as `tasks.learning.loop.Trainer` would train it alone.

They see the same batches, or several of them as one, of which a matrix says all that their losses depend on
(`tasks.learning.grams`): what differs are the columns of small tensors, one a model. Each equals the run of its own but
for rounding.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor

from tasks.learning.conditioning import Preconditioner
from tasks.learning.features import Features
from tasks.learning.grams import Gram, Units
from tasks.learning.linear import LinearModel, initial_weights
from tasks.learning.loop import Settings
from tasks.learning.optimizers import make_optimizer, share_of_step
from tasks.learning.scaling import Scaling

PRECONDITIONED = "preconditioned"  # SGD whose steps the first batch's Hessian makes
MOST_LOST = 1e-12 / torch.finfo(torch.float64).eps  # times the sum that is left, are terms that may cancel unsaid


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One model to train: its features, how they are scaled, and its settings, in float64.

    multiple: of so many consecutive batches each of its own is made
    """

    features: Features
    scaling: Scaling
    settings: Settings
    multiple: int = 1

    @property
    def rule(self) -> str:
        """The name of what moves its weights."""
        settings = self.settings
        return PRECONDITIONED if settings.optimizer == "SGD" and not settings.learning_rate else settings.optimizer


class Trials:
    """Models in training on the same batches: column k of each tensor is trial `alive[k]`'s.

    alive: numbers of trials, those of one `multiple` side by side
    weights: [features + 1, trials], the bias last; a feature that a trial does not have stays 0
    lost: how many times larger than its loss the terms were, at worst, from which each trial's loss was left over
    """

    def __init__(self, trials: Sequence[Trial], units: Units) -> None:
        self.trials, self.units = list(trials), units
        self.alive = sorted(range(len(trials)), key=lambda number: trials[number].multiple)
        self.iteration = 0
        self.lost = torch.ones(len(trials), dtype=torch.float64)
        trials = [trials[number] for number in self.alive]
        each = [_begin(trial, units) for trial in trials]
        self.weights, self._mask, self._stretch, self._offset = (torch.stack(parts, 1) for parts in zip(*each))  # noqa: B905
        settings = [trial.settings for trial in trials]
        self._clip = _row([each.gradient_norm or math.inf for each in settings])
        self._l2 = _row([each.l2 for each in settings])
        self._inverse: Tensor | None = None
        names = sorted({trial.rule for trial in trials})
        self._rules = {name: _RULES[name]([t for t in trials if t.rule == name], len(self.weights)) for name in names}
        self._columns = {name: [k for k, trial in enumerate(trials) if trial.rule == name] for name in names}

    @property
    def multiples(self) -> list[int]:
        """Those of the trials that are alive, the largest first."""
        return sorted({self.trials[number].multiple for number in self.alive}, reverse=True)

    def step(self, grams: Mapping[int, Gram]) -> Tensor:
        """Take one iteration of every trial; return their mean squared errors before it, [alive trials].

        grams: of the next batch of the trials of each of the `multiples`
        """
        seen = _Seen([grams[self.trials[number].multiple] for number in self.alive])
        mse, gradient = self._differentiate(seen)
        gradient[:-1] += 2 * self._l2 * self.weights[:-1]
        norm = gradient.square().sum(dim=0).sqrt()
        gradient *= (self._clip / (norm + 1e-6)).clamp(max=1.0)
        self._turn(gradient, seen)
        share = self._share_of_step()
        for name, columns in self._columns.items():
            if columns:
                moved = self._rules[name].move(self.weights[:, columns], gradient[:, columns], share[columns])
                self.weights[:, columns] = moved
        self.iteration += 1
        return mse

    def measure(self, gram: Gram) -> Tensor:
        """Return the mean squared errors over a batch's rows, [alive trials]; infinite where one is not a number."""
        return self._differentiate(_Seen([gram] * len(self.alive)))[0].nan_to_num(nan=math.inf)

    def drop(self, keep: Sequence[int]) -> None:
        """Go on with these trials alone, of those in `alive`."""
        at = [self.alive.index(number) for number in keep]
        for name in ("weights", "_mask", "_stretch", "_offset"):
            setattr(self, name, getattr(self, name)[:, at].contiguous())
        for name in ("_clip", "_l2"):
            setattr(self, name, getattr(self, name)[at])
        if self._inverse is not None:
            self._inverse = self._inverse[at]
        for name, columns in self._columns.items():
            self._rules[name].drop([columns.index(k) for k in at if k in columns])
        self._columns = {
            name: [new for new, k in enumerate(at) if k in columns] for name, columns in self._columns.items()
        }
        self.alive = list(keep)

    def model(self, number: int) -> LinearModel:
        """Return the model that a trial has reached, for its raw features."""
        trial, k = self.trials[number], self.alive.index(number)
        w, b = self.weights[_places(trial, self.units), k : k + 1], self.weights[-1:, k : k + 1]
        return LinearModel(trial.features, *trial.scaling.fold(w, b))

    def _measured(self, weights: Tensor) -> Tensor:
        """Return weights [features + 1, trials] for features in the units of the matrices."""
        return torch.cat(
            [self._stretch * weights[:-1], (self._offset * weights[:-1]).sum(0, keepdim=True) + weights[-1:]]
        )

    def _differentiate(self, seen: _Seen) -> tuple[Tensor, Tensor]:
        """Return each trial's mean squared error over its batch, and its gradient [features + 1, trials]."""
        measured = self._measured(self.weights)
        measured[-1] -= self.units.target_mean
        with_target = torch.cat([measured, measured.new_full((1, measured.size(1)), -1.0)])
        along = seen.multiply(with_target)
        sums = (with_target * along).sum(dim=0)
        terms = (with_target.abs() * seen.multiply(with_target.abs(), magnitudes=True)).sum(dim=0)
        self.lost[self.alive] = torch.maximum(self.lost[self.alive], (terms / sums.abs()).nan_to_num(nan=1.0))
        by_bias = along[-2:-1] * (2 / seen.rows)
        by_weights = self._stretch * along[:-2] * (2 / seen.rows) + self._offset * by_bias
        return sums / seen.rows, torch.cat([by_weights, by_bias]) * self._mask

    def _turn(self, gradient: Tensor, seen: _Seen) -> None:
        """Make the gradients of preconditioned trials steps, as `Preconditioner.turn` does."""
        columns = self._columns.get(PRECONDITIONED)
        if not columns:
            return
        if self._inverse is None:
            each = zip(self.alive, seen.grams, strict=True)
            self._inverse = torch.stack([self._invert(number, gram) for number, gram in each])
        step = torch.zeros_like(gradient)
        step[:, columns] = torch.einsum("kij,jk->ik", self._inverse[columns], gradient[:, columns])
        measured = self._measured(step)
        curvature = 2 / seen.rows * (measured * seen.multiply(measured)).sum(dim=0)
        curvature += 2 * self._l2 * step[:-1].square().sum(dim=0)
        slope = (gradient * step).sum(dim=0)
        step *= torch.where(curvature > 0, slope / curvature, 0).clamp(0, 1)
        gradient[:, columns] = step[:, columns]

    def _invert(self, number: int, gram: Gram) -> Tensor:
        """Return a trial's preconditioner from the first batch, among all features; zeros where it has none."""
        trial, size = self.trials[number], len(self.weights)
        inverse = torch.zeros(size, size, dtype=torch.float64)
        if trial.rule != PRECONDITIONED:
            return inverse
        k = self.alive.index(number)
        change = torch.diag(torch.cat([self._stretch[:, k], torch.ones(1, dtype=torch.float64)]))
        change[-1, :-1] = self._offset[:, k]
        hessian = 2 / gram.rows * (change.T @ gram.products[:-1, :-1] @ change)
        at = torch.tensor([*_places(trial, self.units), size - 1])
        own = Preconditioner.invert(hessian[at][:, at], torch.float64, trial.settings.l2)
        inverse[at[:, None], at] = own.inverse
        return inverse

    def _share_of_step(self) -> Tensor:
        """Return what `share_of_step` says, of each trial that is alive."""
        alive = (self.trials[number].settings for number in self.alive)
        return _row([share_of_step(each.schedule, self.iteration, each.iterations) for each in alive])


class _Seen:
    """The batch that each trial sees in one iteration, as its matrix; neighbours that see the same one share the work.

    rows: of the batches, [trials]
    """

    def __init__(self, grams: Sequence[Gram]) -> None:
        self.grams = grams
        self.rows = _row([gram.rows for gram in grams])
        runs = [list(run) for _, run in groupby(grams, key=id)]
        self._products, self._counts = [run[0].products for run in runs], [len(run) for run in runs]

    def multiply(self, columns: Tensor, *, magnitudes: bool = False) -> Tensor:
        """Return each trial's products, of those of its first columns, times its column of `columns` [size, trials]."""
        size, parts = columns.size(0), torch.split(columns, self._counts, dim=1)
        own = [products[:size, :size] for products in self._products]
        own = [products.abs() for products in own] if magnitudes else own
        return torch.cat([products @ part for products, part in zip(own, parts, strict=True)], dim=1)


class _Rule:
    """How an optimiser moves the weights of several trials; torch's formulas, in the order of its operations.

    given: the constants, [trials] each; lr is the learning rate
    kept: what it remembers, [features + 1, trials] each
    """

    def __init__(self, trials: Sequence[Trial], size: int) -> None:
        self.taken = 0
        each = [_constants_of(trial) for trial in trials]
        self.given = {name: _row([constants[name] for constants in each]) for name in each[0]}
        self.kept = {name: torch.zeros(size, len(trials), dtype=torch.float64) for name in ("first", "second")}

    def drop(self, at: Sequence[int]) -> None:
        """Keep these columns alone."""
        self.given = {name: values[at] for name, values in self.given.items()}
        self.kept = {name: values[:, at] for name, values in self.kept.items()}

    def move(self, weights: Tensor, gradient: Tensor, share: Tensor) -> Tensor:
        """Return the weights after a step."""
        self.taken += 1
        return self.apply(weights, gradient, self.given["lr"] * share)

    def apply(self, weights: Tensor, gradient: Tensor, lr: Tensor) -> Tensor:
        """Return the weights after a step of these sizes."""
        raise NotImplementedError


class _SGD(_Rule):
    def apply(self, weights: Tensor, gradient: Tensor, lr: Tensor) -> Tensor:
        self.kept["first"] = self.kept["first"] * self.given["momentum"] + gradient
        return weights - lr * self.kept["first"]


class _Adam(_Rule):
    def apply(self, weights: Tensor, gradient: Tensor, lr: Tensor) -> Tensor:
        beta1, beta2 = self.given["beta1"], self.given["beta2"]
        weights = weights * (1 - lr * self.given["weight_decay"])
        self.kept["first"] = first = torch.lerp(self.kept["first"], gradient, (1 - beta1).expand_as(gradient))
        self.kept["second"] = second = self.kept["second"] * beta2 + (1 - beta2) * gradient * gradient
        corrected = second.sqrt() / (1 - beta2**self.taken).sqrt() + self.given["eps"]
        return weights - lr / (1 - beta1**self.taken) * (first / corrected)


class _RMSprop(_Rule):
    def apply(self, weights: Tensor, gradient: Tensor, lr: Tensor) -> Tensor:
        alpha = self.given["alpha"]
        self.kept["second"] = second = self.kept["second"] * alpha + (1 - alpha) * gradient * gradient
        self.kept["first"] = self.kept["first"] * self.given["momentum"] + gradient / (
            second.sqrt() + self.given["eps"]
        )
        return weights - lr * self.kept["first"]


class _Adagrad(_Rule):
    def apply(self, weights: Tensor, gradient: Tensor, lr: Tensor) -> Tensor:
        self.kept["second"] = second = self.kept["second"] + gradient * gradient
        size = lr / (1 + (self.taken - 1) * self.given["lr_decay"])
        return weights - size * (gradient / (second.sqrt() + self.given["eps"]))


_RULES: dict[str, type[_Rule]] = {
    PRECONDITIONED: _SGD,
    "SGD": _SGD,
    "Adam": _Adam,
    "AdamW": _Adam,
    "RMSprop": _RMSprop,
    "Adagrad": _Adagrad,
}


def _constants_of(trial: Trial) -> dict[str, float]:
    """Return the constants that torch's optimiser would have, as numbers by name."""
    settings = trial.settings
    optimizer = make_optimizer([torch.zeros(1)], settings.optimizer, settings.learning_rate, settings.options)
    own = optimizer.param_groups[0]
    found = {name: float(value) for name, value in own.items() if isinstance(value, int | float)}
    if "betas" in own:
        found |= dict(zip(("beta1", "beta2"), own["betas"], strict=True))
    return found | ({"lr": 1.0} if trial.rule == PRECONDITIONED else {})


def _begin(trial: Trial, units: Units) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return a trial's first weights, which of them it has, and its features' scale and mean in those units."""
    at, size = _places(trial, units), len(units.mean)
    weights, mask = torch.zeros(2, size + 1, dtype=torch.float64)
    stretch, offset = torch.zeros(2, size, dtype=torch.float64)
    w, b = initial_weights(len(at), trial.settings.seed)
    weights[at], weights[-1] = w.flatten(), b.item()
    mask[at], mask[-1] = 1.0, 1.0
    stretch[at] = units.scale[at] / trial.scaling.scale
    offset[at] = (units.mean[at] - trial.scaling.mean) / trial.scaling.scale
    return weights, mask, stretch, offset


def _places(trial: Trial, units: Units) -> list[int]:
    """Return where a trial's features stand among all."""
    return [units.features.names.index(name) for name in trial.features.names]


def _row(values: Sequence[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)
