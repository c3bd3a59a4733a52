"""The step that takes the exact least-squares model instead of iterating: one pass over the shards."""

from __future__ import annotations

import time

from prefect.logging import get_run_logger

from tasks.facts import Fit, FitTimes, TrainingJob
from tasks.policy import STREAMING, step
from tasks.ranks.group import pass_ranks
from tasks.ranks.parts import StageClock, Tally, stream_batches
from tasks.ranks.passing import Passed
from tasks.sources import open_dataset
from tasks.training.outcome import ProgressArtifact, keep_ranks, keep_reading, keep_weights, make_fit


@step("solve", pauses=STREAMING)
def solve_model(job: TrainingJob) -> Fit:
    """Fit the least-squares model to the streamed shards, with the penalty `l2`.

    The one value of its curve, at step 0, is its mean squared error over all training rows.
    """
    from tasks.learning.scoring import Moments
    from tasks.tracking.outbox import Outbox

    outbox = Outbox(job.run_id)
    over_ranks = job.parameters.ranks > 1
    began = time.perf_counter()
    passed = pass_ranks(job) if over_ranks else pass_alone(job)
    dataset, moments = passed.dataset, Moments(job.features)
    moments.restore(passed.sums)
    model = moments.exact(job.parameters.l2, standardise=job.parameters.resolved().standardise)
    mse = moments.mse(model)
    seconds = time.perf_counter() - began
    computed = max(times.compute_seconds for times in passed.ranks)
    ranks = passed.ranks if over_ranks else ()
    times = {"wait_seconds": seconds - computed, "copy_seconds": 0.0, "compute_seconds": computed}
    if not any(row.key == "mse" for row in outbox.rows):  # a retry's is the same
        rates = {"seconds_per_iteration": computed, "rows_per_second": moments.rows / seconds}
        outbox.log(0, {"mse": mse, **rates, **times})
    keep_weights(outbox, model)
    keep_reading(outbox, dataset)
    keep_ranks(outbox, ranks)
    get_run_logger().info("The least-squares model over %s rows: MSE %.6g", f"{moments.rows:,}", mse)
    return make_fit(
        model,
        dataset,
        learning_rate=None,
        device="cpu",
        curve=[mse],
        rows=moments.rows,
        times=FitTimes(seconds=seconds, stream=passed.clock.total, stages={}, **times),
        moments=passed.sums,
        ranks=ranks,
    )


def pass_alone(job: TrainingJob) -> Passed:
    """Return the moments of all training rows, taken here."""
    from tasks.learning.first_pass import FirstPass

    dataset = open_dataset(job.data.train, job.sources, job.parameters, epochs=1)
    first_pass = FirstPass(job.features, dataset.manifest.rows, dataset.batch_size, edges=job.edges)
    clock, tally = StageClock(), Tally(0)
    progress = ProgressArtifact(len(dataset))
    for done, batch in enumerate(stream_batches(dataset, job.parameters.num_workers, clock), start=1):
        arrived = time.perf_counter()
        first_pass.take(batch)
        tally.add(0.0, 0.0, time.perf_counter() - arrived, 0.0)
        progress.show(done)
    sums = first_pass.sums()
    assert sums is not None, "no data set is without rows"
    return Passed(sums=sums, dataset=dataset, clock=clock, ranks=(tally.times,))
