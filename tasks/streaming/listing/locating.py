"""From a glob to a manifest: list, leave out what is not data, put in order, count, name the columns.

Counts come from Spark's `.meta/shards` where it lies beside the shards (`pairing.py`), else from reading every object
once (`counting.py`).
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from tasks.errors import ConfigurationError, RowError, ShardsNotFoundError
from tasks.naming import join_names, suggest
from tasks.redaction import name_of
from tasks.streaming.formats import parquet
from tasks.streaming.formats.contract import Contract, Header, is_numeric, name_columns, split_line
from tasks.streaming.formats.terms import Terms
from tasks.streaming.listing.counting import count_rows, hash_content, read_first_line
from tasks.streaming.listing.pairing import find_counts, pair
from tasks.streaming.manifest import Manifest, Shard
from tasks.streaming.objects.ranges import ObjectFile
from tasks.streaming.objects.retrying import RetryPolicy
from tasks.streaming.objects.schemes import open_store
from tasks.streaming.objects.store import Listed, Store
from tasks.streaming.objects.transfer import list_objects

NUMBERS_FIRST = "The first line is of numbers only, and is read as a row"  # how the note begins that says so
SHOWN = 200  # characters of that line


def locate(
    shards: str | Sequence[str],
    *,
    meta_shards: str | None = None,
    header: Header = "infer",
    columns: Sequence[str] | None = None,
    names: Sequence[str] | None = None,
    max_shards: int | None = None,
    terms: Terms | None = None,
    storage_options: Mapping[str, Any] | None = None,
    retry: RetryPolicy = RetryPolicy(),
) -> Manifest:
    """List what `shards` (a glob, URI or path, or several) names: each shard's URI, size, ETag and number of rows.

    meta_shards: where Spark's `.meta/shards` CSV (id,count) lies; None: beside the shards, and where there is none,
        every object is read once to count its rows
    header: "infer" (a first line of numbers only is data, unless `columns` names some of them), 0 (the first line names
        columns) or None (no header lines)
    columns: the columns to read, in the order wanted; None: all, in the first shard's order
    names: the names to give to all columns of shards that have no header line; None: those in `columns`
    max_shards: the first so many shards with rows, in order
    terms: what a contract file states of the data (`read_terms`); its columns are looked for now, its bounds are held
        wherever the manifest is read
    storage_options: as fsspec's implementation of the scheme (s3fs for s3) names them
    retry: how long one listing, or one object, may take in all, with every attempt

    Raises ShardsNotFoundError, RowCountError, RowError, ShardChangedError, TransferError, BucketError,
    CredentialsError, ConfigurationError.
    """
    _check(header, columns, max_shards)
    patterns = [_lower_scheme(pattern) for pattern in ([shards] if isinstance(shards, str) else shards)]
    if not patterns:
        raise ConfigurationError("shards is an empty list: name at least one glob, URI or path")
    store = open_store(patterns[0], storage_options, retry)
    notes: list[str] = []
    listed = _list_shards(store, patterns, retry, notes)
    counts = find_counts(store, listed, meta_shards, retry)
    paired = [] if counts is None else pair(store, listed, patterns, counts, retry, notes)
    first, line = _find_first(store, [entry for entry, rows in paired if rows] or listed, retry)
    if first is None:
        raise ShardsNotFoundError(f"{', '.join(patterns)} matches {len(listed)} shards, but all of them are empty")
    read, unread, header_line = _name_columns(store, first, line, header, columns, names or columns, retry)
    if terms:
        terms.check_columns(first.uri, header_line or unread or read)
    if counts is None:
        paired = count_rows(store, listed, has_header=header_line is not None, limit=max_shards, retry=retry)
        notes.append("no .meta/shards beside the shards: rows counted by reading every shard once")
    if header == "infer" and header_line is None and read == name_columns(len(read)):
        notes.append(f"{NUMBERS_FIRST} ({first.uri}: {_shorten(line)}); if it names columns, give --header first")
    found = [(entry, rows) for entry, rows in paired if rows][:max_shards]
    if not found:
        raise ShardsNotFoundError(f"{', '.join(patterns)} matches {len(listed)} shards, but none of them has rows")
    if empty := sum(not rows for _, rows in paired):
        notes.append(f"{empty} {'shard' if empty == 1 else 'shards'} without rows skipped")
    complete = [Shard(e.uri, e.size, e.etag or hash_content(store, e, retry), rows) for e, rows in found]
    return Manifest(tuple(complete), read, tuple(notes), header_line, unread, terms)


def _lower_scheme(pattern: str) -> str:
    scheme, sign, rest = pattern.partition("://")
    return f"{scheme.lower()}{sign}{rest}" if sign else pattern


def natural_key(uri: str) -> list[tuple[int, int, str]]:
    """Return a key that sorts part-2 before part-10."""
    return [(0, int(part), part) if part.isdecimal() else (1, 0, part) for part in re.split(r"(\d+)", uri)]


def _check(header: object, columns: Sequence[str] | None, max_shards: int | None) -> None:
    if header not in ("infer", 0, None):
        raise ConfigurationError(f"header is {header!r}; it may be 'infer', 0 or None")
    if columns is not None and (not columns or isinstance(columns, str) or len(set(columns)) != len(columns)):
        raise ConfigurationError(f"columns is {columns!r}; it must be a list of distinct names")
    if max_shards is not None and max_shards < 1:
        raise ConfigurationError(f"max_shards is {max_shards}; it must be at least 1")


def _list_shards(store: Store, patterns: list[str], retry: RetryPolicy, notes: list[str]) -> list[Listed]:
    """Return what the patterns match and may hold rows, without repetition, each pattern's matches in natural order."""
    matched: dict[str, Listed] = {}
    for pattern in patterns:
        listed = list_objects(store, pattern, retry)
        if not [entry for entry in listed if not _is_by_product(entry.uri)] and _may_be_folder(pattern):
            listed = list_objects(store, f"{pattern.rstrip('/')}/*", retry)
        for entry in sorted(listed, key=lambda entry: natural_key(entry.uri)):
            matched.setdefault(entry.uri, entry)
    data = [entry for entry in matched.values() if not _is_by_product(entry.uri)]
    if not data:
        others = f" but by-products such as {next(iter(matched))}" if matched else ""
        places = "bucket, path and pattern" if "://" in patterns[0] else "path and pattern"
        raise ShardsNotFoundError(f"{', '.join(patterns)} matches nothing{others}: check {places}")
    if skipped := len(matched) - len(data):
        notes.append(f"{skipped} {'by-product' if skipped == 1 else 'by-products'} (_SUCCESS, .crc, .meta) skipped")
    return data


