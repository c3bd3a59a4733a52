"""CSV and Parquet, strictly: what keeps the contract is read to the bit, what breaks it is named with its place."""

import gzip

import numpy as np
import pytest
import torch

from tasks.errors import ConfigurationError, RowCountError, RowError
from tasks.streaming import CacheSettings, Manifest, ObjectStorageDataset, Placement, RetryPolicy, Shard, locate
from tasks.streaming.formats.csv import BLOCK_SIZE
from tests.shards import COLUMNS, draw_rows, to_csv, write_metadata

HEADER = b"fare,latitude,hour\n"
GOOD = b"1.5,38.9,7\n2.5,38.8,23\n"
ROWS = [[1.5, 38.9, 7.0], [2.5, 38.8, 23.0]]


def read(folder, data, name="part-00001.csv", **options):
    """All rows of a data set whose first shard is a good one and whose second is `data`, without the first's."""
    (folder / "part-00000.csv").write_bytes(HEADER + GOOD)
    (folder / name).write_bytes(data)
    dataset = ObjectStorageDataset.from_url(f"{folder}/part*", batch_size=10_000, epochs=1, **options)
    return torch.cat(list(dataset))[2:].tolist()


GZIPPED = gzip.compress(HEADER + GOOD)
READABLE = {
    "plain": HEADER + GOOD,
    "no final newline": (HEADER + GOOD)[:-1],
    "CRLF": (HEADER + GOOD).replace(b"\n", b"\r\n"),
    "byte order mark": b"\xef\xbb\xbf" + HEADER + GOOD,
    "quoted numbers": HEADER + b'"1.5","38.9","7"\n2.5,"38.8",23\n',
    "quoted header": b'"fare","latitude","hour"\n' + GOOD,
    "empty lines": HEADER + b"\n1.5,38.9,7\n\n\n2.5,38.8,23\n\n",
    "spaces about numbers": HEADER + b"1.5, 38.9,7 \n2.5,38.8,23\n",
    "exponents": HEADER + b"15e-1,3.89E1,7\n2.5,38.8,+23\n",
    "reordered columns": b"hour,fare,latitude\n7,1.5,38.9\n23,2.5,38.8\n",
    "gzip": GZIPPED,
    "gzip in two members": gzip.compress(HEADER) + gzip.compress(GOOD),
    "gzip with padding between and behind": gzip.compress(HEADER) + bytes(9) + gzip.compress(GOOD) + bytes(512),
}


@pytest.mark.parametrize("case", READABLE)
def test_what_keeps_the_contract_is_read(case, tmp_path):
    name = "part-00001.csv.gz" if case.startswith("gzip") else "part-00001.csv"
    assert read(tmp_path, READABLE[case], name) == ROWS


BREAKING = {
    "bad cell": (HEADER + b"1.5,38.9,7\n2.5,north,8\n", r"line 3: column 'latitude' is 'north', which is not a number"),
    "empty cell": (HEADER + b"1.5,,7\n", "line 2: column 'latitude' is empty"),
    "empty last cell": (HEADER + b"1.5,38.9,\n", "line 2: column 'hour' is empty"),
    "missing cell": (HEADER + b"1.5,38.9\n", "line 2: 2 cells where 3 are expected"),
    "extra cell": (HEADER + b"1.5,38.9,7,1\n", "line 2: 4 cells where 3 are expected"),
    "nan": (HEADER + b"1.5,nan,7\n", "line 2: column 'latitude' is 'nan', which is not a finite number"),
    "NA": (HEADER + b"1.5,NA,7\n", "line 2: column 'latitude' is 'NA', which is not a number"),
    "infinity": (HEADER + b"1.5,38.9,-inf\n", "line 2: column 'hour' is '-inf', which is not a finite number"),
    "too large for a double": (HEADER + b"1e400,38.9,7\n", "line 2: column 'fare' is '1e400', which is not a finite"),
    "thousands separator": (HEADER + b'"1,500",38.9,7\n', "line 2: column 'fare' is '1,500', which is not a number"),
    "underscore": (HEADER + b"1_500,38.9,7\n", "line 2: column 'fare' is '1_500', which is not a number"),
    "NUL": (HEADER + b"1.5,38.9,7\n2.5,\x00\x00,7\n", "line 3: column 'latitude'"),
    "repeated header": (HEADER + GOOD + HEADER + GOOD, "line 4: the header line is repeated here"),
    "after empty lines": (HEADER + b"\n\n1.5,38.9,x\n", "line 4: column 'hour' is 'x'"),
    "after CRLF": (b"fare,latitude,hour\r\n1.5,38.9,7\r\n1.5,38.9,x\r\n", "line 3: column 'hour' is 'x'"),
    "in reordered columns": (b"hour,latitude,fare\n7,38.9,x\n", "line 2: column 'fare' is 'x'"),
    "missing column": (b"fare,latitude\n1.5,38.9\n", "line 1: column 'hour' is missing; found fare, latitude"),
    "extra column": (b"fare,latitude,hour,day\n1,2,3,4\n", "line 1: column 'day' is not in the contract"),
    "duplicate column": (b"fare,latitude,hour,hour\n1,2,3,4\n", "line 1: column 'hour' is in the header more than"),
    "no header line": (GOOD + GOOD, "line 1: column 'fare' is missing; found 1.5, 38.9, 7; it seems to have no header"),
}  # fmt: skip


