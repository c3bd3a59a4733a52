"""What is written in C, built with sanitizers in it and fuzzed in a process that a fault ends."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
COMPILER = shutil.which("cc") or ""

needs_compiler = pytest.mark.skipif(not COMPILER, reason="needs a C compiler (cc)")


def fuzz_with_sanitizers(source: Path, module: str, seconds: int, folder: Path) -> str:
    """What `python -m module SECONDS LIBRARY` prints of the library that is built from the source, in this folder."""
    checked = folder / source.with_suffix(".so").name
    switches = [
        "-std=c99",
        "-O1",
        "-g",
        "-fPIC",
        "-shared",
        "-fsanitize=address,undefined",
        "-fno-sanitize-recover=all",
    ]
    done = subprocess.run([COMPILER, *switches, "-o", checked, source], capture_output=True, text=True)
    library = subprocess.run([COMPILER, "-print-file-name=libasan.so"], capture_output=True, text=True).stdout.strip()
    if done.returncode or not Path(library).is_absolute():
        pytest.skip(f"the compiler has no sanitizers: {done.stderr}")
    environment = os.environ | {"LD_PRELOAD": library, "ASAN_OPTIONS": "detect_leaks=0", "PYTHONMALLOC": "malloc"}
    command = [sys.executable, "-m", module, str(seconds), str(checked)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout
