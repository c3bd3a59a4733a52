"""Rows as they stand in a shard, beside the numbers that they are read as: what is to be written again with more.

Of CSV these are the very lines, of Parquet the columns with their types. Columns that nobody asked for come along
without being read as numbers.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tasks.errors import RowError
from tasks.streaming.formats.contract import Contract, name_columns
from tasks.streaming.formats.csv import Block, cut_blocks, find_first_line, find_rows
from tasks.streaming.formats.diagnosing import decode_block
from tasks.streaming.formats.parquet import is_parquet, read_batches, take_numbers
from tasks.streaming.formats.rows import CountedRows

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from pyarrow import RecordBatch

BYTES_AS_TEXT = "latin-1"  # one character for each byte, whatever the encoding: text is joined faster than bytes


@dataclass(frozen=True)
class Lines:
    """Good lines of a CSV shard.

    before: what the shard begins with, where these are its first lines: a byte order mark, the header line
    lines: as they stand there, each but the last followed by a line feed that is not among them
    names: the shard's own columns
    columns: those that were read
    numbers: [rows, columns], a row for each line that is not empty
    """

    uri: str
    before: bytes
    lines: list[bytes]
    names: tuple[str, ...]
    columns: tuple[str, ...]
    numbers: "NDArray[Any]"

    def append(self, name: str, cells: Iterable[str]) -> bytes:
        """Return the lines with a cell more each, and what comes before them with the name of that column."""
        text = b"\n".join(self.lines).decode(BYTES_AS_TEXT)
        beside = _put_beside(text, len(self.numbers), cells)
        return _name_in_header(self.before, name) + beside.encode(BYTES_AS_TEXT)

    def to_batch(self) -> "RecordBatch":
        """Return what was read as numbers, and all other cells as strings."""
        import pyarrow
        from pyarrow import csv

        arrays = dict(zip(self.columns, map(pyarrow.array, self.numbers.T), strict=True))
        unread = [name for name in self.names if name not in arrays]
        if unread:
            data = b"\n".join(self.lines)
            positions = name_columns(len(self.names))
            wanted = [positions[self.names.index(name)] for name in unread]
            try:
                table = csv.read_csv(
                    pyarrow.BufferReader(data),
                    read_options=csv.ReadOptions(column_names=positions, use_threads=False, block_size=len(data) + 1),
                    parse_options=csv.ParseOptions(newlines_in_values=False),
                    convert_options=csv.ConvertOptions(
                        column_types=dict.fromkeys(wanted, pyarrow.string()), include_columns=wanted
                    ),
                )
            except pyarrow.ArrowInvalid as error:
                raise RowError(f"{self.uri}: a cell that is not read cannot be taken over as text: {error}") from error
            arrays |= dict(zip(unread, (column.combine_chunks() for column in table.columns), strict=True))
        return pyarrow.RecordBatch.from_arrays([arrays[name] for name in self.names], names=list(self.names))


@dataclass(frozen=True)
class Records:
    """Good rows of a Parquet shard: `batch` with all columns, and `numbers` [rows, columns] with those read."""

    uri: str
    batch: "RecordBatch"
    numbers: "NDArray[Any]"

    @property
    def names(self) -> tuple[str, ...]:
        """The shard's own columns."""
        return tuple(self.batch.schema.names)

    def to_batch(self) -> "RecordBatch":
        """Return the rows, with the types that they have in the shard."""
        return self.batch


Originals = Lines | Records


def read_originals(uri: str, pieces: Iterable[bytes], contract: Contract) -> Iterator[Originals]:
    """Yield a shard's good rows, some at a time. They count only once the iteration has ended without an error.

    Raises RowError where bad rows are an error, or where the header breaks the contract.
    """
    return _read_records(uri, pieces, contract) if is_parquet(uri) else _read_lines(uri, pieces, contract)


def _read_lines(uri: str, pieces: Iterable[bytes], contract: Contract) -> Iterator[Lines]:
    for block in cut_blocks(uri, pieces, contract):
        rows = _Gathered(len(contract.columns), "float64")
        bad = {line.line - block.line for line in decode_block(block, contract, "float64", rows)}
        lines = _leave_out(bytes(block.data).split(b"\n"), bad)
        _check_that_rows_are_lines(block, lines, rows.rows)
        yield Lines(uri, block.before, lines, block.names, contract.columns, rows.taken)


class _Gathered(CountedRows):
    """Rows of one block, kept."""

    @property
    def taken(self) -> "NDArray[Any]":
        return self._block[: self.rows]


def _leave_out(lines: list[bytes], bad: set[int]) -> list[bytes]:
    if not bad:
        return lines
    good = [line for index, line in enumerate(lines) if index not in bad]
    return [*good, b""] if len(lines) - 1 in bad else good  # the line before it keeps its end


def _check_that_rows_are_lines(block: Block, lines: list[bytes], rows: int) -> None:
    """Raise RowError where a cell holds a line end: which number belongs to which line would be a guess."""
    if rows == len(find_rows(block, lines, ())):
        return
    last = block.line + len(lines) - 1
    raise RowError(
        f"{block.uri}: among lines {block.line} to {last} a cell holds a line end, or a line ends in a carriage return "
        "alone, so that no prediction can be put beside it: write the shard again without them, or as Parquet"
    )


def _put_beside(text: str, rows: int, cells: Iterable[str]) -> str:
    """Return lines, `rows` of which are not empty, with a cell more each."""
    end = "\r\n" if "\r" in text else "\n"
    *lines, last = text.split(end)
    ended = len(lines) == text.count("\n") == text.count(end[0])  # each line in the same way
    if not ended or rows != len(lines) + bool(last):
        return "\n".join(_put_beside_each(text.split("\n"), cells))
    beside = map(",".join, zip([*lines, last] if last else lines, cells, strict=True))
    return end.join(beside if last else [*beside, ""])


def _put_beside_each(lines: Sequence[str], cells: Iterable[str]) -> Iterator[str]:
    """Yield lines of which some are empty, or end differently from others."""
    following = iter(cells)
    for line in lines:
        body = line.rstrip("\r")
        yield f"{body},{next(following)}{line[len(body) :]}" if body else line


def _name_in_header(before: bytes, name: str) -> bytes:
    """Return what a shard begins with, a name added to its header line; as it is where no line is among it."""
    body = before.rstrip(b"\r\n")
    return body + b"," + name.encode() + before[len(body) :] if find_first_line(before) < len(body) else before


def _read_records(uri: str, pieces: Iterable[bytes], contract: Contract) -> Iterator[Records]:
    import numpy as np
    import pyarrow

    for batch, first in read_batches(uri, pieces, contract, None):
        columns, good, bad = take_numbers(uri, batch, first, contract, "float64")
        numbers = np.column_stack(columns)
        yield Records(uri, batch.filter(pyarrow.array(good)), numbers[good]) if bad else Records(uri, batch, numbers)
