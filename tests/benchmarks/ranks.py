"""A training over ranks whose bandwidth to the store is limited each: how much faster N of them are than one.

    python -m tests.benchmarks.ranks                      some five minutes; --help says what can be chosen

Each rank is a process that reaches an S3 server (`rclone serve s3` over generated shards) through a proxy of its own,
which lets so many bytes a second pass; nothing is kept, in no cache and no memory, so that every iteration is streamed.
A batch is all rows: a rank fetches every shard that it has a row of, and its part should be many of them. Limits are to
be chosen so that all ranks together need at most half of the machine's cores, or the cores are measured and not the
ranks: how many were busy with ranks and servers is printed, and whether that is so. Beside it are the time from the
first batch asked for to the last iteration, the efficiency (the time of one rank, over N times that of N), and where
the time of the slowest rank went. Ranks are torch's own processes: Ray would start the same function. Then comes
LitData under torch's DDP, on the same rows in chunks of its own format, over the same limited servers, once through; it
is installed, when first asked for, into an environment of its own (`--no-peer`: without).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import torch
from torch.multiprocessing.spawn import spawn

from tasks.facts import RankTimes, TrainingData, TrainingJob
from tasks.learning.features import Features
from tasks.parameters import TrainingParameters
from tasks.ranks.parts import Tally
from tasks.sources import resolve_sources
from tasks.streaming import locate
from tasks.training.ranks import train_rank
from tests.benchmarks.stream_peers import CONNECTOR, OVER_OURS
from tests.benchmarks.stream_setting import describe_machine, provide_environment
from tests.faults import Answer, Fault, FaultProxy
from tests.servers import BUCKET, serve_rclone
from tests.shards import write_shards

WARM, WARM_ROWS = "warm", 300  # trained on before the clock starts, so that all is imported and connected
SHARDS = f"s3://{BUCKET}/part*.csv"
PEER = "tests.benchmarks.ranks_peer"
KEYS = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1"}


@dataclass(frozen=True)
class Limit(Fault):
    """Lets answers pass one by one, at so many bytes a second."""

    bytes_per_second: float
    one_by_one: threading.Lock = field(default_factory=threading.Lock)

    def change(self, answer: Answer) -> Answer:
        """Wait as long as the bytes would take."""
        with self.one_by_one:
            time.sleep(len(answer.body) / self.bytes_per_second)
        return answer


def make_job(shards: str, rows: int, epochs: int) -> TrainingJob:
    """Return a training that goes through the shards so often, on whatever server the environment names."""
    given = TrainingParameters(shards=shards, batch_size=rows, resident_bytes=0, cache=False, iterations=epochs)
    sources = resolve_sources(given)
    manifest = locate(shards, storage_options=sources.storage_options(shards))
    return TrainingJob(
        parameters=given,
        sources=sources,
        data=TrainingData(train=manifest, test=None, rows_of="train", judged_on="the same rows", statistics={}),
        features=Features.choose(manifest.columns),
        run_id="none",
    )


def be_rank(rank: int, urls: list[str], rows: int, epochs: int, folder: str) -> None:
    """Train as one of as many ranks as there are servers, each at its own; leave where the time went in a file."""
    os.environ.update(KEYS, AWS_ENDPOINT_URL=urls[rank], GLOO_SOCKET_IFNAME="lo")
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting-{len(urls)}", rank=rank, world_size=len(urls)
    )
    tally, job = Tally(rank), make_job(SHARDS, rows, epochs)
    train_rank(make_job(f"{folder}/{WARM}/part*.csv", WARM_ROWS, 1), None, lambda _: None)
    torch.distributed.barrier()
    began, cpu = time.perf_counter(), time.process_time()
    train_rank(job, None, lambda _: None, tally=tally)
    spent = {"seconds": time.perf_counter() - began, "cpu": time.process_time() - cpu}
    (Path(folder) / f"ours-{len(urls)}-{rank}.json").write_text(json.dumps(spent | {"times": asdict(tally.times)}))
    torch.distributed.destroy_process_group()


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What a number of ranks took: seconds, from the first batch asked for to the last rank's last iteration.

    cpu: CPU seconds of all ranks, and of the servers on the same cores, their limits included
    waited: seconds that the slowest rank waited for data
    """

    size: int
    seconds: float
    cpu: float
    waited: float


@contextlib.contextmanager
def serve_limited(size: int, bytes_per_second: float, folder: Path, key: str) -> Iterator[list[str]]:
    """Serve a folder at as many URLs as there are ranks, the objects whose names end with `key` slowly at each."""
    with contextlib.ExitStack() as servers:
        store = servers.enter_context(serve_rclone(folder))
        limit = partial(FaultProxy, store, key=key)
        yield [servers.enter_context(limit(Limit(bytes_per_second))).url for _ in range(size)]


def read_cpu() -> float:
    """Return the CPU seconds so far of this process, which has the limits, and of the S3 server that it started."""
    servers = [server.cpu_times() for server in psutil.Process().children()]
    return time.process_time() + float(sum(times.user + times.system for times in servers))


def read_ranks(name: str, size: int, folder: Path) -> list[dict[str, Any]]:
    """Return what each rank left in its file."""
    return [json.loads((folder / f"{name}-{size}-{rank}.json").read_text()) for rank in range(size)]


