"""The wheel holds every module, py.typed, and the files that modules read; an editable install would hide a lack."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from deployments.applying import PREFECT_FILE
from deployments.pools import FOLDER

ROOT = Path(__file__).parents[1]
PACKAGES = ("flows", "tasks", "deployments")
MODULES = sorted(path.relative_to(ROOT) for name in PACKAGES for path in (ROOT / name).rglob("*.py"))
BUILD = "from setuptools import build_meta; build_meta.build_wheel('wheel')"  # as pip does, without its network
IMPORT = """
import importlib, pathlib, sys
sys.meta_path = [each for each in sys.meta_path if "editable" not in getattr(each, "__module__", "")]
sys.path = [path for path in sys.path if path != sys.argv[2]]
sys.path.insert(0, sys.argv[1])
for name in sys.argv[3:]:
    found = pathlib.Path(importlib.import_module(name).__file__)
    assert found.is_relative_to(sys.argv[1]), found
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """A folder with what the wheel holds, built from a copy of the sources."""
    folder = tmp_path_factory.mktemp("packaging")
    for name in PACKAGES:
        shutil.copytree(ROOT / name, folder / "source" / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder / "source" / name)
    done = subprocess.run([sys.executable, "-c", BUILD], cwd=folder / "source", capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (built,) = (folder / "source" / "wheel").glob("*.whl")
    zipfile.ZipFile(built).extractall(folder / "installed")
    return folder / "installed"


def test_every_module_is_in_the_wheel(wheel):
    held = {path.relative_to(wheel) for name in PACKAGES for path in (wheel / name).rglob("*.py")}
    assert held == set(MODULES)


def test_every_module_can_be_imported_outside_the_clone(wheel, tmp_path):
    names = [".".join(path.with_suffix("").parts).removesuffix(".__init__") for path in MODULES]
    command = [sys.executable, "-c", IMPORT, str(wheel), str(ROOT), *names]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_wheel_says_that_its_types_can_be_checked(wheel):
    assert all((wheel / name / "py.typed").is_file() for name in PACKAGES)


@pytest.mark.parametrize("folder", ["flows", "tasks"])
def test_all_other_files_beside_the_modules_are_in_the_wheel(wheel, folder):
    there = {path.relative_to(ROOT) for path in (ROOT / folder).rglob("*") if path.is_file()}
    beside = {path for path in there if path.suffix not in (".py", ".pyc")}
    assert all((wheel / path).is_file() for path in beside), beside


def test_the_files_that_deployments_read_are_in_the_wheel(wheel):
    read = [PREFECT_FILE, *FOLDER.glob("*.yaml")]
    assert len(read) > 1
    assert all((wheel / path.relative_to(ROOT)).is_file() for path in read)
