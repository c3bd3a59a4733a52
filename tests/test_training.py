"""The training flow on the real engine: the notebook's figures, the record it leaves, the errors it ends with."""

import json
import multiprocessing
import re
import shutil
from operator import attrgetter
from pathlib import Path

import boto3
import numpy as np
import pytest
import torch
from mlflow import MlflowClient
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId, FlowRunFilter, FlowRunFilterId
from safetensors.numpy import load_file

from deployments.generator import write_data
from flows.training import train
from tasks.errors import RowError
from tasks.learning.profiles import DataProfile
from tasks.ranks.parts import StageClock, stream_batches
from tasks.runs.profiles import load_profile
from tasks.streaming import ObjectStorageDataset
from tasks.tracking import client as record
from tests.flowruns import ended
from tests.notebook import train_as_the_notebook
from tests.shards import DCTAXI, write_shards

# MSE by iteration of the notebook's own loop over kaen 1.0.1.31, on the three files of ../shared/data/dctaxi
REFERENCE = {
    64: {
        0: "1.6019307436e+06",
        1: "1.5046519068e+06",
        2: "1.3873220217e+06",
        3: "1.3702350551e+06",
        4: "1.3140468577e+06",
        48: "8.7203651643e+02",
        49: "5.2621146273e+02",
    },
    1000: {0: "1.5831469320e+06", 1: "1.5018692876e+06", 2: "1.4351177616e+06"},
}

# The same loop over kaen 1.0.1.31, run once on the shards (without the empty one) that write_data(folder, 2000) makes
GENERATED = {
    64: {
        0: "1.5880623583e+06",
        1: "1.5066446550e+06",
        2: "1.4410164404e+06",
        3: "1.3702435312e+06",
        4: "1.2992507291e+06",
        48: "2.3871748476e+02",
        49: "3.7943463847e+02",
    },
    1000: {
        0: "1.5883806721e+06",
        1: "1.5128498075e+06",
        2: "1.4392586942e+06",
        3: "1.3673995419e+06",
        4: "1.2974864287e+06",
        48: "2.5871593906e+02",
        49: "3.9289267817e+02",
    },
}

pytestmark = pytest.mark.usefixtures("prefect_api", "workplace")


@pytest.fixture(scope="module")
def small_shards(dctaxi, tmp_path_factory):
    """298 rows as shards in the order train, valid, test."""
    folder = tmp_path_factory.mktemp("dctaxi")
    for number, name in enumerate(("train", "valid", "test")):
        shutil.copy(dctaxi / f"{name}.csv", folder / f"part-{number:05d}.csv")
    return folder


@pytest.fixture
def reference(dctaxi, small_shards, batch_size):
    """The notebook's figures over them: of kaen, or of its plain loop, which is held to kaen's below."""
    if dctaxi == DCTAXI:
        return REFERENCE[batch_size]
    return write_figures(train_as_the_notebook(read_rows(small_shards), batch_size))


def read_rows(folder):
    """The rows of the shards in a folder, in order, as a [rows, 9] tensor."""
    files = [path for path in sorted(folder.glob("part*.csv")) if path.stat().st_size]
    return torch.from_numpy(np.concatenate([np.loadtxt(path, delimiter=",", skiprows=1, ndmin=2) for path in files]))


def write_figures(mse):
    return {step: f"{value:.10e}" for step, value in enumerate(mse)}


def run_flow(**given):
    """Run the flow; the MLflow run that it left."""
    state = ended(train, **given)
    client = MlflowClient(tracking_uri=record.tracking_uri())
    runs = client.search_runs(
        [client.get_experiment_by_name(given.get("experiment", "shardline")).experiment_id],
        filter_string=f"tags.`prefect.flow_run_id` = '{state.state_details.flow_run_id}'",
    )
    return state, client, runs[0] if runs else None


def curve(client, run):
    history = sorted(client.get_metric_history(run.info.run_id, "mse"), key=lambda metric: metric.step)
    assert [metric.step for metric in history] == list(range(len(history)))
    return [metric.value for metric in history]


def assert_is_the_reference(mse, reference):
    assert {step: f"{mse[step]:.10e}" for step in reference} == reference


