"""Blocks of CSV of many shapes, whole and damaged: what the kernel accepts, the plain decoder accepts to the same bits.

    python -m tests.fuzz_decoding SECONDS [KERNEL]

With the path of a KERNEL (one with sanitizers in it, say) its blocks and rows lie in memory of exactly their size, and
nothing else is looked at: a fault ends the process.
"""

import random
import struct
import sys
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np

from tasks.streaming.formats.csv import parse_lines
from tasks.streaming.formats.native import Kernel, find_kernel, place_columns

Draw = Callable[[random.Random], str]
ODD_CELLS = (
    "nan", "inf", "-inf", "Infinity", "1e400", "-1.8e308", "", " ", "-", "+", ".", "-.", "e5", "1e", "1e+", "0x10",
    "1_0", "1,000", "1.2.3", "--1", "+-1", "1 2", "NA", "1d", "1f", "1\0", "\u0661", '"', '""', '"1', '1"', '"1"2',
    '"1" ', ' "1"', "\ufeff1", "1\r", "\r1", "\v1",
)  # fmt: skip
ODD_BYTES = b'0123456789.,,,--++eE"""  \t\r\r\n\n\0x\xff\xef\xbb\xbf'
TEXTS = (
    "", "text", "a b", "-", "nan", '"a,b"', '"say ""yes"""', '""', '"a""', 'a"b', "\xe9", "\0", '"a\nb"', '"a\rb"',
    '"a"b', "\ufeff",
)  # fmt: skip


def any_double(r: random.Random) -> float:
    """One of all finite doubles, each bit pattern as likely."""
    while True:
        value = float(struct.unpack("<d", struct.pack("<Q", r.getrandbits(64)))[0])
        if abs(value) < float("inf"):
            return value


def digits(r: random.Random, most: int) -> str:
    return "".join(r.choices("0123456789", k=r.randint(1, most)))


def with_point(r: random.Random, text: str) -> str:
    at = r.randint(0, len(text))
    return f"{text[:at]}.{text[at:]}"


def exponent(r: random.Random) -> str:
    return f"{r.choice('eE')}{r.choice(['', '+', '-'])}{r.choice(['', '0', '00'])}{r.randint(0, 330)}"


def midpoint(r: random.Random, places: int) -> str:
    """A number between two neighbouring doubles, cut to so many digits or one more, or the next one above it."""
    bits = r.getrandbits(62)
    significand, power = bits & (2**52 - 1) | 2**52, max(bits >> 52, 1) - 1075
    exact = Fraction(2 * significand + 1) * Fraction(2) ** (power - 1)
    ten = len(str(exact.numerator)) - len(str(exact.denominator)) - places
    return f"{exact // Fraction(10) ** ten + r.randint(0, 1)}e{ten}"


NUMBERS: dict[str, Draw] = {
    "repr": lambda r: repr(any_double(r)),
    "fixed": lambda r: f"{r.uniform(-1, 1) * 10 ** r.randint(0, 15):.{r.randint(0, 12)}f}",
    "scientific": lambda r: f"{any_double(r):.{r.randint(0, 25)}e}",
    "integer": lambda r: r.choice(["", "-"]) + digits(r, 19),
    "point": lambda r: r.choice(["", "-"]) + with_point(r, digits(r, 22)),
    "long": lambda r: r.choice(["", "-", "+"]) + with_point(r, digits(r, 60)) + r.choice(["", exponent(r)]),
    "zeros": lambda r: "0" * r.randint(0, 25) + with_point(r, digits(r, 19)) + "0" * r.randint(0, 25),
    "exponent": lambda r: with_point(r, digits(r, 19)) + exponent(r),
    "near 2**53": lambda r: str((1 << r.randint(52, 63)) + r.randint(-3, 3)) + r.choice(["", f"e{r.randint(-30, 30)}"]),
    "limits": lambda r: (
        r.choice(["1.797693134862315", "2.225073858507201", "4.9406564584124", "2.4703282292062"])
        + digits(r, 3) + r.choice(["e308", "e307", "e-308", "e-307", "e-324", "e-323"])
    ),
    "midpoint": lambda r: midpoint(r, r.randint(16, 18)),
    "midpoint, long": lambda r: midpoint(r, r.randint(19, 40)),
    "halfway": lambda r: str((r.getrandbits(53) | 2**52) * 2 + 1) + r.choice(["", ".0", "e0"]),
    "quoted": lambda r: f'"{r.uniform(-99, 99)}"',
    "blanks": lambda r: f"{r.choice(' 	')}{r.uniform(-99, 99):.3f}{r.choice(['', ' ', '	'])}",
}  # fmt: skip


