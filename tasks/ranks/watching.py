"""Starts the head of a Ray cluster, and ends what is left of it when who asked for it has closed it, or is gone.

Started as a program, in a session of its own, with the cluster's folder and the words of the head's command, if there
is to be one. It waits for the end of its standard input, be it by SIGKILL of the process on the other side.

Prefect's worker ends a run by SIGTERM to the driver's whole process group: were Ray's processes in it, they would be
gone first, and Ray ends a driver without a raylet at once, before it has told the record that it was stopped.
"""

import contextlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil

COMPLAINTS = "head.txt"  # in the folder: what the head wrote to its standard error
END_SECONDS = 3.0  # that processes may take to be gone after SIGKILL
POLL_SECONDS = 0.05


def kin() -> Iterator[psutil.Process]:
    """Yield the processes of this session, but for this one, be their parents there or not."""
    session = os.getsid(0)
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            is_kin = process.pid != os.getpid() and os.getsid(process.pid) == session
            if is_kin and process.status() != psutil.STATUS_ZOMBIE:
                yield process


def watch(folder: str, command: Sequence[str]) -> None:
    """Start the head, wait for the input's end, and kill the session: nothing of what it has is needed any more."""
    if command:
        with Path(folder, COMPLAINTS).open("wb") as complaints:
            _head = subprocess.Popen(command, stdin=subprocess.PIPE, stderr=complaints)  # ends with this one's end
        sys.stdout.close()  # it is the head's alone, so that it ends with it
    sys.stdin.read()
    deadline = time.monotonic() + END_SECONDS
    while (left := list(kin())) and time.monotonic() < deadline:  # one may have started another
        for process in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        time.sleep(POLL_SECONDS)
    shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    watch(sys.argv[1], sys.argv[2:])