@pytest.mark.long
@pytest.mark.parametrize("batch_size", [64, 1000])
def test_the_notebooks_curve_on_298_rows_as_local_files(batch_size, small_shards, reference):
    state, client, run = run_flow(shards=f"file://{small_shards}/part*.csv", preset="notebook", batch_size=batch_size)
    assert state.is_completed(), state.message
    assert_is_the_reference(curve(client, run), reference)


@pytest.mark.parametrize("batch_size", [pytest.param(64, marks=pytest.mark.long), 1000])
def test_the_notebooks_curve_on_298_rows_over_s3(batch_size, small_shards, reference, aws):
    client = boto3.client("s3")
    for path in small_shards.iterdir():
        client.upload_file(str(path), aws.bucket, f"real/{path.name}")
    state, mlflow, run = run_flow(shards=f"s3://{aws.bucket}/real/part*.csv", preset="notebook", batch_size=batch_size)
    assert state.is_completed(), state.message
    assert_is_the_reference(curve(mlflow, run), reference)


@pytest.mark.parametrize("batch_size", [64, 1000])
def test_the_plain_loop_has_the_figures_of_kaen(batch_size, tmp_path):
    write_data(tmp_path, 2000)
    assert_is_the_reference(
        train_as_the_notebook(read_rows(tmp_path / "csv" / "dev"), batch_size), GENERATED[batch_size]
    )


@pytest.mark.parametrize("batch_size", [64, pytest.param(1000, marks=pytest.mark.long)])
def test_the_notebooks_curve_on_generated_rows(batch_size, tmp_path):
    write_data(tmp_path, 2000)
    state, client, run = run_flow(shards=f"{tmp_path}/csv/dev/part*.csv", preset="notebook", batch_size=batch_size)
    assert state.is_completed(), state.message
    assert_is_the_reference(curve(client, run), GENERATED[batch_size])


