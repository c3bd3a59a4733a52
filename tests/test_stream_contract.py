"""A contract that is given: which rows break it, by what place they are named, and what is read without them."""

import csv
import gzip
import io
import re

import numpy as np
import pytest
import torch

from tasks.errors import RowError, ShardsNotFoundError
from tasks.streaming import (
    CacheSettings,
    ColumnStatistics,
    ColumnTerms,
    Manifest,
    ObjectStorageDataset,
    Terms,
    loading,
    locate,
)
from tasks.streaming.formats import csv as formats_csv
from tasks.streaming.formats.contract import Contract
from tasks.streaming.formats.diagnosing import decode_csv
from tasks.streaming.formats.rows import HeldRows
from tasks.streaming.listing.statistics import check_statistics
from tests.shards import COLUMNS, draw_rows, to_csv

hypothesis = pytest.importorskip("hypothesis")
examples, settings, st = hypothesis.given, hypothesis.settings, hypothesis.strategies

PLACE = "s3://bucket/contract.yaml"
ROWS = 100  # of each of two shards
AT = 60  # the row of the second one that breaks the contract
BREACHES = {  # by kind: what is stated of a column, a number that breaks it, and how that is told
    "minimum": (ColumnTerms(name="latitude", minimum=0), -0.5, f"less than 0, the minimum in {PLACE}"),
    "maximum": (ColumnTerms(name="hour", maximum=23.5), 24.0, f"more than 23.5, the maximum in {PLACE}"),
    "whole": (ColumnTerms(name="hour", minimum=0, whole=True), 11.5, f"not whole, as {PLACE} requires"),
}
REMEDY = {
    "csv": 'correct the shard, or drop and count such lines with on_bad_rows="quarantine"',
    "gz": 'correct the shard, or drop and count such lines with on_bad_rows="quarantine"',
    "parquet": "correct the shard, or quarantine such rows",
}


def state(*columns, **given):
    return Terms(uri=PLACE, columns=columns, **given)


def write(folder, rows, form="csv"):
    """Two shards with these rows, each a half of them; a glob of them."""
    import pyarrow
    from pyarrow import parquet

    folder.mkdir(exist_ok=True)
    for number, part in enumerate(np.array_split(rows, 2)):
        path = folder / f"part-{number}.{'csv.gz' if form == 'gz' else form}"
        if form == "parquet":
            parquet.write_table(pyarrow.table(dict(zip(COLUMNS, part.T, strict=True))), path)
        else:
            path.write_bytes(gzip.compress(to_csv(part)) if form == "gz" else to_csv(part))
    return f"{folder}/part-*"


def open_rows(glob, terms, folder=None, *, cache=True, **options):
    cache = CacheSettings(enabled=cache and folder is not None, folder=folder)
    return ObjectStorageDataset.from_url(glob, terms=terms, epochs=1, batch_size=64, cache=cache, **options)


def read(dataset):
    return torch.cat(list(dataset)).numpy()


def read_list(dataset):
    with dataset.bad_rows_file.open(newline="") as file:
        return list(csv.DictReader(file))


def spoil(kind):
    """Rows of which one breaks what is stated, and that statement."""
    terms, number, _ = BREACHES[kind]
    rows = draw_rows(2 * ROWS)
    rows[ROWS + AT, COLUMNS.index(terms.name)] = number
    return rows, state(ColumnTerms(name="fare"), terms)


@pytest.mark.parametrize("form", REMEDY)
@pytest.mark.parametrize("kind", BREACHES)
@pytest.mark.parametrize("cache", [False, True])
def test_a_row_that_breaks_it_is_an_error_with_its_place(kind, form, cache, tmp_path):
    rows, terms = spoil(kind)
    dataset = open_rows(write(tmp_path / "data", rows, form), terms, tmp_path / "cache", cache=cache)
    column, number, fault = BREACHES[kind][0].name, BREACHES[kind][1], BREACHES[kind][2]
    uri = f"file://{tmp_path}/data/part-1.{'csv.gz' if form == 'gz' else form}"
    place = f"row {AT + 1}" if form == "parquet" else f"line {AT + 2}"
    shown = number if form == "parquet" else repr(str(number))
    for _ in range(2):
        with pytest.raises(RowError) as raised:
            read(dataset)
        assert str(raised.value) == f"{uri}, {place}: column {column!r} is {shown}, {fault}; {REMEDY[form]}"


