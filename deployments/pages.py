"""`make ui`: Prefect's and MLflow's pages on loopback, with the runs of `make train` in them, until Ctrl-C.

What PREFECT_API_URL (or the active profile) and MLFLOW_TRACKING_URI point to already is not served again: its address
is printed. The servers themselves stand in servers.py.
"""

import os
import signal
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from urllib.parse import urlsplit

from deployments.processes import Children
from deployments.progress import say
from deployments.servers import (
    HOME,
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

MLFLOW_START = "/#/experiments?workflowType=machine_learning"  # without it MLflow shows its pages for chat agents


def serve() -> int:
    """Serve what is not served already, print both addresses, and wait until told to stop; the exit code."""
    prefect_api, store = configured_prefect(), os.environ.get("MLFLOW_TRACKING_URI", "")
    mlflow = store if urlsplit(store).scheme in ("http", "https") else None
    if prefect_api and mlflow:
        _show(Pages(prefect_api, mlflow))
        return 0
    if running := find_pages(HOME):
        say("They are being served already:")
        _show(running)
        return 0
    HOME.mkdir(exist_ok=True)
    with Children() as children:
        with ThreadPoolExecutor(2) as pool:
            own_prefect = prefect_api or pool.submit(start_prefect, children, HOME, preferred_port=PREFECT_PORT)
            own_mlflow = mlflow or pool.submit(
                start_mlflow, children, HOME, store or _default_store(), preferred_port=MLFLOW_PORT
            )
        pages = Pages(
            own_prefect if isinstance(own_prefect, str) else own_prefect.result(),
            own_mlflow if isinstance(own_mlflow, str) else own_mlflow.result(),
        )
        with announce(HOME, pages) if not prefect_api else nullcontext():
            _show(
                pages, prefect_port=None if prefect_api else PREFECT_PORT, mlflow_port=None if mlflow else MLFLOW_PORT
            )
            say("Ctrl-C stops them; nothing is lost.")
            return _wait(children)


def _default_store() -> str:
    """The store that runs without MLFLOW_TRACKING_URI write to."""
    from tasks.learning.record import tracking_uri

    return tracking_uri()


def _show(pages: Pages, prefect_port: int | None = None, mlflow_port: int | None = None) -> None:
    for name, url, path, port in (
        ("Prefect", pages.prefect_api.removesuffix("/api"), "/runs", prefect_port),
        ("MLflow", pages.mlflow, MLFLOW_START, mlflow_port),
    ):
        taken = port is not None and urlsplit(url).port != port
        say(f"{name + ':':<9}{url}{path}{f'  (port {port} is taken)' if taken else ''}")


def _wait(children: Children) -> int:
    while True:
        time.sleep(0.5)
        if children.some_ended():
            say(f"A server has ended by itself; what it said last is in {HOME / 'logs'}.")
            return 1


def _leave(number: int, _: object) -> None:
    raise SystemExit(0 if number == signal.SIGINT else 128 + number)


def main() -> int:
    """The command line: no arguments."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _leave)
    try:
        return serve()
    except ShardlineError as error:
        print(f"make ui: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
