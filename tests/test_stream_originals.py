"""Rows as they stand in a shard, beside their numbers: a cell is put beside each line, and nothing else changes."""

import csv
import gzip
import io
import multiprocessing
import re
import resource
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow
import pytest
from pyarrow import parquet

from tasks.errors import ConfigurationError, RowCountError, RowError, ShardChangedError
from tasks.streaming import CacheSettings, ObjectStorageDataset, RetryPolicy, locate, passing
from tasks.streaming.formats import csv as csv_format
from tasks.streaming.formats.contract import Contract
from tasks.streaming.formats.originals import Lines, read_originals
from tasks.streaming.objects.transfer import READ_SIZE
from tasks.streaming.writing import ShardWriter
from tests.faults import BreakOff, Fault, FaultProxy, FlipBit, Refuse
from tests.servers import BUCKET, serve_moto, upload

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


def without_last_cells(data: bytes) -> bytes:
    lines = data.split(b"\n")
    bodies = [line.rstrip(b"\r") for line in lines]
    return b"\n".join(body.rpartition(b",")[0] + line[len(body) :] for line, body in zip(lines, bodies, strict=True))


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


def open_shards(tmp_path, files, **options):
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    return ObjectStorageDataset.from_url(f"{tmp_path}/*", **options)


def write_all(dataset, folder, form):
    written = []
    for index, (_, parts) in enumerate(dataset.originals()):
        with ShardWriter(folder / f"out-{index}", form) as writer:
            for part in parts:
                writer.write(part, part.numbers[:, 0].tolist())
        written.append((folder / f"out-{index}").read_bytes())
    return written


def test_gzip_comes_out_as_what_it_holds(tmp_path):
    plain = b"x,name\r\n" + b"".join(b"%d.5,n%d\r\n" % (row, row) for row in range(1000))
    (tmp_path / "in").mkdir()
    dataset = open_shards(tmp_path / "in", {"a.csv.gz": gzip.compress(plain), "b.csv": plain}, columns=["x"])
    for written in write_all(dataset, tmp_path, "csv"):
        assert without_last_cells(written) == plain


def test_from_csv_to_parquet_what_is_not_read_is_strings(tmp_path):
    (tmp_path / "in").mkdir()
    data = b'id,x,name\n9007199254740993,1.5,"a,b"\n007,2,\nNA,3,"say ""yes"""\n'
    (written,) = write_all(open_shards(tmp_path / "in", {"a.csv": data}, columns=["x"]), tmp_path, "parquet")
    table = parquet.read_table(io.BytesIO(written))
    assert table.schema.types == [pyarrow.string(), pyarrow.float64(), pyarrow.string(), pyarrow.float64()]
    assert table.to_pydict() == {
        "id": ["9007199254740993", "007", "NA"],
        "x": [1.5, 2.0, 3.0],
        "name": ["a,b", "", 'say "yes"'],
        "prediction": [1.5, 2.0, 3.0],
    }


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