@pytest.mark.parametrize("case", BREAKING)
def test_what_breaks_the_contract_is_named_with_its_place(case, tmp_path):
    data, message = BREAKING[case]
    with pytest.raises(RowError, match=message) as caught:
        read(tmp_path, data)
    assert f"file://{tmp_path}/part-00001.csv, line " in str(caught.value)


def test_a_bad_cell_far_down_is_found_by_its_line(tmp_path):
    rows = draw_rows(400_000)
    lines = to_csv(rows).split(b"\n")
    assert sum(map(len, lines)) > 2 * BLOCK_SIZE
    lines[345_678 - 1] = b"1,2,three"
    (tmp_path / "part.csv").write_bytes(b"\n".join(lines))
    with pytest.raises(RowError, match=r"line 345678: column 'hour' is 'three'"):
        list(ObjectStorageDataset(f"{tmp_path}/part*.csv", epochs=1))


def test_gzip_that_ends_early_is_an_error(tmp_path):
    manifest = Manifest((Shard(f"file://{tmp_path}/part.csv.gz", len(GZIPPED) - 9, "none", 2),), COLUMNS, (), COLUMNS)
    (tmp_path / "part.csv.gz").write_bytes(GZIPPED[:-9])
    with pytest.raises(RowError, match="cannot be decompressed"):
        list(ObjectStorageDataset.from_manifest(manifest, epochs=1))


@pytest.mark.parametrize("rows", [1, 3])
def test_rows_that_differ_from_the_metadata_are_an_error(rows, tmp_path):
    (tmp_path / "part-00000.csv").write_bytes(HEADER + GOOD)
    write_metadata(tmp_path, {0: rows})
    with pytest.raises(RowCountError, match=rf"part-00000.csv: 2 rows, but {rows} are stated for it"):
        list(ObjectStorageDataset(f"{tmp_path}/part*.csv", epochs=1))


def test_numbers_are_read_to_the_bit(tmp_path):
    rows = np.random.default_rng(3).normal(size=(5000, 3)) * 10.0 ** np.random.default_rng(4).integers(
        -300, 300, (5000, 3)
    )
    (tmp_path / "part.csv").write_bytes(to_csv(rows))
    [batch] = ObjectStorageDataset(f"{tmp_path}/part*.csv", epochs=1)
    assert batch.dtype == torch.float64
    assert batch.numpy().tobytes() == rows.tobytes()


def test_float32_is_the_double_rounded(tmp_path):
    rows = draw_rows(100)
    (tmp_path / "part.csv").write_bytes(to_csv(rows))
    [batch] = ObjectStorageDataset(f"{tmp_path}/part*.csv", epochs=1, dtype=torch.float32)
    assert batch.dtype == torch.float32
    assert np.array_equal(batch.numpy(), rows.astype(np.float32))


def test_a_number_too_large_for_float32_is_named(tmp_path):
    with pytest.raises(RowError, match="line 3: column 'hour' is '1e39', which is too large for float32"):
        read(tmp_path, HEADER + b"1,2,3\n1,2,1e39\n", dtype=torch.float32)


def test_columns_chosen_by_name_are_read_in_that_order_and_others_left(tmp_path):
    assert read(tmp_path, b"day,hour,fare,latitude\n1,7,1.5,38.9\n", columns=["hour", "fare"]) == [[7.0, 1.5]]


def test_a_bad_cell_in_a_column_that_is_not_read_does_no_harm(tmp_path):
    assert read(tmp_path, HEADER + b"1.5,north,7\n", columns=["fare", "hour"]) == [[1.5, 7.0]]


def test_shards_without_header_lines_get_names(tmp_path):
    (tmp_path / "part.csv").write_bytes(GOOD)
    manifest = locate(f"{tmp_path}/part.csv")
    assert (manifest.columns, manifest.header) == (("column_0", "column_1", "column_2"), None)
    assert torch.cat(list(ObjectStorageDataset.from_manifest(manifest, epochs=1))).tolist() == ROWS


