"""Where predictions are written to: a folder of shards on any fsspec URL, each there whole or not at all."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.errors import BucketError, ConfigurationError, TransferError

if TYPE_CHECKING:
    from torch import Tensor

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
    """A local file of rows and their predictions, CSV (a header line, numbers that read back exactly) or Parquet."""

    def __init__(self, path: Path, columns: Sequence[str], form: str) -> None:
        import pyarrow
        from pyarrow import csv as arrow_csv
        from pyarrow import parquet

        self.rows = 0
        self._schema = pyarrow.schema([(name, pyarrow.float64()) for name in (*columns, PREDICTION)])
        self._file = path.open("wb")
        if form == "parquet":
            self._writer = parquet.ParquetWriter(self._file, self._schema)
        else:
            header = io.StringIO()  # arrow would put each name into quotes
            csv.writer(header, lineterminator="\n").writerow(self._schema.names)
            self._file.write(header.getvalue().encode())
            options = arrow_csv.WriteOptions(include_header=False, quoting_style="none")
            self._writer = arrow_csv.CSVWriter(self._file, self._schema, write_options=options)

    def write(self, rows: Tensor, predictions: Tensor) -> None:
        """Append [rows, columns] and [rows, 1]."""
        import pyarrow

        columns = [*rows.double().T.contiguous().numpy(), predictions.flatten().numpy()]
        self._writer.write_table(pyarrow.Table.from_arrays([pyarrow.array(c) for c in columns], schema=self._schema))
        self.rows += len(rows)

    def close(self) -> None:
        """End the file."""
        self._writer.close()
        self._file.close()


def name_shards(uris: Sequence[str], form: str) -> list[str]:
    """Return the names of the shards to write, after those that they are of: part-3.csv.gz → part-3.parquet.

    Raises ConfigurationError where two would have the same name.
    """
    names = [f"{SUFFIXES.sub('', uri.rpartition('/')[2])}.{form}" for uri in uris]
    if len(set(names)) < len(names):
        twice = next(name for index, name in enumerate(names) if name in names[:index])
        raise ConfigurationError(f"predictions of two shards would be named {twice}: predict each folder by itself")
    return names
