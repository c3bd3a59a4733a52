"""What a model is judged on, and the exact model as a run of its own."""

import json
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd  # type: ignore[import-untyped]
import pytest
from mlflow import MlflowClient
from safetensors.numpy import load_file

from flows.training import train
from tasks.data import split_rows
from tasks.evaluation import describe_slices, keep_scores, write_verdict
from tasks.facts import Located, TrainingData
from tasks.learning.scores import AT_BOTH_ENDS, Density, Score, Scores, Slice
from tasks.streaming import ColumnStatistics, Manifest, Shard
from tasks.tracking import client as record
from tasks.wording.worth import tabulate_slices
from tests.flowruns import ended
from tests.shards import COLUMNS, to_csv, write_shards

pytestmark = pytest.mark.filterwarnings("ignore::pandas.errors.Pandas4Warning")  # MLflow's own, of pandas 3.1


def manifest_of(*counts):
    shards = tuple(Shard(f"s3://b/part-{number}.csv", 10, "e", rows) for number, rows in enumerate(counts))
    return Manifest(shards, ("y", "a"))


def located(*counts):
    statistics = {"y": ColumnStatistics(count=sum(counts), mean=1.0, stddev=1.0, min=0.0, max=2.0)}
    return Located(manifest=manifest_of(*counts), statistics=statistics)


@pytest.mark.parametrize(
    ("counts", "training", "held", "sentence"),
    [
        ((50, 50), [50], [50], "50 rows held out from training, 50% of all: the last shard of 2"),
        ((90, 10), [90], [10], "10 rows held out from training, 10% of all: the last shard of 2"),
        ((85, 6, 5, 4), [85], [6, 5, 4], "15 rows held out from training, 15% of all: the last 3 shards of 4"),
        (
            [1000] * 21,
            [1000] * 18,
            [1000] * 3,
            "3,000 rows held out from training, 14% of all: the last 3 shards of 21",
        ),
        ((100,), [100], None, "the training rows themselves: no test shards are named, and there is only one shard"),
        ((10, 90), [10, 90], None, "no test shards are named, and the last ones do not hold between 10 % and half"),
        ((95, 5), [95, 5], None, "no test shards are named, and the last ones do not hold between 10 % and half"),
    ],
)
def test_the_last_shards_with_a_tenth_of_the_rows_are_held_out(counts, training, held, sentence):
    found = located(*counts)
    data = split_rows(found, None, "default")
    assert (list(data.train.counts), data.test and list(data.test.counts)) == (training, held)
    assert data.rows_of == ("held-out" if held else "train")
    assert data.judged_on.endswith(sentence)
    assert (*data.train.shards, *(data.test.shards if data.test else ())) == found.manifest.shards
    assert data.judged == (data.test if held else data.train)
    assert data.statistics == ({} if held else found.statistics)  # they are of the rows held out, too


def test_test_shards_are_judged_on_where_there_are_some():
    found = located(50, 50)
    test = manifest_of(7)
    assert split_rows(found, test, "default") == TrainingData(
        train=found.manifest,
        test=test,
        rows_of="test",
        judged_on="the 7 rows of the test shards",
        statistics=found.statistics,
    )


def test_the_notebook_trains_on_everything_and_says_so():
    data = split_rows(located(50, 50), None, "notebook")
    assert (data.train.counts, data.test, data.rows_of) == ((50, 50), None, "train")
    assert data.judged_on == "the training rows themselves: the notebook's preset holds none out"


def score_of(errors, target):
    mse = float(np.mean(np.square(errors)))
    r2 = 1 - mse / float(np.var(target))
    return Score(rows=len(target), mse=mse, rmse=math.sqrt(mse), mae=float(np.mean(np.abs(errors))), r2=r2)


def test_the_table_of_slices_has_r2_only_where_a_slice_has_one():
    of_range, of_hour = (
        Slice(name="", scores=dict.fromkeys(("trained", "exact", "mean"), score), by_target=r2 is None)
        for r2 in (None, 0.5)
        for score in [Score(rows=9, mse=4.0, rmse=2.0, mae=1.0, r2=r2)]
    )
    assert [row.get("R²") for row in tabulate_slices([of_range, of_hour])] == ["–", "0.5"]
    assert "R²" not in tabulate_slices([of_range])[0]
    assert describe_slices([of_range], "test").endswith(f"beside the exact model and the mean; {AT_BOTH_ENDS}")
    assert "R² is left out" in describe_slices([of_range, of_hour], "test")


