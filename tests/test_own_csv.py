"""One's own CSV, by the real command: columns that nobody asked for may hold text, and data made by others trains."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from flows.training import train
from tasks.tracking import client as record
from tests.flowruns import ended

ROOT = Path(__file__).parents[1]


def write_houses(folder, parts=4, rows=30):
    random = np.random.default_rng(1)
    for part in range(parts):
        lines = ["price,city,area,sold,rooms"]
        for number in range(rows):
            area, rooms = random.uniform(20, 200), int(random.integers(1, 7))
            lines.append(f'{3 * area + 10 * rooms},"Berlin, {number}",{area},2024-01-{number % 28 + 1:02d},{rooms}')
        (folder / f"houses-{part}.csv").write_text("\n".join(lines) + "\n")


def command(*words):
    return subprocess.run(
        [sys.executable, "-m", "flows.training", *words],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )


def read_artifact(name, experiment="shardline"):
    client = record.connect()
    (run, *_) = client.search_runs([client.get_experiment_by_name(experiment).experiment_id])
    return Path(client.download_artifacts(run.info.run_id, name)).read_text()


@pytest.mark.usefixtures("prefect_api")
def test_the_example_of_the_readme_trains_though_a_column_holds_text(place):
    write_houses(place)
    done = command("--shards", "houses-*.csv", "--target", "price", "--features", "area,rooms")
    assert done.returncode == 0, done.stderr
    assert json.loads(read_artifact("manifest.json"))["columns"] == ["price", "area", "rooms"]
    assert json.loads(read_artifact("evaluation/scores.json"))["all"]["exact"]["rmse"] < 1e-9
    assert "Predict  python -m flows.predicting --shards 'houses-*.csv' --experiment shardline\n" in done.stdout


@pytest.mark.usefixtures("prefect_api")
def test_a_column_of_text_that_is_asked_for_is_named_and_so_is_what_to_give(place):
    write_houses(place)
    state = ended(train, shards=f"{place}/houses-*.csv", target="price")
    assert state.message and "column 'city' is 'Berlin, 0', which is not a number" in state.message
    assert "--features" in state.message
    assert "quarantine" not in state.message
    state = ended(train, shards=f"{place}/houses-*.csv", target="price", features=["area", "romms"])
    assert state.message and state.message.endswith(
        "no column 'romms' in the shards: they have price, city, area, sold, rooms; the nearest name is 'rooms'"
    )


@pytest.mark.long
@pytest.mark.usefixtures("prefect_api")
def test_a_model_of_fewer_columns_is_compared_with_a_champion_of_more(place):
    write_houses(place)
    given = {"shards": f"{place}/houses-*.csv", "target": "price", "solver": "exact"}
    assert ended(train, **given, features=["area", "rooms"]).is_completed()
    state = ended(train, **given, features=["area"])
    assert state.is_completed(), state.message
    assert "it does not beat the champion (version 1): RMSE " in state.result()
    for part in (2, 3):  # where its column is text in the rows that are judged, the new model is judged all the same
        path = place / f"houses-{part}.csv"
        path.write_text(path.read_text().replace(",1\n", ",one\n"))
    state = ended(train, **given, features=["area"])
    assert state.is_completed(), state.message
    assert (
        "it cannot be compared with the champion (version 1): what it needs besides cannot be read: " in state.result()
    )
    assert "column 'rooms' is 'one'" in state.result()


@pytest.mark.usefixtures("prefect_api")
def test_test_shards_may_have_their_columns_in_another_order_and_others_besides(place):
    write_houses(place)
    (place / "test.csv").write_text("id,rooms,price,area\nx1,1,310,100\nx2,3,630,200\n")
    given = {"shards": f"{place}/houses-*.csv", "target": "price", "solver": "exact", "features": ["area", "rooms"]}
    state = ended(train, **given, test_shards=f"{place}/test.csv")
    assert state.is_completed(), state.message
    assert json.loads(read_artifact("evaluation/scores.json"))["all"]["trained"]["rmse"] < 1e-9


NASTY = ("price", "a|b", "`c`", "<script>alert(1)</script>", "![d](http://127.0.0.1/d.png)", "e, f", "[g](http://h)")
NAMED = "x|<b>`y`"


@pytest.mark.long
@pytest.mark.usefixtures("prefect_api")
def test_what_others_named_is_shown_letter_by_letter_and_is_no_table_code_link_or_tag(place):
    from markdown_it import MarkdownIt
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.sorting import ArtifactSort

    folder = place / "a`b|c <img src=x>"
    folder.mkdir()
    rows = np.random.default_rng(0).normal(size=(200, len(NASTY)))
    for part in range(2):
        with (folder / f"part-{part}.csv").open("w", newline="") as file:
            csv.writer(file).writerows([NASTY, *rows[part * 100 :][:100].tolist()])
    features = ",".join(f'"{name}"' for name in NASTY[1:])
    done = command("--shards", f"{folder}/*.csv", "--target", "price", "--features", features, "--experiment", NAMED)
    assert done.returncode == 0, done.stderr
    with get_client(sync_client=True) as client:
        artifacts = [
            artifact
            for artifact in client.read_artifacts(sort=ArtifactSort.CREATED_DESC, limit=50)
            if place.name in str(artifact)
        ]
    texts = {str(artifact.key): str(artifact.data) for artifact in artifacts if artifact.type == "markdown"}
    texts.pop("forecast", None)  # which names the cache's folder, and not the shards'
    described = [str(artifact.description) for artifact in artifacts if artifact.key == "training-shards"]
    assert set(texts) >= {"report"} and described
    found = read_artifact("report.md", NAMED)
    for text in (*texts.values(), *described, found):
        html = MarkdownIt("commonmark", {"html": True}).enable("table").render(text)
        assert "<script" not in html and "<img src=x" not in html and "http://h" not in html
        assert "a`b|c &lt;img src=x&gt;" in html


@pytest.mark.long
@pytest.mark.usefixtures("prefect_api")
@pytest.mark.parametrize("name", ["iris", "wine", "breast_cancer", "diabetes", "linnerud"])
def test_data_that_scikit_learn_ships_trains_with_its_names_and_its_text(name, place):
    """Names have spaces, brackets and a unit; a column of text stands beside; the exact model is scikit-learn's."""
    from sklearn import datasets, linear_model

    found = getattr(datasets, f"load_{name}")(as_frame=True)
    table = found.frame.assign(note=[f'row "{number}", of {name}' for number in range(len(found.frame))])
    target, features = found.frame.columns[-1], list(found.feature_names)
    for part, rows in enumerate(np.array_split(np.arange(len(table)), 5)):
        table.iloc[rows].to_csv(place / f"part-{part}.csv", index=False)
    state = ended(
        train, shards=f"{place}/part-*.csv", test_shards=f"{place}/part-*.csv", target=target, features=features,
        solver="exact",
    )  # fmt: skip
    assert state.is_completed(), state.message
    model = linear_model.LinearRegression().fit(found.frame[features], found.frame[target])
    mse = float(np.mean((model.predict(found.frame[features]) - found.frame[target]) ** 2))
    assert json.loads(read_artifact("evaluation/scores.json"))["all"]["trained"]["mse"] == pytest.approx(mse, rel=1e-8)
