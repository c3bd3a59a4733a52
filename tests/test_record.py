"""The record in MLflow: what a run tells is kept locally first, and nothing of it is lost while the server is away."""

import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from deployments.processes import Children, wait_until
from deployments.servers import start_mlflow
from flows.replaying import replay
from flows.training import train
from tasks.errors import TrackingError
from tasks.tracking import client as record
from tasks.tracking import recovery
from tasks.tracking.outbox import Outbox, read_metrics
from tasks.tracking.recovery import complete_outbox
from tasks.tracking.sending import read_whole, send_metrics, sending_in_background
from tests.flowruns import ended

STEPS = 240


class Server:
    """MLflow's server on one port, which can be stopped and started again over the same store."""

    def __init__(self, home):
        self.home, self.children, self.url = home, None, ""

    def start(self):
        port = int(self.url.rpartition(":")[2]) if self.url else 0
        self.children = Children()
        self.children.__enter__()
        self.url = start_mlflow(self.children, self.home, f"sqlite:///{self.home}/mlflow.db", preferred_port=port)

    def stop(self):
        if self.children is not None:
            self.children.__exit__(None, None, None)
            self.children = None


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    server = Server(tmp_path_factory.mktemp("mlflow"))
    server.start()
    yield server
    server.stop()


@pytest.fixture
def server(running, monkeypatch, tmp_path):
    """The server, up; this test's working directory and environment lead to it."""
    if running.children is None:
        running.start()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", running.url)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.chdir(tmp_path)
    return running


def begin():
    client = record.connect()
    return client, Outbox(record.begin(client, experiment="record", name="r", parameters={"a": [1]}, tags={}))


def assert_whole(client, run_id, status="FINISHED"):
    for key in ("mse", "rows_per_second"):
        history = client.get_metric_history(run_id, key)
        assert sorted((metric.step, metric.value) for metric in history) == [(i, i / 7) for i in range(STEPS)], key
    assert client.get_run(run_id).info.status == status


def log_all(outbox, between=lambda step: None):
    for step in range(STEPS):
        between(step)
        outbox.log(step, {"mse": step / 7, "rows_per_second": step / 7})


def test_a_record_is_whole_and_its_outbox_gone(server):
    client, outbox = begin()
    outbox.keep("weights/weights.txt", "w")
    outbox.tag({"verdict": "good"})
    with sending_in_background(client, outbox):
        log_all(outbox)
    complete_outbox(client, outbox.path, "FINISHED")
    assert_whole(client, outbox.run_id)
    assert client.get_run(outbox.run_id).data.tags["verdict"] == "good"
    assert [file.path for file in client.list_artifacts(outbox.run_id, "weights")] == ["weights/weights.txt"]
    assert not outbox.path.exists()


@pytest.mark.long
def test_a_server_that_stops_for_a_while_loses_nothing(server):
    client, outbox = begin()

    def disturb(step):
        if step == 80:
            server.stop()
        if step == 160:
            server.start()
        time.sleep(0.01)

    with sending_in_background(client, outbox):
        log_all(outbox, disturb)
    complete_outbox(client, outbox.path, "FINISHED")
    assert_whole(client, outbox.run_id)


@pytest.mark.long
def test_a_server_that_stays_away_leaves_all_in_the_outbox_for_later(server):
    client, outbox = begin()
    with sending_in_background(client, outbox):
        log_all(outbox, lambda step: server.stop() if step == 80 else None)
    with pytest.raises(TrackingError, match=f"record incomplete: what MLflow lacks of run {outbox.run_id} is kept in"):
        complete_outbox(client, outbox.path, "FINISHED")
    server.start()
    complete_outbox(client, outbox.path)
    assert_whole(client, outbox.run_id)


def test_what_is_sent_twice_is_stored_once(server):
    client, outbox = begin()
    log_all(outbox)
    send_metrics(client, outbox.run_id, outbox.rows)
    complete_outbox(client, outbox.path, "FINISHED")
    assert_whole(client, outbox.run_id)


def test_an_outbox_without_a_status_is_of_a_killed_run(server):
    client, outbox = begin()
    log_all(outbox)
    complete_outbox(client, outbox.path)
    assert_whole(client, outbox.run_id, "KILLED")


