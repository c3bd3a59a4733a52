"""The stream of this checkout beside that of another one, an earlier commit's say: passes in turn, and what they cost.

    git worktree add ../before COMMIT
    python -m tests.benchmarks.stream_before ../before [ROUNDS]

Both run in processes that stay, with the packages of this environment, by the candidates of their own checkout: a first
pass over 16 shards in S3, and later ones from the cache. CPU seconds are the client's, read from outside.
"""

import statistics
import sys
from pathlib import Path

import psutil

from tests.benchmarks.stream_setting import HOME, ROOT, ROWS, Candidate, print_table, run_in_turns, serve_shards

PASSES = {"first pass": "off", "later pass, from the cache": "warm"}


class Timed(Candidate):
    """A candidate of a checkout, whose CPU seconds are read as the system counts them."""

    def __init__(self, root: Path, cache: str, environment: dict[str, str]) -> None:
        super().__init__("ours", cache, environment=environment | {"PYTHONPATH": str(root)}, root=root)
        self.busy: list[float] = []

    def __call__(self) -> float:
        assert self._process
        process = psutil.Process(self._process.pid)
        before = sum(process.cpu_times()[:2])
        seconds = float(super().__call__())
        self.busy.append(sum(process.cpu_times()[:2]) - before)
        return seconds


def main() -> None:
    before, rounds = Path(sys.argv[1]).resolve(), int(sys.argv[2]) if len(sys.argv) > 2 else 7
    with serve_shards() as environment:
        environment["BENCHMARK_CACHE"] = str(HOME)
        for name, cache in PASSES.items():
            candidates = {"ours": Timed(ROOT, cache, environment), "before": Timed(before, cache, environment)}
            measured = run_in_turns(list(candidates.values()), rounds)
            busy = {which: candidate.busy[1:] for which, candidate in candidates.items()}
            print_table(name.capitalize(), dict(zip(candidates, measured, strict=True)), ROWS, "before", busy)
            ours, theirs = (statistics.median(found) for found in busy.values())
            print(f"CPU: {ours / theirs:.2f} of before.", flush=True)


if __name__ == "__main__":
    main()
