"""What MLflow's pages show first: descriptions, with lines to copy, and a view of the runs by their models' worth."""

from __future__ import annotations

import json
import re
import time
from typing import Literal, TypeAlias

Kind: TypeAlias = Literal["benchmarks", "monitoring", "predictions", "searches"]

NOTE = "mlflow.note.content"  # the description of an experiment
SAVED_VIEW = "mlflow.sharedViewState.scores"
VIEWED = ("test_r2", "test_rmse", "test_rmse_exact_model", "test_rmse_mean_model", "train_r2", "train_rmse")
SECTIONS = {
    "What models are worth": ("BAR", VIEWED),
    "Curves": ("LINE", ("mse", "mse_above_exact")),
    "Times": ("LINE", ("wait_seconds", "copy_seconds", "compute_seconds", "seconds_per_iteration", "rows_per_second")),
}
BESIDE: dict[Kind, str] = {
    "benchmarks": "What the hardware does for training: a run for each benchmark (`python -m flows.benchmarking`), "
    "with its report, plots and `benchmark.json`; `--against RUN_ID` compares with an earlier one.",
    "monitoring": "Whether data has drifted from what a model was trained on: a run for each time (`python -m "
    "flows.monitoring`), with the distances of every column, a picture of those that moved most, and the model's error "
    "where the rows are labelled.",
    "predictions": "Shards that were predicted with a model: a run for each time (`python -m flows.predicting`), with "
    "the data that was read, the model's version, and where the predictions are.",
    "searches": "Searches for good parameters (`python -m flows.searching`): a run for each, with a run within it "
    "for each trial and Optuna's pictures of them all; the best trial is trained as a run of its own, whose id stands "
    "in the tag `shardline.best_run`.",
}


def experiment_beside(experiment: str, kind: Kind) -> str:
    """Return the experiment beside a training's in which benchmarks or predictions are recorded."""
    return f"{experiment}-{kind}"


def name_of_model(experiment: str) -> str:
    """Return the registered model's name: the experiment's, without the two characters that MLflow refuses."""
    return re.sub("[/:]", "-", experiment)


def describe_experiment(name: str, experiment_id: str, tracking_uri: str) -> dict[str, str]:
    """Return the tags of an experiment that say what it holds, and how to see it; `tracking_uri` is shown as it is."""
    for kind, text in BESIDE.items():
        if name.endswith(f"-{kind}"):
            return {NOTE: text}
    view = f"#/experiments/{experiment_id}/runs?workflowType=machine_learning&viewStateShareKey=scores"
    text = f"""Linear models trained on shards in object storage. **[All runs by what their models are worth]({view})**,
the best one first; a run for each training (`python -m flows.training`).

{describe_model(name_of_model(name), tracking_uri)}"""
    return {NOTE: text, SAVED_VIEW: saved_view()}


def describe_model(name: str, tracking_uri: str) -> str:
    """Return how a registered model is used, with lines to copy; `tracking_uri` is shown as it is."""
    return f"""`champion` is the version that beat the champion before it on rows that neither was trained on,
`challenger` the one that was trained last. The champion predicts from the columns of a table, by their names:

```python
{write_loading(f"models:/{name}@champion", tracking_uri)}
```

Each column is read as float64 and may be of any numeric type, as its signature says by `any`: MLflow refuses the
integers that pandas reads where it says `double`. To `mlflow models serve` send JSON, such as `dataframe_split`, for
MLflow reads no CSV without types."""


def write_loading(uri: str, tracking_uri: str, rows: str = 'pandas.read_csv("rows.csv")') -> str:
    """Return lines to copy that load a model and predict `rows`, which are Python; the URI is shown as it is."""
    needed = "import mlflow\nimport pandas" if "pandas" in rows else "import mlflow"
    return f"""{needed}

mlflow.set_tracking_uri({tracking_uri!r})
model = mlflow.pyfunc.load_model({uri!r})
print(model.predict({rows}))"""


def saved_view() -> str:
    """Return a view of the experiment's runs as MLflow's page keeps it, under *Views*: it shows no metric by itself.

    The best runs stand first; single values are drawn apart from curves, and those apart from times.
    """
    now = int(time.time() * 1000)
    state = {
        "orderByKey": f"metrics.`{VIEWED[0]}`",
        "orderByAsc": False,
        "selectedColumns": [*(f"metrics.`{key}`" for key in VIEWED), "attributes.`Models`"],
        "isAccordionReordered": True,  # else they stand by their names
        "compareRunSections": [
            {
                "uuid": title,
                "name": title,
                "display": True,
                "isReordered": False,
                "deleted": False,
                "isGenerated": False,
            }
            for title in SECTIONS
        ],
        "compareRunCharts": [_chart(title, kind, key) for title, (kind, keys) in SECTIONS.items() for key in keys],
    }
    return json.dumps({"name": "Scores", "createdAt": now, "updatedAt": now, "state": json.dumps(state)})


def _chart(section: str, kind: str, key: str) -> dict[str, object]:
    """Return a chart of one metric, with the fields that MLflow's page gives one that it makes itself."""
    chart: dict[str, object] = {
        "uuid": f"{section} {key}",
        "type": kind,
        "metricSectionId": section,
        "metricKey": key,
        "displayName": key,
        "runsCountToCompare": 10,
        "deleted": False,
        "isGenerated": False,
    }
    if kind == "BAR":
        return chart
    scale = "log" if key == "mse_above_exact" else "linear"
    return chart | {
        "selectedMetricKeys": [key],
        "scaleType": scale,
        "xAxisScaleType": "linear",
        "xAxisKey": "step",
        "yAxisKey": "metric",
        "yAxisExpressions": [],
        "range": {},
        "lineSmoothness": 0,
        "useGlobalXaxisKey": True,
        "useGlobalLineSmoothing": True,
    }
