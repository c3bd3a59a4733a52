"""The generated taxi data: the contract's shape, the same bytes for the same seed, and a fare that can be learnt."""

import csv
import hashlib
import os
from pathlib import Path

import numpy as np
import pytest

from deployments import generator
from deployments.generator import COLUMNS, LATITUDES, LONGITUDES, draw_trips, is_complete, list_files, provide_data
from deployments.local import fill
from deployments.standin import StandIn
from tasks.errors import ConfigurationError

ROWS = 4_000


def digests(folder: Path) -> dict[str, str]:
    return {key: hashlib.md5(path.read_bytes()).hexdigest() for key, path in list_files(folder)}


def rows_of(path: Path) -> list[list[str]]:
    with path.open(newline="") as lines:
        return list(csv.reader(lines))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return provide_data(tmp_path_factory.mktemp("home"), ROWS)[0]


@pytest.fixture(scope="module")
def trips() -> dict[str, np.ndarray]:
    return dict(zip(COLUMNS, draw_trips(50_000, [0, 0, 0]), strict=True))


def test_the_same_seed_and_size_give_the_same_bytes(folder, tmp_path):
    assert digests(provide_data(tmp_path, ROWS)[0]) == digests(folder)


@pytest.mark.parametrize(("rows", "seed"), [(ROWS, 1), (ROWS + 1, 0)])
def test_another_seed_or_size_gives_other_bytes_and_another_folder(folder, tmp_path, rows, seed):
    other = provide_data(tmp_path, rows, seed)[0]
    assert other.name != folder.name
    (mine,), (first,) = (each.glob("csv/dev/part-00000-*") for each in (other, folder))
    assert mine.read_bytes() != first.read_bytes()


def test_bytes_do_not_depend_on_the_number_of_cores(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    assert digests(provide_data(tmp_path, ROWS)[0]) == digests(folder)


@pytest.mark.parametrize(("name", "rows"), [("dev", ROWS), ("test", ROWS // 10)])
def test_sets_are_as_spark_leaves_them(folder, name, rows):
    shards = sorted((folder / "csv" / name).glob("part-*.csv"))
    assert [int(path.name.split("-")[1]) for path in shards] == list(range(len(shards)))
    assert [path.stat().st_size == 0 for path in shards].count(True) == 1
    assert (folder / "csv" / name / "_SUCCESS").stat().st_size == 0
    full = {number: rows_of(path) for number, path in enumerate(shards) if path.stat().st_size}
    assert all(tuple(lines[0]) == COLUMNS for lines in full.values())
    assert sum(len(lines) - 1 for lines in full.values()) == rows

    (counts,) = (folder / "csv" / name / ".meta" / "shards").glob("part-*.csv")
    assert rows_of(counts) == [["id", "count"], *([str(number), str(len(lines) - 1)] for number, lines in full.items())]


def test_statistics_are_those_of_all_rows_together(folder):
    (path,) = (folder / "csv" / "dev" / ".meta" / "stats").glob("part-*.csv")
    header, *lines = rows_of(path)
    assert header == ["summary", *COLUMNS]
    stated = {line[0]: np.array(line[1:], dtype=float) for line in lines}
    shards = [path for path in sorted((folder / "csv" / "dev").glob("part-*.csv")) if path.stat().st_size]
    values = np.concatenate([np.loadtxt(path, delimiter=",", skiprows=1) for path in shards])
    assert set(stated["count"]) == {ROWS}
    np.testing.assert_allclose(stated["mean"], values.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(stated["stddev"], values.std(axis=0, ddof=1), rtol=1e-9)
    np.testing.assert_array_equal(stated["min"], values.min(axis=0))
    np.testing.assert_array_equal(stated["max"], values.max(axis=0))


@pytest.mark.parametrize(
    ("column", "low", "high"),
    [
        ("origin_block_latitude_double", *LATITUDES),
        ("destination_block_latitude_double", *LATITUDES),
        ("origin_block_longitude_double", *LONGITUDES),
        ("destination_block_longitude_double", *LONGITUDES),
    ],
)
def test_coordinates_lie_in_the_box_with_six_decimals(trips, column, low, high):
    assert low <= trips[column].min() and trips[column].max() <= high
    assert np.array_equal(trips[column], np.round(trips[column], 6))


@pytest.mark.parametrize(
    ("column", "low", "high"),
    [("year_integer", 2015, 2019), ("month_integer", 1, 12), ("dow_integer", 1, 7), ("hour_integer", 0, 23)],
)
def test_every_date_and_hour_comes_up(trips, column, low, high):
    assert np.array_equal(np.unique(trips[column]), np.arange(low, high + 1))


def test_fares_have_two_decimals_and_begin_at_the_flag_drop(trips):
    fares = trips["fareamount_double"]
    assert fares.min() == 3.25
    assert np.array_equal(fares, np.round(fares, 2))


def r_squared(target: np.ndarray, *columns: np.ndarray) -> float:
    features = np.stack([column - column.mean() for column in columns], axis=1)
    residual = target - target.mean()
    residual = residual - features @ np.linalg.lstsq(features, residual, rcond=None)[0]
    return float(1 - residual.var() / target.var())


def test_a_linear_model_learns_the_fare_from_the_distance_and_not_from_raw_columns(trips):
    fare, north, east, to_north, to_east, *dates = trips.values()
    distance = np.hypot(111.2 * (to_north - north), 86.5 * (to_east - east))
    raw = (north, east, to_north, to_east, *dates)
    assert r_squared(fare, *raw) < 0.02
    assert r_squared(fare, *raw, distance) > 0.6


def test_a_complete_set_is_not_made_again(folder):
    assert provide_data(folder.parent, ROWS) == (folder, False)


@pytest.mark.parametrize("damage", ["a shard cut short", "a shard missing", "no marker", "a marker cut short"])
def test_a_damaged_set_is_noticed_and_made_again(folder, tmp_path, damage):
    mine, _ = provide_data(tmp_path, ROWS)
    shard, marker = min((mine / "csv" / "dev").glob("part-*.csv")), mine / generator.MARKER
    if damage == "a shard cut short":
        shard.write_bytes(shard.read_bytes()[:-7])
    elif damage == "a marker cut short":
        marker.write_text(marker.read_text()[:40])
    else:
        (shard if damage == "a shard missing" else marker).unlink()
    assert not is_complete(mine)
    again, made = provide_data(tmp_path, ROWS)
    assert made
    assert digests(again) == digests(folder)


def test_an_interrupted_set_leaves_nothing(tmp_path):
    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        provide_data(tmp_path, ROWS, progress=interrupt)
    assert list(tmp_path.iterdir()) == []


def test_progress_counts_up_to_all_rows(tmp_path):
    seen = []
    provide_data(tmp_path, ROWS, progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (ROWS + ROWS // 10, ROWS + ROWS // 10)
    assert seen == sorted(seen)


def test_no_rows_are_refused(tmp_path):
    with pytest.raises(ConfigurationError, match=r"^ROWS is 0: ask for at least one row"):
        provide_data(tmp_path, 0)
    assert list(tmp_path.iterdir()) == []


def test_uploaded_again_the_shards_have_the_same_etags(folder, tmp_path):
    def etags(running: StandIn) -> dict[str, str]:
        listed = running.client("s3").list_objects_v2(Bucket=running.bucket, Prefix="csv/")["Contents"]
        return {each["Key"]: each["ETag"].strip('"') for each in listed}

    with StandIn(tmp_path / "log") as another:
        fill(another, folder)
        assert etags(another) == digests(folder)
