"""A search's trials on one pass over shards in S3, beside as many separate runs, and beside Optuna over kaen.

    python -m tests.benchmarks.search                      --help says what can be chosen

Generated taxi shards behind rclone on loopback, a batch for each shard, and as many iterations as one pass has batches;
ours keeps nothing on disk or in memory, so that every run streams, while kaen is used at its best (see
search_candidates.py). Ours trains on all shards but the last ones, which have a tenth of the rows: on those a search
compares its trials, and their reading is in its time. kaen reads the same shards to train, and those only. Neither is
recorded in MLflow. In each line all ways take turns with one streamed run, to which ratios are; medians of the rounds
are compared. Where there would be more runs than asked for, they are not made: their time is what the two longest lines
that were measured give for each run more, and is marked by ≈.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Mapping

from tests.benchmarks.stream_setting import (
    ROWS,
    Candidate,
    describe_machine,
    provide_peers,
    run_in_turns,
    serve_rows,
)

TRIALS, CLAIMED, LIMIT = (1, 8, 50, 200), 50, 1.3
WAYS = {"one_pass": "on one pass", "runs": "separate runs", "kaen": "Optuna over kaen, a run a trial"}
Seconds = Mapping[str, float]


def measure(count: int, ways: list[str], rounds: int, environment: dict[str, str]) -> Seconds:
    """Return the medians of the seconds that one run takes, and that each way takes for so many models, by name."""
    asked = {"one": ("runs", 1)} | {way: (way, count) for way in ways}
    peers, module = provide_peers(), "tests.benchmarks.search_candidates"
    candidates = [
        Candidate(way, number, environment=environment, python=peers if way == "kaen" else None, module=module)
        for way, number in asked.values()
    ]
    return dict(zip(asked, map(statistics.median, run_in_turns(candidates, rounds)), strict=True))


def write_cells(way: str, count: int, measured: Mapping[int, Seconds]) -> str:
    """Return the seconds of a way, and their ratio to one run: as measured, else foreseen, else none."""
    found, mark = measured[count].get(way), ""
    if found is None:
        found, mark = foresee(count, {at: seconds[way] for at, seconds in measured.items() if way in seconds}), "≈ "
    return f"{mark}{found:.2f} | {mark}{found / measured[count]['one']:.2f}" if found else "– | –"


def foresee(count: int, known: Mapping[int, float]) -> float | None:
    """Return the seconds for so many models by those for fewer; None where less than two numbers of them are known."""
    if len(known) < 2:
        return None
    few, many = sorted(known)[-2:]
    return known[many] + (count - many) * (known[many] - known[few]) / (many - few)


def print_lines(given: argparse.Namespace, environment: dict[str, str]) -> dict[int, Seconds]:
    """Measure for each number of models, print a line of the table, and return what was measured."""
    print("| trials | one streamed run, s | " + " | ".join(f"{name}, s | ratio" for name in WAYS.values()) + " |")
    print("|" + "---:|" * (2 + 2 * len(WAYS)), flush=True)
    measured: dict[int, Seconds] = {}
    for count in TRIALS:
        ways = list(WAYS) if count <= given.most else ["one_pass"]
        measured[count] = measure(count, ways, given.rounds, environment)
        cells = " | ".join(write_cells(way, count, measured) for way in WAYS)
        print(f"| {count} | {measured[count]['one']:.2f} | {cells} |", flush=True)
    return measured


def main() -> None:
    """Measure in turn, print the table, and say whether the claim holds."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.search", description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=ROWS)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--most", type=int, default=8, help="so many runs at most are made for a line of the table")
    given = parser.parse_args()
    with serve_rows(given.rows) as environment:
        measured = print_lines(given, environment)
    ratio = measured[CLAIMED]["one_pass"] / measured[CLAIMED]["one"]
    verdict = "as claimed" if ratio <= LIMIT else "missed"
    print(f"\n{CLAIMED} trials took {ratio:.2f} of one streamed run; at most {LIMIT} is claimed: {verdict}")
    print(f"\n{given.rows:,} rows; {describe_machine()}; medians of {given.rounds} rounds in turn.")


if __name__ == "__main__":
    main()
