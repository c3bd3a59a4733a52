"""The step that trains: the stream and the loop meet here, inside one task; what leaves it is small and plain.

Where the loop starts is in `tasks.training.start`; which run is gone on with, and whether, is decided in
`tasks.runs.resuming`. A retry of this step goes on by itself.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast
from uuid import UUID

from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.logging import get_run_logger

from tasks.errors import CheckpointError, NonFiniteLossError, TrackingError
from tasks.parameters import TrainingParameters
from tasks.policy import STREAMING, step
from tasks.runs.resuming import checkpoint_folder
from tasks.sources import Sources
from tasks.training.start import Started, shards_of, start_trainer

if TYPE_CHECKING:
    from torch import Tensor

    from tasks.learning.checkpoints import Checkpoint, Checkpoints
    from tasks.learning.loop import Iteration
    from tasks.streaming import ColumnStatistics
    from tasks.tracking.outbox import Outbox

PROGRESS_EVERY_SECONDS = 2.0
TIMES = ("wait_seconds", "copy_seconds", "compute_seconds")


@step("train", pauses=STREAMING)
def train_model(
    manifest: dict[str, Any],
    features: dict[str, Any],
    sources: Sources,
    given: TrainingParameters,
    run_id: str,
    statistics: Mapping[str, ColumnStatistics] | None = None,
) -> dict[str, Any]:
    """Train on the streamed shards and record every iteration; returns weights and a summary as plain JSON types.

    Goes on from the run's last whole checkpoint where it has one, and leaves one wherever it is stopped.
    """
    from tasks.learning.checkpoints import Checkpoints
    from tasks.learning.loop import train
    from tasks.tracking import client as record
    from tasks.tracking.outbox import Outbox

    client, outbox, logger = record.connect(), Outbox(run_id), get_run_logger()
    checkpoints = Checkpoints(checkpoint_folder(given.checkpoint_url), run_id)
    earlier = record.histories(client, outbox, ["mse", *TIMES])
    recorded = next(step for step in itertools.count() if step not in earlier["mse"])
    kept = checkpoints.latest(at_most=recorded)  # after a later one, the record would have a gap
    started = start_trainer(features, manifest, sources, given, statistics, kept)
    saver = Saver(checkpoints, given, manifest)
    progress, began = Progress(started.trainer.settings.iterations), time.perf_counter()
    with record.sending(client, outbox), saver:
        for iteration in train(started.trainer, started.batches):
            if iteration.iteration not in earlier["mse"]:
                outbox.log(iteration.iteration, metrics_of(iteration))
            logger.info("%s", iteration)
            saver.keep(iteration.after)
            progress.show(iteration.iteration + 1)
    keep_model(outbox, started)
    return summarise(started, earlier, outbox, time.perf_counter() - began)


def summarise(started: Started, earlier: dict[str, dict[int, float]], outbox: Outbox, seconds: float) -> dict[str, Any]:
    """Weights, curve and times as plain JSON types; TrackingError where an iteration is not in the record."""
    series = {name: dict(values) for name, values in earlier.items()}
    for name, value, _, number in outbox.rows:
        if name in series:
            series[name][number] = value
    trainer, model, curve = started.trainer, started.trainer.model(), series["mse"]
    missing = sorted(set(range(trainer.settings.iterations)) - set(curve))
    if missing:
        raise TrackingError(f"record incomplete: iterations {missing[:5]} of run {outbox.run_id} have no mse")
    return {
        "weights": model.w.flatten().tolist(),
        "bias": model.b.item(),
        "learning_rate": trainer.learning_rate,
        "device": str(trainer.device),
        "iterations": len(curve),
        "rows": len(curve) * started.dataset.batch_size,
        "curve": [curve[step] for step in sorted(curve)],
        "seconds": seconds,
        "stream": started.times.totals,
        "bad_rows": started.dataset.bad_rows,
        "bad_rows_file": str(started.dataset.bad_rows_file or ""),
        **{name: sum(series[name].values()) for name in TIMES},
    }


def keep_model(outbox: Outbox, started: Started) -> None:
    """Put weights, scaling and what was found out while training into the outbox."""
    import json

    trainer, model = started.trainer, started.trainer.model()
    if not (model.w.isfinite().all() and model.b.isfinite().all()):
        raise NonFiniteLossError("the last step's weights are not finite: try a smaller learning_rate")
    keep_weights(outbox, model.w, model.b, model.describe())
    scaling = {
        name: {"mean": mean, "scale": scale, "from": started.scaled_by.get(name, "the first batch")}
        for name, mean, scale in zip(
            trainer.features.names, trainer.scaling.mean.tolist(), trainer.scaling.scale.tolist(), strict=True
        )
    }
    outbox.file("weights/scaling.json").write_text(json.dumps(scaling, indent=1), encoding="utf-8")
    outbox.tag({"device": str(trainer.device), "learning_rate": f"{trainer.learning_rate!r}"})


def metrics_of(iteration: Iteration) -> dict[str, float]:
    """An iteration's facts under the names that MLflow shows."""
    total = iteration.wait_seconds + iteration.seconds
    return {
        "mse": iteration.mse,
        "seconds_per_iteration": iteration.seconds,
        **{name: getattr(iteration, name) for name in TIMES},
        "rows_per_second": iteration.rows / total if total else 0.0,
    }


