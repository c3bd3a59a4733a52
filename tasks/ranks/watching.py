"""Ends what is left of a Ray cluster when the process that started it has closed it, or is gone, be it by SIGKILL.

Started as a program of its own with the cluster's folder, it waits for the end of its standard input. All of Ray's
processes have the folder in the environment that they were started with.
"""

import contextlib
import os
import shutil
import sys
from collections.abc import Iterator

import psutil

END_SECONDS = 3.0


def processes_of(folder: str) -> Iterator[psutil.Process]:
    """Yield the processes, but for this one, that were started with an environment in which the folder is named."""
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.pid != os.getpid() and any(value.startswith(folder) for value in process.environ().values()):
                yield process


def watch(folder: str) -> None:
    """Wait for the input's end; let the cluster's processes end by themselves for a moment, then kill them."""
    sys.stdin.read()
    _, left = psutil.wait_procs(list(processes_of(folder)), timeout=END_SECONDS)
    for process in (*left, *processes_of(folder)):  # one that was stopped hears of no end
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(left, timeout=END_SECONDS)
    shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    watch(sys.argv[1])
