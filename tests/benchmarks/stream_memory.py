"""Peak anonymous memory of a pass, at 1 and at 10 times the data, and the formula that the README states.

    python -m tests.benchmarks.stream_memory

The server is `rangeserver.py`: for each range of a large shard rclone would compute the MD5 of the whole object.
RssAnon is sampled every 5 ms in a process that does nothing else. Ten times the data: the same shards listed ten times.
"""

import dataclasses
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from tasks.streaming.dataset import LOADERS
from tasks.streaming.memory import bound_memory
from tests.benchmarks.rangeserver import serve_ranges
from tests.benchmarks.stream_setting import HOME, ROOT, describe_machine, serve_shards

MIB = 2**20
ROW = 9 * 8  # bytes of a decoded row
CASES = (
    {"batch_size": 2**18},
    {"batch_size": 2**20},
    {"batch_size": 2**16},
    {"batch_size": 2**18, "prefetch": 6},
    {"batch_size": 2**18, "shuffle": True},
    {"batch_size": 2**18, "cache": True},
    {"batch_size": 2**18, "large": True},
)


def read_anonymous() -> float:
    """RssAnon of this process in MiB."""
    with Path("/proc/self/status").open() as status:
        return next(int(line.split()[1]) for line in status if line.startswith("RssAnon")) / 1024


def measure(times: int, options: dict[str, Any]) -> None:
    """Prints MiB before the first batch is asked for, and at the peak."""
    import tempfile

    import pyarrow.csv  # noqa: F401
    import torch  # noqa: F401

    from tasks.streaming import CacheSettings, ObjectStorageDataset, locate

    manifest = locate(f"s3://taxi/{'large' if options.pop('large', False) else 'csv'}/part-*.csv")
    cache = CacheSettings(enabled=options.pop("cache", False), folder=tempfile.mkdtemp())
    dataset = ObjectStorageDataset.from_manifest(
        dataclasses.replace(manifest, shards=manifest.shards * times), epochs=1, cache=cache, **options
    )
    base = peak = read_anonymous()
    done = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.005):
            peak = max(peak, read_anonymous())

    watcher = threading.Thread(target=watch)
    watcher.start()
    for _ in dataset:
        pass
    done.set()
    watcher.join()
    print(base, peak)


def bound(options: dict[str, Any]) -> float:
    """MiB above the base that the README states as the most that a pass takes."""
    kind = {name: options.get(name, False) for name in ("shuffle", "large")}
    held = 0 if options.get("cache") else None
    return (
        bound_memory(options["batch_size"] * ROW, options.get("prefetch", 2), loaders=LOADERS, held=held, **kind) / MIB
    )


def find_peaks(options: dict[str, Any], environment: dict[str, str]) -> tuple[float, float, float]:
    """MiB before a pass, at its peak over the data, and at its peak over ten times the data.

    Of a single large shard the first is over as many as are loaded side by side.
    """
    command = [sys.executable, "-m", "tests.benchmarks.stream_memory"]
    found = [
        subprocess.run(
            [*command, str(times), repr(options)], cwd=ROOT, env=environment, check=True, capture_output=True, text=True
        ).stdout.split()
        for times in (LOADERS if options.get("large") else 1, 10)
    ]
    (base, one), (_, ten) = [(float(a), float(b)) for a, b in found]
    return base, one, ten


def are_alike(one: float, ten: float, options: dict[str, Any]) -> bool:
    """Whether two peaks differ by no more than a tenth and a batch: how many are there at once is chance."""
    return abs(ten - one) <= float(0.1 * one + options["batch_size"] * ROW / MIB)


def main() -> None:
    if len(sys.argv) > 1:
        measure(int(sys.argv[1]), eval(sys.argv[2]))
        return
    print("| | base MiB | peak, 1× | peak, 10× | 10× / 1× | at most |\n|---|---:|---:|---:|---:|---:|")
    holds = True
    with serve_shards() as environment, serve_ranges(HOME / "s3") as url:
        environment["AWS_ENDPOINT_URL"] = url
        for options in CASES:
            base, one, ten = find_peaks(options, environment)
            most = base + bound(options)
            holds &= max(one, ten) <= most and are_alike(one, ten, options)
            said = ", ".join(f"{name} {value}" for name, value in options.items())
            print(f"| {said} | {base:.0f} | {one:.0f} | {ten:.0f} | {ten / one:.2f} | {most:.0f} |", flush=True)
    print(f"\n{describe_machine()}")
    sys.exit(None if holds else "The formula of the README does not hold, or memory grows with the data.")


if __name__ == "__main__":
    main()
