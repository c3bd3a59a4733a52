"""Bad rows set aside: one pass over all shards finds them, so that what remains is known before the first batch.

Row arithmetic needs the number of good rows of every shard; it comes from decoding all shards once. The bad lines are
written with their place to a CSV file, in the order of the data, next to a note of the counts: a later run, or another
rank on the same machine, over the same data reads the note and does not look again.
"""

import csv
import fcntl
import hashlib
import io
import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import astuple, fields, replace
from pathlib import Path
from typing import IO

from tasks.errors import ConfigurationError, RowCountError, RowError, ShardsNotFoundError
from tasks.files import write_whole
from tasks.streaming.formats.contract import Contract
from tasks.streaming.formats.diagnosing import REMEDY, BadLine
from tasks.streaming.formats.rows import CountedRows
from tasks.streaming.loading import Loading
from tasks.streaming.manifest import Manifest, Shard
from tasks.streaming.progress import ProgressBar


def set_bad_rows_aside(manifest: Manifest, loading: Loading, folder: Path, threads: int) -> tuple[Manifest, int, Path]:
    """Return the manifest of the good rows alone, the number of bad ones, and the CSV file that names each of them.

    Raises RowCountError where good and bad rows are not as many as stated, RowError where more are bad than the
    contract allows, ShardsNotFoundError where none is good, and ConfigurationError where the folder cannot be written
    to.
    """
    stem = _name_survey(manifest, loading.contract, loading.dtype)
    side_file, note = folder / f"{stem}.csv", folder / f"{stem}.json"
    with _open_lock(folder, stem) as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if _read_note(note) is None or not side_file.exists():
            found = _survey(manifest, loading, threads)
            with _explained(folder):
                _write_side_file(side_file, [line for lines in found for line in lines])
                write_whole(note, json.dumps([len(lines) for lines in found]))
        bad = _read_note(note) or []
    _check_share(sum(bad), manifest, side_file)
    shards = [replace(shard, rows=shard.rows - count) for shard, count in zip(manifest.shards, bad, strict=True)]
    good = tuple(shard for shard in shards if shard.rows)
    if not good:
        raise ShardsNotFoundError(
            f"None of the {manifest.rows} rows is good: {_first_reason(side_file)}, and so on in {side_file}; "
            f"{'correct the shards, or the bounds' if loading.contract.digest else REMEDY}"
        )
    notes = (*manifest.notes, f"{sum(bad)} bad rows set aside, listed in {side_file}") if sum(bad) else manifest.notes
    return replace(manifest, shards=good, notes=notes), sum(bad), side_file


def _check_share(bad: int, manifest: Manifest, side_file: Path) -> None:
    """Raise RowError where more rows are bad than the contract allows."""
    terms = manifest.terms
    if terms and terms.allowed_share is not None and bad / manifest.rows > terms.allowed_share:
        raise RowError(
            f"{bad:,} of {manifest.rows:,} rows break the contract ({bad / manifest.rows:.3%}), and {terms.uri} allows "
            f"{terms.allowed_share:.3%}: {_first_reason(side_file)}, and so on in {side_file}; correct the shards, or "
            "what the contract states"
        )


def is_surveyed(manifest: Manifest, folder: Path, dtype: str = "float64") -> bool:
    """Return whether its bad rows are known from an earlier pass: then setting them aside reads no shard."""
    stem = _name_survey(manifest, Contract.of(manifest, drops_bad_rows=True), dtype)
    return _read_note(folder / f"{stem}.json") is not None and (folder / f"{stem}.csv").exists()


def _name_survey(manifest: Manifest, contract: Contract, dtype: str) -> str:
    read = (manifest.columns, manifest.header) if manifest.cells is None else (manifest.columns, manifest.cells, None)
    bounds = contract.digest
    identity = repr((manifest.fingerprint, *read, dtype, *([bounds] if bounds else [])))
    return hashlib.sha256(identity.encode()).hexdigest()[:16]


@contextmanager
def _explained(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ConfigurationError(
            f"bad rows cannot be listed in {folder}: {error}; make room there or make it writable, or name another "
            "folder with --cache-dir (in Python, CacheSettings(folder=…))"
        ) from error


def _open_lock(folder: Path, stem: str) -> IO[str]:
    with _explained(folder):
        folder.mkdir(parents=True, exist_ok=True)
        return (folder / f"{stem}.lock").open("w")


def _read_note(path: Path) -> list[int] | None:
    """Return the number of bad rows of each shard; None where there is no whole note of them."""
    try:
        return [int(count) for count in json.loads(path.read_text())]
    except (FileNotFoundError, ValueError, TypeError):
        return None


def _survey(manifest: Manifest, loading: Loading, threads: int) -> list[list[BadLine]]:
    """Return the bad lines of each shard."""
    stop = threading.Event()
    progress = ProgressBar("looking for bad rows", manifest.size)

    def look_at(shard: Shard) -> list[BadLine]:
        good = CountedRows(len(manifest.columns), loading.dtype)
        bad = list(loading.decode(shard, good, stop))
        progress.advance(shard.size)
        if good.rows + len(bad) != shard.rows:
            raise RowCountError(
                f"{shard.uri}: {good.rows} good and {len(bad)} bad rows, but {shard.rows} are stated for it: "
                "correct the metadata, or remove it so that the shards are counted by reading"
            )
        return bad

    with progress, ThreadPoolExecutor(threads, thread_name_prefix="shardline-survey") as pool:
        try:
            return list(pool.map(look_at, manifest.shards))
        finally:
            stop.set()
            pool.shutdown(cancel_futures=True)


def _write_side_file(path: Path, lines: list[BadLine]) -> None:
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow([field.name for field in fields(BadLine)])
    writer.writerows(astuple(line) for line in lines)
    write_whole(path, text.getvalue())


def _first_reason(side_file: Path) -> str:
    with side_file.open(newline="", encoding="utf-8") as file:
        return next(csv.DictReader(file))["reason"]
