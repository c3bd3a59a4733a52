"""The step that says what the model is worth: beside the mean-only and the exact model, on the same rows."""

from __future__ import annotations

from typing import Any

from prefect import task
from prefect.artifacts import create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.logging import get_run_logger

from tasks.parameters import TrainingParameters
from tasks.settings import Sources
from tasks.shards import may_succeed_later, open_dataset

MODELS = ("trained", "exact", "mean")


@task(
    name="evaluate",
    cache_policy=NO_CACHE,
    retries=2,
    retry_delay_seconds=[1, 5],
    retry_condition_fn=may_succeed_later,
)
def evaluate_model(
    manifest: dict[str, Any],
    test_manifest: dict[str, Any] | None,
    features: dict[str, Any],
    trained: dict[str, Any],
    sources: Sources,
    given: TrainingParameters,
    run_id: str,
) -> dict[str, Any]:
    """Score the trained, the exact least-squares and the mean-only model on the test rows, or on the training rows
    where there are no test shards; slices as a table. Returns {"rows_of", "all": {model: facts}, "exact_train_mse"}."""
    import json

    import torch

    from tasks.learning.evaluation import Moments, score
    from tasks.learning.features import Features
    from tasks.learning.linear import LinearModel
    from tasks.learning.record import Outbox

    chosen = Features.from_dict(features)
    moments = Moments(chosen)
    for batch in open_dataset(manifest, sources, given, epochs=1):
        moments.add(batch)
    weights = torch.tensor(trained["weights"], dtype=torch.float64)[:, None]
    model = LinearModel(chosen, weights, torch.tensor([[trained["bias"]]], dtype=torch.float64))
    models = {"trained": model, "exact": moments.exact(), "mean": moments.mean_model()}
    scores = score(open_dataset(test_manifest or manifest, sources, given, epochs=1), models)
    outbox, kind = Outbox(run_id), "test" if test_manifest else "train"
    outbox.log(
        trained["iterations"],
        {
            f"{kind}_{key}" if name == "trained" else f"{kind}_{key}_{name}_model": value
            for name in MODELS
            for key, value in scores["all"][name].items()
            if key != "rows" and value is not None
        },
    )
    outbox.file("evaluation/scores.json").write_text(json.dumps(scores, indent=1), encoding="utf-8")
    create_table_artifact(
        key="slices",
        table=readable_slices(scores["slices"]),
        description=f"The trained model by slice of the {kind} rows, beside the exact least-squares model and the mean",
    )
    verdict = worth(scores["all"], kind)
    get_run_logger().info("%s", verdict)
    return {
        "rows_of": kind,
        "all": scores["all"],
        "verdict": verdict,
        "train_mse": {name: moments.mse(each) for name, each in models.items()},
    }


def readable_slices(slices: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The slices as a table for people: rows, and root mean squared errors to four digits."""
    return [
        {
            "slice": each["slice"],
            "rows": each["trained_rows"],
            **{f"RMSE {name}": _digits(each[f"{name}_rmse"]) for name in MODELS},
            "R²": _digits(each["trained_r2"]),
        }
        for each in slices
        if each["trained_rows"]
    ]


def _digits(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}"


def worth(scores: dict[str, dict[str, Any]], kind: str) -> str:
    """One sentence that says what the trained model is worth."""
    trained, exact, mean = (scores[name] for name in MODELS)
    rows = f"the {trained['rows']:,} {'test' if kind == 'test' else 'training'} rows"
    if trained["r2"] is None:
        return (
            f"The target is constant on {rows}, so no model can be told from guessing its mean: "
            f"RMSE {trained['rmse']:.4g}, always guessing the mean {mean['rmse']:.4g}."
        )
    if trained["mse"] >= mean["mse"]:
        return (
            f"This model is worse than always guessing the mean on {rows}: RMSE {trained['rmse']:.4g} against "
            f"{mean['rmse']:.4g}; the best linear model reaches {exact['rmse']:.4g}."
        )
    return (
        f"This model explains {trained['r2']:.1%} of the variance on {rows} (RMSE {trained['rmse']:.4g}; "
        f"always guessing the mean {mean['rmse']:.4g}; the best linear model {exact['rmse']:.4g})."
    )
