"""`make up`: both servers, a worker, and the deployments, on this machine and on loopback only, until Ctrl-C.

    python -m deployments.up            start what is missing: see `serve`
    python -m deployments.up status     what is up, and what its worker does
    python -m deployments.up down       stop it, as Ctrl-C does

What PREFECT_API_URL and MLFLOW_TRACKING_URI name is used and not started; with nothing configured that names data, the
stand-in for AWS serves generated shards. The databases are in the folder of tasks/state.py, unless
PREFECT_SERVER_DATABASE_CONNECTION_URL and MLFLOW_BACKEND_STORE_URI name others (PostgreSQL, say). Servers as such are
in servers.py and pages.py, what is deployed in prefect.yaml, automations.py and applying.py.
"""

import argparse
import os
import platform
import signal
import subprocess
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from deployments.commands import needs_standin
from deployments.generator import ROWS
from deployments.local import UP, await_record, start_standin, without_aws
from deployments.pages import leave_on_signal, show, start_pages, wait
from deployments.processes import Children, quiet_environment, wait_until
from deployments.progress import say
from deployments.recording import ask
from deployments.servers import Pages, announce, configured_prefect, find_pages, publish, read_published
from tasks.errors import ConfigurationError, ShardlineError
from tasks.state import STATE

POOL = "shardline"
UP_PID = STATE / "up.pid"
WORKER_LOG = STATE / "logs" / "worker.log"
WORKER_GRACE_SECONDS = 30.0  # to write a checkpoint and to end the record in MLflow as KILLED
MOST_WORKERS = 20  # after so many that ended by themselves something is wrong that another one would not mend
STOP_SECONDS = 90.0


def serve(rows: int) -> int:
    """Start what is missing, say where it is, and wait until told to stop; the exit code."""
    if running := find_pages(STATE):
        if running.command != UP:
            raise ConfigurationError(f"`{running.command}` serves these databases already: stop it first")
        say("It is up already:")
        show(running)
        return 0
    if pid := read_published(UP_PID):
        raise ConfigurationError(
            f"another `make up`, process {pid}, is starting: wait for it, or stop it by `make down`"
        )
    with (
        publish(UP_PID, str(os.getpid())),  # until all else has ended, which `make down` waits for
        ExitStack() as announced,
        Children() as children,
        ExitStack() as stack,
    ):
        pages, environment = _start(children, stack, rows)
        began = datetime.now(UTC)
        workers = [_start_worker(children, environment)]
        announced.enter_context(announce(STATE, pages))
        show(pages)
        say(f"Worker:  work pool {POOL!r}; what it says is in {WORKER_LOG}")
        say("Ctrl-C, or `make down`, stops it all; nothing is lost.")
        try:
            return wait(children, lambda: _keep_working(children, environment, workers))
        finally:
            children.stop(workers[-1], WORKER_GRACE_SECONDS)
            if configured_prefect() is None:
                await_record(pages.prefect_api, began)


def _keep_working(children: Children, environment: Mapping[str, str], workers: "list[subprocess.Popen[bytes]]") -> None:
    """Start another worker where the last one has ended by itself, as one does that was killed."""
    code = workers[-1].poll()
    if code is None or len(workers) > MOST_WORKERS:
        return
    children.stop(workers[-1])
    say(f"The worker has ended by itself, exit code {code}; another one is started.")
    workers.append(_start_worker(children, environment))


def _start(children: Children, stack: ExitStack, rows: int) -> tuple[Pages, dict[str, str]]:
    """Start servers and stand-in, and deploy; where the pages are, and the environment of the worker."""
    environment = quiet_environment(os.environ)
    with ThreadPoolExecutor(1) as pool, children.stopped_on_failure():
        starting = pool.submit(start_pages, children, UP)
        if needs_standin([]):
            environment = without_aws(environment) | start_standin(stack, rows, seed=0).environment
        pages = starting.result()
    environment |= {
        "PREFECT_API_URL": pages.prefect_api,
        "MLFLOW_TRACKING_URI": pages.mlflow,
        "SHARDLINE_ROOT": str(Path.cwd()),
    }
    _deploy(environment)
    return pages, environment


def _deploy(environment: Mapping[str, str]) -> None:
    command = [sys.executable, "-m", "deployments.applying"]
    done = subprocess.run(command, env=dict(environment), stderr=subprocess.PIPE, text=True)
    if done.returncode:
        raise ConfigurationError(f"what is to be deployed could not be:\n{done.stderr.strip()}")


def _start_worker(children: Children, environment: Mapping[str, str]) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-m", "prefect", "worker", "start", "--pool", POOL, "--type", "process"]
    quick = {"PREFECT_WORKER_QUERY_SECONDS": "2"}  # the default of 10 lets a click wait
    command += ["--name", platform.node() or "local", "--install-policy", "never"]
    return children.start_server(command, quick | dict(environment), WORKER_LOG)


def status() -> int:
    """Say what is up."""
    pages, starting = find_pages(STATE), read_published(UP_PID)
    if pages is None:
        say(f"`make up`, process {starting}, starts." if starting else "Nothing is up here: `make up` starts it.")
        return 0
    say(f"`{pages.command}`, process {pages.pid}:")
    show(pages)
    states = ("RUNNING", "PENDING", "SCHEDULED")
    counts = {state: ask(pages.prefect_api, "flow_runs/count", _in_state(state)) for state in states}
    say("Runs:    " + ", ".join(f"{counts[state]} {state.lower()}" for state in states))
    if pages.command == UP:
        workers = ask(pages.prefect_api, f"work_pools/{POOL}/workers/filter", {})
        online = [each["name"] for each in workers if each["status"] == "ONLINE"]
        say(f"Worker:  {', '.join(online) or 'none has been heard of for a while'}; its log is {WORKER_LOG}")
    return 0


def _in_state(state: str) -> dict[str, Any]:
    return {"flow_runs": {"state": {"type": {"any_": [state]}}}}


def down() -> int:
    """Stop what is up, as Ctrl-C does, and wait until it has ended."""
    pages, starting = find_pages(STATE), read_published(UP_PID)
    if not (pages or starting):
        say("Nothing is up here.")
        return 0
    command, pid = (pages.command, pages.pid) if pages else (UP, int(starting or 0))
    os.kill(pid, signal.SIGINT)
    if not wait_until(lambda: find_pages(STATE) is None and read_published(UP_PID) is None, STOP_SECONDS):
        say(f"`{command}`, process {pid}, has not ended within {STOP_SECONDS:.0f} seconds.")
        return 1
    say("Stopped; nothing is lost.")
    return 0


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m deployments.up", description="Servers, worker and deployments.")
    parser.add_argument("what", nargs="?", choices=("up", "status", "down"), default="up")
    parser.add_argument("--rows", type=int, default=ROWS, help="rows to generate for the stand-in [%(default)s]")
    options = parser.parse_args()
    try:
        if options.what == "status":
            return status()
        if options.what == "down":
            return down()
        leave_on_signal()
        return serve(options.rows)
    except ShardlineError as error:
        print(f"make {options.what}: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
