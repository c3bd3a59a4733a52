"""deployments.processes: children that end with this process, and servers on ports that are free."""

import os
import signal
import socket
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from deployments.processes import Children, answers, find_port, quiet_environment, start_on_free_port, wait_until
from tasks.errors import ConfigurationError


def python(program: str) -> list[str]:
    return [sys.executable, "-c", program]


def test_loopback_is_never_asked_for_through_a_proxy_and_nothing_phones_home():
    environment = quiet_environment({"NO_PROXY": "example.org", "HTTP_PROXY": "http://proxy:3128"})
    assert environment["NO_PROXY"] == environment["no_proxy"] == "example.org,127.0.0.1,localhost"
    assert environment["DO_NOT_TRACK"] == environment["MLFLOW_DISABLE_TELEMETRY"] == "true"
    assert environment["PREFECT_SERVER_ANALYTICS_ENABLED"] == "false"


def test_a_port_that_is_taken_is_not_chosen():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert find_port(port) not in (0, port)


def test_a_port_on_which_somebody_else_answers_first_is_left_to_them(tmp_path):
    log = tmp_path / "server.log"
    winners: list[ThreadingHTTPServer] = []

    class Winner(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()

    def start(port):
        if not winners:
            winners.append(ThreadingHTTPServer(("127.0.0.1", port), Winner))
            threading.Thread(target=winners[0].serve_forever).start()
            return children.start_server(python("import time; time.sleep(600)"), os.environ, log)
        return children.start_server(
            [sys.executable, "-m", "http.server", str(port), "--bind", "127.0.0.1"], os.environ, log
        )

    with Children() as children:
        port = start_on_free_port(start, "/", log, children)
        assert answers(f"http://127.0.0.1:{port}/")
        assert port != winners[0].server_port
    winners[0].shutdown()
    winners[0].server_close()


def test_a_server_that_does_not_come_up_is_named_with_the_end_of_its_log(tmp_path):
    log = tmp_path / "server.log"
    with (
        Children() as children,
        pytest.raises(ConfigurationError, match=r"ended with exit code 3.*\n.*no such database"),
    ):
        start_on_free_port(
            lambda port: children.start_server(python("import sys; print('no such database'); sys.exit(3)"), {}, log),
            "/health",
            log,
            children,
        )


def test_a_server_that_ignores_sigterm_is_killed(tmp_path):
    program = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('x', flush=True); time.sleep(600)"
    )
    log = tmp_path / "log"
    with Children() as children:
        process = children.start_server(python(program), os.environ, log)
        assert wait_until(lambda: log.read_text() != "", 30)
        assert children.stop(process, grace_seconds=0.3) == -signal.SIGKILL


def test_nothing_is_started_any_more_once_the_end_has_begun(tmp_path):
    with Children() as children:
        children.stop_all()
        failures = []

        def start_late() -> None:
            try:
                children.start_server(python("pass"), os.environ, tmp_path / "log")
            except InterruptedError as error:
                failures.append(error)

        thread = threading.Thread(target=start_late)
        thread.start()
        thread.join()
    assert len(failures) == 1