def test_the_table_in_mlflow_has_no_column_without_a_value():
    score = Score(rows=9, mse=4.0, rmse=2.0, mae=1.0, r2=None)
    density = Density(edges=(0.0, 1.0), counts=((9,),), residual_edges=(0.0, 1.0), residual_counts=(9,))
    slices = tuple(Slice(name=name, scores={"trained": score}) for name in ("low", "high"))
    kept: dict[str, str] = {}
    outbox = SimpleNamespace(log=lambda *_: None, keep=kept.__setitem__, tag=lambda _: None)

    keep_scores(outbox, Scores(overall={"trained": score}, slices=slices, density=density), "test")  # type: ignore[arg-type]

    table = json.loads(kept["evaluation/slices.json"])
    assert table["columns"] == ["slice", "trained_rows", "trained_mse", "trained_rmse", "trained_mae"]
    assert table["data"] == [["low", 9, 4.0, 2.0, 1.0], ["high", 9, 4.0, 2.0, 1.0]]


def test_rows_on_another_level_are_told_in_errors_and_not_as_a_negative_share_of_the_variance():
    target = np.array([100.0, 101.0, 102.0, 103.0])
    models = {"trained": target - 5, "exact": target - 4, "mean": np.full(4, 20.0)}
    scores = {name: score_of(guessed - target, target) for name, guessed in models.items()}
    assert scores["trained"].r2 == pytest.approx(-19)
    assert write_verdict(scores, "held-out") == (
        "This model is better than always guessing the training rows' mean on the 4 held-out rows: RMSE 5 against "
        "81.5077; the best linear model reaches 4. These rows lie on another level than the training rows: "
        "their own mean would be nearer (RMSE 1.11803)."
    )


@pytest.fixture(scope="module")
def learn(prefect_api, workplace):
    """A function that runs the flow in a working directory of its own; the MLflow run and its files."""

    def run(**given):
        state = ended(train, **given)
        assert state.is_completed(), state.message
        client = MlflowClient(tracking_uri=record.tracking_uri())
        found = f"tags.`prefect.flow_run_id` = '{state.state_details.flow_run_id}'"
        run = client.search_runs([client.get_experiment_by_name("shardline").experiment_id], found)[0]
        return client, run, Path(client.download_artifacts(run.info.run_id, ""))

    return run


@pytest.fixture(scope="module")
def exact_run(learn, tmp_path_factory):
    """The exact model on shards of 100, 60 and 40 rows, of which the last are held out; with those rows."""
    folder = tmp_path_factory.mktemp("shards")
    rows = write_shards(folder, (100, 60, 40))
    return *learn(shards=f"{folder}/part*.csv", solver="exact", batch_size=33), rows


def test_the_exact_solver_leaves_numpys_weights_and_one_value(exact_run):
    client, run, files, rows = exact_run
    design = np.column_stack([rows[:160, 1:], np.ones(160)])
    expected, residual, *_ = np.linalg.lstsq(design, rows[:160, 0], rcond=None)
    weights = load_file(files / "weights" / "weights.safetensors")
    assert np.allclose([*weights["w"].flatten(), *weights["b"].flatten()], expected, rtol=1e-9)
    (only,) = client.get_metric_history(run.info.run_id, "mse")
    assert (only.step, only.value) == (0, pytest.approx(residual[0] / 160, rel=1e-9))
    assert run.data.params["solver"] == "exact"
    assert "One pass over 160 rows" in (files / "report.md").read_text()


def test_held_out_rows_are_what_the_model_is_judged_on_and_it_says_so(exact_run):
    _, run, files, rows = exact_run
    weights = load_file(files / "weights" / "weights.safetensors")
    error = rows[160:, 1:] @ weights["w"].flatten() + weights["b"].item() - rows[160:, 0]
    assert run.data.metrics["test_mse"] == pytest.approx(np.mean(error**2), rel=1e-9)
    sentence = "40 rows held out from training, 20% of all: the last shard of 3"
    assert run.data.tags["shardline.judged_on"] == sentence
    assert sentence in (files / "report.md").read_text()
    contexts = {
        entry.tags[0].value: json.loads(entry.dataset.profile)["num_rows"] for entry in run.inputs.dataset_inputs
    }
    assert contexts == {"train": 160, "test": 40}


def test_test_shards_may_have_their_columns_in_another_order(learn, exact_run, tmp_path):
    _, run, _, rows = exact_run
    for name, part in (("part-0.csv", rows[:100]), ("part-1.csv", rows[100:160])):
        (tmp_path / name).write_bytes(to_csv(part))
    table = pd.DataFrame(rows, columns=list(COLUMNS))
    swapped = ("hour", "fare", "latitude")
    (tmp_path / "test.csv").write_bytes(to_csv(table[160:][list(swapped)].to_numpy(), swapped))
    _, again, _ = learn(shards=f"{tmp_path}/part*.csv", test_shards=f"{tmp_path}/test.csv", solver="exact")
    assert again.data.metrics["test_mse"] == pytest.approx(run.data.metrics["test_mse"], rel=1e-9)
