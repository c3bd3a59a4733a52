"""What is written beside shards: CSV or Parquet of either, with the types and the text that were there."""

import gzip
import io
import multiprocessing
import re
import resource
import signal

import pyarrow
import pytest
from pyarrow import parquet

from tasks.errors import ConfigurationError, RowError
from tasks.streaming import CacheSettings, ObjectStorageDataset
from tests.originals import open_shards, without_last_cells, write_all

pd = pytest.importorskip("pandas")


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
