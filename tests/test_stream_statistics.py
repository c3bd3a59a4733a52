"""Spark's `.meta/stats`: read as facts where it is whole, named with its place where it is not."""

import re

import pytest

from tasks.errors import ShardError
from tasks.streaming import ColumnStatistics, locate, read_statistics
from tests.shards import write_shards

LINES = {
    "summary": "summary,fare,hour",
    "count": "count,3,3",
    "mean": "mean,1.5,11",
    "stddev": "stddev,0.5,1",
    "min": "min,1,10",
    "max": "max,2,12",
}


def read(folder, lines, name="part-00000.csv"):
    write_shards(folder, [3])
    stats = folder / ".meta" / "stats"
    stats.mkdir(parents=True)
    (stats / name).write_text("\n".join(lines) + "\n")
    return read_statistics(locate(f"{folder}/part*.csv"))


def test_each_column_has_its_statistics_and_other_lines_are_left(tmp_path):
    assert read(tmp_path, [*LINES.values(), "25%,1,10"]) == {
        "fare": ColumnStatistics(count=3, mean=1.5, stddev=0.5, min=1, max=2),
        "hour": ColumnStatistics(count=3, mean=11, stddev=1, min=10, max=12),
    }


def test_without_a_file_there_are_none(tmp_path):
    assert read(tmp_path, LINES.values(), name="_SUCCESS") == {}


@pytest.mark.parametrize(
    ("line", "text", "message"),
    [
        ("summary", "fare,hour", "the header is 'fare,hour', expected 'summary,…'"),
        ("mean", "mean,1.5", "line 3: 2 cells under a header of 3"),
        ("mean", "mean,1.5,noon", "line 3, column hour: 'noon' is no number"),
        ("mean", f"mean,{'x' * 140_000},1", "is no CSV with the header 'summary,…': field larger than field limit"),
        ("min", "\nmin,1,noon", "line 6, column hour: 'noon' is no number"),
        ("max", "max,inf,12", "column fare has no finite max"),
        ("min", "", "column fare has no finite min"),
    ],
)
def test_what_spark_does_not_write_is_named_with_its_place(line, text, message, tmp_path):
    path = tmp_path / ".meta" / "stats" / "part-00000.csv"
    with pytest.raises(ShardError, match=re.escape(message)) as caught:
        read(tmp_path, (LINES | {line: text}).values())
    assert f"file://{path}" in str(caught.value)
