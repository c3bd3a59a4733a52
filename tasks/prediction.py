"""The steps that predict: shards are read, and written again, row for row, with a column more."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from prefect.artifacts import create_markdown_artifact
from prefect.logging import get_run_logger

from tasks.errors import ConfigurationError
from tasks.facts import ChosenModel, Predicted
from tasks.naming import escape_markdown
from tasks.parameters import MOST_ROWS, PredictionParameters
from tasks.policy import STREAMING, step
from tasks.redaction import redact
from tasks.runs.lifecycle import Run
from tasks.sources import Sources, open_shards
from tasks.streaming.writing import PREDICTION, OutputFolder, ShardWriter, name_shards
from tasks.tracking.registry import ColumnModel, load_model
from tasks.tracking.scratch import ScratchFolder
from tasks.tracking.views import name_of_model

if TYPE_CHECKING:
    from numpy.typing import NDArray

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
        raise ConfigurationError(f"the shards have a column {PREDICTION!r} already: give it another name")
    uri = given.model or f"models:/{name_of_model(given.experiment)}@champion"
    model = load_model(connect(), uri).on(columns)
    get_run_logger().info("Predicting with %s (%s)", model.uri, uri)
    return ChosenModel(uri=model.uri, run_id=model.run_id, target=model.target, inputs=model.inputs)


@step("predict", pauses=STREAMING)
def predict_shards(
    manifest: Manifest,
    sources: Sources,
    given: PredictionParameters,
    model: ChosenModel,
    output: str,
    run_id: str,
) -> Predicted:
    """Go through the shards in order, and write each one again with the column `prediction`; return a summary.

    What is held in memory is some rows, on disk one shard; it is put into the folder once all of it was verified. Where
    the model's target is among the columns, the summary's `rmse` says how far the predictions are from it.
    """
    from tasks.tracking.client import connect
    from tasks.tracking.outbox import Outbox

    dataset = open_shards(manifest, sources, given)
    columns, shards = dataset.manifest.columns, dataset.manifest.shards
    names = name_shards([shard.uri for shard in shards], given.format)
    predictor = Predictor(load_model(connect(), model.uri).on(columns), given.batch_size or MOST_ROWS)
    folder = OutputFolder(output, sources.storage_options(output))
    folder.begin(names, [shard.uri for shard in shards])
    began = time.perf_counter()
    with ScratchFolder("shardline-predictions-") as scratch, closing(dataset.originals()) as originals:
        path = Path(scratch) / "shard"
        for name, (_, parts) in zip(names, originals, strict=True):
            with ShardWriter(path, given.format) as writer:
                for part in parts:
                    writer.write(part, predictor.predict(part.numbers))
            folder.put(path, name)
    seconds, count = time.perf_counter() - began, dataset.manifest.rows
    folder.finish(model=model.uri, run_id=run_id, fingerprint=manifest.fingerprint, rows=count, shards=names)
    measured = {"seconds": seconds, "rows_per_second": count / seconds, "bad_rows": float(dataset.bad_rows)}
    rmse = predictor.rmse
    Outbox(run_id).log(0, {"rows": float(count)} | measured | ({} if rmse is None else {"rmse": rmse}))
    return Predicted(
        model=model.uri,
        rows=count,
        shards=len(names),
        seconds=seconds,
        bad_rows=dataset.bad_rows,
        bad_rows_file=str(dataset.bad_rows_file) if dataset.bad_rows else None,
        rmse=rmse,
    )


class Predictor:
    """A model at work on rows, at most `most` at a time; `rmse` is None where its target is not among their columns."""

    def __init__(self, model: ColumnModel, most: int) -> None:
        self._model = model
        self._most = most
        self._at = model.columns.index(model.target) if model.target in model.columns else None
        self._squares, self._rows = 0.0, 0

    def predict(self, numbers: NDArray[Any]) -> list[float]:
        """Return a prediction for each of [rows, columns]."""
        import torch

        if not len(numbers):
            return []  # of lines that are all empty, or bad
        rows = torch.from_numpy(numbers)
        predictions = torch.cat([self._model.predict(some) for some in torch.split(rows, self._most)])
        if self._at is not None:
            self._squares += float(((rows[:, self._at : self._at + 1] - predictions) ** 2).sum())
            self._rows += len(rows)
        return predictions.flatten().tolist()

    @property
    def rmse(self) -> float | None:
        """How far the predictions are from the target, over all rows so far."""
        return None if self._at is None else math.sqrt(self._squares / self._rows)


@step("report predictions")
def report_predictions(run: Run, model: ChosenModel, predicted: Predicted, output: str) -> str:
    """Say what was predicted, by which model, and where it is: markdown artifact, MLflow's description and tags."""
    from tasks.tracking.outbox import Outbox

    error = "" if predicted.rmse is None else f" Their RMSE against {model.target} is {predicted.rmse:.6g}."
    listed = f" Bad rows left out: {predicted.bad_rows:,}, listed in {predicted.bad_rows_file}."
    bad = listed if predicted.bad_rows else ""
    verdict = (
        f"{model.uri} predicted {predicted.rows:,} rows in {predicted.seconds:.2f} s; they are in {redact(output)}, "
        f"{predicted.shards} {'shard' if predicted.shards == 1 else 'shards'}.{error}{bad}"
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
