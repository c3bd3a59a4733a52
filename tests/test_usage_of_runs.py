"""Ten runs and more, each from the command line: they ask for what was foreseen, and take no more memory than that."""

import gzip
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pytest
from mlflow import MlflowClient
from pyarrow import csv, parquet

from tests.benchmarks.rangeserver import serve_ranges
from tests.faults import FaultProxy, Noting
from tests.shards import write_metadata

pytestmark = [pytest.mark.long, pytest.mark.timeout(600)]

MIB = 2**20
ROOT = Path(__file__).parents[1]
UNQUOTED = csv.WriteOptions(quoting_style="none")
ROWS, SHARDS, WIDTH = 250_000, 4, 9  # rows of a shard, and columns
LARGE = 600_000  # rows of the one that is fetched in ranges


@pytest.fixture(scope="module")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a server with four shards, with metadata and without, packed, and as Parquet, and a large one."""
    folder = tmp_path_factory.mktemp("s3")
    for kind in ("csv", "plain", "gzip", "parquet", "test", "large"):
        (folder / "data" / kind).mkdir(parents=True)
    for number in range(SHARDS):
        name, table = f"part-{number:05d}", draw(ROWS, seed=number)
        csv.write_csv(table, folder / "data" / "csv" / f"{name}.csv", UNQUOTED)
        parquet.write_table(table, folder / "data" / "parquet" / f"{name}.parquet")
        written = folder / "data" / "csv" / f"{name}.csv"
        (folder / "data" / "plain" / written.name).hardlink_to(written)
        (folder / "data" / "gzip" / f"{written.name}.gz").write_bytes(gzip.compress(written.read_bytes(), 1))
    csv.write_csv(draw(ROWS, seed=9), folder / "data" / "test" / "part-00000.csv", UNQUOTED)
    csv.write_csv(draw(LARGE, seed=8), folder / "data" / "large" / "part-00000.csv", UNQUOTED)
    write_metadata(folder / "data" / "csv", dict.fromkeys(range(SHARDS), ROWS))
    write_metadata(folder / "data" / "large", {0: LARGE})
    with serve_ranges(folder) as url:
        yield url


def draw(rows: int, seed: int) -> pyarrow.Table:
    """A table of random numbers with negative and large ones among them; the first column follows from the others."""
    random = np.random.default_rng(seed)
    columns = [random.normal(10.0**power, 10.0**power, rows) for power in range(WIDTH - 1)]
    target = sum(column / 10.0**power for power, column in enumerate(columns)) + random.normal(size=rows)
    return pyarrow.table({"y": target, **{f"x{number}": column for number, column in enumerate(columns)}})


RUNS: dict[str, tuple[str, dict[str, Any]]] = {
    "streamed in each pass": ("csv", {"cache": False, "resident_bytes": 0, "batch_size": 2**17, "iterations": 24}),
    "kept in the cache": ("csv", {"resident_bytes": 0, "batch_size": 2**17, "iterations": 24}),
    "kept in memory": ("csv", {"cache": False, "batch_size": 2**18, "iterations": 40}),
    "one batch of all": ("csv", {"iterations": 10}),
    "judged on test shards": ("csv", {"test_shards": "s3://data/test/part*", "batch_size": 2**17, "iterations": 12}),
    "the exact solver": ("csv", {"solver": "exact", "cache": False, "batch_size": 2**18}),
    "bad rows set aside": ("csv", {"on_bad_rows": "quarantine", "cache": False, "batch_size": 2**16, "iterations": 60}),
    "rows that are counted first": ("plain", {"cache": False, "batch_size": 2**18, "iterations": 6}),
    "gzip, shuffled": ("gzip", {"shuffle": True, "cache": False, "batch_size": 2**17, "iterations": 12}),
    "parquet in float32": ("parquet", {"dtype": "float32", "resident_bytes": 0, "batch_size": 2**17, "iterations": 12}),
    "ranges of one large shard": ("large", {"cache": False, "resident_bytes": 0, "batch_size": 2**18, "iterations": 6}),
    "worker processes": ("csv", {"num_workers": 2, "cache": False, "batch_size": 2**17, "iterations": 12}),
}


def run(folder: Path, url: str, api: str, kind: str, given: dict[str, Any]) -> tuple[dict[str, float], str]:
    """Train in a process of its own; the run's metrics, and what it printed."""
    words = [f"s3://data/{kind}/part*", "--no-verify-identity"]
    for name, value in given.items():
        option = name.replace("_", "-")
        words += [f"--{'' if value else 'no-'}{option}"] if isinstance(value, bool) else [f"--{option}", str(value)]
    keys = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1"}
    environment = os.environ | keys | {"AWS_ENDPOINT_URL": url, "PREFECT_API_URL": api, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "flows.training", "--shards", *words]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    client = MlflowClient(tracking_uri=f"sqlite:///{folder}/.shardline/mlflow.db")
    experiment = client.get_experiment_by_name("shardline")
    assert experiment
    return client.search_runs([experiment.experiment_id])[0].data.metrics, done.stderr


@pytest.mark.parametrize("case", RUNS)
def test_a_run_asks_for_what_it_foresaw_and_takes_no_more_memory(case, bucket, prefect_api, tmp_path):
    kind, given = RUNS[case]
    noting = Noting()
    with FaultProxy(bucket, noting, key="") as proxy:
        metrics, printed = run(tmp_path, proxy.url, prefect_api, kind, given)
    requests, memory = metrics["usage_requests"], metrics["usage_peak_memory"]
    print(
        f"{case}: requests {requests:.0f} of {metrics['usage_requests_foreseen']:.0f}, memory {memory / MIB:.0f} of "
        f"{metrics['usage_memory_foreseen'] / MIB:.0f} MiB, {metrics['usage_seconds']:.0f} of "
        f"{metrics.get('usage_seconds_foreseen', 0):.0f} s"
    )
    verified = 2 if "test_shards" in given else 1  # listings that are not the stream's
    assert requests == metrics["usage_requests_foreseen"] == len(noting.sent) - verified
    assert metrics["usage_bytes"] == metrics["usage_bytes_foreseen"]
    assert memory <= metrics["usage_memory_foreseen"] <= 1.5 * memory
    assert re.search(rf"To read: .*: {requests:,.0f} requests", printed)
