"""Rows as they stand in a shard, beside their numbers: a cell is put beside each line, and nothing else changes."""

import csv
import gzip
import io
from pathlib import Path

import numpy as np
import pytest

from tasks.errors import RowError
from tasks.streaming.formats import csv as csv_format
from tasks.streaming.formats.contract import Contract
from tasks.streaming.formats.originals import Lines, read_originals
from tests.originals import without_last_cells

hypothesis = pytest.importorskip("hypothesis")
mpl = pytest.importorskip("matplotlib")
pd = pytest.importorskip("pandas")
sklearn_datasets = pytest.importorskip("sklearn.datasets")
given, settings, st = hypothesis.given, hypothesis.settings, hypothesis.strategies

DATA = Path(sklearn_datasets.__file__).parent / "data"
TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="\r\n\0"), max_size=8)
QUOTED = TEXTS.map(lambda text: '"' + text.replace('"', '""') + '"')
BARE = st.text(st.sampled_from("ab 01.-é'"), max_size=6)
FLOATS = st.floats(allow_nan=False, allow_infinity=False)
ENDS = st.sampled_from(["\n", "\r\n", "\n\n", "\r\n\r\n"])
RECORDS = st.lists(st.tuples(QUOTED | BARE, FLOATS, QUOTED | BARE, ENDS), min_size=1, max_size=30)


def beside(data: bytes, columns, header, *, pieces: int = 2**18, drops_bad_rows: bool = False):
    """The shard with a cell more in each line, the row's number in `columns`; and those numbers."""
    cut = [data[at : at + pieces] for at in range(0, len(data), pieces)]
    numbers: list[list[float]] = []
    written = b""
    for part in read_originals("file:///part.csv", cut, Contract(columns, header, drops_bad_rows)):
        assert isinstance(part, Lines)
        values = [float(len(numbers) + index) for index in range(len(part.numbers))]
        written += part.append("prediction", map(repr, values))
        numbers += part.numbers.tolist()
    return written, numbers


