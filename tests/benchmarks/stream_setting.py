"""Where the stream is measured: generated taxi shards behind a real S3 server, peers in an environment of their own.

Candidates (`stream_candidates.py`) run in processes that stay, and take turns: a round asks each for one measurement,
so that whatever else the machine does falls on all of them alike. Medians of the rounds are compared.
"""

import contextlib
import json
import os
import platform
import statistics
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from deployments.generator import provide_data
from tests.servers import serve_rclone
from tests.shards import write_metadata

ROOT = Path(__file__).parents[2]
HOME = ROOT / ".shardline" / "benchmarks"
ROWS, SHARDS = 4_000_000, 16
BATCH = 2**20
PEERS = ("kaen==1.0.1.31", "polars==2.1.0", "polars-runtime-32==2.1.0", "obstore==0.12.1", "awscrt==0.38.1")
KEYS = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1"}


@contextlib.contextmanager
def serve_shards() -> Iterator[dict[str, str]]:
    """The environment in which `s3://taxi/csv/` has 16 shards, `one/` a single one of 1 M rows, `large/` of all."""
    with _serve(_lay_out_shards()) as environment:
        yield environment


@contextlib.contextmanager
def serve_rows(rows: int) -> Iterator[dict[str, str]]:
    """The environment in which `s3://taxi/csv/` has the generated shards of so many rows, and nothing stands beside."""
    folder = HOME / f"s3-{rows}"
    _lay_out_generated(folder / "taxi" / "csv", rows)
    with _serve(folder) as environment:
        yield environment


@contextlib.contextmanager
def _serve(folder: Path) -> Iterator[dict[str, str]]:
    with serve_rclone(folder) as url:
        yield os.environ | KEYS | {"AWS_ENDPOINT_URL": url, "PYTHONPATH": str(ROOT)}


