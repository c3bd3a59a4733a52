"""What is told of a long run's iterations: few log lines, every `mse`, some of the times, and all of them in a file."""

import logging
import shutil

import pytest

from flows.training import train
from tasks.learning.loop import Iteration
from tasks.tracking import client as record
from tasks.tracking.outbox import Outbox
from tasks.tracking.recovery import complete_outbox
from tasks.tracking.sending import KEPT, read_histories, read_whole
from tasks.training.telling import TIMES, Telling
from tests.flowruns import ended

ITERATIONS, STOPPED_AT = 1200, 700
TOLD = sorted({*range(0, ITERATIONS, 3), ITERATIONS - 1})  # each third, and the last


def make_iteration(number):
    return Iteration(
        iteration=number,
        mse=1 / (3 + number),
        rows=7,
        wait_seconds=number / 7,
        copy_seconds=0.0,
        compute_seconds=number / 3,
    )


@pytest.fixture
def log(monkeypatch):
    """The lines that were logged."""
    lines: list[str] = []

    class Lines(logging.Handler):
        def emit(self, entry):
            lines.append(entry.getMessage())

    logger = logging.Logger("run")
    logger.addHandler(Lines())
    monkeypatch.setattr("tasks.training.telling.get_run_logger", lambda: logger)
    return lines


def begin():
    client = record.connect()
    return client, Outbox(record.begin(client, experiment="telling", name="r", parameters={}, tags={}))


def tell(outbox, numbers, *, iterations=ITERATIONS, thin_mse=False, known=()):
    series = {name: dict.fromkeys(known, -1.0) for name in ("mse", *TIMES)}
    telling = Telling(outbox, iterations, thin_mse=thin_mse, series=series)
    for number in numbers:
        telling.tell(make_iteration(number))
    told = [number for number in numbers if number not in known]
    assert series["mse"] == dict.fromkeys(known, -1.0) | {number: make_iteration(number).mse for number in told}
    assert all(list(values) == list(series["mse"]) for values in series.values())


def steps(client, run_id, key):
    return sorted(metric.step for metric in client.get_metric_history(run_id, key))


def assert_whole(client, run_id, count=ITERATIONS):
    rows = {(row.key, row.step): row.value for row in read_whole(client, run_id)}
    assert len({step for _, step in rows}) == count
    for number in range(count):
        told = make_iteration(number)
        assert rows["mse", number] == told.mse
        assert rows["wait_seconds", number] == told.wait_seconds
        assert rows["seconds_per_iteration", number] == told.seconds


@pytest.mark.parametrize("thin_mse", [False, True])
def test_a_long_run_has_every_mse_some_of_the_times_and_all_in_a_file(thin_mse, log, place):
    client, outbox = begin()
    tell(outbox, range(ITERATIONS), thin_mse=thin_mse)
    complete_outbox(client, outbox.path, "FINISHED")
    assert steps(client, outbox.run_id, "mse") == (TOLD if thin_mse else list(range(ITERATIONS)))
    assert steps(client, outbox.run_id, "wait_seconds") == TOLD
    assert [file.path for file in client.list_artifacts(outbox.run_id, "metrics")] == [KEPT]
    assert_whole(client, outbox.run_id)
    assert (log[0][:14], log[-1][:15]) == ("Iteration: 000", f"Iteration: {ITERATIONS - 1}")
    assert len(log) < 20


def test_a_run_of_500_iterations_is_told_of_as_ever(log, place):
    client, outbox = begin()
    tell(outbox, range(500), iterations=500, thin_mse=True)
    complete_outbox(client, outbox.path, "FINISHED")
    assert len(log) == 500
    assert steps(client, outbox.run_id, "mse") == steps(client, outbox.run_id, "wait_seconds") == list(range(500))
    assert [file.path for file in client.list_artifacts(outbox.run_id)] == []


def test_a_long_run_logs_by_time_too(log, place, monkeypatch):
    monkeypatch.setattr("tasks.training.telling.LOG_EVERY_SECONDS", 0.0)
    _, outbox = begin()
    tell(outbox, range(600), iterations=ITERATIONS)
    assert len(log) == 600


@pytest.mark.parametrize("thin_mse", [False, True])
def test_a_run_that_goes_on_elsewhere_reads_what_was_kept_and_keeps_it(
    thin_mse, log, empty_store, tmp_path, monkeypatch
):
    (there := tmp_path / "there").mkdir()
    (here := tmp_path / "here").mkdir()
    shutil.copy(empty_store, tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.chdir(there)
    client, outbox = begin()
    tell(outbox, range(STOPPED_AT), thin_mse=thin_mse)
    complete_outbox(client, outbox.path, "KILLED")
    monkeypatch.chdir(here)
    again = Outbox(outbox.run_id)
    earlier = read_histories(client, again, ["mse", "wait_seconds"])
    assert earlier["mse"] == {number: make_iteration(number).mse for number in range(STOPPED_AT)}
    assert list(earlier["wait_seconds"]) == list(range(STOPPED_AT))
    tell(again, range(STOPPED_AT - 50, ITERATIONS), thin_mse=thin_mse, known=earlier["mse"])
    complete_outbox(client, again.path, "FINISHED")
    assert_whole(client, outbox.run_id)
    assert steps(client, outbox.run_id, "mse") == (TOLD if thin_mse else list(range(ITERATIONS)))


@pytest.mark.long
def test_a_flow_with_thinned_mse_goes_on_elsewhere_to_the_same_curve(prefect_api, generated, tmp_path, monkeypatch):
    shards, iterations = f"{generated}/csv/dev/part*.csv", 620
    given = {"shards": shards, "batch_size": 50, "iterations": iterations, "preset": "notebook", "thin_mse": True}
    given |= {"checkpoint_url": str(tmp_path / "checkpoints"), "checkpoint_every": "100", "experiment": "thinned"}
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    whole = Telling.tell

    def stop(self, iteration):
        whole(self, iteration)
        if iteration.iteration == 400:
            raise RuntimeError("stopped")

    for place in ("there", "here"):
        (tmp_path / place).mkdir()
        monkeypatch.chdir(tmp_path / place)
        monkeypatch.setattr(Telling, "tell", stop if place == "there" else whole)
        state = ended(train, **given)
    assert state.is_completed(), state.message
    client = record.connect()
    experiment = client.get_experiment_by_name("thinned").experiment_id
    (run,) = client.search_runs([experiment])
    assert run.info.status == "FINISHED"
    curve = {row.step: row.value for row in read_whole(client, run.info.run_id) if row.key == "mse"}
    assert sorted(curve) == list(range(iterations))
    assert len(client.get_metric_history(run.info.run_id, "mse")) == iterations // 2 + 1
    assert ended(train, **given, resume="never").is_completed()
    (other,) = [each for each in client.search_runs([experiment]) if each.info.run_id != run.info.run_id]
    undisturbed = {row.step: row.value for row in read_whole(client, other.info.run_id) if row.key == "mse"}
    assert undisturbed == curve
