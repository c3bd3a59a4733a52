"""The predicting flow: rows come out as they went in, a prediction beside each; `_SUCCESS` when all are there."""

import gc
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import boto3
import numpy as np
import pandas as pd  # type: ignore[import-untyped]
import pytest
import torch
from mlflow import MlflowClient

from flows.predicting import predict
from flows.training import train
from tasks.errors import ConfigurationError
from tasks.ranks.predicting import Predictor, Written, measure_error
from tasks.streaming.writing import OutputFolder, name_shards
from tasks.tracking import client as record
from tasks.tracking.registry import load_model
from tests.flowruns import ended
from tests.shards import COLUMNS, to_csv, write_shards

pytestmark = [
    pytest.mark.usefixtures("champion"),
    pytest.mark.filterwarnings("ignore::pandas.errors.Pandas4Warning"),  # MLflow's own, of pandas 3.1
]
COUNTS = (70, 1, 0, 200, 29)


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """Five small shards, one of them without rows, of the columns fare, latitude and hour."""
    folder = tmp_path_factory.mktemp("shards")
    write_shards(folder, COUNTS)
    return folder


@pytest.fixture(scope="module")
def champion(prefect_api, shards, workplace):
    """The champion of the default experiment, which predicts fare from latitude and hour."""
    state = ended(train, shards=f"{shards}/part*.csv", solver="exact")
    assert state.is_completed(), state.message
    return load_model(record.connect(), "models:/shardline@champion")


@pytest.fixture
def rows(shards):
    return pd.concat([pd.read_csv(path) for path in sorted(shards.glob("part*.csv"))], ignore_index=True)


def run_flow(**given):
    return ended(predict, **given)


