"""The step that takes the exact model for every strength of the penalty, and cross-validates it by shards."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from typing import TYPE_CHECKING

from prefect.logging import get_run_logger

from tasks.facts import Ridge, SearchJob
from tasks.policy import READING, step
from tasks.sources import open_dataset
from tasks.training.matrices import measure_rows

if TYPE_CHECKING:
    from tasks.learning.ridge import RidgePath

MOST_FOLDS = 10


@step("trace the ridge path", pauses=READING)
def trace_ridge(job: SearchJob) -> Ridge | None:
    """Cross-validate the exact model by shards, for each strength of the penalty; None where there is only one shard.

    The record gets the path's numbers and pictures.
    """
    from tasks.learning import figures
    from tasks.learning.grams import Units
    from tasks.learning.ridge import trace_path
    from tasks.tracking.outbox import Outbox

    shards = job.data.train.shards
    count = min(len(shards), MOST_FOLDS)
    if count < 2:
        return None
    parts = [shards[at * len(shards) // count : (at + 1) * len(shards) // count] for at in range(count)]
    # the contract's share of bad rows is one of all rows, and was looked at
    terms = job.data.train.terms and replace(job.data.train.terms, allowed_share=None)
    manifests = [replace(job.data.train, shards=part, terms=terms) for part in parts]
    units = Units.of(job.features, next(iter(open_dataset(manifests[0], job.sources, job.parameters, epochs=1))))
    folds = [measure_rows(manifest, job, units) for manifest in manifests]
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


def conclude(path: RidgePath) -> Ridge:
    """Return the strength of least error, beside none at all."""
    return Ridge(l2=path.strengths[path.best], mse=path.mse[path.best], without=path.mse[0], folds=path.folds)
