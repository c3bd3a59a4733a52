"""One large shard beside 16 shards of the same bytes: as fast, if a single shard is spread over the cores.

    python -m tests.benchmarks.stream_one_shard [ROUNDS [TIMES]]

TIMES: how often the 236 MB of the other benchmarks are repeated; 5 is a shard of 1.2 GB. The server is
`rangeserver.py`: for each range rclone would compute the MD5 of the whole object.
"""

import sys

from tests.benchmarks.rangeserver import serve_ranges
from tests.benchmarks.stream_setting import HOME, ROWS, Candidate, lay_out_huge, print_table, run_in_turns, serve_shards


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 7
    times = int(sys.argv[2]) if len(sys.argv) > 2 else 5
    folders = {"16 shards": f"parts-{times}", "one shard": f"huge-{times}"}
    with serve_shards() as environment, serve_ranges(HOME / "s3") as url:
        environment["AWS_ENDPOINT_URL"] = url
        lay_out_huge(times)
        environment["BENCHMARK_CACHE"] = str(HOME)
        candidates = {
            f"{name}, cache {cache}": Candidate(
                "ours", cache, f"s3://taxi/{folder}/part-*.csv", environment=environment
            )
            for cache in ("off", "cold")
            for name, folder in folders.items()
        }
        measured = run_in_turns(list(candidates.values()), rounds)
    seconds = dict(zip(candidates, measured, strict=True))
    print_table(f"First pass over {ROWS * times:,} rows", seconds, ROWS * times, "16 shards, cache off")


if __name__ == "__main__":
    main()
