"""A training over ranks whose bandwidth to the store is limited each: how much faster N of them are than one.

    python -m tests.benchmarks.ranks                      some three minutes; --help says what can be chosen

Each rank is a process that reaches an S3 server (`rclone serve s3` over generated shards) through a proxy of its own,
which lets so many bytes a second pass; nothing is kept, in no cache and no memory, so that every iteration is streamed.
A batch is all rows: a rank fetches every shard that it has a row of, and its part should be many of them. Limits are to
be chosen so that all ranks together need at most half of the machine's cores, or the cores are measured and not the
ranks. Printed are the time from the first batch asked for to the last iteration, the efficiency (the time of one rank,
over N times that of N), and where the time of the slowest rank went. Ranks are torch's own processes: Ray would start
the same function. Beside it stands LitData under torch's DDP, on the same rows in chunks of its own format, over the
same limited servers; it is installed, when first asked for, into an environment of its own (`--no-peer`: without).
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
from dataclasses import asdict, dataclass, field
from pathlib import Path

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


def make_job(rows: int, epochs: int) -> TrainingJob:
    """Return a training that goes through the shards so often, on whatever server the environment names."""
    given = TrainingParameters(shards=SHARDS, batch_size=rows, resident_bytes=0, cache=False, iterations=epochs)
    sources = resolve_sources(given)
    manifest = locate(SHARDS, storage_options=sources.storage_options(SHARDS))
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
    tally, job = Tally(rank), make_job(rows, epochs)  # so that all is imported, too
    torch.distributed.barrier()
    began, cpu = time.perf_counter(), time.process_time()
    train_rank(job, None, lambda _: None, tally=tally)
    spent = {"seconds": time.perf_counter() - began, "cpu": time.process_time() - cpu}
    (Path(folder) / f"{len(urls)}-{rank}.json").write_text(json.dumps(spent | {"times": asdict(tally.times)}))
    torch.distributed.destroy_process_group()


def measure(size: int, rows: int, epochs: int, bytes_per_second: float, folder: Path) -> tuple[float, float, RankTimes]:
    """Return the seconds that passed, the CPU seconds of all ranks, and the times of the slowest one."""
    with contextlib.ExitStack() as servers:
        store = servers.enter_context(serve_rclone(folder))
        proxies = [servers.enter_context(FaultProxy(store, Limit(bytes_per_second), key=".csv")) for _ in range(size)]
        urls = [proxy.url for proxy in proxies]
        spawn(be_rank, (urls, rows, epochs, str(folder)), nprocs=size)
    found = [json.loads((folder / f"{size}-{rank}.json").read_text()) for rank in range(size)]
    times = [RankTimes(**each["times"]) for each in found]
    slowest = max(times, key=lambda each: each.busy_seconds)
    return max(each["seconds"] for each in found), sum(each["cpu"] for each in found), slowest


def measure_peer(
    size: int, rows: int, bytes_per_second: float, folder: Path, python: Path
) -> tuple[float, float, float]:
    """Return the seconds that LitData under DDP took, the CPU seconds of all ranks, and how long one waited at most."""
    with contextlib.ExitStack() as servers:
        store = servers.enter_context(serve_rclone(folder))
        proxies = [servers.enter_context(FaultProxy(store, Limit(bytes_per_second), key=".bin")) for _ in range(size)]
        ranks = [
            subprocess.Popen(
                [python, "-m", PEER, "train", str(rank), str(size), str(folder)],
                env=os.environ | KEYS | {"AWS_ENDPOINT_URL": proxy.url},
                stdout=subprocess.DEVNULL,
            )
            for rank, proxy in enumerate(proxies)
        ]
        assert [rank.wait() for rank in ranks] == [0] * size
    found = [json.loads((folder / f"litdata-{size}-{rank}.json").read_text()) for rank in range(size)]
    assert sum(each["rows"] for each in found) == rows
    seconds, cpu, waited = ([each[name] for each in found] for name in ("seconds", "cpu", "wait_seconds"))
    return max(seconds), sum(cpu), max(waited)


def print_ranks(given: argparse.Namespace, rows: int, folder: Path) -> None:
    """Measure each number of ranks in turn, and print a table."""
    print("| ranks | seconds | efficiency | CPU s of all | slowest: waiting for data | computing | for the others |")
    print("|---:|---:|---:|---:|---:|---:|---:|")
    first: float | None = None
    for size in given.ranks:
        seconds, cpu, slowest = measure(size, rows, given.epochs, given.megabytes_per_second * 1e6, folder)
        first = first or seconds * size
        computing = slowest.compute_seconds - slowest.gather_seconds
        print(
            f"| {size} | {seconds:.2f} | {first / size / seconds:.2f} | {cpu:.1f} | {slowest.wait_seconds:.2f} | "
            f"{computing:.2f} | {slowest.gather_seconds:.2f} |",
            flush=True,
        )


def print_peer(given: argparse.Namespace, rows: int, folder: Path) -> None:
    """Measure LitData over the same numbers of ranks, and print a table."""
    python = provide_environment("light", (*OVER_OURS, *CONNECTOR))
    command = [str(python), "-m", PEER, "convert", str(folder / BUCKET), str(folder / "litdata")]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    print("\n| LitData under DDP, ranks | seconds | efficiency | CPU s of all | waiting for data, at most |")
    print("|---:|---:|---:|---:|---:|")
    first: float | None = None
    for size in given.ranks:
        seconds, cpu, waited = measure_peer(size, rows, given.megabytes_per_second * 1e6, folder, python)
        first = first or seconds * size
        print(f"| {size} | {seconds:.2f} | {first / size / seconds:.2f} | {cpu:.1f} | {waited:.2f} |", flush=True)


def main() -> None:
    """Measure each number of ranks in turn, and print tables."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.ranks", description=__doc__.splitlines()[0])
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--megabytes-per-second", type=float, default=2.0, help="of each rank's server")
    parser.add_argument("--rows", type=int, default=1_600_000)
    parser.add_argument("--shards", type=int, default=240)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--no-peer", action="store_true", help="LitData is not measured beside it")
    given = parser.parse_args()
    rows = given.rows // given.shards * given.shards
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        write_shards(folder / BUCKET, [rows // given.shards] * given.shards, metadata=True)
        print_ranks(given, rows, folder)
        if not given.no_peer:
            print_peer(given, rows, folder)
    print(f"\n{describe_machine()}")


if __name__ == "__main__":
    main()
