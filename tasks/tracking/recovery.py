"""The end of a run's record: what its outbox holds is sent until MLflow has all of it, now or by a later run."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from tasks.errors import TrackingError
from tasks.files import remove_unfinished
from tasks.tracking.client import translated
from tasks.tracking.inputs import log_inputs
from tasks.tracking.outbox import STATUS, TAGS, held, keeping, outboxes, read_metrics, read_part, write_part
from tasks.tracking.processes import PROCESS, is_gone
from tasks.tracking.recorded import find_run
from tasks.tracking.registry import log_model, register
from tasks.tracking.sending import find_missing, keep_whole, send_metrics

if TYPE_CHECKING:
    from tasks.tracking.client import Client

STATUSES = ("FINISHED", "FAILED", "KILLED")

logger = logging.getLogger(__name__)


class Recovery(NamedTuple):
    """The ids of the runs whose records were completed, and what kept others from it, a sentence each."""

    completed: list[str]
    problems: list[str]


def complete_records(client: Client) -> Recovery:
    """Complete every outbox whose run has ended or whose process is gone."""
    done = Recovery([], [])
    for outbox in sorted(outboxes().glob("*")):
        try:
            run = find_run(client, outbox.name)
            if run is None or not ((outbox / STATUS).exists() or is_gone(run.tags.get(PROCESS))):
                continue  # of another store, or it runs
            with held(outbox) as free:
                if not free:
                    continue
                complete_outbox(client, outbox)
        except TrackingError as error:
            done.problems.append(str(error))
            continue
        done.completed.append(outbox.name)
        logger.info("The record of run %s is complete", outbox.name)
    return done


def complete_outbox(client: Client, outbox: Path, status: str | None = None) -> None:
    """Send an outbox until MLflow has all of it, end its run, delete it; else TrackingError, and the outbox stays.

    `status` is kept in the outbox for a later try; None is the one kept there, or KILLED where there is none.
    """
    run_id = outbox.name
    if status is None:
        status = _read_status(outbox)
    else:
        write_part(outbox, STATUS, status)
    rows = read_metrics(outbox)
    with keeping(outbox):
        remove_unfinished(outbox)
    with translated(f"record incomplete: what MLflow lacks of run {run_id} is kept in {outbox}"):
        missing = find_missing(client, run_id, rows)
        send_metrics(client, run_id, missing)
        still = find_missing(client, run_id, rows) if missing else []
        if still:
            raise TrackingError(
                f"record incomplete: MLflow has {len(rows) - len(still)} of {len(rows)} metrics of run {run_id}; "
                f"they are kept in {outbox}"
            )
        keep_whole(client, run_id, outbox)
        client.log_artifacts(run_id, str(outbox / "artifacts"))
        for key, value in (read_part(outbox, TAGS, dict) or {}).items():
            client.set_tag(run_id, key, value)
        log_inputs(client, run_id, outbox)
        if status == "FINISHED":
            register(client, run_id, outbox, log_model(client, run_id, outbox, rows))
        if client.get_run(run_id).info.status != "FINISHED":  # it may have been completed from another machine
            client.set_terminated(run_id, status)
    shutil.rmtree(outbox, ignore_errors=True)  # another process may complete it too


def _read_status(outbox: Path) -> str:
    with keeping(outbox):
        kept = outbox / STATUS
        found = kept.read_text(encoding="utf-8", errors="replace") if kept.exists() else ""
    return found if found in STATUSES else "KILLED"  # what a full disk once left may be empty
