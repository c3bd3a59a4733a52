"""The monitoring flow on real servers: the champion's training data beside other shards, drifted or not."""

import json
from pathlib import Path

import numpy as np
import pytest
from mlflow import MlflowClient

from deployments.processes import wait_until
from flows.monitoring import monitor
from flows.predicting import predict
from flows.training import train
from tasks.runs.events import DATA_DRIFTED
from tasks.tracking import client as record
from tasks.tracking.recorded import read_artifact
from tasks.watching.report import name_metric
from tests.flowruns import ended
from tests.shards import to_csv
from tests.sites import ask

pytestmark = pytest.mark.filterwarnings("ignore::pandas.errors.Pandas4Warning")  # MLflow's own, of pandas 3.1
COLUMNS = ("fare", "km", "hour")


def write(folder, seed, *, columns=COLUMNS, moved=0.0):
    """Three shards of 600 rows together, whose target follows from the other columns; one of them may have moved."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(seed)
    km, hour = random.normal(4 + moved, 1, 600), random.integers(0, 24, 600)
    table = {"fare": 3 + 2 * km + random.normal(size=600), "km": km, "hour": hour, "tip": random.random(600)}
    for number, rows in enumerate(np.array_split(np.column_stack([table[name] for name in columns]), 3)):
        (folder / f"part-{number}.csv").write_bytes(to_csv(rows, columns))
    return f"{folder}/part*.csv"


@pytest.fixture(scope="module", autouse=True)
def champion(prefect_api, workplace):
    """A champion that predicts fare, in a folder of its own."""
    state = ended(train, shards=write(Path("trained"), 1), solver="exact")
    assert state.is_completed(), state.message


def run_flow(flow, **given):
    return ended(flow, **given)


def read_drift(client, run):
    return json.loads(read_artifact(client, run.info.run_id, "drift.json") or "")


def run_of(state, kind):
    """The MLflow run that a flow run left, and what it keeps of drift."""
    client = MlflowClient(tracking_uri=record.tracking_uri())
    experiment = client.get_experiment_by_name(f"shardline-{kind}")
    flow_run = f"tags.`prefect.flow_run_id` = '{state.state_details.flow_run_id}'"
    (run,) = client.search_runs([experiment.experiment_id], flow_run)
    return run, read_drift(client, run)


def events(api, state):
    """What a flow run said of drift."""
    question = {
        "filter": {
            "event": {"name": [DATA_DRIFTED]},
            "related": {"id": [f"prefect.flow-run.{state.state_details.flow_run_id}"]},
        }
    }
    return ask(f"{api}/events/filter", question)["events"]


def test_shards_that_have_not_drifted_are_quiet(prefect_api, tmp_path):
    state = run_flow(monitor, shards=write(tmp_path, 2))
    assert (state.name, state.is_completed()) == ("Completed", True), state.message
    assert state.message.startswith("None of 3 columns has drifted from what models:/shardline/1 was trained on: ")
    run, drift = run_of(state, "monitoring")
    assert run.info.status == "FINISHED" and run.data.tags["shardline.drifted"] == ""
    assert (drift["rows"], drift["trained_rows"]) == (600, 400)
    assert run.data.metrics["rmse"] == pytest.approx(1, rel=0.1)
    assert events(prefect_api, state) == []


def test_shards_that_have_drifted_are_told_with_their_columns_their_error_and_a_picture(prefect_api, tmp_path):
    state = run_flow(monitor, shards=write(tmp_path, 3, columns=(*COLUMNS, "tip"), moved=0.7))
    assert (state.name, state.is_completed()) == ("Drifted", True), state.message
    assert state.message.startswith("2 of 3 columns have drifted from what models:/shardline/1 was trained on: ")
    assert "; new: tip." in state.message
    assert " when it was judged, on 200 rows held out from training" in state.message
    run, drift = run_of(state, "monitoring")
    assert run.data.tags["shardline.drifted"] == "km, fare"
    assert run.data.metrics["psi/km"] == drift["columns"][0]["psi"] > 0.25
    assert run.data.metrics["ks/km"] == drift["columns"][0]["ks"] > 0.2
    artifacts = ask(
        f"{prefect_api}/artifacts/filter",
        {"artifacts": {"flow_run_id": {"any_": [str(state.state_details.flow_run_id)]}, "key": {"any_": ["drift"]}}},
    )
    assert "| `km` | yes |" in artifacts[0]["data"] and "data:image/png;base64," in artifacts[0]["data"]
    assert wait_until(lambda: len(events(prefect_api, state)) == 1, 30, 0.2)
    (event,) = events(prefect_api, state)
    assert event["payload"]["columns"] == ["km", "fare"]
    assert event["payload"]["verdict"] in state.message
    assert {"prefect.resource.role": "flow", "prefect.resource.name": "monitoring"}.items() <= {
        **next(each for each in event["related"] if each["prefect.resource.role"] == "flow")
    }.items()


def test_rows_without_a_target_that_are_predicted_are_compared_on_the_way(prefect_api, tmp_path):
    shards = write(tmp_path, 4, columns=COLUMNS[1:], moved=0.7)
    state = run_flow(predict, shards=shards)
    assert state.is_completed(), state.message
    assert " 1 of 2 columns has drifted from what models:/shardline/1 was trained on: km (PSI " in state.message
    _, drift = run_of(state, "predictions")
    assert (drift["rows"], drift["gone"]) == (600, [])
    assert wait_until(lambda: len(events(prefect_api, state)) == 1, 30, 0.2)


@pytest.mark.long
def test_a_column_that_is_gone_is_drift_and_the_others_are_compared(tmp_path):
    state = run_flow(monitor, shards=write(tmp_path, 5, columns=("fare", "km")))
    assert state.name == "Drifted"
    assert "; gone: hour." in state.message and "RMSE" not in state.message


@pytest.mark.long
def test_a_training_says_how_far_its_rows_are_from_the_champions(tmp_path):
    state = run_flow(train, shards=write(tmp_path, 6, moved=-0.7), solver="exact")
    assert state.is_completed(), state.message
    client = MlflowClient(tracking_uri=record.tracking_uri())
    (run, *_) = client.search_runs([client.get_experiment_by_name("shardline").experiment_id])
    assert "2 of 3 columns have drifted from what models:/shardline/" in run.data.tags["mlflow.note.content"]
    assert read_drift(client, run)["columns"][0]["drifted"]


@pytest.mark.long
@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"model": "models:/nobody@champion"}, "no model at models:/nobody@champion: "),
        ({"shards": "other"}, "was trained on fare, km, hour, and the shards have tip"),
    ],
)
def test_what_cannot_be_compared_is_said(given, message, tmp_path):
    shards = write(tmp_path, 7, columns=("tip",))
    state = run_flow(monitor, **{**given, "shards": shards})
    assert state.is_failed()
    assert message in state.message


@pytest.mark.parametrize(
    ("column", "name"),
    [("km", "km"), ("bmi `kg/m²`", "bmi _kg_m²_"), ("..", "_"), ("a.b", "a.b"), ("a" * 300, "a" * 200)],
)
def test_a_columns_name_is_one_that_a_metric_may_have(column, name):
    from mlflow.utils.validation import _validate_metric_name

    assert name_metric(column) == name
    _validate_metric_name(f"psi/{name}")
