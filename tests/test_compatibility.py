"""What an earlier version left is taken up by this one: a stopped run, a saved model, an outbox, the settings' digests.

How the files under fixtures/compatibility were made stands in fixtures/README.md.
"""

import json
import platform
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from mlflow import MlflowClient, pyfunc
from mlflow.entities import Metric, Param

from deployments.generator import COLUMNS
from flows.replaying import replay
from flows.training import choose_features, record_settings, train
from tasks.parameters import TrainingParameters
from tasks.runs.lineage import digest_settings
from tasks.sources import resolve_sources
from tasks.streaming.manifest import Manifest
from tasks.tracking import client as record
from tasks.tracking.processes import PROCESS
from tasks.tracking.registry import load_model
from tests.flowruns import ended

BEFORE = Path(__file__).parent / "fixtures" / "compatibility"
BUCKET = "compatibility"
STOPPED_AT, ITERATIONS = 30, 60
STATE = Path(".shardline")


def read(*path):
    return json.loads(BEFORE.joinpath(*path).read_text())


@pytest.fixture(scope="module")
def shards(standin):
    """The shards, under the URIs and with the ETags that they had."""
    standin.create_bucket(BUCKET)
    client = standin.client("s3")
    for path in (path for path in (BEFORE / "shards").rglob("*") if path.is_file()):
        key = str(path.relative_to(BEFORE / "shards"))
        client.put_object(Bucket=BUCKET, Key=key, Body=path.read_bytes())


def recreate(*folder):
    """A run that is in MLflow as it was left, by a process that is gone; its id, under which its files lie too."""
    client, held = record.connect(), read(*folder, "run.json")
    experiment = client.create_experiment(held["experiment"], (STATE / "mlartifacts").absolute().as_uri())
    tags = held["tags"] | {PROCESS: f"{platform.node()} another-boot pid:[1] 1 1"}
    run_id = client.create_run(experiment, tags=tags).info.run_id
    params = [Param(*each) for each in held["params"].items()]
    client.log_batch(run_id, [Metric(*each) for each in held["metrics"]], params)
    for kind in ("checkpoints", "outbox"):
        if (source := BEFORE.joinpath(*folder, kind)).exists():
            shutil.copytree(source, STATE / kind / run_id)
    (STATE / "outbox" / run_id / "artifacts").mkdir(exist_ok=True)  # git keeps no empty folder
    return run_id


def mse(client, run_id):
    return sorted(client.get_metric_history(run_id, "mse"), key=lambda metric: metric.step)


def only_run(experiment):
    client = MlflowClient(tracking_uri=record.tracking_uri())
    (run,) = client.search_runs([client.get_experiment_by_name(experiment).experiment_id])
    return client, run


@pytest.mark.parametrize(
    "name", ["gradient", *(pytest.param(name, marks=pytest.mark.long) for name in ("adam-shuffled", "notebook"))]
)
@pytest.mark.usefixtures("prefect_api", "aws", "shards")
def test_a_run_stopped_before_goes_on_to_the_curve_that_it_would_have_had(name, place):
    run_id, before = recreate("stopped", name), read("stopped", name, "run.json")["metrics"]
    state = ended(train, **read("stopped", name, "given.json"), experiment="stopped")
    assert state.is_completed(), state.message
    client, run = only_run("stopped")
    assert (run.info.run_id, run.info.status) == (run_id, "FINISHED")
    curve = mse(client, run_id)
    assert [each.step for each in curve] == list(range(ITERATIONS))
    assert [each.value for each in curve] == pytest.approx(read("stopped", name, "curve.json"), rel=1e-12)
    kept = {(key, step): at for key, _, at, step in before}
    assert all(each.timestamp == kept["mse", each.step] for each in curve[:STOPPED_AT])  # they were not made again


