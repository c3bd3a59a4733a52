"""How good a model is: scores over streamed batches, and the exact least-squares model to hold it against."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Protocol

import torch
from torch import Tensor

from tasks.errors import ConfigurationError, TrainingError
from tasks.learning.density import DensitySums
from tasks.learning.features import Features
from tasks.learning.linear import LinearModel
from tasks.learning.reduction import ALONE, Reduction, add_up, count_rows, gather_rows, multiply_columns
from tasks.learning.scores import Score, Scores, Slice
from tasks.learning.sums import MomentSums

MOST_TARGET_RANGES = 5
EDGE_DIGITS = 4  # of the ranges' edges, so that a person can read them


class Moments:
    """Centred sufficient statistics of [x, y] over streamed rows, in float64.

    Rows are shifted by the mean of the first batch before products are summed, so that raw years and longitudes, whose
    mean is thousands of times their deviation, lose no digits
    (Chan, Golub, LeVeque 1983, The American Statistician 37:3).

    batch_rows: rows of a whole batch. Of a short one the sums are then those of a whole one whose other rows do not
        count, to the last bit; None: each batch is whole
    """

    def __init__(self, features: Features, batch_rows: int | None = None) -> None:
        self.features, self.rows = features, 0
        self._batch_rows = batch_rows
        size = len(features.names) + 1
        self._shift: Tensor | None = None
        self._sum = torch.zeros(size, dtype=torch.float64)
        self._products = torch.zeros(size, size, dtype=torch.float64)

    def add(self, batch: Tensor, reduction: Reduction = ALONE, *, rows: int | None = None, offset: int = 0) -> None:
        """Take in a [rows, columns] batch, or this rank's slices of it, which begin at its row `offset`.

        rows: how many of the whole batch's rows count, from its first one on; None: all
        """
        table = self._choose(batch, reduction)
        count = rows if rows is not None else len(batch) if reduction is ALONE else count_rows(table, reduction)
        here = min(max(count - offset, 0), len(batch))
        table[here:] = 0
        if self._shift is None:
            self._shift = add_up(lambda rows: rows.sum(dim=1), table, reduction=reduction) / count
        table[:here] -= self._shift
        sums = add_up(_add_products, table, reduction=reduction)
        # new tensors, so that a copy of these moments stays as it is
        self._sum, self._products = self._sum + sums[0], self._products + sums[1:]
        self.rows += count

    def _choose(self, batch: Tensor, reduction: Reduction) -> Tensor:
        """Return features and target of a batch, [rows, features + 1], in room for a whole one where it is short."""
        batch = batch.double()
        room = len(batch) if reduction is not ALONE else max(len(batch), self._batch_rows or 0)
        chosen = [self.features.of(batch), self.features.target_of(batch)]
        if room == len(batch):
            return torch.cat(chosen, dim=1)
        table = torch.empty(room, sum(part.shape[1] for part in chosen), dtype=torch.float64)
        table[: len(batch)] = torch.cat(chosen, dim=1)
        return table

    def sums(self, of: int, batches: int) -> MomentSums:
        """Return what was taken in, from `batches` batches, of a data set of `of` rows, as plain numbers."""
        assert self._shift is not None, "rows were taken in"
        return MomentSums(
            rows=self.rows,
            of=of,
            batches=batches,
            shift=tuple(self._shift.tolist()),
            sums=tuple(self._sum.tolist()),
            products=tuple(map(tuple, self._products.tolist())),
        )

    def restore(self, sums: MomentSums) -> None:
        """Go on from what was taken in before."""
        self.rows = sums.rows
        self._shift, self._sum, self._products = (
            torch.tensor(values, dtype=torch.float64) for values in (sums.shift, sums.sums, sums.products)
        )

    @property
    def mean(self) -> Tensor:
        """The mean of the features, then of the target: [features + 1]; raises TrainingError without rows."""
        if self._shift is None:
            raise TrainingError("no rows were streamed, so there is no mean")
        return self._shift + self._sum / self.rows

    @property
    def covariance(self) -> Tensor:
        """Population covariance of the features and the target: [features + 1, features + 1]."""
        centre = self._sum / self.rows
        return self._products / self.rows - torch.outer(centre, centre)

    def exact(self, l2: float = 0.0, *, standardise: bool = True) -> LinearModel:
        """Return the least-squares model with a bias; the one of least norm where features depend on each other.

        l2: times the weights' sum of squares, it is added to the mean squared error that is made least
        standardise: those weights are of features of deviation 1
        """
        covariance, mean = self.covariance, self.mean
        for name, value in zip(
            (*self.features.names, self.features.target), covariance.diagonal().tolist(), strict=True
        ):
            if not math.isfinite(value):
                raise ConfigurationError(
                    f"column {name!r} holds values whose squares do not fit float64: divide it by a power of ten, or "
                    "leave it out of the features"
                )
        w, b = solve_penalised(covariance, mean, l2, standardise=standardise)
        return LinearModel(self.features, w, b)

    def mean_model(self) -> LinearModel:
        """Return the model that always guesses the mean of the target."""
        w = torch.zeros(len(self.features.names), 1, dtype=torch.float64)
        return LinearModel(self.features, w, self.mean[-1].reshape(1, 1))

    def standardise(self, model: LinearModel) -> dict[str, float]:
        """Return by feature how many deviations of the target one deviation of it moves a model's prediction.

        Empty where the target is constant.
        """
        *deviations, of_target = self.covariance.diagonal().clamp(min=0).sqrt().tolist()
        if not of_target:
            return {}
        pairs = zip(model.w.flatten().tolist(), deviations, strict=True)
        moved = [weight * deviation / of_target for weight, deviation in pairs]
        return dict(zip(self.features.names, moved, strict=True))

    def mse(self, model: LinearModel) -> float:
        """Return the mean squared error of a model over the rows taken in."""
        direction = torch.cat([-model.w, torch.ones(1, 1, dtype=torch.float64)])
        offset = self.mean[-1] - self.mean[:-1] @ model.w - model.b
        return float(direction.T @ self.covariance @ direction + offset**2)


def solve_penalised(covariance: Tensor, mean: Tensor, l2: float, *, standardise: bool) -> tuple[Tensor, Tensor]:
    """Return the w [features, 1] and b [1, 1] of least mean squared error and l2 times w's sum of squares.

    covariance, mean: of the features and the target, which stands last
    standardise: the penalty is on the weights of features of deviation 1
    """
    deviation = covariance.diagonal().clamp(min=0).sqrt()[:-1]
    # a constant column's deviation is rounding noise of its mean
    usable = deviation > 1e-12 * mean[:-1].abs().clamp(min=torch.finfo(torch.float64).tiny)
    deviation = torch.where(usable, deviation, torch.ones_like(deviation))
    correlation = covariance[:-1, :-1] / torch.outer(deviation, deviation) * torch.outer(usable, usable)
    against = (covariance[:-1, -1:] / deviation[:, None]) * usable[:, None]
    if l2:
        correlation += l2 * torch.diag(torch.ones_like(deviation) if standardise else deviation**-2)
    solution = torch.linalg.lstsq(correlation, against, driver="gelsd").solution
    w = solution / deviation[:, None]
    return w, (mean[-1] - mean[:-1] @ w).reshape(1, 1)


def _add_products(rows: Tensor) -> Tensor:
    """Return the sums of slices' rows, and below them the sums of the products of their columns."""
    return torch.cat([rows.sum(dim=1, keepdim=True), multiply_columns(rows)], dim=1)