def test_a_line_cut_short_by_a_kill_is_cut_off(server):
    _, outbox = begin()
    log_all(outbox)
    with (outbox.path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 240, "times')
    again = Outbox(outbox.run_id)
    again.log(240, {"mse": 1.0})
    assert [row.step for row in read_metrics(again.path) if row.key == "mse"] == list(range(241))


def test_a_full_disk_is_a_clear_stop(server):
    _, outbox = begin()
    (outbox.path / "metrics.jsonl").symlink_to("/dev/full")
    with pytest.raises(TrackingError, match=r"cannot be kept in .*: No space left on device; make room there"):
        outbox.log(0, {"mse": 1.0})


def test_no_server_at_the_start_is_a_clear_stop_before_anything_is_trained(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://someone:hunter2@127.0.0.1:1")
    monkeypatch.setattr(record, "REACHABLE_WITHIN_SECONDS", 0.5)
    with pytest.raises(TrackingError) as raised:
        record.connect()
    assert str(raised.value) == (
        "no MLflow server at http://127.0.0.1:1 ([Errno 111] Connection refused): start it, or correct "
        "MLFLOW_TRACKING_URI; nothing was trained"
    )


def test_an_experiment_whose_files_a_server_keeps_is_a_clear_stop_where_only_its_database_is_named(
    monkeypatch, tmp_path
):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    client = record.connect()
    client.create_experiment("served", artifact_location="mlflow-artifacts:/7")
    with pytest.raises(TrackingError) as raised:
        record.begin(client, experiment="served", name="r", parameters={}, tags={})
    assert str(raised.value) == (
        f"the files of the experiment 'served' are kept by an MLflow server, and sqlite:///{tmp_path}/mlflow.db is "
        "only its database: name the server in MLFLOW_TRACKING_URI, or choose another experiment; nothing was trained"
    )


def test_a_flow_whose_server_went_away_fails_as_incomplete_and_is_completed_by_replaying(
    prefect_api, server, generated, monkeypatch
):
    def lose_the_server(client, run_id, rows):
        server.stop()
        send_metrics(client, run_id, rows)

    monkeypatch.setattr(recovery, "send_metrics", lose_the_server)
    shards = f"{generated}/csv/dev/part*.csv"
    state = ended(train, shards=shards, batch_size=500, experiment="lost")
    assert state.is_failed()
    assert "record incomplete: what MLflow lacks of run" in str(state.message)
    monkeypatch.setattr(recovery, "send_metrics", send_metrics)
    server.start()
    assert replay() == "1 records completed"
    client = record.connect()
    (run,) = client.search_runs([client.get_experiment_by_name("lost").experiment_id])
    assert run.info.status == "FINISHED"
    assert len(client.get_metric_history(run.info.run_id, "mse")) == 50
    assert {file.path for file in client.list_artifacts(run.info.run_id)} >= {"weights", "report.md", "manifest.json"}


@pytest.mark.long
def test_a_flow_trains_on_while_its_server_is_away_for_ten_seconds_and_loses_no_value(prefect_api, server, generated):
    iterations, trained = 40_000, []

    def be_away():
        wait_until(lambda: any(Path(".shardline/outbox").glob("*/metrics.jsonl")), 60)
        (kept,) = Path(".shardline/outbox").glob("*/metrics.jsonl")
        server.stop()
        trained.append(kept.read_bytes().count(b"\n"))
        time.sleep(10)
        trained.append(kept.read_bytes().count(b"\n"))
        server.start()

    with ThreadPoolExecutor() as pool:
        disturbance = pool.submit(be_away)
        shards = f"{generated}/csv/dev/part*.csv"
        state = ended(train, shards=shards, batch_size=500, iterations=iterations, experiment="away")
        disturbance.result()
    assert trained[0] < trained[1] < iterations  # it was away in mid-run, and the run went on meanwhile
    assert state.is_completed(), state.message
    client = record.connect()
    (run,) = client.search_runs([client.get_experiment_by_name("away").experiment_id])
    assert run.info.status == "FINISHED"
    assert sorted(each.step for each in client.get_metric_history(run.info.run_id, "mse")) == list(range(iterations))
    whole = read_whole(client, run.info.run_id)  # beyond 500 iterations, all that MLflow has not one by one
    for key in ("mse", "wait_seconds", "rows_per_second"):
        assert [row.step for row in whole if row.key == key] == list(range(iterations))


def test_parameters_are_written_as_people_write_them():
    assert [record.format_parameter(value) for value in ("a", None, True, ["x"], 0.5)] == [
        "a",
        "null",
        "true",
        '["x"]',
        "0.5",
    ]
    assert json.loads(record.format_parameter({"a": 1})) == {"a": 1}
