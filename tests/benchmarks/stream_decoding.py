"""The kernel beside the plain decoder, one thread, from whole lines in memory to row-major, finite rows.

    python -m tests.benchmarks.stream_decoding [ROUNDS]

CPU seconds of this thread, so that others on the machine disturb little; the decoders take turns, medians are compared.
"""

import random
import statistics
import sys
import time
from collections.abc import Callable

import numpy as np

from tasks.streaming.formats.csv import BLOCK_SIZE, parse_lines
from tasks.streaming.formats.native import decode_natively, describe_decoder, find_kernel
from tasks.streaming.formats.rows import CountedRows, append_columns
from tests.benchmarks.stream_setting import describe_machine

Cell = Callable[[random.Random], str]


def draw_taxi_row(r: random.Random) -> str:
    place = f"{r.gauss(38.9, 0.03):.6f},{r.gauss(-77.0, 0.03):.6f},{r.gauss(38.9, 0.03):.6f},{r.gauss(-77.0, 0.03):.6f}"
    return f"{r.lognormvariate(2.4, 0.5):.2f},{place},{r.randint(2015, 2017)},{r.randint(1, 12)},{r.randint(0, 6)},9"


def row_of(cells: int, draw: Cell) -> Cell:
    return lambda r: ",".join(draw(r) for _ in range(cells))


def draw_row_with_text(r: random.Random) -> str:
    return f'"a, ""b"" {r.random()}",' + ",".join(f"{r.random():.4f}" for _ in range(8))


SHAPES: dict[str, tuple[Cell, str, int]] = {  # a row, its line end, how many of its columns are read, < 0: of the last
    "taxi rows": (draw_taxi_row, "\n", 9),
    "taxi rows, CRLF": (draw_taxi_row, "\r\n", 9),
    "taxi rows, 3 of 9 columns": (draw_taxi_row, "\n", 3),
    "whole numbers": (row_of(9, lambda r: str(int(10 ** r.uniform(0, 6)))), "\n", 9),
    "repr of doubles": (row_of(9, lambda r: repr(r.gauss(0, 1))), "\n", 9),
    "exponents, 19 digits": (row_of(9, lambda r: f"{r.gauss(0, 1):.18e}"), "\n", 9),
    "exponents, 7 digits": (row_of(9, lambda r: f"{r.gauss(0, 1):.6e}"), "\n", 9),
    "200 columns": (row_of(200, lambda r: f"{r.uniform(-100, 100):.4f}"), "\n", 200),
    "8 of 9 columns, the first of quoted text": (draw_row_with_text, "\n", -8),
}  # fmt: skip


def make_block(row: Cell, end: str) -> bytes:
    r, lines, size = random.Random(1), [], 0
    while size < BLOCK_SIZE:
        lines.append(row(r) + end)
        size += len(lines[-1])
    return "".join(lines).encode()


def time_decoders(block: bytes, columns: int, rounds: int) -> tuple[float, float]:
    """Median CPU seconds of the plain decoder and of the kernel, whose rows are equal."""
    kernel = find_kernel()
    assert kernel is not None, describe_decoder()
    names = tuple(f"c{index}" for index in range(block.split(b"\n", 1)[0].replace(b'a, ""', b"").count(b",") + 1))
    wanted = names[:columns] if columns > 0 else names[columns:]
    rows = CountedRows(len(wanted), "float64")

    def decode_plainly() -> None:
        append_columns(rows, parse_lines(block, names, wanted, "float64"))

    def decode_with_kernel() -> None:
        assert decode_natively(kernel, memoryview(block), names, wanted, rows) is not None

    found = []
    for decode in (decode_plainly, decode_with_kernel):
        rows.room(block.count(b"\n"))[:] = np.nan
        decode()
        found.append(rows.room(block.count(b"\n")).tobytes())
    assert found[0] == found[1]
    seconds: tuple[list[float], list[float]] = ([], [])
    for _ in range(rounds):
        for kept, decode in zip(seconds, (decode_plainly, decode_with_kernel), strict=True):
            began = time.thread_time()
            decode()
            kept.append(time.thread_time() - began)
    return statistics.median(seconds[0]), statistics.median(seconds[1])


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 25
    print("\n| CPU MB/s of one thread | pyarrow | kernel | times |\n|---|---:|---:|---:|")
    for name, (row, end, columns) in SHAPES.items():
        block = make_block(row, end)
        plain, native = time_decoders(block, columns, rounds)
        print(f"| {name} | {len(block) / plain / 1e6:.0f} | {len(block) / native / 1e6:.0f} | {plain / native:.1f} |")
    print(f"\nBlocks of {BLOCK_SIZE} bytes, {rounds} rounds; {describe_machine()}.")


if __name__ == "__main__":
    main()