def _lay_out_shards() -> Path:
    """Two buckets' folders below the one returned."""
    folder = HOME / "s3"
    many, one = folder / "taxi" / "csv", folder / "taxi" / "one"
    full = _lay_out_generated(many, ROWS)
    assert len(full) == SHARDS
    if not one.exists():
        one.mkdir()
        _join(full[:4], one / "part-00000.csv")
        write_metadata(one, {0: ROWS // 4})
    large = folder / "taxi" / "large"
    if not large.exists():
        large.mkdir()
        _join(full, large / "part-00000.csv")
        write_metadata(large, {0: ROWS})
    return folder


def _lay_out_generated(folder: Path, rows: int) -> list[Path]:
    """The generated shards of so many rows, put into a folder without the empty partition that kaen cannot read."""
    generated, _ = provide_data(ROOT / ".shardline" / "generated", rows)
    full = [path for path in sorted((generated / "csv" / "dev").glob("part-*.csv")) if path.stat().st_size]
    if not folder.exists():
        folder.mkdir(parents=True)
        for number, path in enumerate(full):
            (folder / f"part-{number:05d}.csv").hardlink_to(path)
        write_metadata(folder, dict(enumerate(_read_counts(generated / "csv" / "dev"))))
    return full


def _read_counts(folder: Path) -> list[int]:
    """How many rows the shards have that are not empty, as `.meta/shards` says."""
    (path,) = (folder / ".meta" / "shards").glob("part-*.csv")
    return [int(line.split(",")[1]) for line in path.read_text().splitlines()[1:]]


def lay_out_huge(times: int) -> None:
    """Let `s3://taxi/huge-N/` be one shard of all rows, N times over, and `s3://taxi/parts-N/` 16 of the same lines."""
    folder = HOME / "s3" / "taxi"
    huge, parts = folder / f"huge-{times}", folder / f"parts-{times}"
    if huge.exists():
        return
    paths = sorted((folder / "csv").glob("part-*.csv"))
    parts.mkdir(exist_ok=True)
    for number in range(SHARDS):
        _join([paths[(number * times + step) % SHARDS] for step in range(times)], parts / f"part-{number:05d}.csv")
    write_metadata(parts, dict.fromkeys(range(SHARDS), ROWS // SHARDS * times))
    huge.mkdir()
    _join(sorted(parts.glob("part-*.csv")), huge / "part-00000.csv")
    write_metadata(huge, {0: ROWS * times})


def _join(paths: Sequence[Path], target: Path) -> None:
    """Write the lines of all these shards below one header line."""
    with target.open("wb") as file:
        for number, path in enumerate(paths):
            header, rows = path.read_bytes().split(b"\n", 1)
            file.write(rows if number else header + b"\n" + rows)


def provide_peers() -> Path:
    """The Python of an environment with the peers that read CSV."""
    return provide_environment("peers", PEERS)


def provide_environment(name: str, packages: Sequence[str], *, alone: bool = False) -> Path:
    """The Python of an environment with these packages; all else it takes from the project's own, unless `alone`."""
    folder = HOME / name
    python = folder / "bin" / "python"
    ready = folder / "ready"
    if not ready.exists() or ready.read_text() != "\n".join(packages):
        venv.create(folder, with_pip=True, clear=True)
        dependencies = [] if alone else ["--no-deps"]
        subprocess.run([python, "-m", "pip", "install", "--quiet", *dependencies, *packages], check=True)
        if not alone:
            installed = next((folder / "lib").glob("python*")) / "site-packages"
            (installed / "project.pth").write_text(sysconfig.get_path("purelib") + "\n")
        ready.write_text("\n".join(packages))
    return python


class Candidate:
    """One candidate in a process of its own; a call measures it once and returns what it printed, as JSON.

    fresh: each measurement is in a process that has just started, and has imported torch and pyarrow
    root: of the checkout whose candidate it is
    cpu_seconds: of the process, for each measurement that told them; what is printed is then the seconds alone
    """

    def __init__(
        self,
        name: str,
        *arguments: object,
        environment: dict[str, str],
        python: Path | None = None,
        module: str = "tests.benchmarks.stream_candidates",
        fresh: bool = False,
        root: Path = ROOT,
    ) -> None:
        self.name, self._root = name, root
        self.cpu_seconds: list[float] = []
        self._command = [str(python or sys.executable), "-m", module, name, *map(str, arguments)]
        self._environment = environment | ({"BENCHMARK_FRESH": "1"} if fresh else {})
        self._fresh = fresh
        self._process = None if fresh else self._start()

    def __call__(self) -> Any:
        process = self._process or self._start()
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write("once\n")
        process.stdin.flush()
        line = process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.name} ended with exit code {process.wait()}")
        if self._fresh:
            _end(process)
        found = json.loads(line)
        if not isinstance(found, dict):
            return found
        self.cpu_seconds.append(found["cpu_seconds"])
        return found["seconds"]

    def close(self) -> None:
        if self._process:
            _end(self._process)

    def _start(self) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            self._command,
            cwd=self._root,
            env=self._environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )


def _end(process: "subprocess.Popen[str]") -> None:
    process.communicate()


def take_turns(candidates: Sequence[Callable[[], Any]], rounds: int) -> list[list[Any]]:
    """What each candidate measured in each round, after a round that is not counted."""
    for candidate in candidates:
        candidate()
    measured: list[list[Any]] = [[] for _ in candidates]
    for _ in range(rounds):
        for found, candidate in zip(measured, candidates, strict=True):
            found.append(candidate())
    return measured


def run_in_turns(candidates: Sequence[Candidate], rounds: int) -> list[list[Any]]:
    """See `take_turns`; then their processes are ended."""
    try:
        return take_turns(candidates, rounds)
    finally:
        for candidate in candidates:
            candidate.close()


def describe_machine() -> str:
    model = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line),
        platform.processor(),
    )
    cores, busy = len(os.sched_getaffinity(0)), os.getloadavg()[0]
    return f"{cores} cores of {model}, Python {platform.python_version()}, load {busy:.1f} at the end"


def print_table(
    title: str,
    seconds: dict[str, list[float]],
    rows: int,
    reference: str,
    cpu_seconds: dict[str, list[float]] | None = None,
) -> None:
    """Medians, rates and ratios to `reference`, whose ratio is 1; `cpu_seconds`: those of the client, a GB of CSV."""
    base = statistics.median(seconds[reference])
    shards = (HOME / "s3" / "taxi" / "csv").glob("part-*.csv")
    gigabytes = sum(path.stat().st_size for path in shards) / 1e9 * rows / ROWS
    busy = {name: f" {statistics.median(found) / gigabytes:.2f} |" for name, found in (cpu_seconds or {}).items()}
    print(
        f"\n{title}\n\n| | median s | least s | M rows/s | speed against {reference} |{' CPU s a GB |' if busy else ''}"
    )
    print(f"|---|---:|---:|---:|---:|{'---:|' if busy else ''}")
    for name, found in seconds.items():
        median = statistics.median(found)
        line = f"| {name} | {median:.3f} | {min(found):.3f} | {rows / median / 1e6:.2f} | {base / median:.2f} |"
        print(line + busy.get(name, ""))
    print(f"\n{describe_machine()}; {len(seconds[reference])} rounds in turn.")