@pytest.mark.parametrize("header", ["infer", None])
def test_columns_names_the_columns_of_shards_without_header_lines(header, tmp_path):
    (tmp_path / "part.csv").write_bytes(GOOD)
    dataset = ObjectStorageDataset.from_url(f"{tmp_path}/part.csv", header=header, columns=COLUMNS, epochs=1)
    assert dataset.manifest.columns == COLUMNS
    assert torch.cat(list(dataset)).tolist() == ROWS


def test_a_header_of_numbers_is_a_header_where_that_is_said(tmp_path):
    (tmp_path / "part.csv").write_bytes(b"1,2,3\n" + GOOD)
    dataset = ObjectStorageDataset.from_url(f"{tmp_path}/part.csv", header=0, epochs=1)
    assert dataset.manifest.columns == ("1", "2", "3")
    assert torch.cat(list(dataset)).tolist() == ROWS


def test_a_batch_that_ends_on_a_shard_boundary_without_header_lines(tmp_path):
    for number in range(3):
        (tmp_path / f"part-{number}.csv").write_bytes(GOOD)
    batches = list(ObjectStorageDataset.from_url(f"{tmp_path}/part-*.csv", header=None, batch_size=2, epochs=1))
    assert [batch.tolist() for batch in batches] == [ROWS, ROWS, ROWS]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"header": 1}, "header is 1; it may be 'infer', 0 or None"),
        ({"columns": []}, "columns is \\[\\]; it must be a list of distinct names"),
        ({"columns": ["a", "a"]}, "columns is \\['a', 'a'\\]"),
        ({"batch_size": 0}, "batch_size is 0; it must be at least 1"),
        ({"epochs": 0}, "epochs is 0; it must be at least 1, or None"),
        ({"prefetch": 0}, "prefetch is 0; it must be at least 1"),
        ({"dtype": torch.int64}, "dtype is torch.int64; it may be torch.float64 or torch.float32"),
        ({"on_bad_rows": "skip"}, "on_bad_rows is 'skip'; it may be 'error' or 'quarantine'"),
        ({"max_shards": 0}, "max_shards is 0; it must be at least 1"),
    ],
)  # fmt: skip
def test_a_bad_argument_is_refused_at_once(options, message, tmp_path):
    (tmp_path / "part.csv").write_bytes(HEADER + GOOD)
    with pytest.raises(ConfigurationError, match=message):
        ObjectStorageDataset.from_url(f"{tmp_path}/part.csv", **options)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (lambda: Placement(rank=1), "rank is 1 and world_size None: give both, or neither"),
        (lambda: Placement(rank=2, world_size=2), "rank is 2, world_size 2; it must be 0 <= rank < world_size"),
        (lambda: CacheSettings(limit_bytes=-1), "limit_bytes is -1; it must be at least 0, or None"),
        (lambda: RetryPolicy(deadline_seconds=0), "deadline_seconds is 0; it must be more than 0"),
        (lambda: RetryPolicy(minimum_throughput=-1), "minimum_throughput is -1; it must be more than 0"),
    ],
)
def test_bad_settings_are_refused_where_they_are_made(settings, message):
    with pytest.raises(ConfigurationError, match=message):
        settings()


class TestParquet:
    def write(self, path, **columns):
        import pyarrow
        from pyarrow import parquet

        parquet.write_table(pyarrow.table(columns), path, row_group_size=100)

    def test_is_read_like_csv(self, tmp_path):
        rows = draw_rows(1000)
        self.write(
            tmp_path / "part-0.parquet", fare=rows[:500, 0], latitude=rows[:500, 1], hour=rows[:500, 2].astype(int)
        )
        self.write(
            tmp_path / "part-1.parquet", hour=rows[500:, 2].astype(int), fare=rows[500:, 0], latitude=rows[500:, 1]
        )
        dataset = ObjectStorageDataset(f"{tmp_path}/part-*.parquet", batch_size=300, epochs=1)
        assert dataset.manifest.counts == (500, 500)
        assert torch.cat(list(dataset)).numpy().tobytes() == rows.tobytes()

    @pytest.mark.parametrize(
        ("cells", "message"),
        [
            ([1.0, None], "row 2: column 'fare' is empty"),
            ([1.0, float("inf")], "row 2: column 'fare' is inf, which is not a finite number"),
            (["a", "b"], "column 'fare' is of type string, not of numbers"),
        ],
    )
    def test_bad_cells_are_named(self, cells, message, tmp_path):
        self.write(tmp_path / "part.parquet", fare=cells)
        with pytest.raises(RowError, match=message):
            list(ObjectStorageDataset(f"{tmp_path}/part.parquet", epochs=1))

    def test_what_is_not_parquet_is_named(self, tmp_path):
        (tmp_path / "part.parquet").write_bytes(b"fare\n1\n" * 10)
        with pytest.raises(RowError, match=r"part.parquet is no Parquet file"):
            locate(f"{tmp_path}/part.parquet")