@pytest.mark.parametrize("form", REMEDY)
@pytest.mark.parametrize("kind", BREACHES)
@pytest.mark.parametrize("cache", [False, True])
def test_a_row_that_breaks_it_is_set_aside_and_listed_with_its_place(kind, form, cache, tmp_path):
    rows, terms = spoil(kind)
    dataset = open_rows(
        write(tmp_path / "data", rows, form), terms, tmp_path / "cache", cache=cache, on_bad_rows="quarantine"
    )
    for _ in range(2):
        assert np.array_equal(read(dataset), np.delete(rows, ROWS + AT, axis=0))
    (line,) = read_list(dataset)
    column, number, fault = BREACHES[kind]
    shown = number if form == "parquet" else repr(str(number))
    assert dataset.bad_rows == 1
    assert line["line"] == str(AT + (1 if form == "parquet" else 2))
    assert (line["column"], line["cell"]) == (column.name, str(number))
    assert line["reason"] == f"column {column.name!r} is {shown}, {fault}"


def test_the_first_bad_line_is_told_whatever_is_wrong_with_it(tmp_path):
    lines = to_csv(draw_rows(20)).split(b"\n")
    (tmp_path / "part-0.csv").write_bytes(b"\n".join([*lines[:5], b"1,2,99", *lines[6:9], b"1,north,2", *lines[10:]]))
    (tmp_path / "part-1.csv").write_bytes(b"\n".join([*lines[:5], b"1,north,2", *lines[6:9], b"1,2,99", *lines[10:]]))
    for number, fault in enumerate((r"column 'hour' is '99', more than 23,", "column 'latitude' is 'north',")):
        with pytest.raises(RowError, match=f"part-{number}.csv, line 6: {fault}"):
            read(open_rows(f"{tmp_path}/part-{number}.csv", state(ColumnTerms(name="hour", maximum=23))))


def test_lines_that_cannot_be_read_and_those_that_break_it_are_listed_in_order(tmp_path):
    lines = to_csv(draw_rows(20)).split(b"\n")
    lines[3], lines[6], lines[9], lines[12] = b"1,2,99", b"1,north,2", b"", b"1,2,99\r"
    (tmp_path / "part.csv").write_bytes(b"\n".join(lines))
    terms = state(ColumnTerms(name="hour", maximum=23))
    dataset = open_rows(f"{tmp_path}/part.csv", terms, tmp_path, on_bad_rows="quarantine")
    assert np.array_equal(read(dataset), np.delete(draw_rows(20), (2, 5, 8, 11), axis=0))
    assert [(line["line"], line["text"]) for line in read_list(dataset)] == [
        ("4", "1,2,99"),
        ("7", "1,north,2"),
        ("13", "1,2,99"),
    ]


def test_rows_that_are_stored_were_checked_by_the_contract_that_holds_now(tmp_path):
    rows = draw_rows(2 * ROWS)
    rows[ROWS + AT, 2] = 24
    glob, cache = write(tmp_path / "data", rows), tmp_path / "cache"

    def checks(most):
        dataset = open_rows(glob, state(ColumnTerms(name="hour", maximum=most)), cache)
        assert np.array_equal(read(dataset), rows)
        return set(dataset.checks.values())

    assert "cache" not in checks(30)
    assert checks(30) == {"cache"}
    assert "cache" not in checks(24)
    with pytest.raises(RowError, match="more than 23, the maximum"):
        checks(23)
    assert checks(24) == {"cache"}
    assert np.array_equal(read(open_rows(glob, None, cache)), rows)


