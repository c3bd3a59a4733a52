"""`make gpu`: what needs a CUDA device, on a machine that need have no more than torch and what streaming takes.

    python -m tests.gpu

Runs the tests that are marked `cuda`, those marked `race` under torch's CUDA sanitizer too (and under compute-sanitizer
where that is installed), then measures beside the limits of this very machine (`tests.benchmarks.gpu`), and writes a
section on the card into tests/benchmarks/RESULTS.md; all within nine minutes. Ends with 0 where everything passed and
no aim was missed, with 1 where not, and with 2 where there is no CUDA device.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "tests" / "benchmarks" / "RESULTS.md"
NEEDED = ("torch", "numpy", "pyarrow", "safetensors", "psutil", "pytest")
FILES = (  # all that have tests of CUDA
    "tests/test_learning.py",
    "tests/test_learning_devices.py",
    "tests/test_learning_kernels.py",
)
SECONDS, TESTS, SANITIZING = 540, 210, 60  # in all, and of them for the tests and for each sanitizer


@dataclass(frozen=True, kw_only=True)
class Check:
    """A run of tests: what pytest said last, and whether all is well. One that could not be made is no failure."""

    name: str
    said: str
    passed: bool


def find_obstacle() -> str | None:
    """Return a sentence on why nothing can be tested here, or None."""
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        return f"make gpu needs {', '.join(NEEDED)}, and {sys.executable} has no {', '.join(missing)}."
    import torch

    if not torch.cuda.is_available():
        return f"There is no CUDA device that torch {torch.__version__} finds, so make gpu has nothing to test."
    return None


def run_tests(
    name: str, marks: str, seconds: float, *, under: Sequence[str] = (), environment: Mapping[str, str] | None = None
) -> Check:
    """Run the tests with these marks, without the plugins and options that a development machine has."""
    options = ("-o", "addopts=", "-p", "no:cacheprovider", "-W", "ignore::pytest.PytestConfigWarning", "-q", "-rs")
    command = [*under, sys.executable, "-m", "pytest", *options, "-m", marks, *FILES]
    given = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "TRITON_INTERPRET": "0", **(environment or {})}
    try:
        done = subprocess.run(
            command, cwd=ROOT, env=given, timeout=seconds, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
    except subprocess.TimeoutExpired as error:
        text = error.stdout.decode(errors="replace") if isinstance(error.stdout, bytes) else error.stdout or ""
        print(text)
        return Check(name=name, said=f"not ended after {seconds:.0f} s", passed=False)
    print(f"{name}:\n{done.stdout}", flush=True)
    return Check(name=name, said=done.stdout.strip().rpartition("\n")[2].strip("= "), passed=done.returncode == 0)


def run_all_tests() -> list[Check]:
    """Run the tests of CUDA, and those of races under what finds races."""
    checks = [
        run_tests("tests", "cuda", TESTS),
        run_tests("torch's sanitizer", "cuda and race", SANITIZING, environment={"TORCH_CUDA_SANITIZER": "1"}),
    ]
    if sanitizer := shutil.which("compute-sanitizer"):
        checks.append(
            run_tests("compute-sanitizer", "cuda and race", SANITIZING, under=[sanitizer, "--error-exitcode=1"])
        )
    else:
        checks.append(Check(name="compute-sanitizer", said="not installed", passed=True))
    return checks


def write_section(text: str, path: Path = RESULTS) -> None:
    """Put a section into the results, instead of the one with the same heading if there is one, else at the end."""
    heading = text.partition("\n")[0]
    sections = path.read_text(encoding="utf-8").rstrip("\n").split("\n\n## ")
    kept = [each for each in sections if f"## {each.removeprefix('## ')}".partition("\n")[0] != heading]
    path.write_text("\n\n## ".join([*kept, text.removeprefix("## ").rstrip("\n")]) + "\n", encoding="utf-8")


def main() -> int:
    """Test, measure and write; return the exit status."""
    if obstacle := find_obstacle():
        print(obstacle, file=sys.stderr)
        return 2
    began = time.monotonic()
    checks = run_all_tests()
    from tests.benchmarks.gpu import Setting, describe, measure

    setting = Setting(device="cuda:0", seconds=SECONDS - (time.monotonic() - began) - SANITIZING)
    measured = measure(setting)
    text = describe(measured, {check.name: check.said for check in checks})
    write_section(text)
    print(text)
    failed = [check.name for check in checks if not check.passed]
    missed = [each.name for each in measured.iterations if each.is_missed]
    for names, said in ((failed, "Failed"), (missed, "Slower than it is to be")):
        if names:
            print(f"{said}: {', '.join(names)}.", file=sys.stderr)
    return 1 if failed or missed else 0


if __name__ == "__main__":
    sys.exit(main())
