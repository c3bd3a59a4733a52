"""What a model is worth, and where it errs: sentences and tables of its scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pydantic import JsonValue

from tasks.facts import ROWS_OF, Evaluation, Fit
from tasks.learning.scores import AT_BOTH_ENDS, Score, Slice
from tasks.naming import escape_markdown

MODELS = ("trained", "exact", "mean")
SMALLEST_SHARE = 0.01  # of the rows, from which on a slice's error is not a few rows' luck
MOST_ITERATIONS = 100_000  # that are worth a try, where the exact solver needs one pass


def write_scores(evaluation: Evaluation) -> str:
    """Return the models beside each other on the same rows, as a markdown table."""
    names = {"trained": "trained", "exact": "exact least squares", "mean": "always the mean"}
    if "champion" in evaluation.scores:
        names["champion"] = f"champion so far (version {evaluation.promotion.against})"
    lines = [f"| model ({ROWS_OF[evaluation.rows_of]} rows) | MSE | RMSE | MAE | R² |", "|---|---:|---:|---:|---:|"]
    for key, name in names.items():
        score = evaluation.scores[key]
        r2 = "–" if score.r2 is None else f"{round(score.r2, 4) + 0.0:.4f}"
        lines.append(f"| {name} | {score.mse:.6g} | {score.rmse:.6g} | {score.mae:.6g} | {r2} |")
    return "\n".join(lines)


def write_worst(evaluation: Evaluation) -> list[str]:
    """Return one sentence that names the two slices with the largest errors, where there are three or more."""
    large = find_large(evaluation)
    if len(large) < 3:
        return []
    worst = sorted(large, key=lambda each: -each[1].rmse)[:2]
    named = " and ".join(
        f"{escape_markdown(each.name)} (RMSE {own.rmse:.6g} over {own.rows:,} rows; always the mean {mean.rmse:.6g})"
        for each, own, mean in worst
    )
    caveat = f" Mind that {AT_BOTH_ENDS}." if any(each.by_target for each, *_ in worst) else ""
    return [f"The errors are largest where {named}.{caveat}"]


def find_large(evaluation: Evaluation) -> list[tuple[Slice, Score, Score]]:
    """Return the slices with so many rows that their errors are no luck, with the model's and the mean's score."""
    least = SMALLEST_SHARE * evaluation.scores["trained"].rows
    found = [(each, each.scores["trained"], each.scores["mean"]) for each in evaluation.slices]
    return [(each, own, mean) for each, own, mean in found if own and mean and own.rows >= least]


def write_condition(dtype: str, fit: Fit, train_mse: Mapping[str, float]) -> list[str]:
    """Return a sentence where the features depend on each other more than so many iterations can cope with."""
    import torch

    from tasks.learning.conditioning import count_iterations, most_condition

    if fit.condition is None:
        return []
    needed = count_iterations(fit.condition, getattr(torch, dtype))
    if needed <= fit.iterations:
        return []
    trained, exact = train_mse["trained"], train_mse["exact"]
    at_most = most_condition(fit.iterations, getattr(torch, dtype))
    above = f"{trained / exact - 1:.2%}" if exact > 0 else "more than nothing"
    more = f", or `--iterations {needed}`" if needed <= MOST_ITERATIONS else ""
    return [
        f"**The features nearly depend on each other**: the first batch's condition number is {fit.condition:.2g}, and "
        f"{fit.iterations} iterations are enough up to {at_most:.2g}; over the training rows this model's MSE is "
        f"{above} above that of the best linear model, which `--solver exact`{more} reaches."
    ]


def write_step(fit: Fit) -> str:
    """Return the step size in words."""
    if fit.learning_rate is None:
        return "none: solved exactly"
    if fit.condition is None:
        return f"{fit.learning_rate:.6g}"
    return (
        f"{fit.learning_rate:.6g}, along gradients that are preconditioned by the first batch's Hessian (condition "
        f"number {fit.condition:.3g})"
    )


def tabulate_slices(slices: Sequence[Slice]) -> list[dict[str, str | int]]:
    """Return the slices as a table for people: rows, root mean squared errors to six digits, R² where any has one."""
    present = ((each.name, {name: score for name, score in each.scores.items() if score}) for each in slices)
    with_r2 = any(each.r2 is not None for one in slices if (each := one.scores["trained"]))
    return [
        {
            "slice": name,
            "rows": scores["trained"].rows,
            **{f"RMSE {model}": _digits(scores[model].rmse) for model in MODELS},
            **({"R²": _digits(scores["trained"].r2)} if with_r2 else {}),
        }
        for name, scores in present
        if scores
    ]


def format_value(value: JsonValue) -> str:
    """Return a parameter's value for people."""
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _digits(value: float | None) -> str:
    return "–" if value is None else f"{value:.6g}"