def keep_weights(outbox: Any, w: Tensor, b: Tensor, text: str) -> None:
    """Put the weights for raw features into the outbox: safetensors with keys w and b, and the same as text."""
    from safetensors.torch import save_file

    save_file({"w": w.contiguous(), "b": b.contiguous()}, outbox.file("weights/weights.safetensors"))
    outbox.file("weights/weights.txt").write_text(text, encoding="utf-8")


class Saver:
    """Writes checkpoints as a loop goes, and the last state when it is stopped by anything but a loss that is lost.

    A checkpoint that cannot be written is warned of once, and does not stop the training.
    """

    def __init__(self, checkpoints: Checkpoints, given: TrainingParameters, manifest: dict[str, Any]) -> None:
        self.checkpoints, self.every, self.saved_at, self.warned = checkpoints, given.checkpoint_every, 0.0, False
        self.facts = {
            "shards": shards_of(manifest),
            "fingerprint": manifest["fingerprint"],
            "seed": given.seed,
            "settings": given.model_dump(mode="json"),
        }
        self.state: Checkpoint | None = None

    def __enter__(self) -> Saver:
        return self

    def keep(self, state: Checkpoint) -> None:
        """Take the state after an iteration, and write it where it is time to: after the first one, always."""
        self.state = replace(state, facts={**state.facts, **self.facts})
        number, unit = int(self.every.removesuffix("s")), self.every[-1:]
        since = time.monotonic() - self.saved_at
        if not self.saved_at or (since >= number if unit == "s" else state.iteration % number == 0):
            self._write(self.state)

    def _write(self, state: Checkpoint) -> None:
        self.saved_at = time.monotonic()
        try:
            self.checkpoints.write(state)
        except CheckpointError as error:
            if not self.warned:
                get_run_logger().warning("%s; the training goes on without", error)
            self.warned = True

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if error is not None and self.state is not None and not isinstance(error, NonFiniteLossError):
            self._write(self.state)


class Progress:
    """A live progress artifact in Prefect, updated every two seconds at most; an update costs some 20 ms."""

    def __init__(self, total: int) -> None:
        self.total, self.updated = total, time.monotonic()
        described = f"Training: {total} iterations"
        self.artifact = cast(UUID, create_progress_artifact(0.0, key="progress", description=described))

    def show(self, done: int) -> None:
        """Say how many iterations are done."""
        if done == self.total or time.monotonic() - self.updated >= PROGRESS_EVERY_SECONDS:
            self.updated = time.monotonic()
            update_progress_artifact(self.artifact, 100.0 * done / self.total)
