"""`make gpu`: on a machine without Prefect, MLflow and the like, with a CUDA device and without one."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.alone import NEEDED, find_others
from tests.gpu import FILES, write_section

ROOT = Path(__file__).parents[1]
RUN = "import runpy; runpy.run_module('tests.gpu', run_name='__main__')"
MEASURE = """
from tests.benchmarks.gpu import Setting, describe, measure
tiny = Setting(device="cpu", seconds=1, batch_rows=2048, batches=2, iterations=20, largest=16, vector=4096)
print(describe(measure(tiny), {"tests": "all passed"}))
"""


@pytest.fixture(scope="module")
def bare():
    """A function that runs Python where nothing is installed but what `make gpu` needs, and pandas."""
    hidden = " ".join(find_others(*NEEDED, "pytest", "pandas"))
    assert {"prefect", "mlflow", "botocore"} <= set(hidden.split())

    def run(*arguments, plugin=False):
        environment = os.environ | {"HIDDEN": hidden, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
        command = [sys.executable, *arguments]
        return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)

    return run


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device: `make gpu` would use it")
def test_without_a_cuda_device_one_sentence_says_so_and_the_status_is_2(bare):
    done = bare("-c", f"import tests.alone; {RUN}")
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(
        r"There is no CUDA device that torch \S+ finds, so make gpu has nothing to test\.\n", done.stderr
    )


def test_what_is_not_installed_is_named():
    environment = os.environ | {"HIDDEN": "safetensors psutil"}
    command = [sys.executable, "-c", f"import tests.alone; {RUN}"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.endswith(f"and {sys.executable} has no safetensors, psutil.\n")


def test_the_command_makes_no_environment_and_takes_the_python_that_it_is_given():
    command = ["make", "--dry-run", "--no-print-directory", "gpu", "PYTHON=/opt/python"]
    assert subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout == "/opt/python -m tests.gpu\n"


def test_its_tests_run_where_nothing_else_is_installed(bare):
    options = ("-o", "addopts=", "-p", "no:cacheprovider", "-p", "tests.alone", "-q", "-rs", "-m", "race")
    done = bare("-m", "pytest", *options, "tests/test_learning_devices.py")
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"\d+ passed", done.stdout)
    assert "no CUDA device is here" in done.stdout or torch.cuda.is_available()


def test_all_tests_of_cuda_are_among_those_that_it_runs():
    assert {f"tests/{path.name}" for path in (ROOT / "tests").glob("test_*.py") if has_cuda_tests(path)} == set(FILES)


def has_cuda_tests(path):
    """Whether a test there is marked so, or asks for each device that there is."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
            marks = " ".join(map(ast.unparse, node.decorator_list))
            asks = "device" in {each.arg for each in node.args.args} and not re.search(r"\bdevice\b", marks)
            if asks or "mark.cuda" in marks:
                return True
    return False


@pytest.mark.long
def test_it_measures_where_nothing_else_is_installed(bare):
    done = bare("-c", f"import tests.alone\n{MEASURE}")
    assert done.returncode == 0, done.stderr
    assert re.match(
        r"## On a GPU: .+\n\n`make gpu`, \d{4}-\d\d-\d\d: driver .+, torch .+ tests: all passed\.", done.stdout
    )
    names = re.findall(r"^\| ((?:resident|streamed).*?) \|", done.stdout, re.M)
    assert names == ["resident", "streamed from CSV", "streamed from the cache"]


def test_a_section_takes_the_place_of_the_one_on_the_same_card(tmp_path):
    results = tmp_path / "RESULTS.md"
    results.write_text("## Devices\n\nCPU.\n\n## On a GPU: A\n\nold\n\n## The stream\n\n### Part\n\nend\n")
    write_section("## On a GPU: A\n\nnew\n", results)
    write_section("## On a GPU: B\n\nother\n", results)
    assert results.read_text() == (
        "## Devices\n\nCPU.\n\n## The stream\n\n### Part\n\nend\n\n## On a GPU: A\n\nnew\n\n## On a GPU: B\n\nother\n"
    )