def check(found, rows, champion):
    """The rows as they were, in their order, and the champion's prediction beside each."""
    assert list(found.columns) == [*COLUMNS, "prediction"]
    assert np.array_equal(found[list(COLUMNS)], rows)
    expected = champion.on(COLUMNS).predict(torch.from_numpy(rows.to_numpy(np.float64))).numpy().flatten()
    assert np.allclose(found["prediction"], expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("batch_size", [1, *(pytest.param(size, marks=pytest.mark.long) for size in (64, 71)), 2**20])
def test_rows_come_out_as_they_went_in_whatever_the_batches(batch_size, shards, rows, champion, tmp_path):
    state = run_flow(shards=f"{shards}/part*.csv", output=str(tmp_path / "out"), batch_size=batch_size)
    assert state.is_completed(), state.message
    parts = sorted((tmp_path / "out").glob("part*"))
    assert [path.name for path in parts] == [f"part-0000{number}.csv" for number in (0, 1, 3, 4)]
    assert [len(pd.read_csv(path)) for path in parts] == [count for count in COUNTS if count]
    check(pd.concat([pd.read_csv(path, float_precision="round_trip") for path in parts]), rows, champion)


def test_over_s3_they_stand_beside_the_shards_and_success_comes_last(aws, shards, rows, champion):
    s3 = boto3.client("s3")
    for path in shards.iterdir():
        s3.upload_file(str(path), aws.bucket, f"predicted/{path.name}")
    state = run_flow(shards=f"s3://{aws.bucket}/predicted/part*.csv")
    assert state.is_completed(), state.message
    listed = s3.list_objects_v2(Bucket=aws.bucket, Prefix="predicted/predictions/")["Contents"]
    assert sorted(entry["Key"].rsplit("/", 1)[1] for entry in listed) == [
        "_SUCCESS",
        *(f"part-0000{number}.csv" for number in (0, 1, 3, 4)),
    ]
    assert max(listed, key=lambda entry: entry["LastModified"])["LastModified"] == next(
        entry["LastModified"] for entry in listed if entry["Key"].endswith("_SUCCESS")
    )
    bodies = {e["Key"]: s3.get_object(Bucket=aws.bucket, Key=e["Key"])["Body"].read() for e in listed}
    facts = json.loads(bodies.pop("predicted/predictions/_SUCCESS"))
    assert (facts["model"], facts["rows"]) == ("models:/shardline/1", sum(COUNTS))
    found = [pd.read_csv(io.BytesIO(bodies[key]), float_precision="round_trip") for key in sorted(bodies)]
    check(pd.concat(found), rows, champion)


def test_the_run_says_which_model_and_how_far_it_was_off(shards, rows, champion, tmp_path):
    state = run_flow(shards=f"{shards}/part*.csv", output=str(tmp_path / "out"), format="parquet")
    found = pd.concat([pd.read_parquet(path) for path in sorted((tmp_path / "out").glob("*.parquet"))])
    check(found, rows, champion)
    client = MlflowClient(tracking_uri=record.tracking_uri())
    flow_run = f"tags.`prefect.flow_run_id` = '{state.state_details.flow_run_id}'"
    (run,) = client.search_runs([client.get_experiment_by_name("shardline-predictions").experiment_id], flow_run)
    assert run.info.status == "FINISHED"
    assert run.data.tags["shardline.model"] == "models:/shardline/1"
    assert client.get_run(run.data.tags["shardline.model_run"]).data.tags["shardline.flow"] == "training"
    assert run.data.metrics["rmse"] == pytest.approx(np.sqrt(np.mean((found["prediction"] - found["fare"]) ** 2)))
    assert run.inputs.dataset_inputs[0].tags[0].value == "predict"


def test_shards_without_the_target_are_predicted(shards, rows, champion, tmp_path):
    (tmp_path / "part-0.csv").write_bytes(to_csv(rows[["hour", "latitude"]].to_numpy(), ("hour", "latitude")))
    state = run_flow(shards=f"{tmp_path}/part*.csv", model="models:/shardline/1")
    assert state.is_completed(), state.message
    found = pd.read_csv(tmp_path / "predictions" / "part-0.csv", float_precision="round_trip")
    assert list(found.columns) == ["hour", "latitude", "prediction"]
    check(found.assign(fare=rows["fare"])[[*COLUMNS, "prediction"]], rows, champion)


def test_a_shard_that_cannot_be_read_leaves_no_success(shards, tmp_path):
    copied = Path(shutil.copytree(shards, tmp_path / "shards"))
    given = {"shards": f"{copied}/part*.csv", "batch_size": 10}
    assert run_flow(**given).is_completed()
    assert (copied / "predictions" / "_SUCCESS").is_file()
    text = (copied / "part-00003.csv").read_text().splitlines()
    (copied / "part-00003.csv").write_text("\n".join([*text[:150], "1,2,x", *text[151:]]) + "\n")
    state = run_flow(**given)
    assert state.is_failed()
    assert "part-00003.csv, line 151" in state.message
    assert not (copied / "predictions" / "_SUCCESS").exists()
    assert not list((copied / "predictions").glob(".*"))


def as_text(path, rows):
    """The rows in a file with ids, a quoted name and line ends of DOS, the last line without one."""
    lines = ["id,hour,name,latitude,fare"]
    for number, (fare, latitude, hour) in enumerate(rows[["fare", "latitude", "hour"]].to_numpy().tolist()):
        lines.append(f'{2**53 + number},{hour!r},"taxi, ""{number}""",{latitude!r},{fare!r}')
    path.write_bytes("\r\n".join(lines).encode())


@pytest.mark.parametrize("columns", [None, ["fare", "hour", "latitude"]])
def test_lines_with_ids_and_text_are_as_they_were_but_for_the_prediction(columns, rows, champion, tmp_path):
    """Only what the model needs, and its target, is read as numbers, whether columns are named or not."""
    as_text(tmp_path / "part-0.csv", rows)
    state = run_flow(shards=f"{tmp_path}/part*.csv", columns=columns, batch_size=71)
    assert state.is_completed(), state.message
    lines = (tmp_path / "predictions" / "part-0.csv").read_bytes().split(b"\r\n")
    assert b"\r\n".join(line.rpartition(b",")[0] for line in lines) == (tmp_path / "part-0.csv").read_bytes()
    assert lines[0].endswith(b",prediction")
    expected = champion.on(COLUMNS).predict(torch.from_numpy(rows[list(COLUMNS)].to_numpy(np.float64))).flatten()
    found = [float(line.rpartition(b",")[2]) for line in lines[1:]]
    assert np.allclose(found, expected, rtol=1e-12, atol=0)
    client = MlflowClient(tracking_uri=record.tracking_uri())
    (run, *_) = client.search_runs([client.get_experiment_by_name("shardline-predictions").experiment_id])
    assert run.data.metrics["rmse"] == pytest.approx(np.sqrt(np.mean((np.array(found) - rows["fare"]) ** 2)))


def test_rows_that_were_left_out_are_counted_and_the_report_says_where_they_are_listed(rows, tmp_path):
    as_text(tmp_path / "part-0.csv", rows)
    with (tmp_path / "part-0.csv").open("ab") as file:
        file.write(b"\r\n1,2,x,,4\r\n1,2,x,nan,4\r\n")
    given = {"columns": ["fare", "hour", "latitude"], "on_bad_rows": "quarantine", "cache_dir": str(tmp_path / "kept")}
    state = run_flow(shards=f"{tmp_path}/part*.csv", **given)
    assert state.is_completed(), state.message
    (side_file,) = (tmp_path / "kept").rglob("*.csv")
    assert f"Bad rows left out: 2, listed in {side_file}." in state.result()
    assert len(pd.read_csv(tmp_path / "predictions" / "part-0.csv")) == len(rows)


DIES_WHILE_WRITING = """
import os, runpy, signal
import tasks.prediction
from tasks.streaming.writing import OutputFolder
OutputFolder.put = lambda self, file, name: os.kill(os.getpid(), signal.SIGKILL)
runpy.run_module("flows.predicting", run_name="__main__")
"""


@pytest.mark.long
def test_temporary_folders_of_a_killed_run_are_removed_by_the_next_one(shards, champion, tmp_path, monkeypatch):
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    where = {"TMPDIR": str(temporary), "PYTHONPATH": str(Path(__file__).parents[1])}
    given = ["--shards", f"{shards}/part*.csv", "--output", str(tmp_path / "out")]
    command = [sys.executable, "-c", DIES_WHILE_WRITING, *given]
    killed = subprocess.run(command, env={**os.environ, **where}, capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    left = {path.name.rpartition("-")[0] for path in temporary.iterdir() if path.name.startswith("shardline-")}
    assert left >= {"shardline-model", "shardline-predictions"}
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    state = run_flow(shards=f"{shards}/part*.csv", output=str(tmp_path / "out"))
    assert state.is_completed(), state.message
    gc.collect()  # models that nobody refers to take their folders along
    assert not list(temporary.glob("shardline-*"))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"model": "models:/nobody@champion"}, "no model at models:/nobody@champion: "),
        ({"experiment": "empty"}, "no model at models:/empty@champion: "),
        (
            {"columns": ["fare", "hour"]},
            "the model models:/shardline/1 needs column 'latitude', and the shards have fare, hour",
        ),
        ({"output": "{shards}"}, "output is {shards}, where the shards themselves are: name another folder"),
    ],
)
def test_what_cannot_be_predicted_is_said(given, message, shards):
    given = {name: value.format(shards=shards) if isinstance(value, str) else value for name, value in given.items()}
    state = run_flow(shards=f"{shards}/part*.csv", **given)
    assert state.is_failed()
    assert message.format(shards=shards) in state.message
    assert sorted(path.name for path in shards.iterdir()) == [f"part-0000{number}.csv" for number in range(5)]