def test_bounds_of_columns_that_are_not_read_leave_what_is_stored_as_it_is(tmp_path):
    glob, cache = write(tmp_path / "data", draw_rows(2 * ROWS)), tmp_path / "cache"
    read(open_rows(glob, None, cache, columns=["fare", "latitude"]))
    dataset = open_rows(glob, state(ColumnTerms(name="hour", maximum=1)), cache, columns=["fare", "latitude"])
    assert dataset.manifest.unchecked == ("hour",)
    read(dataset)
    assert set(dataset.checks.values()) == {"cache"}


def test_another_contract_sets_other_rows_aside(tmp_path):
    rows = draw_rows(2 * ROWS)
    glob = write(tmp_path / "data", rows)
    for most in (20, 10, 20):
        dataset = open_rows(
            glob, state(ColumnTerms(name="hour", maximum=most)), tmp_path / "cache", on_bad_rows="quarantine"
        )
        assert np.array_equal(read(dataset), rows[rows[:, 2] <= most])
        assert dataset.bad_rows == (rows[:, 2] > most).sum()


def test_a_position_is_of_the_contract_whose_rows_were_left_out(tmp_path):
    rows = draw_rows(2 * ROWS)
    rows[0, 2], rows[1, 2] = 24, -1
    glob = write(tmp_path / "data", rows)
    bounds = [ColumnTerms(name="hour", maximum=23), ColumnTerms(name="hour", minimum=0)]
    states = [
        open_rows(glob, state(bound), tmp_path / "cache", on_bad_rows="quarantine").state_dict() for bound in bounds
    ]
    assert states[0] != states[1]


@pytest.mark.parametrize("end", ["", "\n"])
def test_lines_of_a_large_shard_are_counted_over_its_blocks(end, tmp_path, monkeypatch):
    monkeypatch.setattr(loading, "LARGE", 1)
    monkeypatch.setattr(formats_csv, "BLOCK_SIZE", 200)
    rows = draw_rows(40)
    rows[(3, 17, 18, 39), 2] = 24
    (tmp_path / "part.csv").write_bytes(to_csv(rows).removesuffix(b"\n") + end.encode())
    terms = state(ColumnTerms(name="hour", maximum=23))
    dataset = open_rows(f"{tmp_path}/part.csv", terms, tmp_path, on_bad_rows="quarantine")
    assert np.array_equal(read(dataset), rows[rows[:, 2] <= 23])
    assert [line["line"] for line in read_list(dataset)] == ["5", "19", "20", "41"]
    with pytest.raises(RowError, match=r"part.csv, line 5: column 'hour' is '24.0'"):
        read(open_rows(f"{tmp_path}/part.csv", terms))


@pytest.mark.parametrize("form", REMEDY)
def test_predictions_are_written_beside_the_rows_that_keep_it(form, tmp_path):
    rows = draw_rows(2 * ROWS)
    terms = state(ColumnTerms(name="hour", maximum=20))
    dataset = open_rows(write(tmp_path / "data", rows, form), terms, tmp_path, on_bad_rows="quarantine")
    numbers = [part.numbers for _, parts in dataset.originals() for part in parts]
    assert np.array_equal(np.concatenate(numbers), rows[rows[:, 2] <= 20])


@pytest.mark.parametrize("on_bad_rows", ["error", "quarantine"])
def test_where_a_cell_holds_a_line_end_no_line_is_guessed(on_bad_rows, tmp_path):
    (tmp_path / "part.csv").write_bytes(b'name,hour\n"a\nb",1\nc,24\n')
    with pytest.raises(RowError, match=rf"among lines 2 to 5 a row breaks the bounds of {PLACE}, and"):
        read(
            open_rows(
                f"{tmp_path}/part.csv",
                state(ColumnTerms(name="hour", maximum=23)),
                tmp_path,
                columns=["hour"],
                on_bad_rows=on_bad_rows,
            )
        )


