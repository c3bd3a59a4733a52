"""Columns that are not asked for may hold anything; one that is asked for and holds text is named, with a remedy."""

import bz2
import datetime
import gzip
import json
import multiprocessing
import resource
import signal

import pytest
import torch

from tasks.errors import ConfigurationError, RowError, ShardsNotFoundError
from tasks.naming import join_names, split_names, suggest
from tasks.streaming import CacheSettings, Manifest, ObjectStorageDataset, locate
from tests.shards import write_metadata

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


YEARS = "2019,2020,2021\n" + "".join(f"{3 * n + 2 * n * n},{n},{n * n}\n" for n in range(20))


@pytest.fixture
def years(tmp_path):
    (tmp_path / "part.csv").write_text(YEARS)
    return f"{tmp_path}/part.csv"


@pytest.mark.parametrize(
    "options",
    [
        {"columns": ["2019", "2020", "2021"]},
        {"columns": ["2021", "2019", "2020"]},
        {"columns": ["2019", "2021"]},
        {"header": 0},
    ],
)
def test_a_header_line_of_numbers_is_no_row_where_it_is_named(options, years):
    manifest = locate(years, **options)
    assert manifest.rows == 20
    assert manifest.header == ("2019", "2020", "2021")
    assert manifest.columns == tuple(options.get("columns", manifest.header))
    assert not [note for note in manifest.notes if "numbers only" in note]


def test_a_first_line_of_numbers_is_a_row_where_nothing_names_it_and_a_note_says_so(years):
    manifest = locate(years)
    assert (manifest.rows, manifest.columns) == (21, ("column_0", "column_1", "column_2"))
    (note,) = [note for note in manifest.notes if "numbers only" in note]
    assert "2019,2020,2021" in note and "--header first" in note
    named = ["2019", "2020", "2021"]
    for stated in (
        locate(years, header=None),
        locate(years, header=None, columns=named),
        locate(years, columns=["a", "b", "c"]),
    ):
        assert (stated.rows, stated.header) == (21, None)
        assert not [note for note in stated.notes if "numbers only" in note]


BLANK_FIRST = {
    "a blank line": b"\na,b\n1,2\n3,4\n",
    "many, with carriage returns": b"\r\n\r\n\r\na,b\r\n1,2\r\n3,4\r\n",
    "behind a byte order mark": b"\xef\xbb\xbf\n\na,b\n1,2\n3,4\n",
    "without a header line": b"\n\n1,2\n3,4\n",
    "more than a piece": b"\n" * 2**19 + b"a,b\n1,2\n3,4\n",
}


@pytest.mark.parametrize("case", BLANK_FIRST)
@pytest.mark.parametrize("packed", [False, True])
def test_blank_lines_before_the_first_are_no_fault(case, packed, tmp_path):
    data = BLANK_FIRST[case]
    (tmp_path / "part.csv").write_bytes(gzip.compress(data) if packed else data)
    assert read(f"{tmp_path}/part.csv") == [[1.0, 2.0], [3.0, 4.0]]


def test_lines_are_counted_from_the_first_one_though_it_is_blank(tmp_path):
    (tmp_path / "part.csv").write_bytes(b"\n\na,b\n1,2\n3,x\n")
    with pytest.raises(RowError, match="line 5: column 'b' is 'x'"):
        read(f"{tmp_path}/part.csv")


@pytest.mark.parametrize("first", [b"", gzip.compress(b"", mtime=0), gzip.compress(b"\n", mtime=0), b"\n", b"\r\n\n"])
def test_a_first_shard_without_a_line_is_skipped(first, tmp_path):
    (tmp_path / "part-0.csv").write_bytes(first)
    with pytest.raises(ShardsNotFoundError, match="matches 1 shards, but all of them are empty"):
        locate(f"{tmp_path}/part-*.csv", columns=["a", "b"])
    (tmp_path / "part-1.csv").write_bytes(b"a,b\n1,2\n")
    manifest = locate(f"{tmp_path}/part-*.csv")
    assert (manifest.columns, manifest.counts) == (("a", "b"), (1,))
    write_metadata(tmp_path, {1: 1})
    assert locate(f"{tmp_path}/part-*.csv").counts == (1,)


@pytest.mark.parametrize("packed", [False, True])
def test_a_header_line_of_many_kilobytes_is_read_whole(packed, tmp_path):
    names = [f"column number {n}, of many ".ljust(40, "x") for n in range(4000)]
    text = ",".join(f'"{name}"' for name in names) + "\n" + ",".join(str(n) for n in range(4000)) + "\n"
    (tmp_path / "part.csv").write_bytes(gzip.compress(text.encode()) if packed else text.encode())
    assert locate(f"{tmp_path}/part.csv").columns == tuple(names)
    assert read(f"{tmp_path}/part.csv", columns=names[-2:]) == [[3998.0, 3999.0]]


