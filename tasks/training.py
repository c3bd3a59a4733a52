"""The step that trains: the stream and the loop meet here, inside one task; what leaves it is small and plain.

Which run is gone on with, and whether, is decided in `tasks.resuming`; a retry of this step goes on by itself.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast
from uuid import UUID

from prefect import task
from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.cache_policies import NO_CACHE
from prefect.logging import get_run_logger

from tasks.errors import CheckpointError, ConfigurationError, NonFiniteLossError
from tasks.parameters import TrainingParameters
from tasks.resuming import checkpoint_folder
from tasks.settings import Sources
from tasks.shards import may_succeed_later, open_dataset

if TYPE_CHECKING:
    from torch import Tensor

    from tasks.learning.checkpoints import Checkpoint, Checkpoints
    from tasks.learning.features import Features, Scaling
    from tasks.learning.loop import Iteration, Trainer
    from tasks.streaming import ObjectStorageDataset

PROGRESS_EVERY_SECONDS = 2.0
CHECKPOINT_EVERY_SECONDS = 30.0
TIMES = ("wait_seconds", "copy_seconds", "compute_seconds")


@task(
    name="train",
    task_run_name="train",
    cache_policy=NO_CACHE,
    retries=2,
    retry_delay_seconds=[5, 30],
    retry_condition_fn=may_succeed_later,
)
def train_model(
    manifest: dict[str, Any],
    features: dict[str, Any],
    sources: Sources,
    given: TrainingParameters,
    run_id: str,
    statistics: dict[str, dict[str, float]] | None = None,
) -> dict[str, Any]:
    """Train on the streamed shards and record every iteration; returns weights and a summary as plain JSON types.

    Goes on from the run's last whole checkpoint where it has one, and leaves one wherever it is stopped.
    """
    from tasks.learning import record
    from tasks.learning.checkpoints import Checkpoints
    from tasks.learning.features import Features
    from tasks.learning.loop import train

    client, outbox, logger = record.connect(), record.Outbox(run_id), get_run_logger()
    checkpoints = Checkpoints(checkpoint_folder(given.checkpoint_url), run_id)
    times = StreamTimes()
    trainer, batches = start_trainer(
        Features.from_dict(features), manifest, sources, given, statistics, checkpoints, times
    )
    already = record.histories(client, outbox, ["mse"])["mse"] if trainer.iteration else {}
    saver, progress = Saver(checkpoints, manifest, given.checkpoint_every), Progress(trainer.settings.iterations)
    began = time.perf_counter()
    with record.sending(client, outbox), saver:
        for iteration in train(trainer, batches):
            if iteration.iteration not in already:
                outbox.log(iteration.iteration, metrics_of(iteration))
            logger.info("%s", iteration)
            saver.keep(iteration.after)
            progress.show(iteration.iteration + 1)
    seconds = time.perf_counter() - began
    model = trainer.model()
    keep_weights(outbox, model.w, model.b, model.describe())
    kept = record.histories(client, outbox, ["mse", *TIMES])
    mse = list(kept["mse"].values())
    return {
        "weights": model.w.flatten().tolist(),
        "bias": model.b.item(),
        "learning_rate": trainer.learning_rate,
        "device": str(trainer.device),
        "iterations": len(mse),
        "rows": len(mse) * given.batch_size,
        "curve": {"first": mse[0], "last": mse[-1]},
        "seconds": seconds,
        "stream": times.totals,
        **{name: sum(kept[name].values()) for name in TIMES},
    }


def start_trainer(
    features: Features,
    manifest: dict[str, Any],
    sources: Sources,
    given: TrainingParameters,
    statistics: dict[str, dict[str, float]] | None,
    checkpoints: Checkpoints,
    times: StreamTimes,
) -> tuple[Trainer, Iterator[Any]]:
    """A trainer at its first iteration, or at that of the last whole checkpoint, and the batches from there on."""
    import torch

    from tasks.learning.batches import Preparation, free_bytes, stay_resident
    from tasks.learning.features import Scaling
    from tasks.learning.loop import Settings, Trainer

    resolved, device, dtype = given.resolved(), training_device(given.device), getattr(torch, given.dtype)
    settings = Settings(
        iterations=resolved.iterations,
        learning_rate=resolved.learning_rate,
        gradient_norm=resolved.gradient_norm,
        seed=given.seed,
        dtype=dtype,
        optimizer=given.optimizer,
    )
    kept = checkpoints.latest()
    check_data(kept, manifest, checkpoints.folder)
    dataset = open_dataset(
        manifest, sources, given, start=kept.iteration if kept else 0, shuffle=given.shuffle, seed=given.seed
    )
    stream, waited = with_workers(dataset, given.num_workers, times), 0.0
    if kept or not resolved.standardise:
        scaling = Scaling.none(len(features.names))
    else:
        asked = time.perf_counter()
        first = next(stream)
        waited = time.perf_counter() - asked
        stream, scaling = itertools.chain([first], stream), choose_scaling(first, features, statistics)
    trainer = Trainer(features, scaling, settings, device)
    if kept:
        trainer.restore(kept)
        get_run_logger().info("Going on at iteration %d, from %s", kept.iteration, checkpoints.folder)
    preparation = Preparation(features=features, scaling=trainer.scaling, dtype=dtype, device=device)
    resident_bytes = free_bytes(device) // 4 if given.resident_bytes is None else given.resident_bytes
    fits = 0 if given.shuffle else resident_bytes  # a new order in each epoch is the stream's business
    return trainer, stay_resident(preparation.stream(stream, waited), dataset.manifest.rows, fits)


def check_data(kept: Checkpoint | None, manifest: dict[str, Any], folder: str) -> None:
    """Raise CheckpointError where a checkpoint was made from other shards than those that were listed."""
    if kept and kept.facts["shards"] != shards_of(manifest):
        raise CheckpointError(f"the checkpoints in {folder} are of other shards: start anew with resume=never")


def shards_of(manifest: dict[str, Any]) -> dict[str, str]:
    """ETags by URI."""
    return {shard["uri"]: shard["etag"] for shard in manifest["shards"]}


def training_device(asked: str) -> Any:
    """The torch device to train on; ConfigurationError where CUDA is asked for and there is none."""
    import torch

    if asked == "cuda" and not torch.cuda.is_available():
        raise ConfigurationError("device is cuda, and torch finds no CUDA device here: use device=auto or device=cpu")
    return torch.device("cuda" if asked != "cpu" and torch.cuda.is_available() else "cpu")


class StreamTimes:
    """What the stream's stages took in the background, in seconds, added up over its batches and threads."""

    def __init__(self) -> None:
        self.totals: dict[str, float] = {}

    def watch(self, dataset: ObjectStorageDataset) -> Iterator[Tensor]:
        """The dataset's batches, their times added up."""
        with closing(dataset.batches()) as batches:
            for batch in batches:
                for name in ("fetch_seconds", "decode_seconds", "assemble_seconds"):
                    self.totals[name] = self.totals.get(name, 0.0) + getattr(batch.times, name)
                yield batch.tensor


