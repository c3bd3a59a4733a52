"""Parquet shards by the same interface as CSV ones: columns by name, numbers as floats, everything finite.

The row count stands in the footer. For decoding, the whole object is fetched and verified first, into memory or, where
it is large, into a temporary file.
"""

import io
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from typing import IO, TYPE_CHECKING, Any
from urllib.parse import urlsplit

from tasks.errors import RowError
from tasks.streaming.formats.contract import Contract
from tasks.streaming.formats.diagnosing import REMEDY, BadLine
from tasks.streaming.formats.rows import Rows, append_columns

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from pyarrow import RecordBatch

IN_MEMORY = 2**26  # bytes of a fetched object
ROWS_AT_ONCE = 2**16


def is_parquet(uri: str) -> bool:
    path = urlsplit(uri).path if uri.startswith(("http://", "https://")) else uri  # without a signature
    return path.endswith((".parquet", ".pq"))


def read_footer(uri: str, file: IO[bytes] | io.RawIOBase) -> tuple[tuple[str, ...], int]:
    """Return the names of the columns and the number of rows. Raises RowError where the object is no Parquet file."""
    import pyarrow
    from pyarrow import parquet

    try:
        with pyarrow.PythonFile(file, mode="r") as opened:
            metadata = parquet.read_metadata(opened)
            return tuple(metadata.schema.to_arrow_schema().names), int(metadata.num_rows)
    except pyarrow.ArrowInvalid as error:
        raise RowError(f"{uri} is no Parquet file: {error}; write the shard again, or leave it out") from error


def decode_parquet(uri: str, pieces: Iterable[bytes], contract: Contract, dtype: str, rows: Rows) -> Iterator[BadLine]:
    """Write all rows to `rows`, in the contract's order of columns; yield the bad ones, by number.

    Raises RowError where bad rows are an error, or a column is missing, unexpected or not of numbers.
    """
    for batch, first in read_batches(uri, pieces, contract, contract.columns):
        columns, good, bad = take_numbers(uri, batch, first, contract, dtype)
        append_columns(rows, [column[good] for column in columns] if bad else columns)
        yield from bad


def read_batches(
    uri: str, pieces: Iterable[bytes], contract: Contract, columns: Sequence[str] | None
) -> "Iterator[tuple[RecordBatch, int]]":
    """Yield the shard's rows with these columns (None: all), some at a time, and the number of the first of them.

    Raises RowError where the header breaks the contract, or the object cannot be decoded.
    """
    import pyarrow
    from pyarrow import parquet

    with tempfile.SpooledTemporaryFile(IN_MEMORY, prefix="shardline-") as spool:
        for piece in pieces:
            spool.write(piece)
        spool.seek(0)
        try:
            file = parquet.ParquetFile(pyarrow.PythonFile(spool, mode="r"))
            contract.check_header(uri, file.schema_arrow.names)
            row = 1
            for batch in file.iter_batches(ROWS_AT_ONCE, columns=columns and list(columns), use_threads=False):
                yield batch, row
                row += batch.num_rows
        except pyarrow.ArrowException as error:
            raise RowError(f"{uri} cannot be decoded as Parquet: {error}; write the shard again") from error


def take_numbers(
    uri: str, batch: "RecordBatch", first: int, contract: Contract, dtype: str
) -> "tuple[list[NDArray[Any]], NDArray[Any], list[BadLine]]":
    """Return the contract's columns of a batch, which of its rows are good, and the bad ones.

    Raises RowError where bad rows are an error, or a column is not of numbers.
    """
    import numpy as np

    columns = [_to_numbers(uri, name, batch.column(name), dtype) for name in contract.columns]
    good = np.ones(batch.num_rows, dtype=bool)
    for column in columns:
        good &= np.isfinite(column)
    least, most, whole = contract.round_limits(dtype)
    for place, _ in contract.bounds:
        column = columns[place]
        good &= (least[place] <= column) & (column <= most[place])
        if whole[place]:
            good &= np.rint(column) == column
    bad = (
        [] if good.all() else [_describe(uri, batch, columns, int(at), first, contract) for at in np.flatnonzero(~good)]
    )
    if bad and not contract.drops_bad_rows:
        raise RowError(f"{uri}, row {bad[0].line}: {bad[0].reason}; correct the shard, or quarantine such rows")
    return columns, good, bad


def _describe(
    uri: str, batch: "RecordBatch", columns: "list[NDArray[Any]]", index: int, first: int, contract: Contract
) -> BadLine:
    """Return what is wrong with row `index` of a batch, of which `columns` are the numbers."""
    import numpy as np

    numbers = [column[index] for column in columns]
    odd = next((name for name, number in zip(contract.columns, numbers, strict=True) if not np.isfinite(number)), None)
    name, fault = (odd, "which is not a finite number") if odd else contract.explain(numbers, contract.columns)
    cell = batch.column(name)[index].as_py()
    reason = f"column {name!r} is " + ("empty" if cell is None else f"{cell!r}, {fault}")
    return BadLine(uri, first + index, name, "" if cell is None else str(cell), reason, "")


def _to_numbers(uri: str, name: str, column: Any, dtype: str) -> "NDArray[Any]":
    import numpy as np
    import pyarrow
    from pyarrow import types

    kind = column.type
    if not (types.is_integer(kind) or types.is_floating(kind) or types.is_decimal(kind)):
        raise RowError(f"{uri}: column {name!r} is of type {kind}, not of numbers; {REMEDY}")
    with np.errstate(over="ignore"):
        return column.cast(pyarrow.float64(), safe=False).to_numpy(zero_copy_only=False).astype(dtype, copy=False)  # type: ignore[no-any-return]
