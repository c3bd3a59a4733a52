"""What MLflow's pages say and show first, how busy the machine was, and what a file of weights says of itself."""

import json
from functools import partial

import pytest
import torch
from mlflow import MlflowClient
from safetensors import safe_open

from deployments.processes import wait_until
from tasks.learning.features import Features
from tasks.learning.linear import LinearModel
from tasks.learning.served import WEIGHTS, save_served
from tasks.tracking import client as record
from tasks.tracking import system
from tasks.tracking.outbox import Outbox
from tasks.tracking.registry import ensure_registered
from tasks.tracking.system import watching_system
from tasks.tracking.views import NOTE, SAVED_VIEW
from tasks.training.outcome import keep_weights


@pytest.fixture(scope="module")
def client(workplace):
    """A client of the local store in a working directory of its own."""
    return record.connect()


def tags_of(client: MlflowClient, name: str) -> dict[str, str]:
    return dict(client.get_experiment(record.ensure_experiment(client, name)).tags)


def test_an_experiment_is_described_with_a_link_to_its_scores_and_lines_to_copy(client):
    tags = tags_of(client, "trips/of:taxis")
    experiment_id = client.get_experiment_by_name("trips/of:taxis").experiment_id
    view = f"(#/experiments/{experiment_id}/runs?workflowType=machine_learning&viewStateShareKey=scores)"
    assert view in tags[NOTE]
    assert "mlflow.pyfunc.load_model('models:/trips-of-taxis@champion')" in tags[NOTE]
    assert f"mlflow.set_tracking_uri('{client.tracking_uri}')" in tags[NOTE]


def test_what_somebody_wrote_stays_and_what_nobody_wrote_is_added(client):
    experiment_id = client.create_experiment("theirs", tags={NOTE: "my own words"})
    assert tags_of(client, "theirs") == {NOTE: "my own words"}
    client.create_experiment("old")
    assert {NOTE, SAVED_VIEW} <= tags_of(client, "old").keys()
    assert record.ensure_experiment(client, "theirs") == experiment_id


def test_experiments_of_benchmarks_and_predictions_say_what_they_hold(client):
    assert "python -m flows.benchmarking" in tags_of(client, "trips-benchmarks")[NOTE]
    predictions = tags_of(client, "trips-predictions")
    assert "python -m flows.predicting" in predictions[NOTE]
    assert SAVED_VIEW not in predictions
    assert "python -m flows.monitoring" in tags_of(client, "trips-monitoring")[NOTE]


def test_the_view_has_the_best_first_and_single_values_apart_from_curves(client):
    state = json.loads(json.loads(tags_of(client, "trips")[SAVED_VIEW])["state"])
    assert (state["orderByKey"], state["orderByAsc"]) == ("metrics.`test_r2`", False)
    assert "metrics.`test_rmse`" in state["selectedColumns"]
    charts = {chart["metricKey"]: (chart["metricSectionId"], chart["type"]) for chart in state["compareRunCharts"]}
    assert charts["test_r2"] == ("What models are worth", "BAR")
    assert charts["mse_above_exact"] == ("Curves", "LINE")
    assert charts["wait_seconds"] == ("Times", "LINE")
    assert [section["uuid"] for section in state["compareRunSections"]] == ["What models are worth", "Curves", "Times"]


def test_a_registered_model_is_described_once(client):
    ensure_registered(client, "trips")
    described = client.get_registered_model("trips").description
    assert "load_model('models:/trips@champion')" in described
    assert "Each column is read as float64 and may be of any numeric type" in described
    client.update_registered_model("trips", "my own words")
    ensure_registered(client, "trips")
    assert client.get_registered_model("trips").description == "my own words"


def test_a_description_does_not_hold_the_password_of_the_store():
    class Known:
        tracking_uri = "http://someone:hunter2@mlflow:5000"

        def __init__(self):
            self.described: dict[str, str] = {}

        def get_experiment_by_name(self, _):
            return None

        def create_experiment(self, *_, **__):
            return "7"

        def set_experiment_tag(self, _, key, value):
            self.described[key] = value

    known = Known()
    record.ensure_experiment(known, "e")
    assert "mlflow.set_tracking_uri('http://mlflow:5000')" in known.described[NOTE]


def begin(client):
    return record.begin(client, experiment="busy", name="r", parameters={}, tags={})


def test_a_longer_run_says_how_busy_the_machine_was_and_a_short_one_does_not(client, monkeypatch):
    short = begin(client)
    with watching_system(client, short):
        pass
    assert client.get_run(short).data.metrics == {}
    monkeypatch.setattr(system, "SAMPLE_SECONDS", 0.1)
    longer = begin(client)

    def figures():
        return set(client.get_run(longer).data.metrics)

    with watching_system(client, longer):
        assert wait_until(lambda: bool(figures()), 60, 0.2)
    assert {"system/cpu_utilization_percentage", "system/system_memory_usage_megabytes"} <= figures()


def test_a_run_that_goes_on_goes_on_with_its_system_metrics(client, monkeypatch):
    monkeypatch.setattr(system, "SAMPLE_SECONDS", 0.1)
    run_id, key = begin(client), "system/cpu_utilization_percentage"

    def steps():
        return [metric.step for metric in client.get_metric_history(run_id, key)]

    for least in (1, 3):
        with watching_system(client, run_id):
            assert wait_until(partial(lambda least: len(steps()) >= least, least), 60, 0.2)
    assert sorted(steps()) == list(range(len(steps())))


def test_weights_say_what_they_are_of_in_the_same_bytes_each_time(client, tmp_path):
    columns = ("fare", "hour_integer", "km")
    features = Features.choose(columns, derive=["hour_sine"])
    model = LinearModel.of(features, (1.0, 2.0, 3.0), 4.0)
    outbox = Outbox(begin(client))
    keep_weights(outbox, model)
    save_served(model, tmp_path / "served")
    kept = outbox.path / "artifacts" / "weights" / "weights.safetensors"
    for path in (kept, tmp_path / "served" / WEIGHTS):
        with safe_open(path, "pt") as file:
            said = json.loads(file.metadata()["shardline"])
            assert torch.equal(file.get_tensor("w"), model.w)
        assert (said["target"], said["features"]) == ("fare", ["hour_integer", "km", "hour_sine"])
        assert said["derived"] == {
            "hour_sine": {"columns": ["hour_integer"], "formula": "sin(2 * pi * hour_integer / 24)"}
        }
    before = kept.read_bytes()
    keep_weights(outbox, model)
    assert kept.read_bytes() == before


@pytest.mark.parametrize("name", ["distance_km", "hour_sine", "hour_cosine"])
def test_the_formula_that_weights_carry_is_what_is_computed(name):
    from math import asin, cos, pi, radians, sin, sqrt

    from tasks.learning.features import DERIVATIONS

    derivation = DERIVATIONS[name]
    values = [38.9, -77.0, 38.8, -77.1][: len(derivation.columns)] if name == "distance_km" else [7.0]
    computed = derivation.compute(*(torch.tensor([value], dtype=torch.float64) for value in values)).item()
    names = ("latitude_1", "longitude_1", "latitude_2", "longitude_2")
    known = dict(zip(names, map(radians, values), strict=False)) | {"hour_integer": values[0]}
    functions = {"asin": asin, "sqrt": sqrt, "sin": sin, "cos": cos, "pi": pi}
    formula = derivation.formula.removesuffix(", in radians")
    assert eval(formula, functions, known) == pytest.approx(computed, rel=1e-9)
