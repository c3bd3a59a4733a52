"""Models in MLflow: loaded by name in a process of their own, registered, and made champion by beating the last one."""

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd  # type: ignore[import-untyped]
import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.pyfunc import scoring_server
from safetensors.numpy import load_file

from flows.training import train
from tasks.errors import TrackingError
from tasks.learning.scores import Score
from tasks.runs.promotion import Champion, judge
from tasks.tracking import client as record
from tasks.tracking.champions import read_succession
from tasks.tracking.outbox import MODEL, REGISTRATION, Outbox
from tasks.tracking.recovery import complete_outbox
from tests.flowruns import ended

pytestmark = pytest.mark.filterwarnings("ignore::pandas.errors.Pandas4Warning")  # MLflow's own, of pandas 3.1


@pytest.fixture(scope="module")
def learn(prefect_api, client, generated):
    """A function that runs the flow on the generated shards, judged on the test shards; the MLflow run that it left."""

    def run(experiment, **given):
        places = {kind: f"{generated}/csv/{kind}/part*.csv" for kind in ("dev", "test")}
        given = {"shards": places["dev"], "test_shards": places["test"], "batch_size": 5000, **given}
        state = ended(train, experiment=experiment, **given)
        assert state.is_completed(), state.message
        client = MlflowClient(tracking_uri=record.tracking_uri())
        found = f"tags.`prefect.flow_run_id` = '{state.state_details.flow_run_id}'"
        return client.search_runs([client.get_experiment_by_name(experiment).experiment_id], found)[0]

    return run


@pytest.fixture(scope="module")
def client(workplace):
    client = record.connect()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", client.tracking_uri)  # for those who load models by MLflow's own means
        yield client


def aliases(client, name):
    return {alias: str(version) for alias, version in client.get_registered_model(name).aliases.items()}


@pytest.fixture(scope="module")
def default_run(learn):
    return learn("a/serving:place")


@pytest.fixture(scope="module")
def test_rows(generated):
    """The generated test rows as anybody reads them: years and hours are integers."""
    parts = [path for path in sorted((generated / "csv" / "test").glob("part*.csv")) if path.stat().st_size]
    return pd.concat([pd.read_csv(path) for path in parts], ignore_index=True)


def kilometres(rows):
    """The distance by the chord between points on a sphere: another formula than the model's."""

    def point(end):
        lat, lon = (np.radians(rows[f"{end}_block_{axis}_double"]) for axis in ("latitude", "longitude"))
        return np.column_stack([np.cos(lat) * np.cos(lon), np.cos(lat) * np.sin(lon), np.sin(lat)])

    chord = np.linalg.norm(point("origin") - point("destination"), axis=1)
    return 2 * 6371.0088 * np.arcsin(chord / 2)


FRESH = """
import json, sys
import mlflow, pandas
model = mlflow.pyfunc.load_model(sys.argv[1])
rows = pandas.read_json(sys.argv[2], orient="split")
assert not any(name.split(".")[0] in ("tasks", "flows") for name in sys.modules)
print(json.dumps([float(y) for y in model.predict(rows)]))
"""