def test_in_float32_bounds_are_rounded_as_the_numbers_are(tmp_path):
    (tmp_path / "part.csv").write_bytes(b"a,b\n0.1,1\n0.1,-1\n0.100001,1\n")
    terms = state(ColumnTerms(name="a", minimum=0.1, maximum=0.1), ColumnTerms(name="b", minimum=-1e300))
    dataset = open_rows(f"{tmp_path}/part.csv", terms, tmp_path, dtype=torch.float32, on_bad_rows="quarantine")
    assert read(dataset)[:, 1].tolist() == [1, -1]


class TestTheShareOfBadRows:
    def open(self, tmp_path, share, count=1000, bad=10):
        rows = draw_rows(count)
        rows[:bad, 2] = 99
        terms = state(ColumnTerms(name="hour", maximum=23), allowed_share=share)
        return open_rows(write(tmp_path / "data", rows), terms, tmp_path / "cache", on_bad_rows="quarantine")

    @pytest.mark.parametrize("share", [None, 0.01, 1.0])
    def test_may_be_reached(self, share, tmp_path):
        assert self.open(tmp_path, share).bad_rows == 10

    def test_may_be_reached_where_its_product_with_the_rows_is_rounded_down(self, tmp_path):
        assert 0.29 * 100 < 29
        assert self.open(tmp_path, 0.29, count=100, bad=29).bad_rows == 29

    @pytest.mark.parametrize(("share", "shown"), [(0.0, "0.000%"), (0.0099, "0.990%")])
    def test_is_an_error_beyond_with_counts_and_where_they_are_listed(self, share, shown, tmp_path):
        for _ in range(2):
            with pytest.raises(RowError) as raised:
                self.open(tmp_path, share)
            (side_file,) = (tmp_path / "cache" / "quarantine").glob("*.csv")
            assert str(raised.value) == (
                f"10 of 1,000 rows break the contract (1.000%), and {PLACE} allows {shown}: column 'hour' is '99.0', "
                f"more than 23, the maximum in {PLACE}, and so on in {side_file}; correct the shards, or what the "
                "contract states"
            )

    def test_is_not_asked_for_where_each_bad_row_is_an_error(self, tmp_path):
        terms = state(ColumnTerms(name="hour", maximum=23), allowed_share=0.0)
        assert len(read(open_rows(write(tmp_path / "data", draw_rows(10)), terms))) == 10


def test_where_no_row_keeps_it_that_is_an_error(tmp_path):
    terms = state(ColumnTerms(name="hour", minimum=24))
    with pytest.raises(ShardsNotFoundError, match=r"None of the 10 rows is good: column 'hour' is .*, less than 24,"):
        open_rows(write(tmp_path / "data", draw_rows(10)), terms, tmp_path, on_bad_rows="quarantine")


class TestItsColumns:
    @pytest.mark.parametrize(
        ("terms", "message"),
        [
            (
                state(ColumnTerms(name="latitud")),
                f"column 'latitud' is missing, which {PLACE} requires; found fare, latitude, hour; the nearest name is "
                "'latitude': correct the shards, or write required: false there",
            ),
            (
                state(ColumnTerms(name="fare"), ColumnTerms(name="hours", required=False), closed=True),
                f"column 'latitude' is not named in {PLACE}, which refuses other columns: correct the shards, or name "
                "it there",
            ),
        ],
    )
    def test_are_looked_for_before_any_row(self, terms, message, tmp_path):
        glob = write(tmp_path, draw_rows(10))
        with pytest.raises(RowError) as raised:
            locate(glob, terms=terms)
        assert str(raised.value) == f"file://{tmp_path}/part-0.csv: {message}"

    def test_are_those_of_the_shards_though_fewer_are_read(self, tmp_path):
        terms = state(*(ColumnTerms(name=name) for name in COLUMNS), closed=True)
        assert locate(write(tmp_path, draw_rows(10)), columns=["hour"], terms=terms).columns == ("hour",)

    def test_may_be_missing_where_that_is_said_or_none_is_required(self, tmp_path):
        glob, other = write(tmp_path, draw_rows(10)), ColumnTerms(name="tip", required=False)
        assert locate(glob, terms=state(other)).terms == state(other)
        locate(glob, terms=state(ColumnTerms(name="tip")).require_none())


