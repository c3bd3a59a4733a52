"""The first pass over shards in S3, beside peers and beside what it costs at least.

    python -m tests.benchmarks.stream_first_pass [ROUNDS]

4 million rows in 16 shards, batches of 2**20, rclone on loopback. "Checked limit": fetch, decode by pyarrow, MD5,
isfinite and row-major batches on every core, and nothing else; "bare limit": fetch and decode only. Candidates are
measured in processes that stay, and again each time in one that has just started and imported torch and pyarrow only.
"""

import os
import sys
from pathlib import Path

from tests.benchmarks.stream_setting import (
    HOME,
    ROWS,
    Candidate,
    print_table,
    provide_peers,
    run_in_turns,
    serve_shards,
)


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 7
    peers = provide_peers()
    threads = 2 * len(os.sched_getaffinity(0))
    with serve_shards() as environment:
        environment["BENCHMARK_CACHE"] = str(HOME)
        for fresh in (False, True):

            def of(*arguments: object, python: Path | None = None, fresh: bool = fresh) -> Candidate:
                return Candidate(*map(str, arguments), environment=environment, python=python, fresh=fresh)

            candidates = {
                "bare limit": of("limit", "bare", threads),
                "checked limit": of("limit", "checked", threads),
                "ours": of("ours", "off"),
                "ours, writing the cache": of("ours", "cold"),
                "polars": of("polars", threads, python=peers),
                "kaen 1.0.1.31": of("kaen", python=peers),
            }
            if not fresh:
                candidates["pyarrow.dataset"] = of("pyarrow_dataset")
                candidates["pandas chunks"] = of("pandas")
            measured = run_in_turns(list(candidates.values()), rounds)
            seconds = dict(zip(candidates, measured, strict=True))
            busy = {name: candidate.cpu_seconds[1:] for name, candidate in candidates.items()}
            where = "in processes that have just started" if fresh else "in processes that stay"
            print_table(f"First pass from S3, {where}, cache off unless said", seconds, ROWS, "checked limit", busy)


if __name__ == "__main__":
    main()