@dataclass
class ErrorSums:
    """Sums over rows from which a model's errors follow, for each group of rows: `sums` is [5, groups] of float64."""

    groups: int
    sums: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.sums = torch.zeros(5, self.groups, dtype=torch.float64)

    def add(self, error: Tensor, shifted_target: Tensor, group: Tensor, reduction: Reduction = ALONE) -> None:
        """Take in rows, or this rank's slices of them.

        They are errors, targets less a constant near their mean, and group numbers; each [rows].
        """
        tables = (values[:, None] for values in (error, shifted_target, group))
        self.sums += add_up(self._add_slices, *tables, reduction=reduction)

    def _add_slices(self, error: Tensor, target: Tensor, group: Tensor) -> Tensor:
        """Return the rows, squared and absolute errors, targets and squared targets of slices: [slices, 5, groups]."""
        slices = len(error)
        place = (group + self.groups * torch.arange(slices)[:, None, None]).flatten()
        columns = (None, error**2, error.abs(), target, target**2)
        sums = [
            torch.bincount(place, None if values is None else values.flatten(), minlength=slices * self.groups)
            for values in columns
        ]
        return torch.stack([each.double().view(slices, self.groups) for each in sums], dim=1)

    def score(self, group: int | None = None) -> Score | None:
        """Return the score over one group's rows, or over all; None where there are none."""
        rows, squared, absolute, target, target_squared = (
            float(values.sum() if group is None else values[group]) for values in self.sums
        )
        if not rows:
            return None
        mse = squared / rows
        variance = target_squared / rows - (target / rows) ** 2
        constant = variance <= 1e-12 * (target_squared / rows)
        return Score(
            rows=int(rows),
            mse=mse,
            rmse=math.sqrt(mse),
            mae=absolute / rows,
            r2=None if constant else 1 - mse / variance,
        )


