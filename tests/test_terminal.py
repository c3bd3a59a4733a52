"""What a person sees who runs the real command in a terminal: a pty, the keys that are pressed, the lines that come."""

import contextlib
import os
import pty
import re
import select
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from deployments.generator import provide_data
from deployments.processes import wait_until
from flows import STOPPED_EARLY
from tests.sites import ENVIRONMENT, ask
from tests.test_pages import look

ROOT = Path(__file__).parents[1]
ENDLESS = ("--iterations", "1000000", "--batch-size", "500", "--checkpoint-every", "1000")
ESCAPES = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
RUN_IN_MLFLOW = re.compile(r"(http://127\.0\.0\.1:\d+)/#/experiments/\d+/runs/([0-9a-f]{32})[\w?=]*")
RUN_IN_PREFECT = re.compile(r"(http://127\.0\.0\.1:\d+)/runs/flow-run/([0-9a-f-]{36})")
CTRL_C = b"\x03"


class Terminal:
    """A command in a terminal of its own."""

    def __init__(self, command: list[str], folder: Path, environment: dict[str, str]) -> None:
        self.pid, self._descriptor = pty.fork()
        if not self.pid:
            os.chdir(folder)
            signal.signal(signal.SIGINT, signal.SIG_DFL)  # which tests in a shell's background have ignored
            os.execve(command[0], command, environment)
        self.raw = ""

    def read_until(self, text: str, seconds: float = 200) -> None:
        """Read until the text has come."""
        deadline = time.monotonic() + seconds
        while text not in self.raw:
            assert time.monotonic() < deadline and self._read(), f"{text!r} has not come, but:\n{self.raw}"

    def press(self, key: bytes) -> str:
        """Press a key; what had come before it."""
        while self._read(0.0):
            pass
        before, self.raw = self.raw, ""
        os.write(self._descriptor, key)
        return before

    def end(self) -> int:
        """Read to the end; the exit code."""
        while self._read(60.0):
            pass
        os.close(self._descriptor)
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    @property
    def lines(self) -> list[str]:
        """What has come since the last key, without colours."""
        return ESCAPES.sub("", self.raw).replace("\r\n", "\n").split("\n")

    def _read(self, seconds: float = 1.0) -> bool:
        if not select.select([self._descriptor], [], [], seconds)[0]:
            return seconds == 1.0
        with contextlib.suppress(OSError):
            if got := os.read(self._descriptor, 65536):
                self.raw += got.decode(errors="replace")
                return True
        return False


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A glob of 2,000 generated rows."""
    return f"{provide_data(tmp_path_factory.mktemp('generated'), 2_000)[0]}/csv/dev/part*.csv"


@pytest.fixture(scope="module")
def environment(prefect_api: str) -> dict[str, str]:
    """One that names the tests' Prefect server."""
    return ENVIRONMENT | {"PREFECT_API_URL": prefect_api}


def found(pattern: re.Pattern[str] | str, text: str) -> "re.Match[str]":
    """Where the text has the pattern, which it must."""
    match = re.search(pattern, text)
    assert match, text
    return match


def training(shards: str, *words: str) -> list[str]:
    return [sys.executable, "-m", "flows.training", "--shards", shards, *words]


def test_ctrl_c_is_two_lines(tmp_path, shards, environment, prefect_api):
    running = Terminal(training(shards, *ENDLESS), tmp_path, environment)
    running.read_until("Iteration: ")
    before = running.press(CTRL_C)
    flow_run = found(RUN_IN_PREFECT, before)
    assert running.end() == 130, running.raw
    assert re.fullmatch(
        r"\^C(\rIteration: [^\n]*)?\n"
        r"Stopped after iteration \d+; its checkpoint is kept\.\nThe same command goes on from there\.\n",
        "\n".join(running.lines),
    ), running.raw
    state = ask(f"{prefect_api}/flow_runs/{flow_run[2]}")["state"]
    assert state["type"] == "CRASHED"
    assert state["message"].startswith(found(r"Stopped after iteration \d+", running.raw)[0])