def draw_block(r: random.Random) -> tuple[bytes, tuple[str, ...], tuple[str, ...]]:
    """Some lines, the columns they have, and those that are to be read; half of the blocks are damaged."""
    names = tuple(f"c{index}" for index in range(r.randint(1, 6)))
    columns = tuple(r.sample(names, r.randint(1, len(names))))
    odd = r.choice([0, 0, 0.02])
    shapes = r.sample(list(NUMBERS.values()), 3)

    def draw_cell(name: str) -> str:
        if r.random() < odd:
            return r.choice(ODD_CELLS)
        return r.choice(shapes)(r) if name in columns or r.random() < 0.5 else r.choice(TEXTS)

    end = r.choice(["\n", "\n", "\r\n"])
    lines = [",".join(map(draw_cell, names)) + end * r.choice([1] * 9 + [2]) for _ in range(r.randint(1, 8))]
    data = "".join(lines).encode()
    if r.random() < 0.1:
        data = data.removesuffix(end.encode()) or data
    return damage(r, data) if r.random() < 0.4 else data, names, columns


def damage(r: random.Random, data: bytes) -> bytes:
    """The block with up to three bytes put in, taken out or changed."""
    changed = bytearray(data)
    for _ in range(r.randint(1, 3)):
        at = r.randint(0, len(changed))
        changed[at : at + r.randint(0, 1)] = bytes(r.choices(ODD_BYTES, k=r.randint(0, 2)))
    return bytes(changed) or b"\n"


def decode_natively(
    kernel: Kernel, data: bytes, names: tuple[str, ...], columns: tuple[str, ...], dtype: str
) -> np.ndarray | None:
    """The block's rows as the kernel reads them; None where it refuses."""
    rows = np.full((data.count(b"\n") + 1, len(columns)), 7.0, dtype=dtype)
    count = kernel.decode(data, place_columns(names, columns), rows)
    return None if count is None else rows[:count]


def decode_plainly(data: bytes, names: tuple[str, ...], columns: tuple[str, ...], dtype: str) -> np.ndarray | None:
    """The block's rows as pyarrow reads them; None where the block breaks the contract."""
    try:
        return np.column_stack(parse_lines(data, names, columns, dtype))
    except ValueError:
        return None


def compare(kernel: Kernel, r: random.Random, dtype: str) -> bool:
    """Whether the kernel accepts a block. AssertionError where the plain decoder does not, or reads other bits."""
    data, names, columns = draw_block(r)
    found = decode_natively(kernel, data, names, columns, dtype)
    if found is None:
        return False
    expected = decode_plainly(data, names, columns, dtype)
    assert expected is not None, f"refused by the plain decoder: {data!r}, {names}, {columns}"
    assert found.shape == expected.shape, f"{found.shape}, {expected.shape}: {data!r}, {names}, {columns}"
    assert found.tobytes() == expected.tobytes(), f"{found}, {expected}: {data!r}, {names}, {columns}"
    return True


def fuzz(seconds: float, seed: int) -> tuple[int, int]:
    """Compare blocks for so long; how many there were, and how many of them the kernel accepted."""
    kernel, r = find_kernel(), random.Random(seed)
    assert kernel is not None
    tried = accepted = 0
    ends = time.monotonic() + seconds
    while time.monotonic() < ends:
        accepted += compare(kernel, r, r.choice(["float64", "float32"]))
        tried += 1
    return tried, accepted


def exercise(kernel: Kernel, seconds: float, seed: int) -> int:
    """Decode blocks that lie in memory of their own size; how many."""
    r = random.Random(seed)
    ends, tried = time.monotonic() + seconds, 0
    while time.monotonic() < ends:
        data, names, columns = draw_block(r)
        block = np.frombuffer(data if data.endswith(b"\n") else data + b"\n", dtype=np.uint8).copy()
        rows = np.empty((r.randint(0, 9), len(columns)), dtype=r.choice(["float64", "float32"]))
        kernel.decode(block.data, place_columns(names, columns), rows)
        tried += 1
    return tried


if __name__ == "__main__":
    seed = random.SystemRandom().getrandbits(32)
    print("seed", seed, flush=True)
    if len(sys.argv) > 2:
        print(exercise(Kernel(Path(sys.argv[2])), float(sys.argv[1]), seed), "blocks")
    else:
        print("{} blocks, {} of them accepted".format(*fuzz(float(sys.argv[1]), seed)))
