"""The exact model for each strength of the penalty, cross-validated: against numpy, row by row."""

import numpy as np
import pytest
import torch

from tasks.learning.features import Features
from tasks.learning.grams import Units
from tasks.learning.linear import LinearModel
from tasks.learning.ridge import STRENGTHS, trace_path
from tasks.learning.scoring import Moments

FEATURES = Features.choose(["y", "a", "year", "c"])


@pytest.fixture(scope="module")
def folds():
    """Three parts of 400 rows, [target, features], with raw years and columns of unlike deviations."""
    draw = np.random.default_rng(3)
    x = np.column_stack([draw.normal(size=400), draw.integers(2015, 2020, 400), 30 + 0.1 * draw.normal(size=400)])
    y = x @ [1.0, 0.5, -4.0] + draw.normal(0, 3, 400)
    return torch.from_numpy(np.column_stack([y, x])).split([150, 130, 120])


def solve(rows, l2, standardise):
    """The penalised model by numpy's least squares, with the penalty as rows of their own."""
    x, y = rows[:, 1:].numpy(), rows[:, 0].numpy()
    centre, scale = x.mean(axis=0), x.std(axis=0) if standardise else np.ones(3)
    z = np.concatenate([(x - centre) / scale, np.sqrt(l2 * len(x)) * np.eye(3)])
    w = np.linalg.lstsq(z, np.concatenate([y - y.mean(), np.zeros(3)]), rcond=None)[0] / scale
    return w, y.mean() - centre @ w


@pytest.mark.parametrize("standardise", [True, False])
def test_the_path_is_numpys_for_each_strength_and_fold(standardise, folds):
    units = Units.of(FEATURES, folds[0])
    path = trace_path([units.measure(fold) for fold in folds], units, standardise=standardise)
    everything = torch.cat(folds)
    for at in (0, 1, 20, len(STRENGTHS) - 1):
        w, _ = solve(everything, STRENGTHS[at], standardise)
        assert path.weights[at] == pytest.approx(w * everything[:, 1:].numpy().std(axis=0), rel=1e-7, abs=1e-9)
        errors = 0.0
        for number, fold in enumerate(folds):
            w, b = solve(torch.cat([f for k, f in enumerate(folds) if k != number]), STRENGTHS[at], standardise)
            errors += ((fold[:, 1:].numpy() @ w + b - fold[:, 0].numpy()) ** 2).sum()
        assert path.mse[at] == pytest.approx(errors / 400, rel=1e-9)
    assert path.mse[path.best] == min(path.mse)


def test_the_errors_of_a_model_follow_from_the_matrix(folds):
    units = Units.of(FEATURES, folds[0])
    model = LinearModel.of(FEATURES, [0.3, 0.1, -2.0], 5.0)
    expected = float(((model.predict(folds[1]) - folds[1][:, :1]) ** 2).sum())
    assert units.add_errors(units.measure(folds[1]), model.w, model.b) == pytest.approx(expected, rel=1e-10)


def test_the_exact_solver_takes_the_strength_that_the_path_names(folds):
    units, everything = Units.of(FEATURES, folds[0]), torch.cat(folds)
    path = trace_path([units.measure(fold) for fold in folds], units, standardise=True)
    moments = Moments(FEATURES)
    moments.add(everything)
    found = moments.standardise(moments.exact(path.strengths[20]))
    deviation = float(everything[:, 0].std(correction=0))
    assert [value * deviation for value in found.values()] == pytest.approx(path.weights[20], rel=1e-9)
