"""Waits until Prefect's server has written down what a run sent it, so that stopping the server loses nothing.

Task runs and events reach the server over a websocket and its database some seconds later; what is in between when the
server stops is gone, and the page then shows a run without its last tasks.
"""

import base64
import json
import os
import time
import urllib.request
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from tasks.errors import TrackingError

POLL_SECONDS = 0.3
QUIET_SECONDS = 1.5  # longer than the server keeps anything in memory; see servers.PREFECT_SETTINGS
TERMINAL = ["COMPLETED", "FAILED", "CRASHED", "CANCELLED"]


@dataclass(frozen=True)
class Records:
    """How many runs, of flows and tasks, have not ended; how many flow runs, task runs and events there are."""

    unfinished: int
    runs: int
    tasks: int
    events: int


def wait_until_recorded(api: str, since: datetime, timeout_seconds: float = 20.0) -> bool:
    """Wait until all runs that started after `since` have ended and nothing more is written for a moment.

    Returns False where a run is still under way at the end, as one is whose process was killed. Raises TrackingError
    where the server does not answer.
    """
    deadline = time.monotonic() + timeout_seconds
    last, last_change = None, time.monotonic()
    while time.monotonic() < deadline:
        now = count_records(api, since)
        if now != last:
            last, last_change = now, time.monotonic()
        quiet = time.monotonic() - last_change
        if quiet > QUIET_SECONDS and (now.unfinished == 0 or quiet > 2 * QUIET_SECONDS):
            return now.unfinished == 0
        time.sleep(POLL_SECONDS)
    return False


def count_records(api: str, since: datetime) -> Records:
    """What the server has written down of the runs that started after `since`."""
    # a scheduled run's start is the one that it is to have
    not_scheduled = {"type": {"not_any_": ["SCHEDULED"]}}
    started = {"flow_runs": {"start_time": {"after_": since.isoformat()}, "state": not_scheduled}}
    ended = {"state": {"type": {"any_": TERMINAL}}}
    runs = ask(api, "flow_runs/count", started)
    ended_runs = ask(api, "flow_runs/count", {"flow_runs": {**started["flow_runs"], **ended}})
    tasks = ask(api, "task_runs/count", started)
    ended_tasks = ask(api, "task_runs/count", {**started, "task_runs": ended})
    events = ask(api, "events/filter", {"filter": {"occurred": {"since": since.isoformat()}}, "limit": 1})
    return Records(runs + tasks - ended_runs - ended_tasks, runs, tasks, events["total"])


def ask(api: str, path: str, body: dict[str, Any]) -> Any:
    """The server's answer to a question, as PREFECT_API_AUTH_STRING allows; TrackingError where there is none."""
    headers = {"Content-Type": "application/json"}
    if word := os.environ.get("PREFECT_API_AUTH_STRING"):
        headers["Authorization"] = "Basic " + base64.b64encode(word.encode()).decode()
    request = urllib.request.Request(f"{api}/{path}", json.dumps(body).encode(), headers)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=10) as response:
            return json.load(response)
    except (OSError, ValueError) as error:
        raise TrackingError(
            f"Prefect: its server at {api} does not answer any more ({error}), so its page may lack what the "
            "run sent last"
        ) from error