@pytest.mark.parametrize(
    "uri",
    [
        "models:/a-serving-place@champion",
        pytest.param("models:/a-serving-place/1", marks=pytest.mark.long),
        pytest.param("runs:/{run_id}/model", marks=pytest.mark.long),
    ],
)
def test_a_fresh_process_predicts_from_raw_columns_by_name_in_any_order(uri, default_run, client, test_rows, tmp_path):
    rows = test_rows.drop(columns="fareamount_double").sample(frac=1, axis=1, random_state=1)
    assert {str(kind) for kind in rows.dtypes} == {"float64", "int64"}
    rows.to_json(tmp_path / "rows.json", orient="split", double_precision=15)
    environment = os.environ | {
        "MLFLOW_TRACKING_URI": record.tracking_uri(),
        "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    }
    command = [sys.executable, "-c", FRESH, uri.format(run_id=default_run.info.run_id), str(tmp_path / "rows.json")]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    weights = load_file(
        client.download_artifacts(default_run.info.run_id, "weights/weights.safetensors", str(tmp_path))
    )
    x = np.column_stack([test_rows.drop(columns="fareamount_double").to_numpy(), kilometres(test_rows)])
    assert np.allclose(json.loads(done.stdout), (x @ weights["w"] + weights["b"]).flatten(), rtol=1e-6)


@pytest.mark.parametrize("place", [pytest.param("description", marks=pytest.mark.long), "README"])
def test_the_lines_to_copy_of_the_models_description_and_of_the_readme_predict(
    place, default_run, client, workplace, test_rows
):
    text = client.get_registered_model("a-serving-place").description
    if place == "README":
        text = (Path(__file__).parents[1] / "README.md").read_text().split("in four:")[1]
        text = text.replace("models:/shardline@", "models:/a-serving-place@")
    lines = text.partition("```python\n")[2].partition("```")[0]
    test_rows.to_csv(workplace / "rows.csv", index=False)
    command = [sys.executable, "-c", f"{lines}\nprint(len(model.predict(pandas.read_csv('rows.csv'))))"]
    done = subprocess.run(command, cwd=workplace, capture_output=True, text=True)
    assert done.stdout.split()[-1:] == [str(len(test_rows))], done.stderr


def test_the_lines_of_python_on_the_models_card_load_it_and_its_weights(default_run, client, monkeypatch):
    card = Path(client.download_artifacts(default_run.info.run_id, "model/README.md")).read_text()
    named: list[str] = []
    monkeypatch.setattr(mlflow, "set_tracking_uri", named.append)  # it would stay so; the environment says the same
    of_mlflow, of_safetensors = ({}, {})  # type: ignore[var-annotated]
    for lines, names in zip(re.findall(r"```python\n(.*?)```", card, re.S), (of_mlflow, of_safetensors), strict=True):
        exec(lines, names)
    assert named == [record.tracking_uri()] * 2
    rows, weights = of_mlflow["model"].input_example, of_safetensors["weights"]
    x = np.column_stack([rows.to_numpy(), kilometres(rows)])
    assert np.allclose(of_mlflow["model"].predict(rows), (x @ weights["w"] + weights["b"]).flatten(), rtol=1e-6)
    assert f"--like {default_run.info.run_id}" in card
    description = client.get_model_version("a-serving-place", "1").description
    assert re.search(r"\n\nThe model's card, `README.md` among \[its files\]\(#/experiments/\d+/models/m-", description)


SENT = {
    "dataframe_split": lambda rows: {key: rows.to_dict("split")[key] for key in ("columns", "data")},
    "dataframe_records": lambda rows: rows.to_dict("records"),
    "instances": lambda rows: rows.to_dict("records"),
    "inputs": lambda rows: rows.to_dict("list"),
}


@pytest.mark.parametrize("form", SENT)
def test_served_over_http_it_takes_integers_in_every_form_of_json(form, default_run, test_rows):
    rows = test_rows.drop(columns="fareamount_double")[:7]
    model = mlflow.pyfunc.load_model("models:/a-serving-place@champion")
    body = json.dumps({form: SENT[form](rows)})
    answer = scoring_server.invocations(body, "application/json", model, model.metadata.get_input_schema())
    assert answer.status == 200
    assert json.loads(answer.response)["predictions"] == pytest.approx(list(model.predict(rows)), rel=1e-12)


@pytest.mark.parametrize(
    "kinds", [{}, {"hour_integer": "int32"}, {"hour_integer": "float64"}, {"year_integer": "uint8"}]
)
def test_columns_may_be_of_any_numeric_type(kinds, default_run, test_rows):
    rows = test_rows.drop(columns="fareamount_double").assign(year_integer=9)
    model = mlflow.pyfunc.load_model("models:/a-serving-place@champion")
    assert np.array_equal(model.predict(rows.astype(kinds)), model.predict(rows.astype("float64")))


def test_a_missing_column_is_named(default_run, test_rows):
    model = mlflow.pyfunc.load_model("models:/a-serving-place@champion")
    with pytest.raises(MlflowException, match=r"missing inputs \['dow_integer'\]"):
        model.predict(test_rows.drop(columns="dow_integer"))


def test_a_column_that_is_not_of_numbers_is_named(default_run, test_rows):
    model = mlflow.pyfunc.load_model("models:/a-serving-place@champion")
    with pytest.raises(Exception, match="column 'dow_integer' is not of numbers: could not convert string to float"):
        model.predict(test_rows.assign(dow_integer="Monday"))


def test_the_model_says_its_columns_has_an_example_and_no_pickle(default_run, client, test_rows, tmp_path):
    folder = Path(client.download_artifacts(default_run.info.run_id, "model", str(tmp_path)))
    model = mlflow.models.Model.load(folder)
    assert model.get_input_schema().input_names() == list(test_rows.columns[1:])
    assert model.load_input_example(str(folder)).shape == (5, 8)
    assert "torch==2.13.0\n" in (folder / "requirements.txt").read_text()
    kinds = {path.suffix for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    assert kinds == {"", ".py", ".json", ".yaml", ".txt", ".md", ".safetensors"}


def test_the_model_is_a_logged_model_of_its_run_with_its_scores(default_run, client):
    (found,) = client.search_logged_models([default_run.info.experiment_id])
    assert (found.name, found.source_run_id, str(found.status)) == ("model", default_run.info.run_id, "READY")
    assert [output.model_id for output in default_run.outputs.model_outputs] == [found.model_id]
    scores = {metric.key: metric.value for metric in found.metrics}
    assert scores["test_r2"] == default_run.data.metrics["test_r2"] > 0.5
    assert "mse" not in scores
    assert {metric.dataset_name for metric in found.metrics} == {default_run.data.params["test_shards"]}
    assert found.tags["mlflow.note.content"] == default_run.data.tags["mlflow.note.content"]
    version = client.get_model_version("a-serving-place", "1")
    assert version.source == found.artifact_location
    assert json.loads(found.tags["mlflow.modelVersions"]) == [{"name": "a-serving-place", "version": "1"}]
    assert mlflow.pyfunc.load_model(f"models:/{found.model_id}").metadata.run_id == default_run.info.run_id


def test_the_formula_of_a_derived_feature_is_the_training_code_itself(default_run, client, tmp_path):
    folder = Path(client.download_artifacts(default_run.info.run_id, "model/code", str(tmp_path)))
    (shipped,) = folder.glob("shardline_*/learning/features.py")
    own = Path(__file__).parents[1] / "tasks" / "learning" / "features.py"
    assert shipped.read_text().replace(shipped.parts[-3], "tasks") == own.read_text()


def test_slices_are_a_table_that_mlflow_reads(default_run, client):
    table = client.load_table(default_run.info.experiment_id, "evaluation/slices.json", [default_run.info.run_id])
    assert {f"hour {hour:02d}" for hour in range(24)} < set(table["slice"])
    assert "trained_rmse" in table


def test_the_data_are_inputs_of_the_run(default_run, generated):
    inputs = {entry.tags[0].value: entry.dataset for entry in default_run.inputs.dataset_inputs}
    assert {context: json.loads(data.profile)["num_rows"] for context, data in inputs.items()} == {
        "train": 5000,
        "test": 500,
    }
    assert inputs["train"].digest == default_run.data.tags["shardline.fingerprint"][:36]
    assert json.loads(inputs["test"].source)["uri"] == f"{generated}/csv/test/part*.csv"


def test_each_model_is_challenger_and_becomes_champion_by_beating_the_last(learn, client):
    notebook = learn("gate", preset="notebook", iterations=1)
    assert aliases(client, "gate") == {"challenger": "1"}
    assert "does not beat always guessing the mean" in notebook.data.tags["shardline.gate"]
    short = {"iterations": 20, "learning_rate": 0.1}  # so that it is not the exact model but for rounding
    learn("gate", **short)
    assert aliases(client, "gate") == {"challenger": "2", "champion": "2"}
    again = learn("gate", **short)
    assert aliases(client, "gate") == {"challenger": "3", "champion": "2"}
    assert (
        "The model stays challenger, for it does not beat the champion (version 2): RMSE"
        in again.data.tags["shardline.gate"]
    )
    better = learn("gate", solver="exact")
    assert aliases(client, "gate") == {"challenger": "4", "champion": "4"}
    verdict = better.data.tags["shardline.gate"]
    assert verdict.startswith("The model becomes champion, for it beats the champion (version 2): RMSE")
    assert verdict.endswith("on the 500 test rows.")
    assert client.get_model_version("gate", "4").tags["shardline.gate"] == verdict
    assert read_succession(client, "gate").champions == ("4", "2")
    assert better.data.tags["shardline.model"] == "models:/gate/4"
    assert better.data.metrics["test_rmse"] < better.data.metrics["test_rmse_champion_model"]
    report = Path(client.download_artifacts(better.info.run_id, "report.md")).read_text()
    assert verdict in report
    assert "| champion so far (version 2) |" in report


GOOD = Score(rows=10, mse=1.0, rmse=1.0, mae=1.0, r2=0.9)
BAD = Score(rows=10, mse=4.0, rmse=2.0, mae=2.0, r2=0.6)
NAN = Score(rows=10, mse=float("nan"), rmse=float("nan"), mae=float("nan"), r2=float("nan"))
THERE = Champion("7")


@pytest.mark.parametrize(
    ("scores", "kind", "champion", "wins", "words"),
    [
        (
            {"trained": GOOD, "champion": BAD, "mean": BAD},
            "test",
            THERE,
            True,
            "beats the champion (version 7): RMSE 1 ",
        ),
        (
            {"trained": BAD, "champion": GOOD, "mean": BAD},
            "test",
            THERE,
            False,
            "does not beat the champion (version 7)",
        ),
        ({"trained": GOOD, "champion": GOOD, "mean": BAD}, "held-out", THERE, False, "on the 10 held-out rows."),
        ({"trained": NAN, "champion": BAD, "mean": BAD}, "test", THERE, False, "does not beat the champion"),
        ({"trained": GOOD, "champion": NAN, "mean": BAD}, "test", THERE, False, "does not beat the champion"),
        ({"trained": GOOD, "mean": BAD}, "train", THERE, False, "no rows but those it was trained on"),
        (
            {"trained": replace(GOOD, r2=None), "champion": BAD, "mean": BAD},
            "test",
            THERE,
            False,
            "the target of the test rows is constant",
        ),
        ({"trained": GOOD, "mean": BAD}, "test", Champion("7", fault="it broke"), False, "(version 7): it broke."),
        ({"trained": GOOD, "mean": BAD}, "test", Champion(fault="no answer"), False, "with the champion: no answer."),
        ({"trained": GOOD, "mean": BAD}, "train", Champion(), True, "beats always guessing the mean"),
        ({"trained": BAD, "mean": BAD}, "test", Champion(), False, "does not beat always guessing the mean"),
        ({"trained": NAN, "mean": BAD}, "test", Champion(), False, "does not beat always guessing the mean"),
    ],
)
def test_the_promotion(scores, kind, champion, wins, words):
    promotion = judge(scores, kind, champion)
    assert (promotion.wins, promotion.against) == (wins, champion.version)
    assert promotion.verdict.startswith("The model becomes champion" if wins else "The model stays challenger")
    assert words in promotion.verdict


@pytest.fixture
def outbox(client, request):
    """The outbox of a run that has ended but for its record, with a model to be registered that won against nobody."""
    run_id = record.begin(client, experiment="outbox", name="run", parameters={}, tags={})
    outbox = Outbox(run_id)
    (outbox.path / MODEL).mkdir()
    (outbox.path / MODEL / "MLmodel").write_text("flavors: {}\n")
    plan = {"name": request.node.name[:50], "description": "fine", "tags": {}, "wins": True, "against": None}
    (outbox.path / REGISTRATION).write_text(json.dumps(plan))
    return outbox


def test_a_registry_that_is_away_leaves_the_record_incomplete_and_it_is_completed_later(
    outbox, client, request, monkeypatch
):
    def fail(*_):
        raise MlflowException("away")

    with monkeypatch.context() as patch:
        patch.setattr(client, "set_registered_model_alias", fail)  # the version is made by then
        with pytest.raises(TrackingError, match=r"record incomplete: .*: away"):
            complete_outbox(client, outbox.path, "FINISHED")
    assert client.get_run(outbox.run_id).info.status == "RUNNING"
    complete_outbox(client, outbox.path)
    assert client.get_run(outbox.run_id).info.status == "FINISHED"
    assert aliases(client, request.node.name[:50]) == {"challenger": "1", "champion": "1"}
    run = client.get_run(outbox.run_id)
    (logged,) = client.search_logged_models(
        [run.info.experiment_id], filter_string=f"source_run_id = '{outbox.run_id}'"
    )
    assert [output.model_id for output in run.outputs.model_outputs] == [logged.model_id]
    assert not outbox.path.exists()


def test_a_run_that_failed_registers_nothing(outbox, client, request):
    complete_outbox(client, outbox.path, "FAILED")
    with pytest.raises(MlflowException, match="not found"):
        aliases(client, request.node.name[:50])


def test_a_model_that_won_against_a_champion_who_is_none_any_more_stays_challenger(outbox, client, request):
    name = request.node.name[:50]
    client.create_registered_model(name)
    client.create_model_version(name, "/elsewhere")
    client.set_registered_model_alias(name, "champion", "1")
    complete_outbox(client, outbox.path, "FINISHED")
    assert aliases(client, request.node.name[:50]) == {"challenger": "2", "champion": "1"}
    tags = client.get_run(outbox.run_id).data.tags
    assert tags["shardline.gate"].startswith("The model stays challenger: version 1 became champion while")


@pytest.mark.long
def test_a_champion_that_cannot_be_loaded_stops_no_training(learn, client):
    client.create_registered_model("broken")
    client.create_model_version("broken", "/nowhere")
    client.set_registered_model_alias("broken", "champion", "1")
    run = learn("broken", iterations=2)
    assert run.info.status == "FINISHED"
    assert "it cannot be compared with the champion (version 1): no model at" in run.data.tags["shardline.gate"]
