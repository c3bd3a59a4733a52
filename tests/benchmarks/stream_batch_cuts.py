"""One shard of a million rows, cut into 20 batches and into 80: the cost must follow the bytes, not the batches.

python -m tests.benchmarks.stream_batch_cuts [ROUNDS]
"""

import statistics
import sys

from tests.benchmarks.stream_candidates import ONE
from tests.benchmarks.stream_setting import Candidate, describe_machine, provide_peers, run_in_turns, serve_shards


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    peers = provide_peers()
    with serve_shards() as environment:
        candidates = [
            Candidate("ours", "off", ONE, 20, environment=environment),
            Candidate("ours", "off", ONE, 80, environment=environment),
            Candidate("kaen", "fresh", ONE, 20, environment=environment, python=peers),
            Candidate("kaen", "fresh", ONE, 80, environment=environment, python=peers),
        ]
        few, many, kaen_few, kaen_many = map(statistics.median, run_in_turns(candidates, rounds))
    print("\n| 1 M rows in one shard | 20 batches, s | 80 batches, s | ratio |\n|---|---:|---:|---:|")
    print(f"| ours | {few:.3f} | {many:.3f} | {many / few:.2f} |")
    print(f"| kaen 1.0.1.31 | {kaen_few:.3f} | {kaen_many:.3f} | {kaen_many / kaen_few:.2f} |")
    print(f"\n{describe_machine()}; medians of {rounds} rounds in turn.")


if __name__ == "__main__":
    main()
