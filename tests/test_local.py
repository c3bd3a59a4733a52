"""deployments.local: what a command lacks is started around it, and nothing of it is left afterwards."""

import json
import os
import re
import shlex
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

from deployments.commands import has_credentials, needs_standin
from deployments.local import await_record
from deployments.processes import answers, wait_until
from tests.test_processes import python

ROOT = Path(__file__).parents[1]
BUCKET_ID = "0123456789abcdef" * 2
NOWHERE = "http://127.0.0.1:9/api"
LINE = "No BUCKET_ID, no AWS credentials, no shards: this runs on a stand-in for AWS, with generated taxi trips."
SHOW_ENVIRONMENT = "import json, os; print(json.dumps(dict(os.environ)))"
# Says that it is ready and, when told to end, whether the stand-in still answers.
WAIT_FOR_SIGNAL = """
import signal, sys, threading, boto3
told = []
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, lambda number, _: told.append(number))
print(boto3.client('sts').meta.endpoint_url, flush=True)
while not told: threading.Event().wait(0.05)
print(boto3.client('sts').get_caller_identity()['Account'], flush=True)
sys.exit(40 + told[0])
"""


def local(*command: str, rows: int = 2_000) -> list[str]:
    return [sys.executable, "-m", "deployments.local", "--rows", str(rows), "--", *command]


