"""The steps that predict: shards are streamed, and written again, row for row, with a column more."""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from prefect.artifacts import create_markdown_artifact
from prefect.logging import get_run_logger

from tasks.errors import ConfigurationError
from tasks.facts import ChosenModel, Predicted
from tasks.parameters import PredictionParameters
from tasks.policy import STREAMING, step
from tasks.runs.lifecycle import Run
from tasks.sources import Sources, open_dataset
from tasks.streaming.writing import PREDICTION, OutputFolder, ShardWriter, name_shards
from tasks.tracking.registry import load_model, name_of_model

if TYPE_CHECKING:
    from torch import Tensor

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
    """Return the model to predict with, by its version; raises ConfigurationError where it does not fit the columns."""
    from tasks.tracking.client import connect

    if PREDICTION in columns:
        raise ConfigurationError(f"the shards have a column {PREDICTION!r} already: leave it out of columns")
    uri = given.model or f"models:/{name_of_model(given.experiment)}@champion"
    model = load_model(connect(), uri).on(columns)
    get_run_logger().info("Predicting with %s (%s)", model.uri, uri)
    return ChosenModel(uri=model.uri, run_id=model.run_id, target=model.target)


@step("predict", pauses=STREAMING)
def predict_shards(
    manifest: Manifest,
    sources: Sources,
    given: PredictionParameters,
    model: ChosenModel,
    output: str,
    run_id: str,
) -> Predicted:
    """Stream the shards in order, and write each one again with the column `prediction`; return a summary.

    What is held in memory is some batches, on disk one shard. Where the model's target is among the columns, the
    summary's `rmse` says how far the predictions are from it.
    """
    from tasks.streaming import Placement
    from tasks.tracking.client import connect
    from tasks.tracking.outbox import Outbox

    all_rows = Placement(rank=0, world_size=1)
    dataset = open_dataset(manifest, sources, given, epochs=1, placement=all_rows)
    columns, shards = dataset.manifest.columns, dataset.manifest.shards
    names = name_shards([shard.uri for shard in shards], given.format)
    bound = load_model(connect(), model.uri).on(columns)
    folder = OutputFolder(output, sources.storage_options(output))
    folder.begin(names, [shard.uri for shard in shards])
    began, squares = time.perf_counter(), 0.0
    at = columns.index(model.target) if model.target in columns else None
    with tempfile.TemporaryDirectory(prefix="shardline-predictions-") as scratch, closing(dataset.batches()) as batches:
        path, writer = Path(scratch) / "shard", None
        for shard, rows, is_last in cut_at_shards((batch.tensor for batch in batches), dataset.manifest.counts):
            writer = writer or ShardWriter(path, columns, given.format)
            predictions = bound.predict(rows)
            writer.write(rows, predictions)
            squares += 0.0 if at is None else float(((rows[:, at : at + 1] - predictions) ** 2).sum())
            if is_last:
                writer.close()
                folder.put(path, names[shard])
                writer = None
    seconds, count = time.perf_counter() - began, dataset.manifest.rows
    rmse = None if at is None else math.sqrt(squares / count)
    folder.finish(model=model.uri, run_id=run_id, fingerprint=manifest.fingerprint, rows=count, shards=names)
    measured = {"seconds": seconds, "rows_per_second": count / seconds, "bad_rows": float(dataset.bad_rows)}
    Outbox(run_id).log(0, {"rows": float(count)} | measured | ({} if rmse is None else {"rmse": rmse}))
    return Predicted(
        model=model.uri, rows=count, shards=len(names), seconds=seconds, bad_rows=dataset.bad_rows, rmse=rmse
    )


def cut_at_shards(batches: Iterable[Tensor], counts: Sequence[int]) -> Iterator[tuple[int, Tensor, bool]]:
    """Yield (number of a shard, some of its rows, whether they are its last) for batches of all rows in order."""
    shard, left = 0, counts[0]
    for batch in batches:
        rest = batch
        while len(rest):
            piece, rest = rest[:left], rest[left:]
            left -= len(piece)
            yield shard, piece, left == 0
            if left == 0 and shard + 1 < len(counts):
                shard += 1
                left = counts[shard]


@step("report predictions")
def report_predictions(run: Run, model: ChosenModel, predicted: Predicted, output: str) -> str:
    """Say what was predicted, by which model, and where it is: markdown artifact, MLflow's description and tags."""
    from tasks.tracking.outbox import Outbox

    error = "" if predicted.rmse is None else f" Their RMSE against {model.target} is {predicted.rmse:.6g}."
    left_out = f" {predicted.bad_rows:,} bad rows were left out." if predicted.bad_rows else ""
    verdict = (
        f"{model.uri} predicted {predicted.rows:,} rows in {predicted.seconds:.1f} s; they are in {output}, "
        f"{predicted.shards} {'shard' if predicted.shards == 1 else 'shards'}.{error}{left_out}"
    )
    Outbox(run.run_id).tag(
        {
            "mlflow.note.content": verdict,
            "shardline.verdict": verdict,
            "shardline.model": model.uri,
            "shardline.model_run": model.run_id,
            "shardline.output": output,
        }
    )
    create_markdown_artifact(
        key="predictions",
        description="What was predicted, by which model, and where it is",
        markdown=f"{verdict}\n\n[This run in MLflow]({run.url}); the model was made by run `{model.run_id}`.",
    )
    return verdict