@pytest.fixture(scope="module")
def default_run(standin, workplace):
    """One run of the default preset on the stand-in's generated shards."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in standin.environment.items():
            patch.setenv(name, value)
        yield run_flow(batch_size=2048)


def test_the_default_preset_completes_on_generated_shards(default_run):
    state, _, run = default_run
    assert state.is_completed(), state.message
    assert run.info.status == "FINISHED"


def test_the_default_model_is_within_one_percent_of_the_exact_one(default_run):
    metrics = default_run[2].data.metrics
    assert metrics["test_mse"] < 1.01 * metrics["test_mse_exact_model"]
    assert metrics["test_r2"] > 0.4


def test_parameters_are_recorded_as_they_were_resolved(default_run):
    params = default_run[2].data.params
    assert (params["preset"], params["iterations"], params["batch_size"]) == ("default", "50", "2048")
    assert json.loads(params["derive"]) == ["distance_km"]
    assert params["shards"].endswith("/csv/dev/part*.csv")
    assert json.loads(params["features"])[0] == "origin_block_latitude_double"


def test_every_iteration_has_each_metric_once(default_run):
    _, client, run = default_run
    for name in ("mse", "seconds_per_iteration", "wait_seconds", "copy_seconds", "compute_seconds", "rows_per_second"):
        steps = sorted(metric.step for metric in client.get_metric_history(run.info.run_id, name))
        assert steps == list(range(50)), name


def test_an_error_has_the_same_digits_wherever_it_stands(default_run, tmp_path):
    _, client, run = default_run
    report = Path(client.download_artifacts(run.info.run_id, "report.md", str(tmp_path))).read_text()
    trained, exact = (f"{run.data.metrics[key]:.6g}" for key in ("test_rmse", "test_rmse_exact_model"))
    tags, row = run.data.tags, next(line for line in report.splitlines() if line.startswith("| trained |"))
    assert f"(RMSE {trained}; " in tags["shardline.verdict"] and f"linear model {exact})" in tags["shardline.verdict"]
    assert f"RMSE {trained} against " in tags["shardline.gate"]
    assert row.split(" | ")[2] == trained


def test_waiting_copying_and_computing_of_the_record_and_recording_make_up_the_time_that_passed(default_run, tmp_path):
    state, client, run = default_run
    text = Path(client.download_artifacts(run.info.run_id, "report.md", str(tmp_path))).read_text()
    told = {name: float(found) for name, found in re.findall(r"(\w+) ([\d.]+) s \(\d+%\)", text)}
    (total,) = (float(found) for found in re.findall(r"rows in ([\d.]+) s on cpu", text))
    assert sum(told.values()) == pytest.approx(total, abs=1e-9)
    for name, key in (("data", "wait_seconds"), ("copying", "copy_seconds"), ("computing", "compute_seconds")):
        recorded = [metric.value for metric in client.get_metric_history(run.info.run_id, key)]
        assert told[name] == pytest.approx(sum(recorded), abs=0.0051)
    assert told.keys() >= {"data", "copying", "computing", "recording"}
    stamps = [metric.timestamp / 1000 for metric in client.get_metric_history(run.info.run_id, "mse")]
    task = read_task(state, "train")
    assert max(stamps) - min(stamps) - 0.01 <= total <= task.total_run_time.total_seconds() + 0.01


def read_task(state, name):
    """A task of the run as Prefect has it."""
    flow = FlowRunFilter(id=FlowRunFilterId(any_=[state.state_details.flow_run_id]))
    with get_client(sync_client=True) as client:
        (found,) = [each for each in client.read_task_runs(flow_run_filter=flow) if each.name == name]
    return found


def test_the_error_above_the_exact_model_is_a_metric_and_all_figures_are_kept(default_run, tmp_path):
    _, client, run = default_run
    exact = run.data.metrics["mse"] - run.data.metrics["mse_above_exact"]
    history = client.get_metric_history(run.info.run_id, "mse_above_exact")
    assert [mse - metric.value for mse, metric in zip(curve(client, run), history, strict=True)] == pytest.approx(
        [exact] * 50
    )
    folder = Path(client.download_artifacts(run.info.run_id, "figures", str(tmp_path)))
    names = {"curve", "above_exact", "predicted", "residuals", "slices", "weights", "times", "profile"}
    assert {path.stem for path in folder.glob("*.png")} == names


def test_what_the_rows_hold_is_recorded_shown_and_travels_with_the_model(default_run, tmp_path):
    state, client, run = default_run
    folder = Path(client.download_artifacts(run.info.run_id, "", str(tmp_path)))
    recorded, manifest, scores = (
        json.loads((folder / name).read_text())
        for name in ("data/profile.json", "manifest.json", "evaluation/scores.json")
    )
    train, test = (DataProfile.from_dict(recorded[name]) for name in ("train", "test"))
    assert train.rows == sum(shard["rows"] for shard in manifest["shards"])
    assert test.rows == scores["all"]["trained"]["rows"]
    assert train.edges == test.edges and "fareamount_double" in train.edges
    assert load_profile(client, run.data.tags["shardline.model"]) == train
    page = read_artifact(state, "profile")
    assert page.count("](data:image/png;base64,") == 1 and "| `fareamount_double` |" in page
    assert len(page) < 60_000


def read_artifact(state, key):
    """What one artifact of the run holds."""
    flow = ArtifactFilterFlowRunId(any_=[state.state_details.flow_run_id])
    with get_client(sync_client=True) as client:
        found = client.read_artifacts(artifact_filter=ArtifactFilter(flow_run_id=flow))
    (text,) = [str(artifact.data) for artifact in found if artifact.key == key]
    return text


def test_the_report_in_prefect_shows_pictures_and_is_small_enough_for_a_page(default_run):
    report = read_artifact(default_run[0], "report")
    assert report.count("](data:image/png;base64,") == 2
    assert "The errors are largest where " in report
    assert "**Learning rate**: 1, along gradients that are preconditioned by the first batch's Hessian" in report
    assert len(report) < 80_000


def test_tags_say_whose_data_which_data_and_by_what(default_run, standin):
    tags = default_run[2].data.tags
    assert tags["aws.account"] == "123456789012"
    assert len(tags["shardline.fingerprint"]) == 64
    assert tags["version.torch"].startswith("2.13.")
    assert len(tags["mlflow.source.git.commit"]) == 40
    assert "explains" in tags["shardline.verdict"]
    assert tags["prefect.flow_run_url"].endswith(tags["prefect.flow_run_id"])


def test_weights_are_kept_as_safetensors_and_as_text(default_run, tmp_path):
    _, client, run = default_run
    folder = Path(client.download_artifacts(run.info.run_id, "weights", str(tmp_path)))
    weights = load_file(folder / "weights.safetensors")
    assert (weights["w"].shape, weights["b"].shape, str(weights["w"].dtype)) == ((9, 1), (1, 1), "float64")
    assert "distance_km" in (folder / "weights.txt").read_text()


def test_the_manifest_and_the_curve_are_kept(default_run, tmp_path):
    _, client, run = default_run
    folder = Path(client.download_artifacts(run.info.run_id, "", str(tmp_path)))
    manifest = json.loads((folder / "manifest.json").read_text())
    assert sum(shard["rows"] for shard in manifest["shards"]) == 5000
    assert (folder / "figures" / "curve.png").read_bytes().startswith(b"\x89PNG")
    assert (folder / "report.md").is_file()


def test_prefect_shows_the_artifacts_in_reading_order(default_run):
    with get_client(sync_client=True) as client:
        found = client.read_artifacts(
            artifact_filter=ArtifactFilter(
                flow_run_id=ArtifactFilterFlowRunId(any_=[default_run[0].state_details.flow_run_id])
            )
        )
    keys = [artifact.key for artifact in sorted(found, key=attrgetter("created"))]
    before = ["identity", "training-shards", "test-shards", "preview", "hardware", "forecast"]
    assert keys == [*before, "progress", "profile", "slices", "report"]


def test_a_run_can_be_repeated_by_its_id(default_run, aws):
    _, client, first = default_run
    state, _, again = run_flow(like=first.info.run_id)
    assert state.is_completed(), state.message
    assert curve(client, again) == curve(client, first)
    assert again.data.params["batch_size"] == "2048"


def test_repeating_a_run_is_refused_where_the_data_has_changed(default_run, aws):
    state, _, run = run_flow(like=default_run[2].info.run_id, max_shards=1)
    assert state.is_failed()
    assert f"like names run {default_run[2].info.run_id}, whose shards had the fingerprint" in state.message
    assert run is None


@pytest.mark.long
def test_the_benchmark_can_be_taken_as_a_step(aws):
    state, client, _ = run_flow(iterations=2, batch_size=512, benchmark=True, experiment="with benchmark")
    assert state.is_completed(), state.message
    names = ("with benchmark", "with benchmark-benchmarks")
    runs = client.search_runs([client.get_experiment_by_name(name).experiment_id for name in names])
    assert sorted(each.data.tags["shardline.flow"] for each in runs) == ["benchmarking", "training"]


def test_nothing_is_left_in_the_outbox(default_run, workplace):
    assert list((workplace / ".shardline" / "outbox").iterdir()) == []


def test_a_wrong_secret_key_ends_the_run_before_anything_is_trained(aws, monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    state, _, run = run_flow()
    assert state.is_failed()
    assert "SignatureDoesNotMatch" in state.message
    assert run is None


def test_a_missing_column_is_named_before_anything_is_trained(aws):
    state, _, run = run_flow(target="fare")
    assert state.is_failed()
    assert "no column 'fare' in the shards: they have fareamount_double, " in state.message
    assert run is None


def test_a_loss_that_is_not_finite_fails_the_run_at_its_iteration(aws):
    state, client, run = run_flow(preset="notebook", batch_size=64, gradient_norm=0, learning_rate=1e3)
    assert state.is_failed()
    assert run.info.status == "FAILED"
    assert "the mean squared error of iteration" in state.message
    assert len(client.get_metric_history(run.info.run_id, "mse")) > 0


@pytest.mark.long
def test_worker_processes_change_nothing_of_the_curve(aws):
    _, client, alone = run_flow(batch_size=512, iterations=12)
    state, _, helped = run_flow(batch_size=512, iterations=12, num_workers=2)
    assert state.is_completed(), state.message
    assert curve(client, helped) == curve(client, alone)


@pytest.mark.long
def test_worker_processes_end_with_the_pass_that_one_of_them_has_failed(tmp_path):
    """While the error is still held, as it is between two attempts; a spawned worker's error names its place alone."""
    write_shards(tmp_path, [1000, 1000])
    dataset = ObjectStorageDataset(f"{tmp_path}/part*.csv", batch_size=100, epochs=1)
    spoilt = tmp_path / "part-00001.csv"
    spoilt.write_bytes(spoilt.read_bytes().rstrip()[:-1] + b"x\n")
    with pytest.raises(RowError, match=r"^file://.*part-00001.csv, line 1001: ") as raised:
        list(stream_batches(dataset, 2, StageClock()))
    assert multiprocessing.active_children() == []
    assert raised.value.__cause__ is not None
