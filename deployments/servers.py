"""Prefect's and MLflow's servers on loopback, over the databases under `.shardline/`, and how to find those that run.

Child processes as such stand in processes.py; the stand-in for AWS in standin.py. The settings that Prefect and MLflow
read from the environment by themselves (authentication, another database) are left to them.
"""

import os
import sys
from collections.abc import Mapping
from pathlib import Path

from deployments.processes import LOOPBACK, Children, find_port, quiet_environment, wait_for_server
from tasks.errors import ConfigurationError

PREFECT_PORT = 4200
MLFLOW_PORT = 5000
ATTEMPTS = 3  # a port found free can be lost to another process before the server listens on it


def start_prefect(
    children: Children, home: Path, environment: Mapping[str, str] | None = None, *, ui: bool = True, port: int = 0
) -> str:
    """Start Prefect's server on the database `home/prefect.db`; the URL of its API once it answers.

    Raises ConfigurationError, with the end of its log, where it does not come up.
    """
    base = os.environ if environment is None else environment
    settings = {
        "PREFECT_SERVER_DATABASE_CONNECTION_URL": f"sqlite+aiosqlite:///{home.resolve()}/prefect.db",
        # The defaults keep events and task runs in memory for seconds, and a server that stops early loses them.
        "PREFECT_SERVER_SERVICES_EVENT_PERSISTER_FLUSH_INTERVAL": "0.5",
        "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_FLUSH_INTERVAL": "1",
    }
    for attempt in range(ATTEMPTS):
        chosen = find_port(port)
        url = f"http://{LOOPBACK}:{chosen}/api"
        command = [sys.executable, "-m", "prefect", "server", "start", "--host", LOOPBACK, "--port", str(chosen)]
        command.append("--ui" if ui else "--no-ui")
        server_environment = quiet_environment({**settings, **base, "PREFECT_SERVER_UI_API_URL": url})
        log = home / "logs" / "prefect-server.log"
        process = children.start_server(command, server_environment, log)
        try:
            wait_for_server(process, f"{url}/health", log)
        except ConfigurationError:
            children.stop(process)
            if attempt + 1 == ATTEMPTS:
                raise
        else:
            return url
    raise AssertionError("unreachable")
