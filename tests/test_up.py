"""`make up` stopped and started again: nothing is lost, on PostgreSQL as on SQLite; ports taken, status, down."""

import contextlib
import os
import socket
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

import psutil
import pytest

from deployments.processes import Children, answers, find_port, wait_until
from deployments.servers import Pages, announce, find_pages, read_published
from tests.postgresql import MISSING, PASSWORD, find_initdb
from tests.sites import ENVIRONMENT, serve
from tests.test_terminal import RUN_IN_MLFLOW, RUN_IN_PREFECT, found, training

pytestmark = pytest.mark.timeout(500)


def up(folder, what):
    command = [sys.executable, "-m", "deployments.up", what]
    return subprocess.run(command, cwd=folder, env=ENVIRONMENT, capture_output=True, text=True, timeout=120)


@contextlib.contextmanager
def taken(*ports):
    """Listen on the usual ports, where nobody does already."""
    with contextlib.ExitStack() as stack:
        for port in ports:
            with contextlib.suppress(OSError):
                stack.enter_context(socket.create_server(("127.0.0.1", port)))
        yield


def test_the_files_of_a_run_have_addresses_that_hold_without_the_server(site, trained):
    (run,) = site.in_mlflow(trained["id"])
    kept = Path(urlsplit(run["info"]["artifact_uri"]).path)
    assert kept.is_relative_to(site.folder / ".shardline" / "mlartifacts")
    assert (kept / "report.md").is_file()


@pytest.mark.long
def test_stopped_and_started_again_on_other_ports_nothing_is_lost(site, trained):
    recorded, artifacts = site.in_mlflow(trained["id"]), site.artifacts(trained["id"])
    site.stop()
    with taken(4200, 5000):
        site.start_up()
    said = site.said.read_text()
    assert "(port 4200 is taken)" in said and "(port 5000 is taken)" in said
    assert site.run(trained["id"])["state_name"] == "Completed"
    assert site.artifacts(trained["id"]) == artifacts
    assert site.in_mlflow(trained["id"]) == recorded


@pytest.mark.skipif(find_initdb() is None, reason=MISSING)
def test_postgresql_holds_it_all_and_its_password_is_nowhere_to_be_seen(site, trained):
    home = site.folder / ".shardline"
    assert not (home / "prefect.db").exists() and not (home / "mlflow.db").exists()
    kin = psutil.Process(site.pages.pid).children(recursive=True)
    words = " ".join(word for each in kin for word in each.cmdline())
    assert "mlflow" in words and PASSWORD not in words
    for log in (site.said, *(home / "logs").iterdir()):
        assert PASSWORD not in log.read_text(errors="replace")


def test_status_and_a_second_make_up_say_what_is_up(site):
    assert up(site.folder, "up").stderr.splitlines()[0] == "It is up already:"
    said = up(site.folder, "status").stderr
    assert site.prefect in said and site.pages.mlflow in said
    assert " scheduled\n" in said and f"process {site.pages.pid}" in said


@pytest.mark.long
def test_a_flow_beside_make_up_finds_both_its_servers(site, generated):
    given = {name: value for name, value in site.environment.items() if not name.startswith("MLFLOW_")}
    command = training(f"{generated}/csv/dev/part*.csv", "--iterations", "3", "--experiment", "beside")
    done = subprocess.run(command, cwd=site.folder, env=given, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert f"Prefect: the server of `make up`, {site.prefect}" in done.stderr
    assert found(RUN_IN_PREFECT, done.stdout)[1] == site.prefect
    assert found(RUN_IN_MLFLOW, done.stdout)[1] == site.pages.mlflow


def test_without_make_up_status_says_how_to_start_it(tmp_path):
    assert up(tmp_path, "status").stderr == "Nothing is up here: `make up` starts it.\n"
    assert up(tmp_path, "down").stderr == "Nothing is up here.\n"


@pytest.mark.long
def test_make_down_stops_a_make_up_that_is_starting(tmp_path):
    command = [sys.executable, "-m", "deployments.up", "--rows", "2000"]
    with subprocess.Popen(command, cwd=tmp_path, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True) as starting:
        assert wait_until(lambda: read_published(tmp_path / ".shardline" / "up.pid") is not None, 60)
        again = up(tmp_path, "up")
        assert again.returncode == 2
        assert again.stderr.startswith(f"make up: another `make up`, process {starting.pid}, is starting: wait for it")
        assert up(tmp_path, "down").stderr == "Stopped; nothing is lost.\n"
        assert starting.wait(30) == 0
    assert not psutil.pid_exists(starting.pid)
    assert find_pages(tmp_path / ".shardline") is None


@pytest.mark.long
def test_a_run_that_make_down_stops_says_so_and_another_goes_on_from_it(tmp_path):
    endless = {"iterations": 100_000_000, "batch_size": 500, "checkpoint_every": "100"}
    with serve(tmp_path, 2_000) as site:
        stopped = site.start("training/notebook", **endless)
        assert wait_until(lambda: bool(site.in_mlflow(stopped)), 120, 0.5), site.log()
        assert wait_until(lambda: any((tmp_path / ".shardline" / "checkpoints").glob("*/*")), 60), site.log()
        assert up(tmp_path, "down").stderr == "Stopped; nothing is lost.\n"
    with serve(tmp_path, 2_000) as site:
        assert site.run(stopped)["state_type"] == "CRASHED"
        (killed,) = site.in_mlflow(stopped)
        assert killed["info"]["status"] == "KILLED"
        again = site.start("training/notebook", **endless)
        assert wait_until(lambda: bool(site.in_mlflow(again)), 120, 0.5), site.log()
        assert site.in_mlflow(again)[0]["info"]["run_id"] == killed["info"]["run_id"]


def test_beside_make_ui_it_is_refused_in_one_line(tmp_path):
    (tmp_path / "health").touch()
    port = find_port()
    server = [sys.executable, "-m", "http.server", "--bind", "127.0.0.1", "-d", str(tmp_path), str(port)]
    with Children() as children, announce(tmp_path / ".shardline", Pages(f"http://127.0.0.1:{port}", "")):
        children.start_server(server, os.environ, tmp_path / "log")
        assert wait_until(lambda: answers(f"http://127.0.0.1:{port}/health"), 30)
        done = up(tmp_path, "up")
    assert done.returncode == 2
    assert done.stderr == "make up: `make ui` serves these databases already: stop it first\n"
