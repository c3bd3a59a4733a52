"""Which line, which column, which cell: the slow second look at a block that could not be decoded.

Lines are judged by the very decoder that refused them, so that both agree on what is a number; a bad line is then taken
apart to say what is wrong with it. Rows whose numbers break the contract's bounds are found among decoded ones, while
these are still in the processor's cache.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from tasks.errors import RowError
from tasks.redaction import redact
from tasks.streaming.formats.contract import Contract, split_line
from tasks.streaming.formats.csv import Block, cut_blocks, find_rows, parse_lines
from tasks.streaming.formats.native import decode_natively, find_kernel
from tasks.streaming.formats.rows import CountedRows, HeldRows, Rows, write_columns

if TYPE_CHECKING:
    from numpy.typing import NDArray

SHOWN = 60  # characters of a cell that a message shows
LINES_LOOKED_AT = 100  # to tell a column of text from a bad cell
CORRECT = 'correct the shard, or drop and count such lines with on_bad_rows="quarantine"'
REMEDY = (
    "read other columns: name them by the parameter columns, or by target and features (on the command line, "
    "--columns, or --target and --features; of a stream alone, ObjectStorageDataset.from_uri(…, columns=[…]))"
)


@dataclass(frozen=True)
class BadLine:
    """A line that breaks the contract.

    line: its number, counted from 1 in the (uncompressed) object
    column, cell: "" where the line as a whole is at fault
    """

    uri: str
    line: int
    column: str
    cell: str
    reason: str
    text: str


def decode_csv(uri: str, pieces: Iterable[bytes], contract: Contract, dtype: str, rows: Rows) -> Iterator[BadLine]:
    """Write all rows to `rows`, in the contract's order of columns; yield the bad lines that were left out.

    Raises RowError where bad lines are an error, or the header breaks the contract.
    """
    held = HeldRows(len(contract.columns), dtype)
    for block in cut_blocks(uri, pieces, contract):
        if contract.bounds and contract.drops_bad_rows:  # `rows` may have room for the good ones alone
            yield from decode_block(block, contract, dtype, held)
            held.move_to(rows)
        else:
            yield from decode_block(block, contract, dtype, rows)


def decode_block(block: Block, contract: Contract, dtype: str, rows: Rows) -> list[BadLine]:
    """Write a block's rows to `rows`, and return the bad lines left out; RowError where they are an error."""
    kernel, written, bad = find_kernel(), None, list[BadLine]()
    if kernel:
        written = decode_natively(kernel, block.data, block.names, contract.columns, rows)
    if written is None:
        columns, bad = _decode_plainly(block, contract, dtype)
        written, count = write_columns(rows, columns), len(columns[0])
    else:
        count = len(written)
    breaches = contract.find_breaches(written if len(written) == count else written[:0])  # else more than are stated
    if breaches.size:
        bad = sorted([*bad, *_tell_breaches(block, contract, written, breaches, bad)], key=attrgetter("line"))
        _close_gaps(written, breaches)
    rows.keep(count - breaches.size)
    return bad


def _decode_plainly(block: Block, contract: Contract, dtype: str) -> "tuple[list[NDArray[Any]], list[BadLine]]":
    try:
        return parse_lines(block.data, block.names, contract.columns, dtype), []
    except ValueError as error:
        if not contract.drops_bad_rows:
            raise make_row_error(block, contract, dtype) from error
        return drop_bad_lines(block, contract.columns, dtype)


def _tell_breaches(
    block: Block, contract: Contract, numbers: "NDArray[Any]", breaches: "NDArray[Any]", left_out: list[BadLine]
) -> list[BadLine]:
    """Return the lines of the rows that break the bounds; RowError where they are an error.

    numbers: [rows, columns] of the block's lines but for those that were left out
    breaches: which of them
    """
    lines = bytes(block.data).split(b"\n")
    rows = find_rows(block, lines, {line.line - block.line for line in left_out})
    if len(rows) != len(numbers):
        raise RowError(
            f"{block.uri}: among lines {block.line} to {block.line + len(lines) - 1} a row breaks the bounds of "
            f"{contract.terms and contract.terms.uri}, and a cell holds a line end, or a line ends in a carriage "
            "return alone, so that its line is not known: write the shard again without them, or as Parquet"
        )
    told = breaches if contract.drops_bad_rows else breaches[:1]
    bad = [describe_breach(block, rows[at], lines[rows[at]], contract, numbers[at]) for at in told]
    if not contract.drops_bad_rows:
        raise RowError(f"{bad[0].uri}, line {bad[0].line}: {bad[0].reason}; {CORRECT}")
    return bad


def _close_gaps(rows: "NDArray[Any]", breaches: "NDArray[Any]") -> None:
    """Move the other rows up to where these are."""
    import numpy as np

    good = np.delete(rows, breaches, axis=0)
    rows[: len(good)] = good


