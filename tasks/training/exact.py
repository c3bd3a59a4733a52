"""The step that takes the exact least-squares model instead of iterating: one pass over the shards."""

from __future__ import annotations

import time
from typing import Any

from prefect.logging import get_run_logger

from tasks.data import open_dataset
from tasks.parameters import TrainingParameters
from tasks.policy import STREAMING, step
from tasks.sources import Sources
from tasks.training.gradient import Progress, keep_weights
from tasks.training.start import StreamTimes, with_workers


@step("solve", pauses=STREAMING)
def solve_model(
    manifest: dict[str, Any], features: dict[str, Any], sources: Sources, given: TrainingParameters, run_id: str
) -> dict[str, Any]:
    """Fit the least-squares model to the streamed shards; returns what `tasks.training.gradient.train_model` returns.

    The one value of its curve, at step 0, is its mean squared error over all training rows.
    """
    from tasks.learning.features import Features
    from tasks.learning.scoring import Moments
    from tasks.tracking.outbox import Outbox

    outbox, moments = Outbox(run_id), Moments(Features.from_dict(features))
    dataset, stages = open_dataset(manifest, sources, given, epochs=1), StreamTimes()
    progress, began, computed = Progress(len(dataset)), time.perf_counter(), 0.0
    for done, batch in enumerate(with_workers(dataset, given.num_workers, stages), start=1):
        arrived = time.perf_counter()
        moments.add(batch)
        computed += time.perf_counter() - arrived
        progress.show(done)
    model = moments.exact()
    seconds, mse = time.perf_counter() - began, moments.mse(model)
    times = {"wait_seconds": seconds - computed, "copy_seconds": 0.0, "compute_seconds": computed}
    if not any(row[0] == "mse" for row in outbox.rows):  # a retry's is the same
        measured = {"seconds_per_iteration": computed, **times, "rows_per_second": moments.rows / seconds}
        outbox.log(0, {"mse": mse, **measured})
    keep_weights(outbox, model.w, model.b, model.describe())
    get_run_logger().info("The least-squares model over %s rows: MSE %.6g", f"{moments.rows:,}", mse)
    return {
        "weights": model.w.flatten().tolist(),
        "bias": model.b.item(),
        "learning_rate": None,
        "device": "cpu",
        "iterations": 1,
        "rows": moments.rows,
        "curve": [mse],
        "seconds": seconds,
        "bad_rows": dataset.bad_rows,
        "bad_rows_file": str(dataset.bad_rows_file or ""),
        "stream": stages.totals,
        **times,
    }
