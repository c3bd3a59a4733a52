"""Which process a run belongs to, and whether that still lives: a run that was killed tells nobody."""

from __future__ import annotations

import os
import platform
from pathlib import Path

PROCESS = "shardline.process"  # the tag that holds it


def this_process() -> str:
    """Return this host, its boot, the process and its start, so that another run can tell whether it still lives."""
    return " ".join((platform.node(), *_place(), str(os.getpid()), _start_of(os.getpid()) or "unknown"))


def _place() -> tuple[str, str]:
    """Return this boot of the machine and the space of its process numbers: a container has one of its own."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return boot, str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        return "unknown", "unknown"


def _start_of(pid: int) -> str | None:
    """Return when a process started, in a form that no correction of the clock changes; None without such a process."""
    stat = Path(f"/proc/{pid}/stat")
    if Path("/proc/self/stat").exists():
        try:
            return stat.read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[19]
        except OSError:
            return None
    import psutil

    try:
        return f"{psutil.Process(pid).create_time():.0f}"
    except psutil.NoSuchProcess:
        return None


def is_gone(process: str | None) -> bool:
    """Return whether a process of this host has ended; of another host's or another container's nothing is known."""
    match str(process).rsplit(" ", 4):
        case [host, boot, space, pid, start] if host == platform.node() and pid.isdigit():
            if boot != _place()[0]:
                return True  # the machine was started again since
            return space == _place()[1] and _start_of(int(pid)) != start
    return False
