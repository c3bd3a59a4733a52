"""The step that trains: the stream and the loop meet here, inside one task; what leaves it is small and plain."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, cast
from uuid import UUID

from prefect import task
from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.cache_policies import NO_CACHE
from prefect.logging import get_run_logger

from tasks.parameters import TrainingParameters
from tasks.settings import Sources

if TYPE_CHECKING:
    from torch import Tensor

    from tasks.learning.features import Features

PROGRESS_EVERY_SECONDS = 2.0


@task(name="train", cache_policy=NO_CACHE)
def train_model(
    manifest: dict[str, Any],
    features: dict[str, Any],
    sources: Sources,
    given: TrainingParameters,
    run_id: str,
    statistics: dict[str, dict[str, float]] | None = None,
) -> dict[str, Any]:
    """Train on the streamed shards and record every iteration; returns weights and a summary as plain JSON types."""
    import torch

    from tasks.learning import record
    from tasks.learning.batches import Preparation, free_bytes, stay_resident
    from tasks.learning.features import Features
    from tasks.learning.loop import Iteration, Settings, Trainer, train

    chosen, device = Features.from_dict(features), training_device(given.device)
    resolved = given.resolved()
    stream = open_stream(manifest, sources, given)
    batches, scaling = choose_scaling(stream, chosen, resolved.standardise, statistics)
    settings = Settings(
        iterations=resolved.iterations,
        learning_rate=resolved.learning_rate,
        gradient_norm=resolved.gradient_norm,
        seed=given.seed,
        dtype=getattr(torch, given.dtype),
    )
    trainer = Trainer(chosen, scaling, settings, device)
    preparation = Preparation(features=chosen, scaling=scaling, dtype=settings.dtype, device=device)
    resident_bytes = given.resident_bytes if given.resident_bytes is not None else free_bytes(device) // 4
    prepared = stay_resident(preparation.stream(batches), sum(s["rows"] for s in manifest["shards"]), resident_bytes)
    outbox, logger = record.Outbox(run_id), get_run_logger()
    done: list[Iteration] = []
    progress, began = Progress(resolved.iterations), time.perf_counter()
    with record.sending(record.connect(), outbox):
        for iteration in train(trainer, prepared):
            outbox.log(iteration.iteration, metrics_of(iteration))
            logger.info("%s", iteration)
            done.append(iteration)
            progress.show(len(done))
    seconds = time.perf_counter() - began
    model = trainer.model()
    keep_weights(outbox, model.w, model.b, model.describe())
    return {
        "weights": model.w.flatten().tolist(),
        "bias": model.b.item(),
        "learning_rate": trainer.learning_rate,
        "device": str(device),
        "iterations": len(done),
        "rows": sum(each.rows for each in done),
        "first_mse": done[0].mse,
        "last_mse": done[-1].mse,
        "seconds": seconds,
        "wait_seconds": sum(each.wait_seconds for each in done),
        "copy_seconds": sum(each.copy_seconds for each in done),
        "compute_seconds": sum(each.compute_seconds for each in done),
    }


def training_device(asked: str) -> Any:
    """The torch device to train on; ConfigurationError where CUDA is asked for and there is none."""
    import torch

    from tasks.errors import ConfigurationError

    if asked == "cuda" and not torch.cuda.is_available():
        raise ConfigurationError("device is cuda, and torch finds no CUDA device here: use device=auto or device=cpu")
    return torch.device("cuda" if asked != "cpu" and torch.cuda.is_available() else "cpu")


def open_stream(manifest: dict[str, Any], sources: Sources, given: TrainingParameters) -> Iterable[Tensor]:
    """The endless stream of [batch_size, columns] batches, through a DataLoader where there are worker processes."""
    import torch
    from torch.utils.data import DataLoader

    from tasks.streaming import Manifest, ObjectStorageDataset

    dataset = ObjectStorageDataset(
        Manifest.from_dict(manifest),
        batch_size=given.batch_size,
        dtype=torch.float64,
        storage_options=sources.storage_options(sources.shards),
    )
    return DataLoader(dataset, batch_size=None, num_workers=given.num_workers) if given.num_workers else dataset


def choose_scaling(
    stream: Iterable[Tensor],
    features: Features,
    standardise: bool,
    statistics: dict[str, dict[str, float]] | None,
) -> tuple[Iterator[Tensor], Any]:
    """How features are scaled, from `.meta/stats` and the first batch, and the stream with that batch put back."""
    import itertools

    from tasks.learning.features import Scaling

    if not standardise:
        return iter(stream), Scaling.none(len(features.names))
    batches = iter(stream)
    first = next(batches)
    stated = statistics or {}
    known = {
        index: (stated[name]["mean"], stated[name]["stddev"])
        for index, name in enumerate(features.names)
        if name in stated
    }
    return itertools.chain([first], batches), Scaling.of(features.of(first), known)


def metrics_of(iteration: Any) -> dict[str, float]:
    """An iteration's facts under the names that MLflow shows."""
    total = iteration.wait_seconds + iteration.seconds
    return {
        "mse": iteration.mse,
        "seconds_per_iteration": iteration.seconds,
        "wait_seconds": iteration.wait_seconds,
        "copy_seconds": iteration.copy_seconds,
        "compute_seconds": iteration.compute_seconds,
        "rows_per_second": iteration.rows / total if total else 0.0,
    }


def keep_weights(outbox: Any, w: Tensor, b: Tensor, text: str) -> None:
    """Put the weights for raw features into the outbox: safetensors with keys w and b, and the same as text."""
    from safetensors.torch import save_file

    save_file({"w": w.contiguous(), "b": b.contiguous()}, outbox.file("weights/weights.safetensors"))
    outbox.file("weights/weights.txt").write_text(text, encoding="utf-8")


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
