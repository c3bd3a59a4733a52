"""What a registered model was trained on, and how good it was: what new data is compared with."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from tasks.facts import Reference
from tasks.runs.profiles import load_profile
from tasks.tracking.recorded import find_run, read_artifact

if TYPE_CHECKING:
    from tasks.tracking.client import Client


def find_reference(client: Client, uri: str, run_id: str, target: str | None = None) -> Reference | None:
    """Return what the model at `uri` was trained on; None where it does not say, as those of earlier versions do not.

    run_id: of the run that made it
    target: the column that it predicts, where that is known
    """
    profile = load_profile(client, uri)
    if profile is None:
        return None
    run = find_run(client, run_id)
    metrics = run.metrics if run else {}
    return Reference(
        model=uri,
        profile=profile,
        known=read_known(client, run_id) or tuple(profile.edges),
        target=target,
        rmse=metrics.get("test_rmse", metrics.get("train_rmse")),
        judged_on=run.tags.get("shardline.judged_on", "") if run else "",
    )


def read_known(client: Client, run_id: str) -> tuple[str, ...] | None:
    """Return the names of all columns that a run's training shards had; None where its record does not say."""
    text = read_artifact(client, run_id, "manifest.json")
    if text is None:
        return None
    facts = json.loads(text)
    return tuple(facts.get("header") or facts.get("cells") or facts["columns"])
