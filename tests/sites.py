"""`make up` in a folder of its own, as tests use it: started, asked, and stopped by Ctrl-C."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from deployments.processes import answers, wait_until
from deployments.servers import Pages, find_pages

ROOT = Path(__file__).parents[1]
SHARED = ("PREFECT_API_URL", "MLFLOW_TRACKING_URI")  # of the server that other tests share, where it runs already
ENVIRONMENT = {name: value for name, value in os.environ.items() if name not in SHARED} | {"PYTHONPATH": str(ROOT)}
TERMINAL = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")


def ask(url: str, question: dict[str, Any] | None = None, *, method: str | None = None) -> Any:
    """The JSON answer to a POST of JSON, or to a GET where nothing is asked; None where it is empty.

    Asked again on 503, as Prefect's own client does: so its server answers where SQLite is busy with another writer.
    """
    body = None if question is None else json.dumps(question).encode()
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"}, method=method)
    for _ in range(5):
        try:
            with urllib.request.urlopen(request, timeout=70) as answer:
                return json.loads(answer.read() or "null")
        except urllib.error.HTTPError as error:
            if error.code != 503:
                raise
        time.sleep(1)
    raise AssertionError(f"{url} answers 503 again and again")


class Site:
    """`make up` in a folder, over the databases and with the settings of `environment`."""

    def __init__(self, folder: Path, rows: int, environment: dict[str, str]) -> None:
        self.folder, self.environment = folder, ENVIRONMENT | environment
        self._command = [sys.executable, "-m", "deployments.up", "--rows", str(rows)]

    def start_up(self) -> None:
        """Start it, and wait until it says where it is."""
        with self.said.open("w") as log:
            self._up = subprocess.Popen(self._command, cwd=self.folder, env=self.environment, stderr=log)
        wait_until(lambda: self._found() is not None or self._up.poll() is not None, 180, 0.2)
        pages = self._found()
        assert pages is not None, self.said.read_text()
        self.pages = pages

    def stop(self) -> None:
        """Ctrl-C; it ends with exit code 0, and nothing of it answers any more."""
        if self._up.poll() is None:
            self._up.send_signal(signal.SIGINT)
        assert self._up.wait(90) == 0, self.said.read_text()
        assert not answers(f"{self.pages.prefect_api}/health")
        assert not answers(f"{self.pages.mlflow}/health")
        assert self._found() is None

    @property
    def said(self) -> Path:
        """What it says to whoever started it."""
        return self.folder / "up.log"

    def _found(self) -> Pages | None:
        return find_pages(self.folder / ".shardline")

    @property
    def api(self) -> str:
        return self.pages.prefect_api

    @property
    def prefect(self) -> str:
        return self.pages.prefect_api.removesuffix("/api")

    def start(self, deployment: str, **parameters: Any) -> str:
        """Start a run of FLOW/DEPLOYMENT with changed parameters; its id."""
        return self.submit(deployment, {"parameters": parameters})

    def submit(self, deployment: str, form: dict[str, Any]) -> str:
        """Start a run of FLOW/DEPLOYMENT as Prefect's form does: by its name, its parameters; its id."""
        found = ask(f"{self.api}/deployments/name/{deployment}")
        return str(ask(f"{self.api}/deployments/{found['id']}/create_flow_run", form)["id"])

    def run(self, run_id: str) -> dict[str, Any]:
        """A flow run as Prefect tells it."""
        return dict(ask(f"{self.api}/flow_runs/{run_id}"))

    def wait(self, run_id: str, *states: str, seconds: float = 150) -> dict[str, Any]:
        """Wait until a run is in one of these states, or has ended; the run."""
        wait_until(lambda: self.run(run_id)["state_type"] in (states or TERMINAL) + TERMINAL, seconds, 0.3)
        run = self.run(run_id)
        assert run["state_type"] in (states or TERMINAL), f"{run['state']}\n{self.log()}"
        return run

    def log(self) -> str:
        """The end of what the worker says."""
        return (self.folder / ".shardline" / "logs" / "worker.log").read_text(errors="replace")[-6000:]

    def in_mlflow(self, run_id: str) -> list[dict[str, Any]]:
        """The MLflow runs that a flow run left."""
        search = f"{self.pages.mlflow}/api/2.0/mlflow/"
        experiments = ask(f"{search}experiments/search", {"max_results": 10})["experiments"]
        question = {
            "experiment_ids": [each["experiment_id"] for each in experiments],
            "filter": f"tags.`prefect.flow_run_id` = '{run_id}'",
        }
        return list(ask(f"{search}runs/search", question).get("runs", []))

    def artifacts(self, run_id: str) -> dict[str, dict[str, Any]]:
        """A flow run's artifacts by key."""
        question = {"artifacts": {"flow_run_id": {"any_": [run_id]}}}
        return {each["key"]: each for each in ask(f"{self.api}/artifacts/filter", question)}


@contextmanager
def serve(folder: Path, rows: int, **environment: str) -> Iterator[Site]:
    """`make up` until the block ends."""
    site = Site(folder, rows, environment)
    site.start_up()
    try:
        yield site
    finally:
        site.stop()


class Receiver(ThreadingHTTPServer):
    """A webhook's other end on loopback, which keeps the texts that it gets."""

    def __init__(self) -> None:
        texts: list[str] = []

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                texts.append(json.loads(self.rfile.read(int(self.headers["Content-Length"])))["text"])
                self.send_response(204)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        super().__init__(("127.0.0.1", 0), Handler)
        self.texts = texts
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/hook"

    def await_text(self, *parts: str, seconds: float = 60) -> None:
        """Wait until a text with all these parts has come."""
        wait_until(lambda: any(all(part in text for part in parts) for text in self.texts), seconds, 0.2)
        assert any(all(part in text for part in parts) for text in self.texts), self.texts

    def server_close(self) -> None:
        self.shutdown()
        super().server_close()
