"""A disk that fails once, at any write, fsync or rename: the run ends well or in words, and the next one ends the same.

The disk is `faultydisk.c`, preloaded. What runs without Prefect is in `faultydisk.py`.
"""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
from errno import ENOSPC, EROFS
from pathlib import Path

import pytest

from tests.faultydisk import ITERATIONS, KILL, OURS, WELL

ROOT = Path(__file__).parents[1]
SEEDED = 5  # of some 400 calls
ALL = 10_000

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux") or not shutil.which("cc"), reason="a disk that fails is made by a C compiler"
)


@pytest.fixture(scope="module")
def disk(tmp_path_factory):
    """The library that lets one call fail."""
    library = tmp_path_factory.mktemp("disk") / "faultydisk.so"
    command = ["cc", "-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-o", library, ROOT / "tests/faultydisk.c", "-ldl"]
    subprocess.run(command, check=True)
    return library


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """Three shards of 50 rows, one with a bad row besides."""
    folder, numbers = tmp_path_factory.mktemp("shards"), random.Random(1)
    for shard in range(3):
        rows = [(numbers.random(), numbers.random(), numbers.random()) for _ in range(50)]
        lines = ["y,a,b", *(f"{2 * a - b + noise},{a},{b}" for a, b, noise in rows), *(["x,1,2"] if shard == 1 else [])]
        (folder / f"part-{shard}.csv").write_text("\n".join(lines) + "\n")
    return f"{folder}/part-*.csv"


@pytest.fixture
def home():
    """A folder in memory, where there is such a place: the runs synchronise often, and no power is cut here."""
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None) as folder:
        yield Path(folder)


def try_cases(disk, shards, home, most):
    """How a run that nothing disturbs ended and what it told, and the same of each case and of the run after it."""
    command = [sys.executable, "-m", "tests.faultydisk", str(home), shards, str(most)]
    threads = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    environment = os.environ | threads | {"LD_PRELOAD": str(disk), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    undisturbed, *tried = map(json.loads, done.stdout.splitlines())
    return undisturbed, tried


def assert_all_ended_well(undisturbed, tried):
    code, told = undisturbed
    assert (code, len(told["curve"])) == (WELL, ITERATIONS)
    for case in tried:
        first, second = case["first"], case["second"]
        assert first[0] in ({WELL, OURS} if case["error"] else {WELL, -signal.SIGKILL}), case
        assert first[0] != WELL or first[1]["curve"] == told["curve"], case
        assert (second[0], second[1].get("curve")) == (WELL, told["curve"]), case
        assert case["left"] == [], case
    assert {case["first"][0] for case in tried} >= {OURS, -signal.SIGKILL}  # the faults were felt


def test_faults_of_the_disk_end_in_words_and_the_next_run_ends_well(disk, shards, home):
    undisturbed, tried = try_cases(disk, shards, home, SEEDED)
    assert len(tried) == SEEDED
    assert_all_ended_well(undisturbed, tried)


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_each_fault_of_the_disk_ends_in_words_and_the_next_run_ends_well(disk, shards, home):
    undisturbed, tried = try_cases(disk, shards, home, ALL)
    assert len(tried) == undisturbed[1]["calls"] > 300
    assert_all_ended_well(undisturbed, tried)


def run_flow(disk, shards, place, prefect_api, call, error):
    words = ["--shards", shards, "--batch-size", "40", "--iterations", str(ITERATIONS), "--checkpoint-every", "1"]
    words += ["--on-bad-rows", "quarantine", "--preset", "notebook"]
    environment = os.environ | {
        "LD_PRELOAD": str(disk),
        "PYTHONPATH": str(ROOT),
        "PREFECT_API_URL": prefect_api,
        "FAULTY_FOLDER": str(place / ".shardline"),
        "FAULTY_CALL": str(call),
        "FAULTY_ERROR": str(error),
        "FAULTY_COUNT": str(place / "calls"),
    }
    command = [sys.executable, "-m", "flows.training", *words]
    return subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True, timeout=240)


def read_curve(place):
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{place}/.shardline/mlflow.db")
    runs = client.search_runs(["1"], "attributes.status = 'FINISHED'")
    history = client.get_metric_history(runs[0].info.run_id, "mse")
    return [each.value for each in sorted(history, key=lambda each: each.step)]


@pytest.fixture(scope="module")
def undisturbed(disk, shards, prefect_api, tmp_path_factory):
    """The number of calls of the flow that nothing disturbs, and its curve."""
    place = tmp_path_factory.mktemp("undisturbed")
    done = run_flow(disk, shards, place, prefect_api, 0, 0)
    assert done.returncode == 0, done.stdout + done.stderr
    calls = int((place / "calls").read_text())
    return calls, read_curve(place)


@pytest.mark.long
@pytest.mark.parametrize(("share", "error"), [(0.97, ENOSPC), (0.9, KILL), (0.8, EROFS)])
def test_a_fault_of_the_disk_under_the_real_flow_ends_in_words_and_the_same_command_ends_well(
    share, error, disk, shards, prefect_api, undisturbed, tmp_path
):
    calls, curve = undisturbed
    first = run_flow(disk, shards, tmp_path, prefect_api, int(calls * share), error)
    printed = first.stdout + first.stderr
    assert first.returncode in ((0, 1) if error else (-signal.SIGKILL,)), printed
    assert first.returncode == 0 or not error or "flows.training: " in first.stderr, printed
    again = run_flow(disk, shards, tmp_path, prefect_api, 0, 0)
    assert again.returncode == 0, again.stdout + again.stderr
    assert read_curve(tmp_path) == curve
    assert list((tmp_path / ".shardline/outbox").iterdir()) == []
