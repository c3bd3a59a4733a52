"""`make ui`: Prefect's and MLflow's pages on loopback, with the runs of `make train` in them, until Ctrl-C.

What PREFECT_API_URL (or the active profile) and MLFLOW_TRACKING_URI point to already is not served again: its address
is printed. The servers themselves stand in servers.py.
"""

import os
import signal
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from urllib.parse import urlsplit

from deployments.processes import Children
from deployments.progress import say
from deployments.servers import (
    MLFLOW_PORT,
    PREFECT_PORT,
    Pages,
    announce,
    configured_prefect,
    find_pages,
    start_mlflow,
    start_prefect,
)
from tasks.errors import ShardlineError
from tasks.state import STATE

MLFLOW_START = "/#/experiments?workflowType=machine_learning"  # without it MLflow shows its pages for chat agents


def serve() -> int:
    """Serve what is not served already, print both addresses, and wait until told to stop; the exit code."""
    if running := find_pages(STATE):
        say("They are being served already:")
        show(running)
        return 0
    with Children() as children:
        pages = start_pages(children, "make ui")
        if not children.some_started():
            show(pages)
            return 0
        with nullcontext() if configured_prefect() else announce(STATE, pages):
            show(pages)
            say("Ctrl-C stops them; nothing is lost.")
            return wait(children)


def start_pages(children: Children, command: str) -> Pages:
    """Start each of the two servers that is not configured; where both are."""
    prefect_api, mlflow = configured_prefect(), configured_mlflow()
    if not (prefect_api and mlflow):
        STATE.mkdir(exist_ok=True)
    with ThreadPoolExecutor(2) as pool, children.stopped_on_failure():
        own_prefect = prefect_api or pool.submit(start_prefect, children, STATE, preferred_port=PREFECT_PORT)
        own_mlflow = mlflow or pool.submit(start_mlflow, children, STATE, _store(), preferred_port=MLFLOW_PORT)
        return Pages(
            own_prefect if isinstance(own_prefect, str) else own_prefect.result(),
            own_mlflow if isinstance(own_mlflow, str) else own_mlflow.result(),
            command,
        )


def configured_mlflow() -> str | None:
    """The tracking server that MLFLOW_TRACKING_URI names, where it names a server."""
    uri = os.environ.get("MLFLOW_TRACKING_URI", "")
    return uri if urlsplit(uri).scheme in ("http", "https") else None


def _store() -> str:
    """The store that runs without a tracking server write to."""
    from tasks.tracking.client import tracking_uri

    return tracking_uri()


def show(pages: Pages) -> None:
    """Print both addresses, and which of the usual ports is somebody else's."""
    for name, url, path, port in (
        ("Prefect", pages.prefect_api.removesuffix("/api"), "/runs", None if configured_prefect() else PREFECT_PORT),
        ("MLflow", pages.mlflow, MLFLOW_START, None if configured_mlflow() else MLFLOW_PORT),
    ):
        taken = port is not None and urlsplit(url).port != port
        say(f"{name + ':':<9}{url}{path}{f'  (port {port} is taken)' if taken else ''}")


def wait(children: Children, tend: Callable[[], None] = lambda: None) -> int:
    """Wait until one of the children ends by itself, which is exit code 1; `tend` may put another in its place."""
    while True:
        time.sleep(0.5)
        tend()
        if children.some_ended():
            say(f"A server has ended by itself; what it said last is in {STATE / 'logs'}.")
            return 1


def leave_on_signal() -> None:
    """End this process at its first signal, with all that it started; Ctrl-C is no failure."""

    def leave(number: int, _: object) -> None:
        for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(each, signal.SIG_IGN)  # a second one would leave the end half done
        raise SystemExit(0 if number == signal.SIGINT else 128 + number)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, leave)


def main() -> int:
    """The command line: no arguments."""
    leave_on_signal()
    try:
        return serve()
    except ShardlineError as error:
        print(f"make ui: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
