"""Ten runs and more, each from the command line: they ask for what was foreseen, and take no more memory than that."""

import gzip
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from pyarrow import csv, parquet

from tests.benchmarks.rangeserver import serve_ranges
from tests.benchmarks.stream_setting import HOME, ROOT, serve_shards
from tests.faults import FaultProxy, Noting

pytestmark = [pytest.mark.long, pytest.mark.timeout(600)]

MIB = 2**20
SHARDS = 4  # of 250,000 rows each


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    """The URL of a server with the benchmarks' shards, four of them also without metadata, packed, and as Parquet."""
    with serve_shards(), serve_ranges(HOME / "s3") as url:
        folder = HOME / "s3" / "taxi"
        for kind in ("plain", "gzip", "parquet"):
            (folder / kind).mkdir(exist_ok=True)
        for path in sorted((folder / "csv").glob("part-*.csv"))[:SHARDS]:
            if not (folder / "plain" / path.name).exists():
                (folder / "plain" / path.name).hardlink_to(path)
                (folder / "gzip" / f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes(), 1))
                parquet.write_table(csv.read_csv(path), folder / "parquet" / f"{path.stem}.parquet")
        yield url


RUNS: dict[str, tuple[str, dict[str, Any]]] = {
    "streamed in each pass": ("csv", {"cache": False, "resident_bytes": 0, "batch_size": 2**17, "iterations": 24}),
    "kept in the cache": ("csv", {"resident_bytes": 0, "batch_size": 2**17, "iterations": 24}),
    "kept in memory": ("csv", {"cache": False, "batch_size": 2**18, "iterations": 40}),
    "one batch of all": ("csv", {"iterations": 10}),
    "judged on test shards": ("csv", {"test_shards": "s3://taxi/one/part*", "batch_size": 2**17, "iterations": 12}),
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
    words = [f"s3://taxi/{kind}/part*", "--max-shards", str(SHARDS), "--no-verify-identity"]
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
        f"{case}: requests {requests:.0f} of {metrics['forecast_requests']:.0f}, memory {memory / MIB:.0f} of "
        f"{metrics['forecast_memory'] / MIB:.0f} MiB, {metrics['usage_seconds']:.0f} of "
        f"{metrics.get('forecast_seconds', 0):.0f} s"
    )
    assert requests == metrics["forecast_requests"] == len(noting.sent) - 1  # one listing verifies the credentials
    assert metrics["usage_bytes"] == metrics["forecast_bytes"]
    assert memory <= metrics["forecast_memory"] <= 1.5 * memory
    assert re.search(rf"To read: .*: {requests:,.0f} requests", printed)
