"""Listings of many shapes, whole and damaged: each ends in a manifest, or in an error of tasks/errors.py that names its
place.

    python -m tests.fuzz_listing SECONDS
"""

import json
import random
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tasks.errors import ShardError, ShardlineError
from tasks.streaming import Manifest, locate, read_statistics
from tasks.streaming.listing.statistics import KINDS
from tasks.streaming.objects.retrying import RetryPolicy
from tests.fuzz_decoding import ODD_BYTES, ODD_CELLS, TEXTS, damage
from tests.shards import COLUMNS, to_csv

RETRY = RetryPolicy(deadline_seconds=5.0)
ODD = (*ODD_CELLS, *TEXTS, "id", "count", "summary", "-1", "00", "1" * 30, "1" * 5000, "\u00b2", "\u0660")
FILES = (".meta/shards/part-00000.csv", ".meta/stats/part-00000.csv", "part-00000.csv", "part-00001.csv")
Draw = Callable[[random.Random], bytes]


def table(r: random.Random, rows: list[list[str]]) -> bytes:
    """The rows as CSV, some cells replaced, added or left out."""
    for row in rows:
        if row and r.random() < 0.04:
            at = r.randrange(len(row))
            row[at : at + r.randint(0, 2)] = [r.choice(ODD) for _ in range(r.randint(0, 2))]
    end = r.choice(["\n", "\n", "\r\n", "\r", "\n\n"])
    return end.join(",".join(row) for row in rows).encode() + end.encode() * r.randint(0, 1)


def counts(r: random.Random) -> bytes:
    return table(r, [["id", "count"], *([str(number), "2"] for number in range(2))])


def statistics(r: random.Random) -> bytes:
    return table(r, [["summary", *COLUMNS], *([kind, "1.5", "2", "3"] for kind in KINDS)])


def shard(r: random.Random) -> bytes:
    names = None if r.random() < 0.2 else [r.choice(ODD) if r.random() < 0.1 else name for name in COLUMNS]
    return to_csv([[1, 2, 3], [4, 5, 6]], names, end=r.choice(["\n", "\n", "\r\n"]))


DRAWS: tuple[Draw, ...] = (counts, statistics, shard, shard)


def draw_file(r: random.Random, draw: Draw) -> bytes:
    """A file as it is written, damaged, or nothing of the kind."""
    data = draw(r)
    if r.random() < 0.2:
        data = damage(r, data)
    if r.random() < 0.05:
        data = bytes(r.choices(ODD_BYTES, k=r.randint(0, 40)))
    return b"" if r.random() < 0.05 else data


def draw_options(r: random.Random) -> dict[str, Any]:
    """What is said about columns and header lines, more often nothing."""
    columns = [None, None, list(COLUMNS), ["hour"], ["1.0", "2.0", "3.0"], [""], [r.choice(ODD)]]
    return {"header": r.choice(["infer", "infer", 0, None]), "columns": r.choice(columns)}


def damage_facts(r: random.Random, facts: Any) -> Any:
    """The JSON of a manifest with one of its values taken out or replaced."""
    other = r.choice([None, "", "x", -1, 1.5, [], {}, [None], {"uri": 1}, True, float("nan"), 10**30])
    if isinstance(facts, dict) and facts and r.random() < 0.9:
        name = r.choice(sorted(facts))
        if r.random() < 0.3:
            return {key: value for key, value in facts.items() if key != name}
        return {**facts, name: damage_facts(r, facts[name])}
    if isinstance(facts, list) and facts and r.random() < 0.9:
        at = r.randrange(len(facts))
        return [*facts[:at], damage_facts(r, facts[at]), *facts[at + 1 :]]
    return other


def look(folder: Path, r: random.Random) -> bool:
    """Whether what lies in a folder can be listed, and read again. AssertionError where an error is not of ours."""
    try:
        manifest = locate(f"{folder}/part-*.csv", retry=RETRY, **draw_options(r))
        facts = json.loads(json.dumps(manifest.to_dict()))
        assert Manifest.from_dict(facts) == manifest
        read_statistics(manifest, retry=RETRY)
        Manifest.from_dict(damage_facts(r, facts))
    except ShardlineError as error:
        refused = error
    else:
        return True
    assert str(folder) in str(refused) or not isinstance(refused, ShardError), f"no place is named: {refused!r}"
    assert str(refused), "an error without a word"
    return False


def fuzz(seconds: float, seed: int) -> tuple[int, int]:
    """List folders for so long; how many there were, and how many of them could be listed."""
    r = random.Random(seed)
    tried = listed = 0
    with tempfile.TemporaryDirectory(prefix="shardline-listing-") as home:
        folder = Path(home)
        for name in FILES:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
        ends = time.monotonic() + seconds
        while time.monotonic() < ends:
            for name, draw in zip(FILES, DRAWS, strict=True):
                (folder / name).write_bytes(draw_file(r, draw))
            state = r.getstate()
            try:
                listed += look(folder, r)
            except Exception as error:
                r.setstate(state)
                held = {name: (folder / name).read_bytes() for name in FILES}
                raise AssertionError(f"{error!r} where {draw_options(r)} of {held}") from error
            tried += 1
    return tried, listed


if __name__ == "__main__":
    seed = random.SystemRandom().getrandbits(32)
    print("seed", seed, flush=True)
    print("{} folders, {} of them listed".format(*fuzz(float(sys.argv[1]), seed)))