@pytest.mark.long
def test_the_same_command_goes_on_and_a_second_ctrl_c_ends_it_at_once(tmp_path, shards, environment):
    running = Terminal(training(shards, *ENDLESS), tmp_path, environment)
    running.read_until("Iteration: ")
    running.press(CTRL_C)
    assert running.end() == 130, running.raw
    stopped_at = int(found(r"Stopped after iteration (\d+)", running.raw)[1])

    again = Terminal(training(shards, *ENDLESS), tmp_path, environment)
    again.read_until(f"Going on at iteration {stopped_at + 1}")
    again.read_until("Iteration: ")
    again.press(CTRL_C)
    time.sleep(0.5)  # as fast as a person presses twice
    again.press(CTRL_C)
    began = time.monotonic()
    assert again.end() in (130, -signal.SIGINT)
    assert time.monotonic() - began < 5
    assert "Traceback" not in again.raw


LATE = """
import os, signal, time
from prefect import flow
from prefect.runtime import flow_run
from flows.commandline import parameters, run
from tasks.parameters import ReplayParameters
from tests.sites import ask

@flow
@parameters(ReplayParameters)
def stopped(**given):
    # what a last request does whose answer comes too late: the server knows this end when it is told again
    url = f"{os.environ['PREFECT_API_URL']}/flow_runs/{flow_run.id}/set_state"
    ask(url, {"state": {"type": "CRASHED", "name": "Crashed"}, "force": True})
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(60)

run(stopped, ReplayParameters, "stopped", lambda given: None, [])
"""


def test_ctrl_c_is_two_lines_where_the_server_knows_of_the_end_before_it_is_told(tmp_path, environment):
    (tmp_path / "late.py").write_text(LATE)
    command, environment = [sys.executable, tmp_path / "late.py"], environment | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 130, done.stderr
    assert done.stderr.endswith("Stopped by Ctrl-C.\nThe same command takes it up again.\n")
    assert "Traceback" not in done.stderr and "Running()" not in done.stderr


FLOWS = ("training", "predicting", "monitoring", "benchmarking", "replaying", "searching")
MODULES = [*(f"flows.{name}" for name in FLOWS), "deployments.local"]


@pytest.mark.parametrize("module", [MODULES[0], *(pytest.param(name, marks=pytest.mark.long) for name in MODULES[1:])])
def test_ctrl_c_while_a_command_is_being_imported_is_one_sentence(tmp_path, module):
    running = Terminal([sys.executable, "-m", module], tmp_path, dict(ENVIRONMENT))
    process = Path(f"/proc/{running.pid}")
    words = [sys.executable, "-m", module, ""]  # else it is a copy of this process still
    assert wait_until(lambda: (process / "cmdline").read_text().split("\0") == words, 60)
    assert wait_until(lambda: "_pydantic_core" in (process / "maps").read_text(), 60)  # Prefect's import has begun
    running.press(CTRL_C)
    assert running.end() == 130
    assert running.lines == [f"^C{STOPPED_EARLY}", ""]


def test_ctrl_c_while_make_train_starts_what_it_needs_is_one_sentence_and_waits_for_nothing(tmp_path):
    command = [sys.executable, "-m", "deployments.local", "--rows", "2000", "--"]
    running = Terminal([*command, *training("x.csv")[:3]], tmp_path, dict(ENVIRONMENT))
    running.read_until("this runs on a stand-in for AWS")
    running.press(CTRL_C)
    began = time.monotonic()
    assert running.end() == 130
    assert time.monotonic() - began < 15
    assert "Traceback" not in running.raw
    assert running.lines[-2].endswith(STOPPED_EARLY) and running.raw.count(STOPPED_EARLY) == 1


