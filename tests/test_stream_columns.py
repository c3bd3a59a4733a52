"""Columns that are not asked for may hold anything; one that is asked for and holds text is named, with a remedy."""

import datetime
import json

import pytest
import torch

from tasks.errors import ConfigurationError, RowError, ShardsNotFoundError
from tasks.naming import join_names, split_names, suggest
from tasks.streaming import CacheSettings, Manifest, ObjectStorageDataset, locate

HOUSES = "price,city,area,sold,rooms\n" + "".join(
    f'{100 + n},"Berlin, {n}",{20 + n},2024-01-{n + 1:02d},{n % 4}\n' for n in range(20)
)
NUMBERS = [[100.0 + n, 20.0 + n, float(n % 4)] for n in range(20)]


@pytest.fixture
def houses(tmp_path):
    (tmp_path / "houses-1.csv").write_text(HOUSES)
    return f"{tmp_path}/houses-*.csv"


def read(shards, **options):
    return torch.cat(list(ObjectStorageDataset.from_url(shards, epochs=1, **options))).tolist()


def test_columns_of_text_that_are_not_read_are_no_fault(houses):
    assert read(houses, columns=["price", "area", "rooms"]) == NUMBERS


def test_without_a_header_line_names_are_given_to_all_and_some_are_read(tmp_path):
    (tmp_path / "houses-1.csv").write_text(HOUSES.partition("\n")[2])
    manifest = locate(
        f"{tmp_path}/houses-*.csv",
        header=None,
        columns=["price", "area", "rooms"],
        names=HOUSES.split("\n")[0].split(","),
    )
    assert manifest == Manifest.from_dict(json.loads(json.dumps(manifest.to_dict())))
    for cache in (CacheSettings(enabled=False), *[CacheSettings(folder=tmp_path / "cache")] * 2):
        dataset = ObjectStorageDataset.from_manifest(manifest, epochs=1, cache=cache)
        assert torch.cat(list(dataset)).tolist() == NUMBERS
    chosen = manifest.choose(["rooms"])
    assert torch.cat(list(ObjectStorageDataset.from_manifest(chosen, epochs=1)))[:, 0].tolist() == [
        row[2] for row in NUMBERS
    ]
    with pytest.raises(
        ConfigurationError, match=r"columns names 'aria', which is none of .*; the nearest name is 'area'"
    ):
        locate(
            f"{tmp_path}/houses-*.csv", header=None, columns=["aria"], names=["price", "city", "area", "sold", "rooms"]
        )


@pytest.mark.parametrize(("column", "cell"), [("city", "Berlin, 0"), ("sold", "2024-01-01")])
def test_a_column_of_text_is_named_with_what_to_give(column, cell, houses):
    with pytest.raises(RowError) as caught:
        read(houses, columns=["price", column])
    assert f"line 2: column {column!r} is {cell!r}, which is not a number, and neither is any of 20 lines" in str(
        caught.value
    )
    assert "--columns" in str(caught.value) and "--features" in str(caught.value)
    assert "quarantine" not in str(caught.value)


def test_one_bad_cell_among_numbers_may_still_be_quarantined(tmp_path):
    (tmp_path / "part.csv").write_text("a,b\nx,1\n2,2\n")
    with pytest.raises(RowError, match=r"line 2: column 'a' is 'x', .* on_bad_rows=\"quarantine\"$"):
        read(f"{tmp_path}/part.csv")


def test_rows_of_which_none_can_be_read_are_said_with_the_column_and_what_to_give(houses, tmp_path):
    with pytest.raises(ShardsNotFoundError, match=r"column 'city' is 'Berlin, 0', which is not a number, .*--features"):
        read(houses, on_bad_rows="quarantine", cache=CacheSettings(folder=tmp_path / "cache"))


@pytest.mark.parametrize("values", [[True, False], ["a", "b"], [datetime.date(2024, 1, 1)] * 2])
def test_nothing_but_numbers_of_parquet_becomes_a_number(values, tmp_path):
    import pyarrow
    from pyarrow import parquet

    table = pyarrow.table({"y": [1.0, 2.0], "other": pyarrow.array(values)})
    table = table.append_column("category", table["other"].cast("string").dictionary_encode())
    parquet.write_table(table, tmp_path / "part.parquet")
    assert read(f"{tmp_path}/part.parquet", columns=["y"]) == [[1.0], [2.0]]
    for column in ("other", "category"):
        with pytest.raises(RowError, match=f"column '{column}' is of type .*, not of numbers; read other columns"):
            read(f"{tmp_path}/part.parquet", columns=["y", column])


def test_a_misspelt_column_is_answered_with_the_nearest_name(houses):
    with pytest.raises(RowError, match=r"column 'Room' is missing; found .*; the nearest name is 'rooms'"):
        locate(houses, columns=["price", "Room"])


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("a,b", ["a", "b"]),
        (" a , b ,", ["a", "b"]),
        ('"a, b",c', ["a, b", "c"]),
        ('c, "a, ""b""" ', ["c", 'a, "b"']),
        ('" a",b c', [" a", "b c"]),
        ("größe,5 m²", ["größe", "5 m²"]),
    ],
)
def test_names_are_read_as_csv_writes_them(text, names):
    assert split_names(text) == names
    assert split_names(join_names(names)) == names


@pytest.mark.parametrize("text", ['"a,b', '"a"b,c', 'a,"'])
def test_a_quote_that_does_not_end_is_refused(text):
    with pytest.raises(ValueError, match="the quotes in"):
        split_names(text)


def test_what_cannot_be_seen_in_a_name_is_written_out():
    assert join_names(["a b", "a\xa0b", "a ", "\u200bc"]) == r"""a b, 'a\xa0b', "a ", '\u200bc'"""
    assert join_names(map(str, range(1000))).endswith("38, 39 and 960 more")


def test_only_what_is_near_is_suggested():
    assert suggest("PRICE", ["area", "price"]) == "; the nearest name is 'price'"
    assert suggest("xyz", ["area", "price"]) == ""