class Predictor(Protocol):
    """What predicts [rows, 1] in float64 from a [rows, columns] batch, whatever it is made of."""

    def predict(self, batch: Tensor) -> Tensor:
        """Return predictions [rows, 1] in float64."""


def score(
    batches: Iterable[Tensor],
    models: Mapping[str, LinearModel],
    others: Mapping[str, Predictor] | None = None,
    reductions: Iterable[Reduction] | None = None,
) -> Scores:
    """Score models, and others beside them, on the same [rows, columns] batches, over all rows and by slice.

    reductions: of batches that are this rank's slices alone, that of each; None: batches are whole

    Slices are by range of the target (edges at the quintiles of the first batch, the outer ranges open), and by hour
    where there is an hour_integer column. Within ranges of the target no model has an R². The density is of the first
    model. Raises TrainingError where there are no rows.
    """
    stream = zip(batches, reductions or itertools.repeat(ALONE), strict=False)
    first = next(stream, None)
    if first is None:
        raise TrainingError("there are no rows to score the model on: test_shards name empty shards")
    drawn, features = next((name, model.features) for name, model in models.items())
    predictors: dict[str, Predictor] = {**models, **(others or {})}
    target, predicted, shift = _open(*first, models[drawn])
    edges = _target_edges(target)
    by_hour = "hour_integer" in features.columns
    density = DensitySums(target, predicted)
    ranges = {name: ErrorSums(len(edges) + 1) for name in predictors}
    hours = {name: ErrorSums(24) for name in predictors} if by_hour else {}
    for batch, reduction in itertools.chain([first], stream):
        batch = batch.double()
        target = features.target_of(batch).flatten().contiguous()
        in_range = torch.bucketize(target, edges, right=True)
        hour = batch[:, features.columns.index("hour_integer")].long().remainder(24) if by_hour else None
        for name, model in predictors.items():
            predicted = _predict(model, batch).flatten()
            error = predicted - target
            if name == drawn:
                density.add(target, predicted)
            ranges[name].add(error, target - shift, in_range, reduction)
            if hour is not None:
                hours[name].add(error, target - shift, hour, reduction)
    hour_labels = [f"hour {hour:02d}" for hour in range(24)] if by_hour else []
    range_labels = _range_labels(features.target, edges.tolist())
    return Scores(
        overall={name: total for name, sums in ranges.items() if (total := sums.score())},
        slices=(*map(_mark_by_target, _slice(ranges, range_labels)), *_slice(hours, hour_labels)),
        density=density.density(reduction),
    )


def _open(batch: Tensor, reduction: Reduction, model: LinearModel) -> tuple[Tensor, Tensor, Tensor]:
    """Return the target and the predictions [rows] of the whole first batch, and the target's mean, on every rank."""
    target = model.features.target_of(batch).double().contiguous()
    rows = gather_rows(torch.cat([target, _predict(model, batch)], dim=1), reduction)
    mean = add_up(lambda rows: rows.sum(dim=1), target, reduction=reduction) / len(rows)
    return rows[:, 0].contiguous(), rows[:, 1].contiguous(), mean


def _predict(model: Predictor, batch: Tensor) -> Tensor:
    """Return predictions [rows, 1]; of the short last batch a rank may have no rows, which not every model takes."""
    return model.predict(batch) if len(batch) else torch.empty(0, 1, dtype=torch.float64)


def _slice(sums: Mapping[str, ErrorSums], labels: Iterable[str]) -> Iterable[Slice]:
    for group, label in enumerate(labels):
        yield Slice(name=label, scores={name: each.score(group) for name, each in sums.items()})


def _mark_by_target(each: Slice) -> Slice:
    """Return a slice by the target marked as one, and without R²."""
    scores = {name: score and replace(score, r2=None) for name, score in each.scores.items()}
    return replace(each, by_target=True, scores=scores)


def _target_edges(target: Tensor) -> Tensor:
    """Return the distinct inner quintiles of a target [rows], rounded."""
    inner = torch.linspace(0, 1, MOST_TARGET_RANGES + 1, dtype=torch.float64)[1:-1]
    sample = target[: 2**20]  # torch.quantile takes 2**24 values at most
    quintiles = torch.quantile(sample, inner).tolist()
    return torch.tensor(sorted({float(f"{edge:.{EDGE_DIGITS}g}") for edge in quintiles}), dtype=torch.float64)


def _range_labels(target: str, edges: list[float]) -> list[str]:
    between = [f"{low:.{EDGE_DIGITS}g} ≤ {target} < {high:.{EDGE_DIGITS}g}" for low, high in itertools.pairwise(edges)]
    return [f"{target} < {edges[0]:.{EDGE_DIGITS}g}", *between, f"{target} ≥ {edges[-1]:.{EDGE_DIGITS}g}"]
