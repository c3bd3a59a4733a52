"""The events that `deployments/automations.py` listens to: data changed, or drifted; another model is champion."""

from __future__ import annotations

from collections.abc import Mapping

from prefect.events import emit_event
from prefect.logging import get_run_logger

from tasks.errors import TrackingError
from tasks.learning.drift import Drift
from tasks.redaction import redact
from tasks.runs.lifecycle import Run
from tasks.runs.lineage import FINGERPRINT, KEY
from tasks.tracking.champions import ChampionChange
from tasks.tracking.client import connect
from tasks.tracking.recorded import RecordedRun
from tasks.tracking.registry import find_champion_version

DATA_CHANGED = "shardline.data.changed"
DATA_DRIFTED = "shardline.data.drifted"
CHAMPION_CHANGED = "shardline.champion.changed"


def announce_data(tags: Mapping[str, str], last: RecordedRun) -> None:
    """Emit the event that the shards are not those of the last success."""
    before = last.tags.get(FINGERPRINT, "")
    now = tags[FINGERPRINT]
    get_run_logger().info("The data has changed since run %s: fingerprint %s, was %s", last.run_id, now, before)
    emit_event(
        DATA_CHANGED,
        resource={
            "prefect.resource.id": f"shardline.data.{tags[KEY][:32]}",
            "prefect.resource.name": tags["shardline.shards"],
        },
        payload={"fingerprint": now, "before": before, "last_success": last.run_id},
    )


def announce_drift(drift: Drift, shards: str, fingerprint: str, run: Run) -> None:
    """Emit the event that shards have drifted from what a model was trained on, where they have."""
    if not drift.drifted:
        return
    emit_event(
        DATA_DRIFTED,
        resource={"prefect.resource.id": f"shardline.data.{fingerprint[:32]}", "prefect.resource.name": redact(shards)},
        payload={"verdict": drift.verdict, "columns": list(drift.drifted), "model": drift.model, "run": run.place},
    )


def announce_champion(experiment: str, run: Run) -> None:
    """Emit the event that a finished run's model is the champion now, where it is."""
    try:
        champion = find_champion_version(connect(), experiment)
    except TrackingError:
        return  # nobody to ask: the run itself is complete
    if champion is None or champion.run_id != run.run_id:
        return
    verdict = champion.description.partition("\n")[0]  # what follows leads to the card, on MLflow's pages alone
    payload = {"version": champion.version, "run": run.place, "description": verdict}
    _emit_champion(champion.name, payload)


def announce_change(change: ChampionChange, place: str) -> None:
    """Emit the event that a person replaced the champion, with the reason; `place` is where that is recorded."""
    payload = {"version": change.version, "run": place, "description": change.verdict, "before": change.before or ""}
    _emit_champion(change.name, payload)


def _emit_champion(name: str, payload: dict[str, str]) -> None:
    resource = {"prefect.resource.id": f"shardline.model.{name}", "prefect.resource.name": name}
    emit_event(CHAMPION_CHANGED, resource=resource, payload=payload)
