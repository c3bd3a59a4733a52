"""The steps that predict: shards are streamed, and written again, row for row, with a column more."""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from prefect.artifacts import create_markdown_artifact
from prefect.logging import get_run_logger

from tasks.data import open_dataset
from tasks.errors import ConfigurationError
from tasks.parameters import PredictionParameters
from tasks.policy import STREAMING, step
from tasks.runs.lifecycle import Run
from tasks.sources import Sources
from tasks.streaming.writing import PREDICTION, OutputFolder, ShardWriter, name_shards
from tasks.tracking.registry import load_model, name_of_model

if TYPE_CHECKING:
    from torch import Tensor


def resolve_output(given: PredictionParameters, shards: str) -> str:
    """The folder to write to: the parameter, else `predictions` beside the shards.

    Raises ConfigurationError where nothing can be written beside them, or where there is no one place beside them.
    """
    if given.output:
        return given.output if urlsplit(given.output).scheme else str(Path(given.output).expanduser().absolute())
    folder = shards.rpartition("/")[0]
    if any(wildcard in folder for wildcard in "*?[") or urlsplit(shards).scheme in ("http", "https"):
        raise ConfigurationError(f"beside {shards} there is no one folder that predictions can go to: give --output")
    return f"{folder}/predictions"


@step("choose model")
def choose_model(given: PredictionParameters, columns: list[str]) -> dict[str, Any]:
    """The model to predict with: {"uri": by version, "run_id", "target"}; ConfigurationError where it does not fit."""
    from tasks.tracking.client import connect

    if PREDICTION in columns:
        raise ConfigurationError(f"the shards have a column {PREDICTION!r} already: leave it out of columns")
    uri = given.model or f"models:/{name_of_model(given.experiment)}@champion"
    model = load_model(connect(), uri).on(columns)
    get_run_logger().info("Predicting with %s (%s)", model.uri, uri)
    return {"uri": model.uri, "run_id": model.run_id, "target": model.target}


@step("predict", pauses=STREAMING)
def predict_shards(
    manifest: dict[str, Any],
    sources: Sources,
    given: PredictionParameters,
    model: dict[str, Any],
    output: str,
    run_id: str,
) -> dict[str, Any]:
    """Stream the shards in order, and write each one again with the column `prediction`; returns a summary.

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
    bound = load_model(connect(), model["uri"]).on(columns)
    folder = OutputFolder(output, sources.storage_options(output))
    folder.begin(names, [shard.uri for shard in shards])
    began, squares = time.perf_counter(), 0.0
    at = columns.index(model["target"]) if model["target"] in columns else None
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
    facts = {"model": model["uri"], "run_id": run_id, "fingerprint": manifest["fingerprint"], "rows": count}
    folder.finish(facts | {"shards": names})
    measured = {"seconds": seconds, "rows_per_second": count / seconds, "bad_rows": float(dataset.bad_rows)}
    if at is not None:
        measured["rmse"] = math.sqrt(squares / count)
    Outbox(run_id).log(0, {"rows": float(count)} | measured)
    return facts | {"shards": len(names)} | measured


def cut_at_shards(batches: Iterable[Tensor], counts: Sequence[int]) -> Iterator[tuple[int, Tensor, bool]]:
    """(number of a shard, some of its rows, whether they are its last) for batches of all rows in order."""
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
def report_predictions(run: Run, model: dict[str, Any], predicted: dict[str, Any], output: str) -> str:
    """Say what was predicted, by which model, and where it is: markdown artifact, MLflow's description and tags."""
    from tasks.tracking.outbox import Outbox

    error = f" Their RMSE against {model['target']} is {predicted['rmse']:.6g}." if "rmse" in predicted else ""
    left_out = f" {predicted['bad_rows']:,.0f} bad rows were left out." if predicted["bad_rows"] else ""
    verdict = (
        f"{model['uri']} predicted {predicted['rows']:,} rows in {predicted['seconds']:.1f} s; they are in {output}, "
        f"{predicted['shards']} {'shard' if predicted['shards'] == 1 else 'shards'}.{error}{left_out}"
    )
    Outbox(run.run_id).tag(
        {
            "mlflow.note.content": verdict,
            "shardline.verdict": verdict,
            "shardline.model": model["uri"],
            "shardline.model_run": model["run_id"],
            "shardline.output": output,
        }
    )
    create_markdown_artifact(
        key="predictions",
        description="What was predicted, by which model, and where it is",
        markdown=f"{verdict}\n\n[This run in MLflow]({run.url}); the model was made by run `{model['run_id']}`.",
    )
    return verdict
