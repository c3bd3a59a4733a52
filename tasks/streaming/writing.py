"""Where predictions are written to: a folder of shards on any fsspec URL, each there whole or not at all."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from tasks.errors import BucketError, ConfigurationError, RowError, TransferError
from tasks.redaction import name_of
from tasks.streaming.formats.originals import Lines, Originals
from tasks.streaming.staging import explain_full_disk

if TYPE_CHECKING:
    from pyarrow import Schema

PREDICTION = "prediction"
SUCCESS = "_SUCCESS"
SUFFIXES = re.compile(r"(\.(csv|txt|parquet|pq))?(\.(gz|bz2|zst))?$")


class OutputFolder:
    """A folder that a run fills: its shards one by one, `_SUCCESS` when all are there.

    Raises ConfigurationError for a URL that cannot be written to, BucketError where writing is refused, and
    TransferError where it failed otherwise.
    """

    def __init__(self, url: str, storage_options: Mapping[str, Any]) -> None:
        import fsspec

        self.url = url.rstrip("/")
        try:
            self._files, path = fsspec.core.url_to_fs(self.url, **storage_options)
        except (ValueError, ImportError) as error:
            raise ConfigurationError(f"predictions cannot be written to {url!r}: {error}") from error
        self._path = str(path).rstrip("/")

    def begin(self, names: Sequence[str], inputs: Iterable[str]) -> None:
        """Make sure that these shards can stand here; an earlier run's of the same names will be replaced.

        Raises ConfigurationError where the folder is that of an input, or has shards that this run would leave there.
        """
        if any(self._files._strip_protocol(uri.rpartition("/")[0]) == self._path for uri in inputs):
            raise ConfigurationError(f"output is {self.url}, where the shards themselves are: name another folder")
        with self._translated():
            there = self._files.ls(self._path, detail=True, refresh=True) if self._files.exists(self._path) else []
            found = {str(each["name"]).rstrip("/").rpartition("/")[2] for each in there if each["type"] == "file"}
            strange = sorted(name for name in found - {*names, SUCCESS} if not name.startswith("."))
            if strange:
                raise ConfigurationError(
                    f"output is {self.url}, where {strange[0]} is, which these shards would not replace: name another "
                    "folder, or remove what is there"
                )
            if "file" in self._files.protocol:  # an object store has no folders, and s3fs would try to make the bucket
                self._files.makedirs(self._path, exist_ok=True)
            if SUCCESS in found:
                self._files.rm_file(f"{self._path}/{SUCCESS}")

    def put(self, file: Path, name: str) -> None:
        """Copy a local file here: object stores show it when it is whole, in a local folder it is renamed then."""
        target = f"{self._path}/{name}"
        with self._translated():
            if "file" not in self._files.protocol:
                self._files.put_file(str(file), target)
                return
            self._files.put_file(str(file), f"{self._path}/.{name}.part")
            self._files.mv(f"{self._path}/.{name}.part", target)

    def finish(self, **facts: str | int | Sequence[str]) -> None:
        """Say that all shards are there, and what they are, as JSON in `_SUCCESS`."""
        with self._translated():
            self._files.pipe_file(f"{self._path}/{SUCCESS}", json.dumps(facts, indent=1).encode())

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except (PermissionError, FileNotFoundError) as error:
            raise BucketError(f"predictions may not be written to {self.url}: {error}") from error
        except OSError as error:
            raise TransferError(f"predictions cannot be written to {self.url}: {error}") from error


class ShardWriter:
    """A local file of the rows of one shard and their predictions.

    From CSV to CSV each line is as it was, but for the cell that is added. Parquet keeps the types that columns have;
    from CSV it gets strings, but for the columns that were read. `form` is csv or parquet.

    The file is whole where the context ends without an error. Raises ConfigurationError where the disk is full.
    """

    def __init__(self, path: Path, form: str) -> None:
        self._form = form
        self._file = path.open("wb")
        self._writer: Any = None

    def write(self, part: Originals, predictions: Sequence[float]) -> None:
        """Append rows. Raises RowError where they have a column `prediction`, or the form cannot hold a column."""
        if PREDICTION in part.names:
            raise RowError(f"{part.uri} has a column {PREDICTION!r} already: give it another name")
        with _naming_full_disk():
            if self._form == "csv" and isinstance(part, Lines):
                self._file.write(part.append(PREDICTION, map(repr, predictions)))
            else:
                self._write_batch(part, predictions)

    def _write_batch(self, part: Originals, predictions: Sequence[float]) -> None:
        import pyarrow

        rows = part.to_batch()
        schema = rows.schema.append(pyarrow.field(PREDICTION, pyarrow.float64()))
        batch = pyarrow.RecordBatch.from_arrays([*rows.columns, pyarrow.array(predictions)], schema=schema)
        try:
            self._writer = self._writer or self._open(schema)
            self._writer.write_batch(batch)
        except (pyarrow.ArrowInvalid, pyarrow.ArrowNotImplementedError, pyarrow.ArrowTypeError) as error:
            other = "parquet" if self._form == "csv" else "csv"
            raise RowError(f"{part.uri} cannot be written as {self._form}: {error}; try --format {other}") from error

    def _open(self, schema: Schema) -> Any:
        from pyarrow import csv as arrow_csv
        from pyarrow import parquet

        if self._form == "parquet":
            return parquet.ParquetWriter(self._file, schema)
        header = io.StringIO()  # arrow would put each name into quotes
        csv.writer(header, lineterminator="\n").writerow(schema.names)
        self._file.write(header.getvalue().encode())
        return arrow_csv.CSVWriter(self._file, schema, write_options=arrow_csv.WriteOptions(include_header=False))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if error is not None:
            with suppress(OSError):  # what is not yet written is of no use
                self._file.close()
            return
        with _naming_full_disk(), self._file:
            if self._writer:
                self._writer.close()


@contextmanager
def _naming_full_disk() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise explain_full_disk(error) from error


def name_shards(uris: Sequence[str], form: str) -> list[str]:
    """Return the names of the shards to write, after those that they are of: part-3.csv.gz → part-3.parquet.

    Raises ConfigurationError where two would have the same name.
    """
    names = [f"{SUFFIXES.sub('', name_of(uri))}.{form}" for uri in uris]
    if len(set(names)) < len(names):
        twice = next(name for index, name in enumerate(names) if name in names[:index])
        raise ConfigurationError(f"predictions of two shards would be named {twice}: predict each folder by itself")
    return names
