"""The first pass over shards in S3, beside peers and beside what it costs at least.

    python -m tests.benchmarks.stream_first_pass [ROUNDS]

4 million rows in 16 shards, batches of 2**20, rclone on loopback. "Checked limit": fetch, decode, MD5, isfinite and
row-major batches on every core, and nothing else; "bare limit": fetch and decode only.
"""

import os
import sys

from tests.benchmarks.stream_setting import HOME, ROWS, Candidate, print_table, provide_peers, serve_shards, take_turns


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 7
    peers = provide_peers()
    threads = 2 * len(os.sched_getaffinity(0))
    with serve_shards() as environment:
        environment["BENCHMARK_CACHE"] = str(HOME)
        candidates = {
            "bare limit": Candidate("limit", "bare", threads, environment=environment),
            "checked limit": Candidate("limit", "checked", threads, environment=environment),
            "ours": Candidate("ours", "off", environment=environment),
            "ours, writing the cache": Candidate("ours", "cold", environment=environment),
            "polars": Candidate("polars", environment=environment, python=peers),
            "pyarrow.dataset": Candidate("pyarrow_dataset", environment=environment),
            "pandas chunks": Candidate("pandas", environment=environment),
            "kaen 1.0.1.31": Candidate("kaen", environment=environment, python=peers),
        }
        try:
            measured = take_turns(list(candidates.values()), rounds)
        finally:
            for candidate in candidates.values():
                candidate.close()
    seconds = dict(zip(candidates, measured, strict=True))
    print_table("First pass from S3, cache off unless said", seconds, ROWS, "checked limit")


if __name__ == "__main__":
    main()