@pytest.mark.parametrize(
    ("least", "most", "fault"),
    [(0, 23, None), (-1, 23, "number -1, less than 0"), (0, 23.5, "number 23.5, more than 23")],
)
def test_statistics_of_these_rows_that_break_it_are_an_error(least, most, fault, tmp_path):
    terms = state(ColumnTerms(name="hour", minimum=0, maximum=23))
    manifest = locate(write(tmp_path, draw_rows(10)), terms=terms)
    stated = ColumnStatistics(count=10, mean=1, stddev=1, min=least, max=most)
    check_statistics(manifest, {"hour": ColumnStatistics(count=11, mean=1, stddev=1, min=-9, max=99), "fare": stated})
    if fault is None:
        check_statistics(manifest, {"hour": stated})
        return
    with pytest.raises(RowError, match=re.escape(f".meta/stats states that column 'hour' has the {fault}")):
        check_statistics(manifest, {"hour": stated})


def test_a_manifest_keeps_it(tmp_path):
    terms = state(ColumnTerms(name="hour", minimum=0.5, whole=True), closed=False, allowed_share=0.1)
    manifest = locate(write(tmp_path, draw_rows(10)), terms=terms)
    assert Manifest.from_dict(manifest.to_dict()) == manifest
    assert manifest.choose(["hour"]).terms == manifest.begin(1).terms == terms


NUMBERS = st.one_of(st.integers(-3, 3).map(float), st.floats(-3, 3), st.sampled_from([-0.0, 1e300, -1e-300, 0.1]))
BOUNDS = st.tuples(st.none() | NUMBERS, st.none() | NUMBERS, st.booleans())


class Gathered(HeldRows):
    """Keeps the bytes of all rows."""

    content = b""

    def keep(self, rows):
        self.content += self._block[:rows].tobytes()


def keeps(number, minimum, maximum, whole):
    """What a contract says, in plain Python."""
    return not (
        (minimum is not None and number < minimum)
        or (maximum is not None and number > maximum)
        or (whole and not number.is_integer())
    )


@settings(deadline=None, max_examples=100)
@examples(st.lists(st.tuples(NUMBERS, NUMBERS), min_size=1, max_size=40), BOUNDS, BOUNDS, st.integers(1, 300))
def test_rows_that_are_read_and_refused_are_those_of_plain_python(rows, first, second, block):
    terms = state(
        *(
            ColumnTerms(name=name, minimum=minimum, maximum=maximum, whole=whole)
            for name, (minimum, maximum, whole) in zip("ab", (first, second), strict=True)
        )
    )
    good = [row for row in rows if keeps(row[0], *first) and keeps(row[1], *second)]
    bad = [at + 2 for at, row in enumerate(rows) if row not in good]
    found = Gathered(2, "float64")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(formats_csv, "BLOCK_SIZE", block)
        contract = Contract(("a", "b"), ("a", "b"), drops_bad_rows=True, terms=terms)
        lines = [
            line.line for line in decode_csv("u", io.BytesIO(to_csv(rows, ("a", "b"))), contract, "float64", found)
        ]
        assert lines == bad
        assert found.content == np.array(good, dtype=float).tobytes()
        strict = Contract(("a", "b"), ("a", "b"), terms=terms)
        if bad:
            with pytest.raises(RowError, match=f"u, line {bad[0]}: column '[ab]' is "):
                list(decode_csv("u", io.BytesIO(to_csv(rows, ("a", "b"))), strict, "float64", Gathered(2, "float64")))