def run(command: list[str], folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run it in an empty folder, on a Prefect API that is configured, so that no server is started, and not there."""
    given = {**os.environ, "PYTHONPATH": str(ROOT), "PREFECT_API_URL": NOWHERE, **environment}
    return subprocess.run(
        command, cwd=folder, env=given, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=120
    )


def start(command: list[str], folder: Path) -> "subprocess.Popen[str]":
    given = {**os.environ, "PYTHONPATH": str(ROOT), "PREFECT_API_URL": NOWHERE}
    return subprocess.Popen(
        command,
        cwd=folder,
        env=given,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        stdin=subprocess.DEVNULL,
    )


def line_of(process: "subprocess.Popen[str]") -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


@pytest.mark.parametrize(
    ("program", "code"),
    [
        ("raise SystemExit(7)", 7),
        *(pytest.param(*each, marks=pytest.mark.long) for each in (("pass", 0), ("1 / 0", 1))),
    ],
)
def test_the_exit_code_is_the_commands(tmp_path, program, code):
    assert run(local(*python(program)), tmp_path, BUCKET_ID=BUCKET_ID).returncode == code


@pytest.mark.long
def test_the_exit_code_of_a_killed_command_names_the_signal(tmp_path):
    done = run(local(*python("import os, signal; os.kill(os.getpid(), signal.SIGKILL)")), tmp_path, BUCKET_ID=BUCKET_ID)
    assert done.returncode == 128 + signal.SIGKILL


def test_unconfigured_it_says_so_and_the_command_finds_a_stand_in(tmp_path):
    done = run(local(*python(SHOW_ENVIRONMENT)), tmp_path, AWS_REGION="mars-1")
    seen = json.loads(done.stdout)
    assert done.stderr.splitlines()[0] == LINE
    assert seen["AWS_ENDPOINT_URL"].startswith("http://127.0.0.1:")
    assert seen["AWS_ACCESS_KEY_ID"] and seen["AWS_SECRET_ACCESS_KEY"]
    assert seen["AWS_REGION"] == seen["AWS_DEFAULT_REGION"] == "us-east-1"
    assert re.fullmatch("[0-9a-f]{32}", seen["BUCKET_ID"])
    assert seen["AWS_SECRET_ACCESS_KEY"] not in done.stderr
    assert not answers(f"{seen['AWS_ENDPOINT_URL']}/moto-api/data.json")


@pytest.mark.long
def test_the_next_time_the_generated_rows_are_used_again(tmp_path):
    first, second = (run(local(*python("pass")), tmp_path).stderr for _ in range(2))
    assert re.search(r"Stand-in: 2,000 rows, generated in [\d.]+ s, uploaded to s3://dc-taxi-", first)
    assert "Stand-in: 2,000 rows, generated earlier, uploaded to s3://dc-taxi-" in second


def test_with_a_bucket_id_it_only_runs_the_command(tmp_path):
    done = run(local(*python(SHOW_ENVIRONMENT)), tmp_path, BUCKET_ID=BUCKET_ID)
    assert done.stderr == ""
    assert not {name for name in json.loads(done.stdout) if name.startswith("AWS_ENDPOINT_URL")}
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "environment", "files"),
    [
        (["--shards", "x.csv"], {}, {}),
        (["--shards=x.csv"], {}, {}),
        (["--bucket-id", BUCKET_ID], {}, {}),
        (["--aws-block", "mine"], {}, {}),
        ([], {"BUCKET_ID": BUCKET_ID}, {}),
        ([], {}, {"BUCKET_ID": BUCKET_ID}),
        ([], {"AWS_ACCESS_KEY_ID": "AKIA", "AWS_SECRET_ACCESS_KEY": "secret"}, {}),
        ([], {"AWS_ACCESS_KEY_ID": "AKIA"}, {}),  # half of them: for the command to complain about
        (
            [],
            {"AWS_SHARED_CREDENTIALS_FILE": "keys"},
            {"keys": "[default]\naws_access_key_id=A\naws_secret_access_key=B"},
        ),
        (
            [],
            {"AWS_CONFIG_FILE": "config", "AWS_PROFILE": "role"},
            {"config": "[profile role]\nrole_arn=a\nsource_profile=b"},
        ),
        ([], {"AWS_PROFILE": "nobody"}, {}),
        ([], {"AWS_CONTAINER_CREDENTIALS_RELATIVE_URI": "/v2/credentials/1"}, {}),
    ],
)
def test_whoever_names_data_or_credentials_gets_no_stand_in(tmp_path, monkeypatch, words, environment, files):
    monkeypatch.chdir(tmp_path)
    assert needs_standin(["python", "-m", "flows.training"])
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert not needs_standin(["python", "-m", "flows.training", *words])


def test_looking_for_credentials_asks_no_metadata_service(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as service:
        service.settimeout(1)
        monkeypatch.delenv("AWS_EC2_METADATA_DISABLED")
        monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", f"http://127.0.0.1:{service.getsockname()[1]}")
        assert not has_credentials()
        with pytest.raises(TimeoutError):
            service.accept()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        pytest.param(
            ["--bath-size", "3"],
            "flows.training: unrecognized arguments: --bath-size 3 (--help lists every parameter)\n",
            marks=pytest.mark.long,
        ),
        (
            ["--batch-size", "0"],
            "flows.training: --batch-size '0': input should be greater than or equal to 1 "
            "(--help lists every parameter)\n",
        ),
    ],
)
def test_a_flows_bad_words_are_one_line_and_nothing_is_started(tmp_path, words, message):
    done = run(local(sys.executable, "-m", "flows.training", *words), tmp_path)
    assert (done.returncode, done.stderr, done.stdout) == (2, message, "")
    assert list(tmp_path.iterdir()) == []


def test_credentials_without_shards_are_one_line_and_nothing_is_started(tmp_path):
    keys = {"AWS_ACCESS_KEY_ID": "AKIA", "AWS_SECRET_ACCESS_KEY": "secret"}
    done = run(local(sys.executable, "-m", "flows.training"), tmp_path, **keys)
    assert done.returncode == 2
    assert re.fullmatch(r"flows\.training: no shards to read: .*\n", done.stderr)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("words", [pytest.param([], marks=pytest.mark.long), ["no-such-command"]])
def test_no_command_is_exit_code_2(tmp_path, words):
    done = run(local(*words), tmp_path)
    assert done.returncode == 2
    assert "no command" in done.stderr or "no such command: 'no-such-command'" in done.stderr


@pytest.mark.parametrize(
    "number",
    [signal.SIGTERM, *(pytest.param(other, marks=pytest.mark.long) for other in (signal.SIGINT, signal.SIGHUP))],
)
def test_signals_reach_the_command_and_the_stand_in_outlives_it(tmp_path, number):
    with start(local(*python(WAIT_FOR_SIGNAL)), tmp_path) as process:
        endpoint = line_of(process)
        process.send_signal(number)
        assert line_of(process) == "123456789012"
        assert process.wait(60) == 40 + number
    assert not answers(f"{endpoint}/moto-api/data.json")


def test_ctrl_c_in_a_terminal_reaches_the_command_once(tmp_path):
    program = """
import signal, threading
told = []
signal.signal(signal.SIGINT, lambda number, _: told.append(number))
print("ready", flush=True)
while not told: threading.Event().wait(0.05)
threading.Event().wait(1)
print(f"told {len(told)} times", flush=True)
"""
    in_a_terminal = [sys.executable, "-c", "import pty, sys; sys.exit(pty.spawn(sys.argv[1:]) >> 8)"]
    given = {**os.environ, "PYTHONPATH": str(ROOT), "PREFECT_API_URL": NOWHERE, "BUCKET_ID": BUCKET_ID}
    with subprocess.Popen(
        [*in_a_terminal, *local(*python(program))],
        cwd=tmp_path,
        env=given,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        assert process.stdout.readline().strip() == b"ready"
        process.stdin.write(b"\x03")
        process.stdin.flush()
        assert b"told 1 times" in process.stdout.read()
        assert process.wait(30) == 0


def test_killed_it_leaves_neither_stand_in_nor_command(tmp_path):
    program = "import os, time; print(os.environ['AWS_ENDPOINT_URL'], os.getpid(), flush=True); time.sleep(600)"
    with start(local(*python(program)), tmp_path) as process:
        endpoint, pid = line_of(process).split()
        process.kill()
        assert wait_until(lambda: not answers(f"{endpoint}/moto-api/data.json"), 30)
        assert wait_until(lambda: not _runs(int(pid)), 30)


def _runs(pid: int) -> bool:
    status = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True).stdout.strip()
    return status not in ("", "Z")


def test_told_to_end_while_it_generates_it_leaves_no_half_written_set(tmp_path):
    with start(local(*python("pass"), rows=100_000_000), tmp_path) as process:
        generated = tmp_path / ".shardline" / "generated"
        assert wait_until(lambda: any(generated.glob("*/csv/dev/part-00002*")), 60)
        process.terminate()
        assert process.wait(60) == 128 + signal.SIGTERM
    assert list(generated.iterdir()) == []


@pytest.mark.long
def test_its_own_prefect_server_records_everything_before_it_stops(tmp_path):
    (tmp_path / "many.py").write_text(
        "import os\n"
        "from prefect import flow, task\n"
        "one = task(lambda i: i, name='one')\n"
        "@flow(log_prints=True)\n"
        "def many():\n"
        "    print('the last line')\n"
        "    return sum(each.result() for each in one.map(range(60)))\n"
        "print(os.environ['PREFECT_API_URL'])\n"
        "assert many() == 1770\n"
    )
    given = {**os.environ, "PYTHONPATH": str(ROOT), "BUCKET_ID": BUCKET_ID}
    given.pop("PREFECT_API_URL", None)  # of the server that other tests share, where it runs already
    command = local(sys.executable, "many.py")
    done = subprocess.run(command, cwd=tmp_path, env=given, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert "Servers: " in done.stderr
    assert not answers(f"{done.stdout.splitlines()[0]}/health")
    with sqlite3.connect(tmp_path / ".shardline" / "prefect.db") as database:
        assert database.execute("SELECT state_type, count(*) FROM flow_run GROUP BY 1").fetchall() == [("COMPLETED", 1)]
        assert database.execute("SELECT state_type, count(*) FROM task_run GROUP BY 1").fetchall() == [
            ("COMPLETED", 60)
        ]
        messages = [message for (message,) in database.execute("SELECT message FROM log")]
        events = dict(database.execute("SELECT event, count(*) FROM events GROUP BY 1").fetchall())
    assert "the last line" in messages
    assert sum("Finished in state" in message for message in messages) == 61
    assert events["prefect.task-run.Completed"] == 60
    assert events["prefect.flow-run.Completed"] == 1


def test_a_prefect_server_that_is_gone_at_the_end_is_one_line(capsys):
    await_record("http://127.0.0.1:9/api", datetime.now(UTC))
    said = capsys.readouterr().err
    assert re.fullmatch(r"Prefect: its server at http://127\.0\.0\.1:9/api does not answer any more \(.*\n", said)


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
@pytest.mark.parametrize(
    ("script", "message"),
    [
        (
            'case "$2" in "import ensurepip, venv") exit 1;; esac; exec {python} "$@"',
            "Python's venv is missing; install the package python3-venv (or python{major}.{minor}-venv), "
            "then again: make train\n",
        ),
        (
            '[ "$1" = -V ] && echo Python 3.9.2; [ "$1" = -c ] && exit 1; exit 0',
            "shardline needs Python 3.11 or newer, and {wrapper} is Python 3.9.2: make train PYTHON=python3.12\n",
        ),
    ],
)
def test_a_python_that_will_not_do_is_one_line(tmp_path, script, message):
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    wrapper = tmp_path / "python"
    wrapper.write_text(f"#!/bin/sh\n{script.format(python=shlex.quote(sys.executable))}\n")
    wrapper.chmod(0o755)
    done = subprocess.run(["make", "train", f"PYTHON={wrapper}"], cwd=tmp_path, capture_output=True, text=True)
    major, minor = sys.version_info[:2]
    assert done.returncode != 0
    assert done.stderr.startswith(message.format(wrapper=wrapper, major=major, minor=minor))
    assert not (tmp_path / ".venv").exists()
