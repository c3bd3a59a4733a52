"""Stops the processes it was told of when the one who told it is gone; processes.py starts it and talks to it.

It reads lines from its standard input: `+PID` for a process to look after, `-PID` for one that has ended. The end of
the input means that the process on the other side has ended, be it by SIGKILL: what is still on the list is stopped
then, the latest first. Standard library only, and started with `python -I -S`: it costs some 20 ms.
"""

import contextlib
import os
import signal
import sys
import time

GRACE_SECONDS = 10.0


def is_alive(pid: int) -> bool:
    """Whether a process has this number."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def send(pid: int, number: signal.Signals) -> None:
    """Send a signal to a process, and to its whole group where it leads one."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        if os.getpgid(pid) == pid:
            os.killpg(pid, number)
        else:
            os.kill(pid, number)


def stop(pid: int) -> None:
    """SIGTERM, time to end, then SIGKILL."""
    send(pid, signal.SIGTERM)
    deadline = time.monotonic() + GRACE_SECONDS
    while is_alive(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    send(pid, signal.SIGKILL)


def watch() -> None:
    """Keep the list until the input ends, then stop what is left of it."""
    pids: list[int] = []
    for line in sys.stdin:
        pid = int(line[1:])
        if line[0] == "+":
            pids.append(pid)
        elif pid in pids:
            pids.remove(pid)
    for pid in reversed(pids):
        stop(pid)


if __name__ == "__main__":
    watch()