def make_row_error(block: Block, contract: Contract, dtype: str) -> RowError:
    """Return the error for the first bad line of a block that could not be decoded.

    Raises it where that line can be decoded, and its numbers break the bounds.
    """
    columns, lines = contract.columns, bytes(block.data).split(b"\n")
    for index in find_bad_lines(lines, block.names, columns, dtype):
        if contract.bounds and index:
            before = replace(block, data=memoryview(b"\n".join([*lines[:index], b""])))
            decode_block(before, contract, dtype, CountedRows(len(columns), dtype))
        bad = describe_bad_line(block, index, lines[index], columns, dtype)
        if index == 0 and bad.column and (looked_at := _count_without_number(block, lines, bad.column, dtype)) > 1:
            return RowError(
                f"{bad.uri}, line {bad.line}: {bad.reason}, and neither is any of {looked_at} lines there; {REMEDY}"
            )
        return RowError(f"{bad.uri}, line {bad.line}: {bad.reason}; {CORRECT}")
    return RowError(f"{block.uri}: the lines from {block.line} on cannot be decoded together; correct the shard")


def _count_without_number(block: Block, lines: list[bytes], column: str, dtype: str) -> int:
    """Return how many of the first lines were looked at, if a column has no number in any of them; else 0."""
    at = block.names.index(column)
    rows = [cells for line in lines[:LINES_LOOKED_AT] if len(cells := split_line(line)) == len(block.names)]
    return len(rows) if all(_find_problem(cells[at], dtype) for cells in rows) else 0


def drop_bad_lines(block: Block, columns: tuple[str, ...], dtype: str) -> "tuple[list[NDArray[Any]], list[BadLine]]":
    """Return the columns of the lines that keep the contract, and the lines that break it, in order."""
    lines = bytes(block.data).split(b"\n")
    found = set(find_bad_lines(lines, block.names, columns, dtype))
    bad = [describe_bad_line(block, index, lines[index], columns, dtype) for index in sorted(found)]
    good = b"\n".join(line for index, line in enumerate(lines) if index not in found)
    return parse_lines(good, block.names, columns, dtype), bad


def find_bad_lines(lines: list[bytes], names: tuple[str, ...], columns: tuple[str, ...], dtype: str) -> Iterator[int]:
    """Yield which of the lines break the contract, in order, by halving what does not decode."""
    spans = [(0, len(lines))]
    while spans:
        first, last = spans.pop()
        try:
            parse_lines(b"\n".join([*lines[first:last], b""]), names, columns, dtype)  # an open quote needs the end
        except ValueError:
            if last - first == 1:
                yield first
            else:
                middle = (first + last) // 2
                spans += [(middle, last), (first, middle)]


def describe_bad_line(block: Block, index: int, raw: bytes, columns: tuple[str, ...], dtype: str) -> BadLine:
    """Return what is wrong with line `index` of a block, which does not decode."""
    cells = split_line(raw)
    column = cell = ""
    reason = "the line cannot be read as numbers"
    if tuple(cells) == block.names:
        reason = "the header line is repeated here"
    elif len(cells) != len(block.names):
        reason = f"{len(cells)} cells where {len(block.names)} are expected"
    else:
        for name, value in zip(block.names, cells, strict=True):
            problem = _find_problem(value, dtype) if name in columns else None
            if problem is not None:
                column, cell = name, value
                reason = f"column {name!r} {problem}"
                break
    return BadLine(redact(block.uri), block.line + index, column, cell, reason, _to_text(raw))


def describe_breach(block: Block, index: int, raw: bytes, contract: Contract, numbers: "NDArray[Any]") -> BadLine:
    """Return which number of line `index` of a block breaks which bound; `numbers` are those that are read of it."""
    column, fault = contract.explain(numbers, block.names)
    cell = split_line(raw)[block.names.index(column)]
    reason = f"column {column!r} is {_shorten(cell)!r}, {fault}"
    return BadLine(redact(block.uri), block.line + index, column, cell, reason, _to_text(raw))


def _to_text(raw: bytes) -> str:
    return raw.rstrip(b"\r").decode("utf-8", errors="replace")


def _shorten(cell: str) -> str:
    return cell if len(cell) <= SHOWN else cell[:SHOWN] + "…"


def _find_problem(cell: str, dtype: str) -> str | None:
    if not cell.strip():
        return "is empty"
    shown = _shorten(cell)
    quoted = b'"' + cell.replace('"', '""').encode("utf-8", errors="replace") + b'"'
    try:
        parse_lines(quoted, ("cell",), ("cell",), "float64")
    except ValueError as error:
        return f"is {shown!r}, which is not a {'finite ' if 'finite' in str(error) else ''}number"
    try:
        parse_lines(quoted, ("cell",), ("cell",), dtype)
    except ValueError:
        return f"is {shown!r}, which is too large for {dtype}"
    return None
