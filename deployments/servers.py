"""Prefect's and MLflow's servers on loopback, over the databases in a folder, and how to find those that run.

Child processes as such stand in processes.py; the stand-in for AWS in standin.py. Every setting that Prefect and MLflow
read from the environment by themselves is left to them, and what is set there wins over what is set here.
"""

import fcntl
import json
import os
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from subprocess import Popen

from deployments.processes import LOOPBACK, Children, answers, quiet_environment, start_on_free_port

PREFECT_PORT = 4200  # the usual ones, so that links in yesterday's logs work while `make ui` runs today
MLFLOW_PORT = 5000
PREFECT_SETTINGS = {
    # The defaults keep events and task runs in memory for seconds, and a server that stops early loses them.
    "PREFECT_SERVER_SERVICES_EVENT_PERSISTER_FLUSH_INTERVAL": "0.5",
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_FLUSH_INTERVAL": "1",
}


@dataclass(frozen=True)
class Pages:
    """Where Prefect's API and MLflow's pages are, which command serves them, and by which process."""

    prefect_api: str
    mlflow: str
    command: str = "make ui"
    pid: int = field(default_factory=os.getpid)


def start_prefect(children: Children, home: Path, *, preferred_port: int = 0) -> str:
    """Start Prefect's server on the database `home/prefect.db`; the URL of its API once it answers.

    Raises ConfigurationError, with the end of its log, where it does not come up.
    """
    database = f"sqlite+aiosqlite:///{home.resolve()}/prefect.db"
    log = home / "logs" / "prefect-server.log"
    environment = quiet_environment(
        {"PREFECT_SERVER_DATABASE_CONNECTION_URL": database, **PREFECT_SETTINGS, **os.environ}
    )

    def start(port: int) -> Popen[bytes]:
        command = [sys.executable, "-m", "prefect", "server", "start", "--host", LOOPBACK, "--port", str(port)]
        page = f"http://{LOOPBACK}:{port}"
        # the first for its pages, the second for the links in what automations tell
        urls = {"PREFECT_SERVER_UI_API_URL": f"{page}/api", "PREFECT_UI_URL": page}
        return children.start_server(command, environment | urls, log)

    port = start_on_free_port(start, "/api/health", log, children, preferred_port)
    return f"http://{LOOPBACK}:{port}/api"


def start_mlflow(children: Children, home: Path, store: str, *, preferred_port: int = 0) -> str:
    """Start MLflow's server over a store, such as `sqlite:///…`; its URL once it answers.

    MLFLOW_BACKEND_STORE_URI and MLFLOW_ARTIFACTS_DESTINATION of the environment win, as they do for `mlflow server`.
    Else runs keep their files in `home`, under addresses that hold without the server too: `make train` opens the
    store itself. One worker and no job execution: two processes instead of fourteen. Raises ConfigurationError.
    """
    log = home / "logs" / "mlflow-server.log"
    files = (home / "mlartifacts").resolve().as_uri()
    root = {} if "MLFLOW_ARTIFACTS_DESTINATION" in os.environ else {"MLFLOW_DEFAULT_ARTIFACT_ROOT": files}
    environment = quiet_environment(
        {
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
            "MLFLOW_BACKEND_STORE_URI": store,  # not among the command's words, where `ps` shows a password
            "MLFLOW_ARTIFACTS_DESTINATION": files,
            **root,
            **os.environ,
        }
    )

    def start(port: int) -> Popen[bytes]:
        command = [sys.executable, "-m", "mlflow", "server", "--host", LOOPBACK, "--port", str(port), "--workers", "1"]
        return children.start_server(command, environment, log)

    port = start_on_free_port(start, "/health", log, children, preferred_port)
    return f"http://{LOOPBACK}:{port}"


def configured_prefect() -> str | None:
    """The API's URL that Prefect itself would use: of the environment, a .env or prefect.toml file, or the profile."""
    url = os.environ.get("PREFECT_API_URL")
    if url:
        return url
    from prefect.settings import get_current_settings

    return get_current_settings().api.url


def announce(home: Path, pages: Pages) -> AbstractContextManager[None]:
    """Let others find these pages for as long as the block runs; see `find_pages`."""
    return publish(home / "pages.json", json.dumps(asdict(pages)))


def find_pages(home: Path) -> Pages | None:
    """The pages that a `make ui` or `make up` over the same databases serves now, else None."""
    try:
        pages = Pages(**json.loads(read_published(home / "pages.json") or ""))
    except (ValueError, TypeError):
        return None
    return pages if answers(f"{pages.prefect_api}/health") else None


@contextmanager
def publish(path: Path, text: str) -> Iterator[None]:
    """Let others read a text for as long as the block runs; see `read_published`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.truncate(0)
        file.write(text)
        file.flush()
        try:
            yield
        finally:
            file.truncate(0)


def read_published(path: Path) -> str | None:
    """What a process publishes now in this file, else None.

    The lock on the file goes with the process that holds it, so a file left by a killed one does not mislead.
    """
    try:
        with path.open() as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return file.read()
    except OSError:
        return None
    return None