@pytest.fixture(scope="module")
def ended(tmp_path_factory, shards, environment):
    """A training of twelve iterations that has ended well: its terminal, and what it wrote to standard output."""
    folder = tmp_path_factory.mktemp("new")
    command = shlex.join(training(shards, "--iterations", "12", "--batch-size", "300"))
    running = Terminal(["/bin/sh", "-c", f"exec {command} > block"], folder, environment)
    assert running.end() == 0, running.raw
    return running, (folder / "block").read_text()


def test_iterations_are_one_line_that_counts_and_all_of_them_are_in_the_log(ended, prefect_api):
    terminal, _ = ended
    counting = [line for line in terminal.lines if "Iteration: 000" in line]
    assert len(counting) == 1 and counting[0].count("\rIteration: ") == 12
    flow_run = found(RUN_IN_PREFECT, terminal.raw)[2]
    logs = ask(f"{prefect_api}/logs/filter", {"logs": {"flow_run_id": {"any_": [flow_run]}}, "limit": 200})
    assert sum(each["message"].startswith("Iteration: ") for each in logs) == 12
    assert ask(f"{prefect_api}/flow_runs/{flow_run}")["state"]["message"].startswith("This model explains ")


def test_the_last_block_says_what_it_is_worth_and_what_to_do_next(ended):
    terminal, block = ended
    worth, champion, _, look, prefect, predict, serve = block.strip().splitlines()
    assert worth.startswith("This model explains ")
    assert champion.startswith("The model becomes champion, for it beats ")
    assert re.fullmatch(r"  Look     run [0-9a-f]{32}; `make ui` shows it", look)
    assert found(RUN_IN_PREFECT, prefect)
    assert predict.startswith("  Predict  python -m flows.predicting ")
    assert "mlflow models serve -m models:/shardline@champion" in serve
    assert "http://127.0.0.1:5000" not in terminal.raw + block  # no server shows it, so no link leads to one


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--target", "nosuch"], "no column 'nosuch' in the shards: they have"),
        pytest.param(
            ["--max-shards", "1", "--test-shards", "nowhere/*.csv"],
            "nowhere/*.csv matches nothing",
            marks=pytest.mark.long,
        ),
    ],
)
def test_an_error_is_said_once(tmp_path, shards, environment, words, message):
    command = training(shards, *words)
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=100)
    assert done.returncode == 1
    assert (done.stdout + done.stderr).count(message) == 1
    assert done.stderr.splitlines()[-1].startswith("flows.training: ")


@contextlib.contextmanager
def taken(port: int) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):  # somebody else has it
            stack.enter_context(socket.create_server(("127.0.0.1", port)))
        yield


@pytest.mark.long
@pytest.mark.timeout(400)
def test_the_links_of_make_train_open_the_pages_that_they_name_while_it_trains(browser, tmp_path):
    command = [sys.executable, "-m", "deployments.local", "--rows", "2000", "--"]
    with taken(5000):
        running = Terminal([*command, sys.executable, "-m", "flows.training", *ENDLESS], tmp_path, dict(ENVIRONMENT))
        running.read_until("Iteration: ")
        mlflow, prefect = found(RUN_IN_MLFLOW, running.raw), found(RUN_IN_PREFECT, running.raw)
        assert not mlflow[1].endswith(":5000")
        question = f"{mlflow[1]}/api/2.0/mlflow/runs/get?run_id={mlflow[2]}"
        assert wait_until(lambda: "metrics" in ask(question)["run"]["data"], 60, 0.5)  # the page does not ask again
        run = ask(question)["run"]
        assert run["info"]["status"] == "RUNNING"
        look(browser, mlflow[0], run["info"]["run_name"], "seconds_per_iteration", picture="train-mlflow")
        look(browser, prefect[0], run["info"]["run_name"], "Running", picture="train-prefect")
        running.press(CTRL_C)
        assert running.end() == 130
    assert running.lines[-3:-1] == [running.lines[-3], "The same command goes on from there."]
    assert running.lines[-3].startswith("Stopped after iteration ")
