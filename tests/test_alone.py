"""What trains and streams runs where nothing is installed but torch, numpy, pyarrow, safetensors and psutil."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.alone import NEEDED, find_others
from tests.shards import write_shards

ROOT = Path(__file__).parents[1]
SKIPPED = {  # for they need matplotlib, hypothesis or pandas
    "tests/test_devices_plots.py",
    "tests/test_stream_arithmetic.py",
    "tests/test_stream_contract.py",
    "tests/test_stream_kernel.py",
    "tests/test_stream_machine.py",
    "tests/test_stream_originals.py",
    "tests/test_stream_splitting.py",
    "tests/test_stream_writing.py",
}
TRAIN = """
import json, sys
import tests.alone
import torch
from tasks.learning.batches import Preparation
from tasks.learning.residency import stay_resident
from tasks.learning.features import Features
from tasks.learning.loop import Settings, Trainer, train
from tasks.learning.scaling import Scaling
from tasks.streaming import ObjectStorageDataset

dataset = ObjectStorageDataset(sys.argv[1], batch_size=1500)
features = Features.choose(dataset.manifest.columns)
scaling = Scaling.of(features.of(next(iter(dataset))))
settings = Settings(iterations=30, learning_rate=None, gradient_norm=0.0, seed=3)
cpu = torch.device("cpu")
preparation = Preparation(features=features, scaling=scaling, dtype=torch.float64, device=cpu)
batches = stay_resident(preparation.stream(iter(dataset)), dataset.manifest.rows, 2**30)
curve = [iteration.mse for iteration in train(Trainer(features, scaling, settings, cpu), batches)]
print(json.dumps(curve))
"""
MEASURE = """
import json, sys
import tests.alone
from tasks.benchmark.stream import measure_stream
from tasks.learning.features import Features
from tasks.streaming import locate

manifest = locate(sys.argv[1])
features = Features.choose(manifest.columns)
measured = measure_stream(manifest, features, batch_size=400, devices=["cpu"], cores=1, seconds=1.0)
print(json.dumps({figure.name: figure.seconds for figure in measured.figures}))
"""


@pytest.fixture(scope="module")
def others():
    """The modules of all that is installed here besides."""
    found = find_others(*NEEDED)
    assert {"prefect", "mlflow", "pydantic", "botocore", "boto3", "s3fs", "aiobotocore"} <= found
    return found


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards")
    write_shards(folder, [500, 0, 700, 300])
    return f"{folder.as_uri()}/part-*.csv"


def run_python(*arguments, hidden=()):
    environment = os.environ | {"HIDDEN": " ".join(hidden)}
    done = subprocess.run([sys.executable, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_hidden_modules_cannot_be_imported(others):
    with pytest.raises(AssertionError, match="No module named 'prefect'"):
        run_python("-c", "import tests.alone, prefect", hidden=others)


def test_a_training_from_file_shards_takes_the_same_curve_alone(others, shards):
    alone, among_others = (json.loads(run_python("-c", TRAIN, shards, hidden=hidden)) for hidden in (others, ()))

    assert alone == among_others
    assert len(alone) == 30
    assert alone[-1] < alone[0]


@pytest.mark.long
def test_the_stream_and_the_loop_are_timed_alone(others, shards):
    seconds = json.loads(run_python("-c", MEASURE, shards, hidden=others))

    assert set(seconds) == {"fetch", "decode", "prepare", "streamed_iteration", "resident_iteration"}
    assert all(value > 0 for value in seconds.values())


@pytest.mark.long
def test_the_loops_benchmark_is_imported_alone(others):
    run_python("-c", "import tests.alone, tests.benchmarks.loop", hidden=others)


def test_their_tests_are_collected_with_pytest_besides():
    patterns = (
        "test_learning.py",
        "test_learning_devices.py",
        "test_devices_*.py",
        "test_stream_*.py",
        "test_alone.py",
    )
    tests = {f"tests/{path.name}" for pattern in patterns for path in (ROOT / "tests").glob(pattern)}
    options = ("-o", "addopts=", "-p", "no:cacheprovider", "-p", "tests.alone", "--disable-plugin-autoload")
    hidden = find_others(*NEEDED, "pytest")
    told = run_python("-m", "pytest", *options, "--collect-only", "-q", *sorted(tests), hidden=hidden)

    assert {line.partition("::")[0] for line in told.splitlines() if "::" in line} == tests - SKIPPED