@pytest.mark.long
@pytest.mark.usefixtures("prefect_api", "aws", "shards")
def test_a_notebook_run_that_nothing_stops_has_the_curve_that_it_had_before(place):
    """The default preset's has changed since: it starts at zero."""
    state = ended(train, **read("stopped", "notebook", "given.json"), experiment="undisturbed")
    assert state.is_completed(), state.message
    client, run = only_run("undisturbed")
    curve = [each.value for each in mse(client, run.info.run_id)]
    assert curve == pytest.approx(read("stopped", "notebook", "curve.json"), rel=1e-12)


@pytest.fixture(scope="module")
def test_rows():
    """[40, 9] rows of the test shards, as float64."""
    files = [path for path in sorted((BEFORE / "shards/csv/test").glob("part*.csv")) if path.stat().st_size]
    return np.concatenate([np.loadtxt(path, delimiter=",", skiprows=1, ndmin=2) for path in files])


@pytest.mark.filterwarnings("ignore")
def test_a_model_saved_before_predicts_what_it_predicted_in_plain_mlflow(test_rows, tmp_path):
    model = pyfunc.load_model(str(shutil.copytree(BEFORE / "away/outbox/model", tmp_path / "model")))
    table = {name: test_rows[:, at] for at, name in enumerate(COLUMNS) if at}
    import pandas as pd  # type: ignore[import-untyped]

    assert model.predict(pd.DataFrame(table)).tolist() == pytest.approx(read("away", "predictions.json"), rel=1e-12)


def test_a_model_saved_before_predicts_what_it_predicted(test_rows, place):
    client = record.connect()
    run_id = client.create_run(client.create_experiment("e", (place / "artifacts").as_uri())).info.run_id
    client.log_artifacts(run_id, str(BEFORE / "away/outbox/model"), "model")
    model = load_model(client, f"runs:/{run_id}/model").on(COLUMNS)
    predicted = model.predict(torch.from_numpy(test_rows)).flatten().tolist()
    assert predicted == pytest.approx(read("away", "predictions.json"), rel=1e-12)


@pytest.mark.usefixtures("prefect_api")
def test_an_outbox_left_before_is_completed(place):
    run_id = recreate("away")
    assert ended(replay).result() == "1 records completed"
    assert not (STATE / "outbox" / run_id).exists()
    client, run = only_run("away")
    assert run.info.status == "FINISHED"
    assert run.data.tags.items() >= read("away", "outbox", "tags.json").items()
    assert stored_metrics(client, run) == kept_metrics()
    kept = BEFORE / "away/outbox/artifacts"
    names = {str(path.relative_to(kept)) for path in kept.rglob("*") if path.is_file()}
    folder = Path(client.download_artifacts(run_id, "", str(place)))
    assert {name: (folder / name).read_bytes() for name in names} == {
        name: (kept / name).read_bytes() for name in names
    }
    assert [each.dataset.name for each in run.inputs.dataset_inputs] == [
        each["dataset"]["name"] for each in read("away", "outbox", "inputs.json")
    ]
    assert str(client.get_model_version_by_alias("away", "challenger").run_id) == run_id


def kept_metrics():
    lines = (BEFORE / "away/outbox/metrics.jsonl").read_text().splitlines()
    entries = [json.loads(line) for line in lines]
    return {(key, entry["step"], value) for entry in entries for key, value in entry["metrics"].items()}


def stored_metrics(client, run):
    run_id = run.info.run_id
    return {(key, each.step, each.value) for key in run.data.metrics for each in client.get_metric_history(run_id, key)}


@pytest.mark.parametrize("kept", read("digests.json"), ids=lambda kept: kept["digest"][:8])
def test_settings_have_the_digest_that_they_had(kept):
    assert digest_settings(kept["recorded"]) == kept["digest"]


@pytest.mark.parametrize("kept", read("digests.json"), ids=lambda kept: kept["digest"][:8])
def test_parameters_are_recorded_to_the_digest_that_they_had(kept, monkeypatch):
    if kept["region"]:
        monkeypatch.setenv("AWS_DEFAULT_REGION", kept["region"])
    given = TrainingParameters(**kept["given"])
    features = choose_features(Manifest(shards=(), columns=COLUMNS), given)
    settings = record_settings(given, resolve_sources(given), features)
    assert digest_settings(settings) == kept["digest"]
