"""Bad rows set aside: dropped, counted, listed with their place, and the rest in the same order everywhere."""

import csv

import pytest
import torch
from torch.utils.data import DataLoader

from tasks.errors import RowCountError, RowError, ShardsNotFoundError
from tasks.streaming import CacheSettings, ObjectStorageDataset, Placement
from tests.shards import draw_rows, hash_rows, to_csv, write_metadata

BAD = {
    4: b"1,north,3",
    5: b"fare,latitude,hour",
    9: b"1,2",
    700: b"1,2,3,4",
    701: b"nan,2,3",
    702: b",2,3",
    1001: b"1,2,3e999",
}
PROBLEMS = {
    4: "column 'latitude' is 'north', which is not a number",
    5: "the header line is repeated here",
    9: "2 cells where 3 are expected",
    700: "4 cells where 3 are expected",
    701: "column 'fare' is 'nan', which is not a finite number",
    702: "column 'fare' is empty",
    1001: "column 'hour' is '3e999', which is not a finite number",
}


@pytest.fixture
def spoilt(tmp_path):
    """Three shards, the second with bad lines, counted by Spark's metadata; the glob, and the good rows."""
    rows = draw_rows(3000)
    (tmp_path / "data").mkdir()
    good = []
    for number in range(3):
        part = rows[number * 1000 : (number + 1) * 1000]
        lines = to_csv(part).split(b"\n")
        keep = torch.ones(1000, dtype=torch.bool)
        for line, text in BAD.items() if number == 1 else ():
            lines[line - 1] = text
            keep[line - 2] = False
        (tmp_path / "data" / f"part-{number:05d}.csv").write_bytes(b"\n".join(lines))
        good.append(torch.from_numpy(part)[keep])
    write_metadata(tmp_path / "data", {0: 1000, 1: 1000, 2: 1000})
    return f"{tmp_path}/data/part*.csv", torch.cat(good)


def quarantine(glob, folder, *, cache=False, **options):
    settings = CacheSettings(enabled=cache, folder=folder)
    return ObjectStorageDataset(glob, on_bad_rows="quarantine", cache=settings, batch_size=128, **options)


def test_by_default_the_first_bad_row_is_an_error(spoilt):
    with pytest.raises(RowError, match="line 4: column 'latitude' is 'north'"):
        list(ObjectStorageDataset(spoilt[0], epochs=1))


@pytest.mark.parametrize("cache", [False, True])
def test_bad_rows_are_dropped_and_counted(spoilt, tmp_path, cache):
    dataset = quarantine(spoilt[0], tmp_path, epochs=2, cache=cache)
    assert dataset.bad_rows == len(BAD)
    assert dataset.manifest.counts == (1000, 1000 - len(BAD), 1000)
    for _ in range(2):
        assert hash_rows(dataset) == hash_rows([spoilt[1], spoilt[1]])


def test_bad_rows_are_listed_with_their_place(spoilt, tmp_path):
    dataset = quarantine(spoilt[0], tmp_path)
    with dataset.bad_rows_file.open(newline="") as file:
        listed = list(csv.DictReader(file))
    assert {int(row["line"]): row["reason"] for row in listed} == PROBLEMS
    assert {int(row["line"]): row["text"].encode() for row in listed} == BAD
    assert {row["uri"] for row in listed} == {f"file://{tmp_path}/data/part-00001.csv"}
    assert (listed[0]["column"], listed[0]["cell"]) == ("latitude", "north")
    assert any(str(dataset.bad_rows_file) in note for note in dataset.manifest.notes)


def test_ranks_workers_and_resumption_see_the_same_rows(spoilt, tmp_path):
    whole = list(quarantine(spoilt[0], tmp_path, epochs=1, shuffle=True))
    parts = []
    for rank in range(2):
        placement = Placement(rank=rank, world_size=2)
        dataset = quarantine(spoilt[0], tmp_path, epochs=1, shuffle=True, placement=placement, start=3)
        parts.append(list(DataLoader(dataset, batch_size=None, num_workers=2)))
    assert [torch.cat(batch).tolist() for batch in zip(*parts, strict=True)] == [batch.tolist() for batch in whole[3:]]


def test_a_second_data_set_over_the_same_data_does_not_look_again(spoilt, tmp_path):
    first = quarantine(spoilt[0], tmp_path)
    stamp = first.bad_rows_file.stat().st_mtime_ns
    second = quarantine(spoilt[0], tmp_path)
    assert second.bad_rows_file.stat().st_mtime_ns == stamp
    assert second.manifest.fingerprint == first.manifest.fingerprint


def test_good_data_lose_nothing(tmp_path):
    (tmp_path / "part.csv").write_bytes(to_csv(draw_rows(10)))
    dataset = quarantine(f"{tmp_path}/part.csv", tmp_path, epochs=1)
    assert (dataset.bad_rows, dataset.manifest.rows) == (0, 10)


def test_rows_that_are_missing_are_still_an_error(spoilt, tmp_path):
    write_metadata(tmp_path / "data", {0: 1000, 1: 1001, 2: 1000})
    with pytest.raises(RowCountError, match=r"993 good and 7 bad rows, but 1001 are stated"):
        quarantine(spoilt[0], tmp_path)


def test_a_header_that_breaks_the_contract_is_still_an_error(tmp_path):
    (tmp_path / "part-0.csv").write_bytes(b"a,b\n1,2\n")
    (tmp_path / "part-1.csv").write_bytes(b"a,c\n1,2\n")
    with pytest.raises(RowError, match="column 'b' is missing"):
        quarantine(f"{tmp_path}/part-*.csv", tmp_path)


def test_data_without_a_good_row_are_an_error(tmp_path):
    (tmp_path / "part.csv").write_bytes(b"a,b\n1,x\n")
    with pytest.raises(ShardsNotFoundError, match="None of the 1 rows is good"):
        quarantine(f"{tmp_path}/part.csv", tmp_path)
