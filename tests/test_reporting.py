"""What the report says of a run is true: where features nearly depend on each other, how it stepped, where it errs."""

import re
from dataclasses import replace

import pytest
import torch

from tasks.facts import Evaluation, Fit, FitTimes, Promotion
from tasks.learning.batches import Prepared
from tasks.learning.conditioning import most_condition
from tasks.learning.features import Features
from tasks.learning.loop import Iteration, Settings, Trainer, train
from tasks.learning.scaling import Scaling
from tasks.learning.scores import AT_BOTH_ENDS, Density, Score, Slice
from tasks.learning.scoring import Moments
from tasks.reporting import above_exact, write_times
from tasks.wording.worth import write_condition, write_step, write_worst

FEATURES = Features(columns=("y", "a", "b", "c"), target="y", raw=("a", "b", "c"))
ENOUGH = {"float64": 6e-4, "float32": 2e-2}  # how far b is from a, in deviations, where 50 iterations are just enough


def make_rows(apart):
    """Rows whose b is nearly a, and whose target depends on what sets them apart: [2000, 4]."""
    random = torch.Generator().manual_seed(1)
    a, c, other, noise = torch.randn(4, 2000, generator=random, dtype=torch.float64)
    return torch.stack([other + c + 0.3 * noise, a, a + apart * other, c], dim=1)


def fit_to(rows, dtype, iterations=50):
    """What the default preset's loop makes of them, and its error over all of them beside the exact model's."""
    moments = Moments(FEATURES)
    moments.add(rows)
    scaling, kind = Scaling.of(FEATURES.of(rows), {}), getattr(torch, dtype)
    settings = Settings(iterations=iterations, learning_rate=None, gradient_norm=0.0, seed=None, dtype=kind)
    trainer = Trainer(FEATURES, scaling, settings, torch.device("cpu"))
    x, y = scaling.apply(FEATURES.of(rows)).to(kind), FEATURES.target_of(rows).to(kind)
    curve = [each.mse for each in train(trainer, (Prepared(x, y) for _ in range(iterations)))]
    return make_fit(curve, trainer.learning_rate, trainer.condition), {
        "trained": moments.mse(trainer.model()),
        "exact": moments.mse(moments.exact()),
    }


def make_fit(curve, learning_rate, condition):
    times = FitTimes(seconds=1.0, wait_seconds=0.0, copy_seconds=0.0, compute_seconds=1.0, stream=None, stages={})
    return Fit(
        weights=(1.0, 1.0, 1.0), bias=0.0, learning_rate=learning_rate, condition=condition, device="cpu",
        curve=tuple(curve), rows=1, times=times, bad_rows=0, bad_rows_file=None, moments=None,
    )  # fmt: skip


@pytest.mark.parametrize("dtype", ENOUGH)
def test_up_to_the_condition_number_that_is_shown_the_model_is_within_a_percent_and_nothing_is_said(dtype):
    fit, mse = fit_to(make_rows(ENOUGH[dtype] * 1.1), dtype)
    assert 0.5 * most_condition(50, getattr(torch, dtype)) < fit.condition < most_condition(50, getattr(torch, dtype))
    assert mse["trained"] < 1.01 * mse["exact"]
    assert write_condition(dtype, fit, mse) == []


@pytest.mark.parametrize("dtype", ENOUGH)
def test_above_it_the_report_says_by_how_much_and_with_what_it_names_the_model_converges(dtype):
    rows = make_rows(ENOUGH[dtype] / 2)
    fit, mse = fit_to(rows, dtype)
    (sentence,) = write_condition(dtype, fit, mse)
    assert mse["trained"] > 1.01 * mse["exact"]
    assert f"{mse['trained'] / mse['exact'] - 1:.2%} above that of the best linear model" in sentence
    assert f"condition number is {fit.condition:.2g}, and 50 iterations are enough up to 1.1e+0" in sentence
    (named,) = re.findall(r"`--solver exact`, or `--iterations (\d+)`", sentence)
    _, again = fit_to(rows, dtype, int(named))
    assert again["trained"] < 1.01 * again["exact"]