@settings(max_examples=300, deadline=None)
@given(
    records=RECORDS,
    header=st.sampled_from([None, "id,x,text\n", 'id,"x",text\r\n', '"id",x,"text"\n']),
    mark=st.sampled_from([b"", b"\xef\xbb\xbf"]),
    alike=st.sampled_from([None, "\n", "\r\n"]),
    ends=st.booleans(),
    pieces=st.integers(1, 300),
    block=st.sampled_from([1, 40, 2**20]),
)
def test_without_its_last_column_the_output_is_the_input_byte_for_byte(
    records, header, mark, alike, ends, pieces, block
):
    if header is None:
        records = [("7", number, "8", end) for _, number, _, end in records]
    text = (header or "") + "".join(f"{first},{number!r},{last}{alike or end}" for first, number, last, end in records)
    data = mark + (text if ends else text.rstrip("\r\n")).encode()
    columns, names = (("x",), ("id", "x", "text")) if header else (("id", "x", "text"), None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(csv_format, "BLOCK_SIZE", block)
        written, numbers = beside(data, columns, names, pieces=pieces)
    assert without_last_cells(written) == data
    assert [row[-2 if header is None else 0] for row in numbers] == [number for _, number, _, _ in records]
    expected = [row for row in csv.reader(io.StringIO(data.decode("utf-8-sig"), newline="")) if row]
    found = [row for row in csv.reader(io.StringIO(written.decode("utf-8-sig"), newline="")) if row]
    cells = [*(["prediction"] if header else []), *(repr(float(at)) for at in range(len(records)))]
    assert found == [[*row, cell] for row, cell in zip(expected, cells, strict=True)]


@settings(max_examples=100, deadline=None)
@given(records=RECORDS, block=st.sampled_from([1, 40, 2**20]))
def test_from_csv_to_parquet_every_cell_that_is_not_read_is_the_text_in_it(records, block):
    data = ("id,x,text\n" + "".join(f"{first},{number!r},{last}{end}" for first, number, last, end in records)).encode()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(csv_format, "BLOCK_SIZE", block)
        contract = Contract(("x",), ("id", "x", "text"))
        batches = [part.to_batch() for part in read_originals("file:///part.csv", [data], contract)]
    found = [row for batch in batches for row in batch.to_pylist()]
    expected = [row for row in csv.reader(io.StringIO(data.decode(), newline="")) if row][1:]
    assert [[row["id"], row["text"]] for row in found] == [[first, last] for first, _, last in expected]
    assert [row["x"] for row in found] == [number for _, number, _, _ in records]


@pytest.mark.parametrize("header", [("a", "b"), None])
def test_blank_lines_before_the_first_come_through(header):
    data = b"\xef\xbb\xbf\n\r\n" + (b"a,b\r\n" if header else b"") + b"1,2\r\n\n3,4\n"
    written, numbers = beside(data, ("a", "b"), header, pieces=2)
    assert written == b"\xef\xbb\xbf\n\r\n" + (b"a,b,prediction\r\n" if header else b"") + b"1,2,0.0\r\n\n3,4,1.0\n"
    assert numbers == [[1.0, 2.0], [3.0, 4.0]]


def test_a_file_with_dates_that_came_with_matplotlib_comes_through():
    data = (Path(mpl.get_data_path()) / "sample_data" / "msft.csv").read_bytes()
    names = tuple(data.split(b"\n", 1)[0].decode().strip().split(","))
    written, numbers = beside(data, ("Open", "Volume"), names)
    assert without_last_cells(written) == data
    frame = pd.read_csv(io.BytesIO(data))
    assert np.array_equal(numbers, frame[["Open", "Volume"]])
    pd.testing.assert_frame_equal(pd.read_csv(io.BytesIO(written)).drop(columns="prediction"), frame)


def test_a_file_without_header_that_came_with_scikit_learn_comes_through():
    data = gzip.decompress((DATA / "digits.csv.gz").read_bytes())
    written, numbers = beside(data, tuple(f"pixel {at}" for at in range(65)), None)
    assert without_last_cells(written) == data
    assert np.array_equal(numbers, np.loadtxt(io.BytesIO(data), delimiter=","))


def test_ids_and_text_that_no_double_holds_stay():
    data = b'id,when,x,name\r\n9007199254740993,20240105123000,1.50,"a,b"\r\n-0,007,+2e0,"say ""yes"""\r\n,,3,\r\n'
    written, numbers = beside(data, ("x",), ("id", "when", "x", "name"))
    assert written == (
        b'id,when,x,name,prediction\r\n9007199254740993,20240105123000,1.50,"a,b",0.0\r\n'
        b'-0,007,+2e0,"say ""yes""",1.0\r\n,,3,,2.0\r\n'
    )
    assert numbers == [[1.5], [2.0], [3.0]]


@pytest.mark.parametrize("last", ["3,c\n", "3,c", "x,c", "x,c\r\n", "x,c\n\n"])
def test_bad_rows_go_with_their_line_ends_and_no_other_line_moves(last):
    data = f"x,name\n1,a\n,b\r\nnan,c\n2,d\r\n{last}".encode()
    written, numbers = beside(data, ("x",), ("x", "name"), drops_bad_rows=True)
    good = [line for line in data.splitlines(keepends=True) if not line.startswith((b",", b"nan", b"x,c"))]
    assert without_last_cells(written) == b"".join(good)
    assert [row[0] for row in numbers] == [1, 2, 3][: len(numbers)]


@pytest.mark.parametrize(
    "data", [b'x,t\n1,"a\nb"\n2,c\n', b"x,t\n1,a\r2,b\n", b'x,t\n1,"a\rb"\n', b'x,t\n1,a\r2,"b\nc"\n']
)
def test_a_line_end_in_a_cell_is_refused_rather_than_guessed_at(data):
    with pytest.raises(RowError, match=r"part\.csv"):
        beside(data, ("x",), ("x", "t"))
