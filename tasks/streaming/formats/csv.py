"""Bytes of a CSV shard → rows of numbers, strictly: what is not exactly the contract is an error, never a guess.

Bytes are cut into blocks of whole lines, and each block is decoded by pyarrow on the calling thread. pyarrow lets pass
an extra column, a duplicate column, nan, inf and numbers too large for a double: the header is compared in
`contract.py`, and every number is tested for being finite here. Which line and cell is at fault is found out by
`diagnosing.py`, on the failing block alone.
"""

import itertools
import re
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tasks.errors import RowError
from tasks.naming import join_names
from tasks.streaming.formats.compression import decompress
from tasks.streaming.formats.contract import Contract, name_columns, split_line

if TYPE_CHECKING:
    from numpy.typing import NDArray

BLOCK_SIZE = 2**20
LONGEST_LINE = 2**24
BLANK = re.compile(rb"[\r\n]*")
LONE_CARRIAGE_RETURN = re.compile(rb"\r(?!\n|\Z)")
BEFORE_FIRST_LINE = re.compile(rb"(?:\xef\xbb\xbf)?[\r\n]*")


@dataclass(frozen=True)
class Block:
    """Whole lines of a shard.

    line: the number of the first one, counted from 1
    names: the shard's own columns
    before: what the shard begins with, where these are its first lines: a byte order mark, the header line
    """

    uri: str
    line: int
    names: tuple[str, ...]
    data: memoryview
    before: bytes = b""


def cut_blocks(uri: str, pieces: Iterable[bytes], contract: Contract) -> Iterator[Block]:
    """Yield blocks of whole lines, without the header line, which is compared with the contract. Raises RowError."""
    names: tuple[str, ...] = ()
    line = 1
    before = b""
    gathered: list[bytes] = []
    length = 0
    for piece in itertools.chain(decompress(uri, pieces), [b""]):
        gathered.append(piece)
        length += len(piece)
        if piece and length < BLOCK_SIZE and names:
            continue
        data = b"".join(gathered)
        end = data.rfind(b"\n") + 1 if piece else len(data)
        gathered, length = [data[end:]], len(data) - end
        if length > LONGEST_LINE:
            raise RowError(f"{uri}, line {line + _count_lines(data)}: no line end in {length} bytes; is this CSV?")
        start = 0
        if not names and end:
            start = find_first_line(data)
            line += data.count(b"\n", 0, start)
            if start < end:
                names, start, line = _take_header(uri, data, start, line, contract)
            before += data[:start]
        if start < end:
            block = Block(uri, line, names, memoryview(data)[start:end], before)
            yield block
            before = b""
            line += _count_lines(block.data)


def find_first_line(data: bytes) -> int:
    """Return where the first line begins that is not empty: behind a byte order mark and empty lines."""
    found = BEFORE_FIRST_LINE.match(data)
    return found.end() if found else 0


def find_rows(block: Block, lines: list[bytes], left_out: Collection[int]) -> list[int]:
    """Return which of a block's lines hold its rows, one each; none where a lone carriage return ends one.

    left_out: lines that hold none
    """
    if LONE_CARRIAGE_RETURN.search(block.data):
        return []
    return [index for index, line in enumerate(lines) if line not in (b"", b"\r") and index not in left_out]


def _count_lines(data: bytes | memoryview) -> int:
    """Return what bytes.count would, which takes five times as long and keeps other threads waiting."""
    import numpy as np

    return int(np.count_nonzero(np.frombuffer(data, dtype=np.uint8) == ord("\n")))


def _take_header(uri: str, data: bytes, begin: int, line: int, contract: Contract) -> tuple[tuple[str, ...], int, int]:
    """Return the shard's own column names, where its rows begin, and the number of their first line."""
    end = data.find(b"\n", begin) + 1 or len(data)
    cells = split_line(data[begin:end])
    if contract.header is None:
        expected = contract.cells or contract.columns
        if len(cells) != len(expected):
            raise RowError(
                f"{uri}, line {line}: {len(cells)} cells where {len(expected)} columns are expected "
                f"({join_names(expected)}): correct the shard, or name its columns with `columns`"
            )
        return expected, begin, line
    contract.check_header(uri, cells)
    return tuple(cells), end, line + 1


def parse_lines(
    data: bytes | memoryview, names: tuple[str, ...], columns: tuple[str, ...], dtype: str
) -> "list[NDArray[Any]]":
    """Return `columns` of whole lines of CSV whose own columns are `names`; every number is finite.

    Raises ValueError (pyarrow.ArrowInvalid where the text is at fault).
    """
    import numpy as np
    import pyarrow
    from pyarrow import csv

    if BLANK.fullmatch(data):
        return [np.empty(0, dtype=dtype) for _ in columns]
    # By position, for a header's own names may be empty, or need quoting.
    positions = name_columns(len(names))
    wanted = [positions[names.index(column)] for column in columns]
    table = csv.read_csv(
        pyarrow.BufferReader(pyarrow.py_buffer(data)),
        read_options=csv.ReadOptions(column_names=positions, use_threads=False, block_size=len(data) + 1),
        parse_options=csv.ParseOptions(newlines_in_values=False, ignore_empty_lines=True),
        convert_options=csv.ConvertOptions(
            column_types=dict.fromkeys(wanted, pyarrow.float64()),
            include_columns=wanted,
            null_values=[],
            strings_can_be_null=False,
        ),
    )
    return [_check_finite(column.to_numpy(), dtype) for column in table.columns]


def _check_finite(column: "NDArray[Any]", dtype: str) -> "NDArray[Any]":
    """Return the column as `dtype`, of finite numbers. Raises ValueError where one is not."""
    import numpy as np

    with np.errstate(over="ignore", invalid="ignore"):
        column = column.astype(dtype, copy=False)
        # a sum is finite only if all its terms are, and some times faster than isfinite
        if not np.isfinite(column.sum()) and not np.isfinite(column).all():
            raise ValueError("a number is not finite")
    return column
