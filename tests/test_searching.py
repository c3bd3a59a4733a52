"""The searching flow on the real engine: many trials on one pass, the best one trained alone, equal to its trial."""

import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import optuna
import pytest
from mlflow import MlflowClient
from optuna.trial import TrialState

from deployments.generator import write_data
from flows.searching import search
from flows.training import train
from tasks.tracking import client as record
from tasks.tracking.nested import NUMBER, PARENT
from tests.flowruns import ended

ROOT = Path(__file__).parents[1]
GIVEN = {"trials": 12, "generation": 6, "iterations": 30, "batch_size": 2000, "device": "cpu"}


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards")
    write_data(folder, 20_000)
    return f"{folder}/csv/dev/part*.csv"


@pytest.fixture(scope="module")
def searched(prefect_api, shards, workplace):
    """A finished search: its state, its MLflow run, its trials' runs by number, a client."""
    tried = [
        "learning_rate",
        "optimizer",
        "optimizer_options",
        "l2",
        "schedule",
        "features",
        "derive",
        "iterations=10..40",
        "batch_size=2000|4000",
    ]
    state = ended(search, **GIVEN, shards=shards, search=tried)
    assert state.is_completed(), state.message
    client = MlflowClient(tracking_uri=record.tracking_uri())
    experiment = client.get_experiment_by_name("shardline-searches").experiment_id
    runs = client.search_runs([experiment])
    (parent,) = [run for run in runs if PARENT not in run.data.tags]
    return state, parent, {int(run.data.tags[NUMBER]): run for run in runs if run is not parent}, client


def curve(client, run_id, key="mse"):
    return {metric.step: metric.value for metric in client.get_metric_history(run_id, key)}


def test_every_trial_is_a_run_within_the_searchs(searched):
    _, parent, trials, _ = searched
    assert sorted(trials) == list(range(12))
    assert {run.data.tags[PARENT] for run in trials.values()} == {parent.info.run_id}
    states = [run.data.tags["shardline.state"] for run in trials.values()]
    assert {"complete", "pruned"} <= set(states)
    best = int(parent.data.tags["shardline.best_trial"])
    values = {
        n: run.data.metrics["validation_mse"]
        for n, run in trials.items()
        if run.data.tags["shardline.state"] == "complete"
    }
    assert values[best] == min(values.values()) == parent.data.metrics["validation_mse"]


def test_the_best_trial_is_trained_judged_and_registered_and_equals_its_trial(searched):
    _, parent, trials, client = searched
    trained = client.get_run(parent.data.tags["shardline.best_run"])
    trial = trials[int(parent.data.tags["shardline.best_trial"])]
    alone, tried = curve(client, trained.info.run_id), curve(client, trial.info.run_id)
    assert len(alone) == int(trial.data.params.get("iterations", 30))
    assert {at: alone[at] for at in tried} == pytest.approx(tried, rel=1e-12)
    version = client.get_model_version_by_alias("shardline", "challenger")
    assert version.run_id == trained.info.run_id
    assert "test_rmse" in trained.data.metrics


@pytest.mark.long
def test_like_repeats_the_best_trial(searched, prefect_api):
    _, parent, _, client = searched
    best = parent.data.tags["shardline.best_run"]
    state = ended(train, like=best, experiment="again")
    assert state.is_completed(), state.message
    (again,) = client.search_runs([client.get_experiment_by_name("again").experiment_id])
    assert curve(client, again.info.run_id) == curve(client, best)


def test_pictures_of_study_and_penalty_stand_in_the_record(searched):
    _, parent, _, client = searched
    names = {Path(each.path).stem for each in client.list_artifacts(parent.info.run_id, "figures")}
    assert names == {"history", "importance", "parallel_coordinate", "slice", "ridge_path", "ridge_error"}


# What follows runs `python -m flows.searching` in a process of its own, and kills it.


def start(place, shards, prefect_api, *words):
    script = "import runpy; runpy.run_module('flows.searching', run_name='__main__')"
    command = [sys.executable, "-c", script, "--shards", shards, "--batch-size", "2000", "--trials", "8", *words]
    command += ["--generation", "2", "--no-halving", "--device", "cpu"]
    environment = {**os.environ, "PREFECT_API_URL": prefect_api, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        command, cwd=place, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


@pytest.mark.long
def test_a_search_that_was_killed_goes_on(prefect_api, shards, tmp_path, monkeypatch):
    killed, printed = start(tmp_path, shards, prefect_api, "--iterations", "20"), []
    for line in killed.stdout:
        printed.append(line)
        if "trials of 8" in line:
            killed.kill()
            break
    killed.communicate()
    assert killed.returncode == -signal.SIGKILL, "".join(printed)
    study, client = read_study(tmp_path), MlflowClient(f"sqlite:///{tmp_path}/.shardline/mlflow.db")
    before = {trial.number: trial.value for trial in study.get_trials() if trial.state == TrialState.COMPLETE}
    assert before
    study.ask()  # as one that a kill leaves amid a generation: RUNNING
    finished = start(tmp_path, shards, prefect_api, "--iterations", "20")
    text, _ = finished.communicate(timeout=200)
    assert finished.returncode == 0, text
    trials = read_study(tmp_path).get_trials()
    assert {trial.number: trial.value for trial in trials}.items() >= before.items()
    states = Counter(trial.state for trial in trials)
    assert states[TrialState.COMPLETE] == 8
    assert states[TrialState.FAIL] == len(trials) - 8 >= 1
    runs = client.search_runs([client.get_experiment_by_name("shardline-searches").experiment_id])
    (parent,) = [run for run in runs if PARENT not in run.data.tags]
    assert parent.info.status == "FINISHED"
    recorded = [int(run.data.tags[NUMBER]) for run in runs if run is not parent and run.info.status == "FINISHED"]
    assert sorted(recorded) == [trial.number for trial in trials if trial.state == TrialState.COMPLETE]


def read_study(place):
    url = f"sqlite:///{place}/.shardline/studies.db"
    (name,) = optuna.get_all_study_names(url)
    return optuna.load_study(study_name=name, storage=url)