def test_what_no_number_of_iterations_is_worth_is_left_to_the_exact_solver():
    (sentence,) = write_condition("float64", make_fit([1.0], 1.0, 1e13), {"trained": 2.0, "exact": 1.0})
    assert "`--solver exact` reaches" in sentence
    assert "--iterations" not in sentence


@pytest.mark.parametrize(
    ("learning_rate", "condition", "words"),
    [
        (1.0, 123.4, "1, along gradients that are preconditioned by the first batch's Hessian (condition number 123)"),
        (0.03, None, "0.03"),
        (None, None, "none: solved exactly"),
    ],
)
def test_the_step_is_what_was_taken(learning_rate, condition, words):
    assert write_step(make_fit([1.0], learning_rate, condition)) == words


def make_evaluation(*slices):
    """An evaluation over 1,000 rows; slices are (name, rows, RMSE)."""

    def of(rows, rmse):
        return Score(rows=rows, mse=rmse**2, rmse=rmse, mae=rmse, r2=None)

    return Evaluation(
        rows_of="test",
        scores={"trained": of(1000, 2.0)},
        slices=tuple(
            Slice(name=name, scores={"trained": of(rows, rmse) if rows else None, "mean": of(max(rows, 1), 5.0)})
            for name, rows, rmse in slices
        ),
        density=Density(edges=(0.0, 1.0), counts=((1,),), residual_edges=(0.0, 1.0), residual_counts=(1,)),
        standardised={},
        verdict="",
        promotion=Promotion(wins=False, against=None, verdict=""),
        train_mse={"exact": 4.0},
    )


def test_one_sentence_names_the_worst_slices_of_those_that_hold_some_rows():
    evaluation = make_evaluation(
        ("a few", 9, 99.0), ("low", 500, 1.0), ("high", 490, 7.25), ("h", 10, 3.0), ("n", 0, 0)
    )
    assert write_worst(evaluation) == [
        "The errors are largest where high (RMSE 7.25 over 490 rows; always the mean 5) and h (RMSE 3 over 10 rows; "
        "always the mean 5)."
    ]
    assert write_worst(make_evaluation(("low", 500, 1.0), ("high", 500, 7.0))) == []
    by_target = replace(evaluation, slices=tuple(replace(each, by_target=True) for each in evaluation.slices))
    assert write_worst(by_target) == [f"{write_worst(evaluation)[0]} Mind that {AT_BOTH_ENDS}."]


def test_the_error_above_the_exact_model_is_the_curve_less_its_error_over_all_rows():
    assert above_exact(make_fit([9.0, 5.0, 3.5], 1.0, None), make_evaluation()) == [5.0, 1.0, -0.5]


@pytest.mark.parametrize("times", [(12.34, 1.111, 0.222, 10.004), (0.03, 0.004, 0.004, 0.0149), (5.0, 2.0, 1.0, 3.0)])
def test_waiting_copying_computing_and_recording_sum_to_the_total_as_printed(times):
    seconds, waiting, copying, computing = times
    spent = {"seconds": seconds, "wait_seconds": waiting, "copy_seconds": copying, "compute_seconds": computing}
    fit = make_fit([1.0], 1.0, None)
    text = write_times(replace(fit, times=replace(fit.times, **spent)))
    (total,) = (float(each) for each in re.findall(r" in ([\d.]+) s on cpu", text))
    parts = [float(each) for each in re.findall(r"(?:data|copying|computing|recording) ([\d.]+) s \(", text)]
    assert len(parts) == 4
    assert sum(parts) == pytest.approx(total, abs=1e-9)
    assert ("The run was bound by computing" in text) == (seconds >= 5)
    assert text.endswith("That is too short to advise.") == (seconds < 5)


def test_an_iterations_line_says_what_its_seconds_leave_out():
    line = str(Iteration(iteration=7, mse=8.16, rows=10, wait_seconds=0.25, copy_seconds=0.0, compute_seconds=0.5))
    assert line == "Iteration: 007, Seconds/Iteration: 0.500 MSE: 8.16 (without 0.250 s of waiting for data)"
