"""What a step that fits a model leaves, however it was fitted: weights in the record, facts for the steps after it."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, cast
from uuid import UUID

from prefect.artifacts import create_progress_artifact, update_progress_artifact

from tasks.facts import Fit, FitTimes, RankTimes

if TYPE_CHECKING:
    from tasks.learning.linear import LinearModel
    from tasks.learning.sums import MomentSums
    from tasks.streaming import ObjectStorageDataset
    from tasks.tracking.outbox import Outbox

UPDATE_SECONDS = 2.0


def keep_weights(outbox: Outbox, model: LinearModel) -> None:
    """Put the weights for raw features into the outbox: safetensors with keys w and b, and the same as text."""
    from safetensors.torch import save

    tensors = {"w": model.w.contiguous(), "b": model.b.contiguous()}
    outbox.keep("weights/weights.safetensors", save(tensors, metadata=model.features.explain()))
    outbox.keep("weights/weights.txt", model.describe())


def keep_reading(outbox: Outbox, dataset: ObjectStorageDataset) -> None:
    """Put into the outbox how shards were read: by which decoder, and which digest each one's content had.

    What worker processes loaded is not known here.
    """
    from tasks.streaming.formats.native import describe_decoder

    facts = {"decoder": describe_decoder(), "checks": Counter(dataset.checks.values()), "shards": dataset.checks}
    outbox.keep("data/reading.json", json.dumps(facts, indent=1))


def keep_ranks(outbox: Outbox, ranks: Sequence[RankTimes]) -> None:
    """Put into the outbox where each of several ranks' time went."""
    if ranks:
        outbox.keep("ranks.json", json.dumps([asdict(times) for times in ranks], indent=1))


def make_fit(
    model: LinearModel,
    dataset: ObjectStorageDataset,
    *,
    learning_rate: float | None,
    device: str,
    curve: Sequence[float],
    rows: int,
    times: FitTimes,
    moments: MomentSums | None,
    condition: float | None = None,
    ranks: Sequence[RankTimes] = (),
) -> Fit:
    """Return a fitted model, and how it came about, as plain facts."""
    return Fit(
        weights=tuple(model.w.flatten().tolist()),
        bias=model.b.item(),
        learning_rate=learning_rate,
        condition=condition,
        device=device,
        curve=tuple(curve),
        rows=rows,
        times=times,
        bad_rows=dataset.bad_rows,
        bad_rows_file=str(dataset.bad_rows_file) if dataset.bad_rows_file else None,
        damaged=len(set(dataset.damaged)),
        moments=moments,
        ranks=tuple(ranks) or None,
    )


class ProgressArtifact:
    """A live progress artifact in Prefect, updated every two seconds at most; an update costs some 20 ms."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.updated = time.monotonic()
        described = f"Training: {total} iterations"
        self.artifact = cast(UUID, create_progress_artifact(0.0, key="progress", description=described))

    def show(self, done: int) -> None:
        """Say how many iterations are done."""
        if done == self.total or time.monotonic() - self.updated >= UPDATE_SECONDS:
            self.updated = time.monotonic()
            update_progress_artifact(self.artifact, 100.0 * done / self.total)
