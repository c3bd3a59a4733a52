"""What holding every number to bounds costs: CPU of a decoded block, and of a whole first pass, without and with.

    python -m tests.benchmarks.contract [ROUNDS]

Taxi rows of 9 columns, each with a minimum and a maximum, 4 of them whole as well. The pass is over local shards, which
are read, compared with their MD5, decoded and put into batches. Both take turns; medians are compared.
"""

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from tasks.streaming import ColumnTerms, ObjectStorageDataset, Terms, locate
from tasks.streaming.formats.contract import Contract
from tasks.streaming.formats.csv import Block
from tasks.streaming.formats.diagnosing import decode_block
from tasks.streaming.formats.native import describe_decoder
from tasks.streaming.formats.rows import CountedRows
from tests.benchmarks.stream_decoding import draw_taxi_row, make_block
from tests.benchmarks.stream_setting import describe_machine

NAMES = ("fare", "from_latitude", "from_longitude", "to_latitude", "to_longitude", "year", "month", "weekday", "hour")
WHOLE = ("year", "month", "weekday", "hour")
SHARDS, BLOCKS = 8, 6  # of a shard
BOUNDS = Terms(
    uri="contract.yaml",
    columns=tuple(ColumnTerms(name=name, minimum=-1e6, maximum=1e6, whole=name in WHOLE) for name in NAMES),
)


def compare(
    without: Callable[[], None], with_bounds: Callable[[], None], clock: Callable[[], float], rounds: int
) -> str:
    """The median seconds of both, by a clock, and how much more the second takes, as cells of a table."""
    seconds: tuple[list[float], list[float]] = ([], [])
    for _ in range(rounds + 1):
        for kept, run in zip(seconds, (without, with_bounds), strict=True):
            began = clock()
            run()
            kept.append(clock() - began)
    first, second = (statistics.median(each[1:]) for each in seconds)  # the first of each warms up
    return f"{first * 1e3:.3g} | {second * 1e3:.3g} | {second / first - 1:+.1%}"


def decode(block: bytes, terms: Terms | None) -> Callable[[], None]:
    contract, rows = Contract(NAMES, NAMES, terms=terms), CountedRows(len(NAMES), "float64")
    whole = Block("benchmark", 1, NAMES, memoryview(block))
    return lambda: None if decode_block(whole, contract, "float64", rows) == [] else sys.exit("a row is bad")


def stream(glob: str, terms: Terms | None) -> Callable[[], None]:
    dataset = ObjectStorageDataset(locate(glob, terms=terms), epochs=1, batch_size=2**16)

    def run() -> None:
        for _ in dataset:
            pass

    return run


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 9
    block = make_block(draw_taxi_row, "\n")
    print("\n| CPU ms, medians | without | with bounds | more |\n|---|---:|---:|---:|")
    cells = compare(decode(block, None), decode(block, BOUNDS), time.thread_time, 10 * rounds)
    print(f"| a block of {len(block):,} bytes | {cells} |")
    with tempfile.TemporaryDirectory() as folder:
        for number in range(SHARDS):
            (Path(folder) / f"part-{number}.csv").write_bytes(",".join(NAMES).encode() + b"\n" + block * BLOCKS)
        cells = compare(stream(f"{folder}/*", None), stream(f"{folder}/*", BOUNDS), time.process_time, rounds)
    print(f"| a pass over {SHARDS} shards of {BLOCKS} MiB | {cells} |")
    print(f"\n{rounds} rounds, {10 * rounds} of the block; {describe_decoder()}; {describe_machine()}.")


if __name__ == "__main__":
    main()