def test_a_first_line_without_an_end_is_named(tmp_path):
    (tmp_path / "part.csv").write_bytes(b"x" * (2**24 + 2**18))
    with pytest.raises(RowError, match=r"part.csv, line 1: no line end in \d+ bytes; is this CSV\?"):
        locate(f"{tmp_path}/part.csv")


def test_a_folder_in_which_bad_rows_cannot_be_listed_is_named(houses, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(
        ConfigurationError, match=rf"rows cannot be listed in {tmp_path}/file/quarantine: .*--cache-dir"
    ):
        read(houses, columns=["area"], on_bad_rows="quarantine", cache=CacheSettings(folder=tmp_path / "file"))


def quarantine_with_little_disk(shards, folder, queue):
    """In a process whose files may not grow: as on a full disk, a write fails."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, 10))
    try:
        read(shards, columns=["area"], on_bad_rows="quarantine", cache=CacheSettings(folder=folder, enabled=False))
    except Exception as error:
        queue.put(f"{type(error).__name__}: {error}")


def test_a_full_disk_on_which_bad_rows_cannot_be_listed_is_named_and_does_no_harm_later(houses, tmp_path):
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    process = context.Process(target=quarantine_with_little_disk, args=(houses, tmp_path / "cache", queue))
    process.start()
    found = queue.get()
    process.join()
    assert found.startswith(f"ConfigurationError: bad rows cannot be listed in {tmp_path}/cache/quarantine: [Errno 27]")
    for path in (tmp_path / "cache" / "quarantine").iterdir():
        if path.suffix in (".json", ".csv"):
            path.write_bytes(b"")  # as where the machine lost its power before they were on the disk
    rows = read(houses, columns=["area"], on_bad_rows="quarantine", cache=CacheSettings(folder=tmp_path / "cache"))
    assert len(rows) == 20


def pack_zstandard(data):
    import pyarrow

    return pyarrow.compress(data, "zstd", asbytes=True)


PACKED = {
    "bzip2": bz2.compress(b"a,b\n1,2\n3,4\n"),
    "bzip2 in two members": bz2.compress(b"a,b\n1,2\n") + bz2.compress(b"3,4\n"),
    "Zstandard": pack_zstandard(b"a,b\n1,2\n3,4\n"),
    "Zstandard in two frames": pack_zstandard(b"a,b\n1,2\n") + pack_zstandard(b"3,4\n"),
}


@pytest.mark.parametrize("case", PACKED)
@pytest.mark.parametrize("rows", [2, 200_000])
def test_bzip2_and_zstandard_are_read(case, rows, tmp_path):
    pack, data = bz2.compress if case.startswith("bzip2") else pack_zstandard, PACKED[case]
    if rows > 2:
        data += pack(b"3,4\n" * (rows - 2))
    (tmp_path / "part.csv").write_bytes(data)
    assert locate(f"{tmp_path}/part.csv").rows == rows
    assert read(f"{tmp_path}/part.csv") == [[1.0, 2.0], *[[3.0, 4.0]] * (rows - 1)]


@pytest.mark.parametrize("case", ["bzip2", "Zstandard"])
def test_compressed_data_that_is_cut_short_is_named(case, tmp_path):
    (tmp_path / "part.csv").write_bytes(PACKED[case][:-3])
    with pytest.raises((RowError, ShardsNotFoundError), match=r"part.csv begins like|all of them are empty"):
        read(f"{tmp_path}/part.csv")


OTHER_FORMS = {
    "carriage returns": (b"a,b\r1,2\r3,4\r", "lines end in a carriage return alone; write the shard with line feeds"),
    "semicolons": (b"a;b\n1,5;2\n", "cells seem to be separated by semicolons: 'a;b'; write the shard with commas"),
    "tabs": (b"a\tb\n1\t2\n", "cells seem to be separated by tabs"),
}


@pytest.mark.parametrize("case", OTHER_FORMS)
def test_what_is_not_separated_by_commas_and_line_feeds_is_said(case, tmp_path):
    data, message = OTHER_FORMS[case]
    (tmp_path / "part.csv").write_bytes(data)
    with pytest.raises(RowError, match=rf"part.csv, line 1: {message}"):
        locate(f"{tmp_path}/part.csv")


@pytest.mark.parametrize("end", ["", "/"])
def test_a_folder_means_its_files(end, tmp_path):
    for number in range(3):
        (tmp_path / f"part-{number}.csv").write_text(f"a,b\n{number},2\n")
    (tmp_path / "_SUCCESS").write_text("")
    (tmp_path / "deeper").mkdir()
    assert read(f"{tmp_path}{end}") == [[0.0, 2.0], [1.0, 2.0], [2.0, 2.0]]


def test_brackets_may_be_part_of_a_name_and_a_scheme_be_written_in_capitals(tmp_path):
    (tmp_path / "x[1].csv").write_text("a,b\n1,2\n")
    assert read(f"{tmp_path}/x[1].csv") == [[1.0, 2.0]]
    assert read(f"FILE://{tmp_path}/x[1].csv") == [[1.0, 2.0]]