def with_workers(dataset: ObjectStorageDataset, workers: int, times: StreamTimes) -> Iterator[Tensor]:
    """The dataset's batches, through a DataLoader where worker processes are asked for (their times stay unknown)."""
    if not workers:
        return times.watch(dataset)
    from torch.utils.data import DataLoader

    # spawn: a fork copies the locks of Prefect's and MLflow's threads, held or not
    return iter(DataLoader(dataset, batch_size=None, num_workers=workers, multiprocessing_context="spawn"))


def choose_scaling(first: Tensor, features: Features, statistics: dict[str, dict[str, float]] | None) -> Scaling:
    """How features are scaled: as `.meta/stats` states, and for what it does not name as the first batch shows."""
    from tasks.learning.features import Scaling

    stated = statistics or {}
    known = {
        index: (stated[name]["mean"], stated[name]["stddev"])
        for index, name in enumerate(features.names)
        if name in stated
    }
    return Scaling.of(features.of(first), known)


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
    """Writes checkpoints as a loop goes, and the last state when it is stopped by anything but a loss that is lost."""

    def __init__(self, checkpoints: Checkpoints, manifest: dict[str, Any], every: int | None) -> None:
        self.checkpoints, self.every = checkpoints, every
        self.shards, self.saved_at = shards_of(manifest), time.monotonic()
        self.state: Checkpoint | None = None

    def __enter__(self) -> Saver:
        return self

    def keep(self, state: Checkpoint) -> None:
        """Take the state after an iteration, and write it where it is time to."""
        self.state = replace(state, facts={**state.facts, "shards": self.shards})
        due = time.monotonic() - self.saved_at >= CHECKPOINT_EVERY_SECONDS
        if due if self.every is None else state.iteration % self.every == 0:
            self.checkpoints.write(self.state)
            self.saved_at = time.monotonic()

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if error is None or self.state is None or isinstance(error, NonFiniteLossError):
            return
        with suppress(CheckpointError):  # the error that stopped the loop is the one to tell
            self.checkpoints.write(self.state)


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