def test_a_folder_with_files_that_would_stay_there_is_refused(tmp_path):
    (tmp_path / "part-9.csv").touch()
    with pytest.raises(ConfigurationError, match=r"where part-9.csv is, which these shards would not replace"):
        OutputFolder(str(tmp_path), {}).begin(["part-0.csv"], ["s3://b/part-0.csv"])


def test_rows_that_break_a_contract_are_left_out_and_of_its_columns_the_models_alone_are_needed(tmp_path):
    (tmp_path / "contract.yaml").write_text("columns: {fare: {minimum: 0}, hour: {maximum: 23}}")
    (tmp_path / "part-0.csv").write_text("latitude,hour\n38.9,23\n38.9,24\n38.8,0\n")
    given = {"contract": f"{tmp_path}/contract.yaml", "output": f"{tmp_path}/out", "cache_dir": f"{tmp_path}/cache"}
    state = run_flow(shards=f"{tmp_path}/part-0.csv", on_bad_rows="quarantine", **given)
    assert state.is_completed(), state.message
    assert pd.read_csv(tmp_path / "out" / "part-0.csv")["hour"].tolist() == [23, 0]


@pytest.mark.parametrize("most", [1, 7, 99])
def test_a_model_gets_no_more_rows_at_once_than_are_asked_for(most, rows, champion):
    asked: list[int] = []

    class Watched:
        def predict(self, table):
            asked.append(len(table))
            return champion.model.predict(table)

    watched = replace(champion.on(COLUMNS), model=Watched())
    predictor, numbers = Predictor(watched, most, {}), rows[list(COLUMNS)].to_numpy(np.float64)
    found = predictor.predict(numbers[:50]) + predictor.predict(numbers[:0]) + predictor.predict(numbers[50:])
    assert np.allclose(found, champion.on(COLUMNS).predict(torch.from_numpy(numbers)).flatten(), rtol=1e-12, atol=0)
    assert (max(asked), min(asked) > 0, sum(asked)) == (min(most, max(50, len(rows) - 50)), True, len(rows))
    written = Written(place=0, rows=len(rows), squares=predictor.squares)
    assert measure_error([written]) == pytest.approx(np.sqrt(np.mean((found - rows["fare"]) ** 2)))


def test_shards_are_named_after_those_they_are_of():
    uris = ["s3://b/x/part-0.csv.gz", "s3://b/x/trips.2019.parquet", "s3://b/x/part-1"]
    assert name_shards(uris, "csv") == ["part-0.csv", "trips.2019.csv", "part-1.csv"]
    with pytest.raises(ConfigurationError, match=r"two shards would be named part-0.csv"):
        name_shards(["s3://b/x/part-0.csv", "s3://b/y/part-0.csv"], "csv")
