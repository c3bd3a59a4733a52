"""How much of the machine this process may use: control groups, version 1 and 2, read from their files.

What the machine has stands in description. The files are described in the kernel's
Documentation/admin-guide/cgroup-v2.rst, cgroup-v1/memory.rst and scheduler/sched-bwc.rst.
"""

from collections.abc import Iterator
from pathlib import Path

UNLIMITED = 2**60  # version 1 writes "no limit" as a number near 2**63


def read_cpu_quota(root: Path = Path("/")) -> float | None:
    """Return the CPUs' worth of time that the tightest control group grants (1.5 = one and a half cores), or None."""
    quotas = [
        quota
        for folder, version in _walk_groups(root, "cpu")
        if (quota := _read_quota_v2(folder) if version == 2 else _read_quota_v1(folder)) is not None
    ]
    return min(quotas, default=None)


def read_memory_limit(root: Path = Path("/")) -> int | None:
    """Return the bytes of memory that the tightest control group grants, or None."""
    limits = [
        int(text)
        for folder, version in _walk_groups(root, "memory")
        if (text := _read(folder / ("memory.max" if version == 2 else "memory.limit_in_bytes"))).isdigit()
    ]
    return min((limit for limit in limits if limit < UNLIMITED), default=None)


def _walk_groups(root: Path, controller: str) -> Iterator[tuple[Path, int]]:
    """Yield this process's group of a controller and all its parents, because each limits those below it."""
    mounts = root / "sys/fs/cgroup"
    for line in _read(root / "proc/self/cgroup").splitlines():
        number, controllers, path = line.split(":", 2)
        if number == "0":
            tops, version = [mounts, mounts / "unified"], 2
        elif controller in controllers.split(","):
            tops, version = [mounts / controller, mounts / controllers], 1
        else:
            continue
        for top in tops:
            group = top / path.lstrip("/")
            while group != top:
                yield group, version
                group = group.parent
            yield top, version  # a container may see its own group here, under a path of the host


def _read_quota_v2(folder: Path) -> float | None:
    match _read(folder / "cpu.max").split():
        case [quota, period] if quota.isdigit():
            return int(quota) / int(period)
    return None


def _read_quota_v1(folder: Path) -> float | None:
    quota, period = _read(folder / "cpu.cfs_quota_us"), _read(folder / "cpu.cfs_period_us")
    return int(quota) / int(period) if quota.isdigit() and period.isdigit() else None  # "-1": no quota


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