def _may_be_folder(pattern: str) -> bool:
    return not pattern.startswith(("http://", "https://")) and not any(sign in pattern for sign in "*?[")


def _is_by_product(uri: str) -> bool:
    name = name_of(uri)
    return name.startswith(("_", ".")) or name.endswith(".crc") or "/.meta/" in uri or not name


def _find_first(store: Store, listed: list[Listed], retry: RetryPolicy) -> tuple[Listed | None, bytes]:
    """Return the first shard that is not empty, and its first line, which of Parquet is none."""
    for entry in listed:
        if parquet.is_parquet(entry.uri):
            return entry, b""
        if entry.size and (line := read_first_line(store, entry, retry)):
            return entry, line
    return None, b""


def _shorten(line: bytes) -> str:
    text = line.rstrip(b"\r\n").decode("utf-8", errors="replace")
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"


def _name_columns(
    store: Store,
    entry: Listed,
    line: bytes,
    header: Header,
    columns: Sequence[str] | None,
    names: Sequence[str] | None,
    retry: RetryPolicy,
) -> tuple[tuple[str, ...], tuple[str, ...] | None, tuple[str, ...] | None]:
    """Return columns, cells and header of the manifest (see there), as the first shard and its first line show them."""
    if parquet.is_parquet(entry.uri):
        cells = parquet.read_footer(entry.uri, ObjectFile(store, entry, retry))[0]
    else:
        cells = tuple(split_line(line))
        _refuse_other_forms(entry.uri, line, cells)
        is_named = bool(columns) and set(columns or ()) <= set(cells)
        if header is None or (header == "infer" and is_numeric(cells) and not is_named):
            return *_choose_unnamed(entry.uri, len(cells), columns, names), None
    contract = Contract(tuple(columns) if columns is not None else cells, cells)
    contract.check_header(entry.uri, cells)
    return contract.columns, None, cells


def _refuse_other_forms(uri: str, line: bytes, cells: Sequence[str]) -> None:
    """Raise RowError where lines end, or cells are separated, in another way than CSV's."""
    if b"\r" in line.rstrip(b"\r\n"):
        raise RowError(f"{uri}, line 1: lines end in a carriage return alone; write the shard with line feeds")
    for sign, name in ((";", "semicolons"), ("\t", "tabs")):
        if len(cells) == 1 and sign in cells[0]:
            raise RowError(
                f"{uri}, line 1: cells seem to be separated by {name}: {_shorten(line)!r}; write the shard with "
                "commas, and a point in numbers"
            )


def _choose_unnamed(
    uri: str, width: int, columns: Sequence[str] | None, names: Sequence[str] | None
) -> tuple[tuple[str, ...], tuple[str, ...] | None]:
    """Return columns and cells of the manifest (see there) of shards without a header line, `width` cells wide."""
    named = tuple(names) if names is not None else name_columns(width)
    if len(named) != width:
        raise RowError(f"{uri}, line 1: {width} cells, but columns names {len(named)}; name them all")
    read = tuple(columns) if columns is not None else named
    if unknown := [name for name in read if name not in named]:
        raise ConfigurationError(
            f"columns names {unknown[0]!r}, which is none of {join_names(named)}{suggest(unknown[0], named)}"
        )
    return read, None if read == named else named