def write_with_little_disk(dataset, folder, form, queue):
    """In a process whose files may not grow: as on a full disk, a write fails midway."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
    try:
        write_all(dataset, folder, form)
    except ConfigurationError as error:
        queue.put(str(error))
    else:
        queue.put("nothing was raised")


@pytest.mark.parametrize("form", ["csv", "parquet"])
def test_a_full_disk_is_named(form, tmp_path):
    (tmp_path / "in").mkdir()
    data = b"x,name\n" + b"".join(b"%d,%d\n" % (row, row) for row in range(50_000))
    dataset = open_shards(tmp_path / "in", {"a.csv": data}, columns=["x"])
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    process = context.Process(target=write_with_little_disk, args=(dataset, tmp_path, form, queue))
    process.start()
    assert re.fullmatch(
        r"A shard could not be staged in .*File too large.*; make room there, or set TMPDIR", queue.get()
    )
    process.join()


RICH = pyarrow.table(
    {
        "x": pyarrow.array([1.5, 2.5, 3.5], pyarrow.float32()),
        "id": pyarrow.array([9007199254740993, None, -1], pyarrow.int64()),
        "kind": pyarrow.array(["a", "b", "a"]).dictionary_encode(),
        "when": pyarrow.array([0, 1, 2], pyarrow.timestamp("us", tz="Europe/Berlin")),
        "price": pyarrow.array(["1.10", "2.20", "3.30"], pyarrow.string()).cast(pyarrow.decimal128(10, 2)),
        "tags": pyarrow.array([["a"], [], None], pyarrow.list_(pyarrow.string())),
        "place": pyarrow.array([{"lat": 1.0}, None, {"lat": 2.0}]),
        "raw": pyarrow.array([b"\0\xff", b"", None], pyarrow.binary()),
    }
)


def to_parquet(table):
    buffer = io.BytesIO()
    parquet.write_table(table, buffer)
    return buffer.getvalue()


def test_parquet_keeps_its_types_and_values(tmp_path):
    (tmp_path / "in").mkdir()
    (written,) = write_all(
        open_shards(tmp_path / "in", {"a.parquet": to_parquet(RICH)}, columns=["x"]), tmp_path, "parquet"
    )
    table = parquet.read_table(io.BytesIO(written))
    assert table.drop_columns("prediction").equals(RICH)
    assert table.schema.remove(8).equals(RICH.schema)
    assert table["prediction"].to_pylist() == [1.5, 2.5, 3.5]


def test_a_frame_of_pandas_comes_back_with_its_index(tmp_path):
    (tmp_path / "in").mkdir()
    frame = pd.DataFrame({"x": [1.0, 2.0], "kind": pd.Categorical(["a", "b"])}, index=pd.Index(["p", "q"], name="key"))
    frame.to_parquet(tmp_path / "in" / "a.parquet")
    write_all(open_shards(tmp_path / "in", {}, columns=["x"]), tmp_path, "parquet")
    found = pd.read_parquet(tmp_path / "out-0")
    pd.testing.assert_frame_equal(found.drop(columns="prediction"), frame)


def test_from_parquet_to_csv_by_pyarrows_writer(tmp_path):
    (tmp_path / "in").mkdir()
    flat = RICH.select(["x", "id", "kind", "price"])
    (written,) = write_all(
        open_shards(tmp_path / "in", {"a.parquet": to_parquet(flat)}, columns=["x"]), tmp_path, "csv"
    )
    assert (
        written
        == b'x,id,kind,price,prediction\n1.5,9007199254740993,"a",1.10,1.5\n2.5,,"b",2.20,2.5\n3.5,-1,"a",3.30,3.5\n'
    )


def test_what_csv_cannot_hold_is_said(tmp_path):
    (tmp_path / "in").mkdir()
    dataset = open_shards(tmp_path / "in", {"a.parquet": to_parquet(RICH)}, columns=["x"])
    with pytest.raises(RowError, match=r"a\.parquet cannot be written as csv: .*try --format parquet"):
        write_all(dataset, tmp_path, "csv")


@pytest.mark.parametrize("form", ["csv", "parquet"])
def test_bad_rows_of_parquet_are_left_out(tmp_path, form):
    (tmp_path / "in").mkdir()
    table = pyarrow.table({"x": [1.0, None, float("nan"), 4.0], "id": ["a", "b", "c", "d"]})
    dataset = open_shards(tmp_path / "in", {"a.parquet": to_parquet(table)}, columns=["x"])
    cache = CacheSettings(enabled=False, folder=tmp_path / "cache")
    dataset = ObjectStorageDataset.from_manifest(dataset.manifest, on_bad_rows="quarantine", cache=cache)
    write_all(dataset, tmp_path, form)
    found = pd.read_csv(tmp_path / "out-0") if form == "csv" else pd.read_parquet(tmp_path / "out-0")
    assert found.to_dict("list") == {"x": [1.0, 4.0], "id": ["a", "d"], "prediction": [1.0, 4.0]}


def test_a_column_of_that_name_is_refused(tmp_path):
    (tmp_path / "in").mkdir()
    dataset = open_shards(tmp_path / "in", {"a.csv": b"x,prediction\n1,2\n"}, columns=["x"])
    with pytest.raises(RowError, match=r"a\.csv has a column 'prediction' already"):
        write_all(dataset, tmp_path, "csv")


ROWS = 30_000
PLAIN = b"id,x,name\r\n" + b"".join(b'%d,%d.5,"n,%d"\r\n' % (2**53 + row, row, row) for row in range(ROWS))


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """The URL of a server with two shards, and what was listed there."""
    folder = tmp_path_factory.mktemp("shards")
    (folder / "part-0.csv").write_bytes(PLAIN)
    (folder / "part-1.csv").write_bytes(PLAIN)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (("ACCESS_KEY_ID", "key"), ("SECRET_ACCESS_KEY", "secret"), ("DEFAULT_REGION", "us-east-1")):
            patch.setenv(f"AWS_{name}", value)
        with serve_moto() as url:
            upload(url, folder)
            yield url, locate(f"s3://{BUCKET}/part*.csv", columns=["x"], storage_options={"endpoint_url": url})


def dataset_over(manifest, url):
    retry = RetryPolicy(deadline_seconds=1.0)
    return ObjectStorageDataset.from_manifest(manifest, storage_options={"endpoint_url": url}, retry=retry)


@pytest.mark.parametrize(
    ("fault", "times", "gets"),
    [(Fault(), 0, 1), (Refuse(503, "SlowDown"), 1, 2), (BreakOff(345_678, "reset"), 1, 2), (BreakOff(400_000), 1, 2)],
)
def test_over_s3_each_byte_is_fetched_once_and_what_passes_changes_nothing(fault, times, gets, served, tmp_path):
    url, manifest = served
    with FaultProxy(url, fault, key="part-1.csv", times=times) as proxy:
        written = write_all(dataset_over(manifest, proxy.url), tmp_path, "csv")
    assert [without_last_cells(each) for each in written] == [PLAIN, PLAIN]
    assert proxy.gets == gets
    assert not [thread for thread in threading.enumerate() if thread.name == "shardline-fetch"]


def test_a_damaged_byte_is_found_before_the_shard_counts(served, tmp_path):
    url, manifest = served
    damaged = pytest.raises(ShardChangedError, match=r"part-1\.csv: the content's MD5 is")
    with FaultProxy(url, FlipBit(1_000_003), key="part-1.csv") as proxy, damaged:
        write_all(dataset_over(manifest, proxy.url), tmp_path, "csv")
    assert not [thread for thread in threading.enumerate() if thread.name == "shardline-fetch"]


def test_a_replaced_shard_is_refused(served, tmp_path):
    url, manifest = served
    first, second = manifest.shards
    stale = replace(manifest, shards=(first, replace(second, etag="0" * 32)))
    with pytest.raises(ShardChangedError, match=r"part-1\.csv was replaced"):
        write_all(dataset_over(stale, url), tmp_path, "csv")


def test_other_rows_than_stated_are_refused(served, tmp_path):
    url, manifest = served
    first, second = manifest.shards
    with pytest.raises(RowCountError, match=rf"part-1\.csv: {ROWS} rows, but {ROWS + 1} are stated"):
        write_all(dataset_over(replace(manifest, shards=(first, replace(second, rows=ROWS + 1))), url), tmp_path, "csv")


def test_that_predicting_takes_long_is_not_held_against_the_store(served, monkeypatch):
    url, manifest = served
    monkeypatch.setattr(passing, "HELD", READ_SIZE)  # a queue of one piece, so that the connection waits
    rows = 0
    for _, parts in dataset_over(manifest, url).originals():
        for part in parts:
            time.sleep(2.5)  # an object of this size has two seconds
            rows += len(part.numbers)
    assert rows == 2 * ROWS


@pytest.mark.parametrize(("held", "ahead"), [(len(PLAIN) - 1, 0), (len(PLAIN), 1)])
def test_no_more_is_fetched_ahead_than_may_be_held(held, ahead, served, monkeypatch):
    url, manifest = served
    monkeypatch.setattr(passing, "HELD", held)
    with FaultProxy(url, Fault(), key="part-1.csv") as proxy:
        shards = dataset_over(manifest, proxy.url).originals()
        _, parts = next(shards)
        assert sum(len(part.numbers) for part in parts) == ROWS
        time.sleep(0.5)
        assert proxy.gets == ahead
        shards.close()


GOES_THROUGH = """
import sys, time
from pathlib import Path
from tasks.streaming import ObjectStorageDataset, passing
from tasks.streaming.writing import ShardWriter
passing.HELD = 2**22
folder = Path(sys.argv[1])
def go(name):
    for _, parts in ObjectStorageDataset.from_url(str(folder / name), columns=["x"]).originals():
        with ShardWriter(folder / "written", "csv") as writer:
            for number, part in enumerate(parts):
                time.sleep(0.5 if number < 4 else 0)  # what is fetched meanwhile has to wait
                writer.write(part, part.numbers[:, 0].tolist())
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["VmHWM"].split()[0])
print(go("one.csv"), go("ten.csv"))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the kernel of this system does not say how much")
def test_memory_does_not_grow_with_a_shard(tmp_path):
    header, rows = PLAIN.split(b"\r\n", 1)
    (tmp_path / "one.csv").write_bytes(header + b"\r\n" + 8 * rows)
    (tmp_path / "ten.csv").write_bytes(header + b"\r\n" + 80 * rows)
    done = subprocess.run([sys.executable, "-c", GOES_THROUGH, str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    once, ten = map(int, done.stdout.split())
    assert ten - once < 2**14  # KiB; the larger shard has 80 MiB, the smaller one 8