def measure(size: int, rows: int, epochs: int, bytes_per_second: float, folder: Path) -> tuple[Measured, RankTimes]:
    """Return what ranks of ours took, and the times of the slowest one."""
    with serve_limited(size, bytes_per_second, folder, ".csv") as urls:
        before = read_cpu()
        spawn(be_rank, (urls, rows, epochs, str(folder)), nprocs=size)
        served = read_cpu() - before
    found = read_ranks("ours", size, folder)
    slowest = max((RankTimes(**each["times"]) for each in found), key=lambda each: each.busy_seconds)
    return add_up(size, found, served, slowest.wait_seconds), slowest


def measure_peer(size: int, rows: int, bytes_per_second: float, folder: Path, python: Path) -> Measured:
    """Return what ranks of LitData under DDP took."""
    with serve_limited(size, bytes_per_second, folder, ".bin") as urls:
        before = read_cpu()
        ranks = [
            subprocess.Popen(
                [python, "-m", PEER, "train", str(rank), str(size), str(folder)],
                env=os.environ | KEYS | {"AWS_ENDPOINT_URL": url},
                stdout=subprocess.DEVNULL,
            )
            for rank, url in enumerate(urls)
        ]
        assert [rank.wait() for rank in ranks] == [0] * size
        served = read_cpu() - before
    found = read_ranks("litdata", size, folder)
    assert sum(each["rows"] for each in found) == rows
    return add_up(size, found, served, max(each["wait_seconds"] for each in found))


def add_up(size: int, found: Sequence[dict[str, Any]], served: float, waited: float) -> Measured:
    """Return what ranks took that left this, and whose servers took `served` CPU seconds."""
    seconds = max(each["seconds"] for each in found)
    return Measured(size=size, seconds=seconds, cpu=served + sum(each["cpu"] for each in found), waited=waited)


def write_shared(measured: Measured, first: Measured) -> str:
    """Return the cells of a line that both tables have."""
    efficiency = first.size * first.seconds / (measured.size * measured.seconds)
    cores = measured.cpu / measured.seconds
    return f"| {measured.size} | {measured.seconds:.2f} | {efficiency:.2f} | {cores:.2f} | {measured.waited:.2f} |"


def print_ranks(given: argparse.Namespace, rows: int, folder: Path) -> list[Measured]:
    """Measure each number of ranks in turn, and print a table."""
    print("| ranks | seconds | efficiency | cores busy | slowest: waiting for data | computing | for others | else |")
    print("|---:|---:|---:|---:|---:|---:|---:|---:|")
    found: list[Measured] = []
    for size in given.ranks:
        measured, slowest = measure(size, rows, given.epochs, given.megabytes_per_second * 1e6, folder)
        found.append(measured)
        computing = slowest.compute_seconds - slowest.gather_seconds
        rest = measured.seconds - slowest.wait_seconds - slowest.copy_seconds - slowest.compute_seconds
        cells = f" {computing:.2f} | {slowest.gather_seconds:.2f} | {rest:.2f} |"
        print(write_shared(measured, found[0]) + cells, flush=True)
    return found


def print_peer(given: argparse.Namespace, rows: int, folder: Path) -> list[Measured]:
    """Measure LitData over the same numbers of ranks, and print a table."""
    python = provide_environment("light", (*OVER_OURS, *CONNECTOR))
    command = [str(python), "-m", PEER, "convert", str(folder / BUCKET), str(folder / "litdata")]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    print_least(folder / "litdata", "*.bin", given.megabytes_per_second)
    print("| LitData under DDP, ranks | seconds | efficiency | cores busy | waiting for data, at most |")
    print("|---:|---:|---:|---:|---:|")
    found: list[Measured] = []
    for size in given.ranks:
        found.append(measure_peer(size, rows, given.megabytes_per_second * 1e6, folder, python))
        print(write_shared(found[-1], found[0]), flush=True)
    return found


def print_least(folder: Path, names: str, megabytes_per_second: float, passes: int = 1) -> None:
    """Print how long one rank takes at least, by its limit alone."""
    megabytes = sum(path.stat().st_size for path in folder.glob(names)) / 1e6 * passes
    least = megabytes / megabytes_per_second
    print(f"\n{megabytes:.1f} MB at {megabytes_per_second:g} MB a second: one rank takes at least {least:.2f} s.\n")


def print_cores(found: Sequence[Measured]) -> None:
    """Print whether the limits were low enough, so that it is not the cores that were measured."""
    most, cores = max(each.cpu / each.seconds for each in found), len(os.sched_getaffinity(0))
    verdict = "no more than half" if most <= cores / 2 else "**more than half: lower --megabytes-per-second**"
    print(f"\nAt most {most:.2f} of {cores} cores were busy with ranks and servers: {verdict}.")


def main() -> None:
    """Measure each number of ranks in turn, and print tables."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.ranks", description=__doc__.splitlines()[0])
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--megabytes-per-second", type=float, default=1.0, help="of each rank's server")
    parser.add_argument("--rows", type=int, default=1_600_000)
    parser.add_argument("--shards", type=int, default=240)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--no-peer", action="store_true", help="LitData is not measured beside it")
    given = parser.parse_args()
    rows = given.rows // given.shards * given.shards
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        write_shards(folder / BUCKET, [rows // given.shards] * given.shards, metadata=True)
        write_shards(folder / WARM, [WARM_ROWS])
        print_least(folder / BUCKET, "*.csv", given.megabytes_per_second, given.epochs)
        print_cores(print_ranks(given, rows, folder))
        if not given.no_peer:
            print_cores(print_peer(given, rows, folder))
    print(f"\n{describe_machine()}")


if __name__ == "__main__":
    main()
