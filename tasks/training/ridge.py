"""The step that takes the exact model for every strength of the penalty, and cross-validates it by shards."""

from __future__ import annotations

import json
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING

from prefect.logging import get_run_logger

from tasks.facts import Ridge, SearchJob
from tasks.policy import READING, step
from tasks.ranks.group import Group, are_of_use
from tasks.training.measuring import Folds, measure_folds, measure_folds_as_rank

if TYPE_CHECKING:
    from tasks.learning.ridge import RidgePath


@step("trace the ridge path", pauses=READING)
def trace_ridge(job: SearchJob) -> Ridge | None:
    """Cross-validate the exact model by shards, for each strength of the penalty; None where there is only one shard.

    The record gets the path's numbers and pictures.
    """
    from tasks.learning import figures
    from tasks.learning.ridge import trace_path
    from tasks.tracking.outbox import Outbox

    if len(job.data.train.shards) < 2:
        return None
    found = measure_folds_over_ranks(job) if are_of_use(job.parameters, job.data.train.rows) else measure_folds(job)
    folds, units = [fold.gram() for fold in found.folds], found.measured_in.units(job.features)
    path = trace_path(folds, units, standardise=job.parameters.resolved().standardise)
    outbox, ridge = Outbox(job.run_id), conclude(path)
    outbox.keep("ridge.json", json.dumps(asdict(path), indent=1))
    drawings = {
        "ridge_path": figures.draw_path(path.strengths, path.weights, path.names),
        "ridge_error": figures.draw_ridge_error(path.strengths, path.mse),
    }
    for name, draw in drawings.items():
        outbox.keep(f"figures/{name}.png", figures.render(draw, figures.TITLES[name]))
    get_run_logger().info("The penalty of least cross-validated error: l2 = %g, MSE %.6g", ridge.l2, ridge.mse)
    return ridge


def measure_folds_over_ranks(job: SearchJob) -> Folds:
    """Let ranks measure; raises as `Group` does."""
    with Group(job.parameters, partial(measure_folds_as_rank, job=job)) as group:
        return group.await_end().ended[0]


def conclude(path: RidgePath) -> Ridge:
    """Return the strength of least error, beside none at all."""
    return Ridge(l2=path.strengths[path.best], mse=path.mse[path.best], without=path.mse[0], folds=path.folds)
