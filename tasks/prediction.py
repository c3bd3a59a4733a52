"""The steps that predict: shards are read, and written again, row for row, with a column more."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from prefect.artifacts import create_markdown_artifact
from prefect.logging import get_run_logger

from tasks.errors import ConfigurationError
from tasks.facts import ChosenModel, Predicted
from tasks.learning.drift import Drift
from tasks.naming import escape_markdown
from tasks.parameters import PredictionParameters
from tasks.policy import STREAMING, step
from tasks.ranks.group import Group
from tasks.ranks.predicting import ToPredict, Written, join_profiles, measure_error, predict_as_rank, predict_places
from tasks.redaction import redact
from tasks.runs.lifecycle import Run
from tasks.runs.reference import find_reference
from tasks.sources import Sources
from tasks.streaming.writing import PREDICTION, name_shards
from tasks.tracking.carrying import carry
from tasks.tracking.registry import ColumnModel, load_model
from tasks.tracking.views import name_of_model

if TYPE_CHECKING:
    from tasks.streaming import Manifest


def resolve_output(given: PredictionParameters, shards: str) -> str:
    """Return the folder to write to: the parameter, else `predictions` beside the shards.

    Raises ConfigurationError where nothing can be written beside them, or where there is no one place beside them.
    """
    if given.output:
        return given.output if urlsplit(given.output).scheme else str(Path(given.output).expanduser().absolute())
    folder = shards.rpartition("/")[0]
    if any(wildcard in folder for wildcard in "*?[") or urlsplit(shards).scheme in ("http", "https"):
        raise ConfigurationError(f"beside {shards} there is no one folder that predictions can go to: give --output")
    return f"{folder}/predictions"


@step("choose model")
def choose_model(given: PredictionParameters, columns: Sequence[str]) -> ChosenModel:
    """Return the model to predict with, by its version, and what it was trained on.

    Raises ConfigurationError where it does not fit the columns.
    """
    from tasks.tracking.client import connect

    if PREDICTION in columns:
        raise ConfigurationError(f"the shards have a column {PREDICTION!r} already: give it another name")
    uri = given.model or f"models:/{name_of_model(given.experiment)}@champion"
    client = connect()
    model = load_model(client, uri).on(columns)
    get_run_logger().info("Predicting with %s (%s)", model.uri, uri)
    return ChosenModel(
        uri=model.uri,
        run_id=model.run_id,
        target=model.target,
        inputs=model.inputs,
        reference=find_reference(client, model.uri, model.run_id, model.target),
    )


@step("predict", pauses=STREAMING)
def predict_shards(
    manifest: Manifest,
    sources: Sources,
    given: PredictionParameters,
    model: ChosenModel,
    output: str,
    run_id: str,
) -> Predicted:
    """Write each shard again with the column `prediction`, here or over ranks; return a summary.

    The folder says that all are there once they are. Where the model's target is among the columns, the summary's
    `rmse` says how far the predictions are from it; where the model says what it was trained on, the `profile` is of
    the rows read, between the same edges.
    """
    from tasks.tracking.client import connect
    from tasks.tracking.outbox import Outbox

    edges = model.reference.profile.edges if model.reference else {}
    asked = ToPredict(manifest=manifest, sources=sources, given=given, output=output, edges=edges)
    dataset, folder = asked.open(), asked.folder()
    shards, count = dataset.manifest.shards, dataset.manifest.rows
    names = name_shards([shard.uri for shard in shards], given.format)
    loaded = load_model(connect(), model.uri).on(dataset.manifest.columns)
    folder.begin(names, [shard.uri for shard in shards])
    began = time.perf_counter()
    if given.ranks > 1:
        written = predict_over_ranks(asked, loaded)
    else:
        written = list(predict_places(asked, dataset, loaded, range(len(shards))))
    seconds, rmse = time.perf_counter() - began, measure_error(written)
    assert len({each.place for each in written}) == len(shards)
    folder.finish(model=model.uri, run_id=run_id, fingerprint=manifest.fingerprint, rows=count, shards=names)
    measured = {"seconds": seconds, "rows_per_second": count / seconds, "bad_rows": float(dataset.bad_rows)}
    Outbox(run_id).log(0, {"rows": float(count)} | measured | ({} if rmse is None else {"rmse": rmse}))
    return Predicted(
        model=model.uri,
        rows=count,
        shards=len(names),
        seconds=seconds,
        bad_rows=dataset.bad_rows,
        bad_rows_file=str(dataset.bad_rows_file) if dataset.bad_rows else None,
        rmse=rmse,
        profile=join_profiles(written),
    )


def predict_over_ranks(asked: ToPredict, model: ColumnModel) -> list[Written]:
    """Let ranks predict the shards; return what they wrote, each shard once, in the order of the shards."""
    written: dict[int, Written] = {}
    with Group(asked.given, partial(predict_as_rank, asked=asked, carried=carry(model))) as group:
        while True:
            news = group.take()
            written.update((each.place, each) for each in news.told)
            if news.is_over:
                return [written[place] for place in sorted(written)]


@step("report predictions")
def report_predictions(run: Run, model: ChosenModel, predicted: Predicted, output: str, drift: Drift | None) -> str:
    """Say what was predicted, by which model, and where it is: markdown artifact, MLflow's description and tags."""
    from tasks.tracking.outbox import Outbox

    error = "" if predicted.rmse is None else f" Their RMSE against {model.target} is {predicted.rmse:.6g}."
    listed = f" Bad rows left out: {predicted.bad_rows:,}, listed in {predicted.bad_rows_file}."
    bad = listed if predicted.bad_rows else ""
    drifted = f" {drift.verdict}" if drift else ""
    verdict = (
        f"{model.uri} predicted {predicted.rows:,} rows in {predicted.seconds:.2f} s; they are in {redact(output)}, "
        f"{predicted.shards} {'shard' if predicted.shards == 1 else 'shards'}.{error}{bad}{drifted}"
    )
    Outbox(run.run_id).tag(
        {
            "mlflow.note.content": escape_markdown(verdict),
            "shardline.verdict": verdict,
            "shardline.model": model.uri,
            "shardline.model_run": model.run_id,
            "shardline.output": output,
        }
    )
    create_markdown_artifact(
        key="predictions",
        description="What was predicted, by which model, and where it is",
        markdown=f"{escape_markdown(verdict)}\n\n{run.link}; the model was made by run `{model.run_id}`.",
    )
    return verdict
