"""The step that says what the model is worth: beside the mean-only and the exact model, on the same rows."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

from prefect.artifacts import create_table_artifact
from prefect.logging import get_run_logger

from tasks.data import open_dataset
from tasks.parameters import TrainingParameters
from tasks.policy import READING, step
from tasks.promotion import find_champion, judge
from tasks.sources import Sources
from tasks.splitting import ROWS_OF

if TYPE_CHECKING:
    from tasks.learning.linear import LinearModel
    from tasks.tracking.outbox import Outbox

MODELS = ("trained", "exact", "mean")
SLICES = "evaluation/slices.json"


@step("evaluate", pauses=READING)
def evaluate_model(
    manifest: dict[str, Any],
    test_manifest: dict[str, Any] | None,
    kind: str,
    features: dict[str, Any],
    trained: dict[str, Any],
    sources: Sources,
    given: TrainingParameters,
    run_id: str,
) -> dict[str, Any]:
    """Score the trained, the exact least-squares, the mean-only and the champion's model on the same rows.

    They are those of `test_manifest` (`kind` is test or held-out), else the training rows (train). Slices as a table.
    Returns {"rows_of": kind, "all": {model: facts}, "verdict", "gate": as `judge` says, "train_mse": {model: MSE}}.
    """
    from tasks.learning.scoring import Moments, score
    from tasks.tracking.outbox import Outbox

    model = linear_model(features, trained)
    moments = Moments(model.features)
    for batch in open_dataset(manifest, sources, given, epochs=1):
        moments.add(batch)
    models: dict[str, Any] = {"trained": model, "exact": moments.exact(), "mean": moments.mean_model()}
    rows = test_manifest or manifest
    champion = find_champion(given.experiment, model.features.target, rows["columns"])
    compared = models | ({"champion": champion.model} if champion.model and kind != "train" else {})
    scores = score(open_dataset(rows, sources, given, epochs=1), compared).to_dict()
    gate = judge(scores["all"], kind, champion)
    keep_scores(Outbox(run_id), scores, "train" if kind == "train" else "test", trained["iterations"])
    create_table_artifact(
        key="slices",
        table=readable_slices(scores["slices"]),
        description=f"The trained model by slice of the {ROWS_OF[kind]} rows, beside the exact model and the mean",
    )
    verdict = worth(scores["all"], kind)
    get_run_logger().info("%s", verdict)
    get_run_logger().info("%s", gate["verdict"])
    return {
        "rows_of": kind,
        "all": scores["all"],
        "verdict": verdict,
        "gate": gate,
        "train_mse": {name: moments.mse(each) for name, each in models.items()},
    }


def linear_model(features: dict[str, Any], trained: dict[str, Any]) -> LinearModel:
    """The model from the plain facts that the training step returned."""
    import torch

    from tasks.learning.features import Features
    from tasks.learning.linear import LinearModel

    weights = torch.tensor(trained["weights"], dtype=torch.float64)[:, None]
    return LinearModel(Features.from_dict(features), weights, torch.tensor([[trained["bias"]]], dtype=torch.float64))


def keep_scores(outbox: Outbox, scores: dict[str, Any], prefix: str, step: int) -> None:
    """Put the scores into the run's record: metrics, all of it as JSON, and the slices as a table that MLflow shows."""
    outbox.log(
        step,
        {
            f"{prefix}_{key}" if name == "trained" else f"{prefix}_{key}_{name}_model": value
            for name, facts in scores["all"].items()
            for key, value in facts.items()
            if key != "rows" and value is not None and math.isfinite(value)
        },
    )
    outbox.file("evaluation/scores.json").write_text(json.dumps(scores, indent=1), encoding="utf-8")
    slices = scores["slices"]
    table = {"columns": list(slices[0]), "data": [list(each.values()) for each in slices]}
    outbox.file(SLICES).write_text(json.dumps(table), encoding="utf-8")
    outbox.tag({"mlflow.loggedArtifacts": json.dumps([{"path": SLICES, "type": "table"}])})


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
    rows = f"the {trained['rows']:,} {ROWS_OF[kind]} rows"
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
