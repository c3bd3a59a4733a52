"""Which line, which column, which cell: the slow second look at a block that could not be decoded.

Lines are judged by the very decoder that refused them, so that both agree on what is a number; a bad line is then taken
apart to say what is wrong with it.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from tasks.errors import RowError
from tasks.streaming.contract import split_line
from tasks.streaming.decoding import Block, is_finite, parse_lines

SHOWN = 60  # characters of a cell that a message shows


@dataclass(frozen=True)
class BadLine:
    """A line that breaks the contract: its number, counted from 1 in the (uncompressed) object, what is wrong, its text."""

    uri: str
    line: int
    column: str
    cell: str
    reason: str
    text: str


def find_bad_lines(block: Block, columns: tuple[str, ...]) -> Iterator[BadLine]:
    """Every line of the block that breaks the contract, in order, by halving what does not decode."""
    lines = _split(block.data)
    spans = [(0, len(lines))]
    while spans:
        first, last = spans.pop()
        if _is_good(b"".join(lines[first:last]), block.names, columns):
            continue
        if last - first == 1:
            yield describe(block, block.line + first, lines[first], columns)
        else:
            middle = (first + last) // 2
            spans += [(middle, last), (first, middle)]


def explain(block: Block, columns: tuple[str, ...]) -> RowError:
    """The error for the first bad line of a block that could not be decoded."""
    bad = next(find_bad_lines(block, columns), None)
    if bad is None:
        return RowError(f"{block.uri}, from line {block.line} on: cannot be decoded as a whole, though every line can.")
    return RowError(
        f"{bad.uri}, line {bad.line}: {bad.reason}. Correct the shard, or drop and count such lines "
        'with on_bad_rows="quarantine".'
    )


def describe(block: Block, line: int, raw: bytes, columns: tuple[str, ...]) -> BadLine:
    """What is wrong with one line that does not decode."""
    cells = split_line(raw)
    column, cell, reason = "", "", "cannot be read as numbers"
    if tuple(cells) == block.names:
        reason = "the header line stands here again"
    elif len(cells) != len(block.names):
        reason = f"{len(cells)} cells where {len(block.names)} are expected"
    else:
        for name, value in zip(block.names, cells, strict=True):
            problem = _problem(value) if name in columns else None
            if problem is not None:
                column, cell, reason = name, value, f"column {name!r} {problem}"
                break
    return BadLine(block.uri, line, column, cell, reason, raw.rstrip(b"\r\n").decode("utf-8", errors="replace"))


def _problem(cell: str) -> str | None:
    if not cell.strip():
        return "is empty"
    quoted = b'"' + cell.replace('"', '""').encode("utf-8", errors="replace") + b'"'
    shown = cell if len(cell) <= SHOWN else cell[:SHOWN] + "…"
    try:
        value = parse_lines(quoted + b"\n", ("cell",), ("cell",))[0]
    except ValueError:
        return f"is {shown!r}, which is not a number"
    return None if is_finite(value) else f"is {shown!r}, which is not a finite number"


def _is_good(data: bytes, names: tuple[str, ...], columns: tuple[str, ...]) -> bool:
    if not data.strip(b"\r\n"):
        return True
    try:
        return all(is_finite(column) for column in parse_lines(data, names, columns))
    except ValueError:
        return False


def _split(data: bytes) -> list[bytes]:
    lines = data.split(b"\n")
    whole = [line + b"\n" for line in lines[:-1]]
    return [*whole, lines[-1]] if lines[-1] else whole
