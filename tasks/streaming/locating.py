"""From a glob to a manifest: list, leave out what is not data, put in order, count, name the columns.

Counts come from Spark's `.meta/shards` where it lies beside the shards (`pairing.py`), else from reading every object
once (`counting.py`).
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from tasks.errors import ConfigurationError, RowError, ShardsNotFoundError
from tasks.streaming.contract import Contract, Header, is_numeric, name_columns, split_line
from tasks.streaming.counting import count_rows, first_line, hash_content
from tasks.streaming.manifest import Manifest, Shard
from tasks.streaming.pairing import find_counts, pair
from tasks.streaming.patience import Patience, persist
from tasks.streaming.stores import Listed, Store, open_store


def locate(
    shards: str | Sequence[str],
    *,
    meta_shards: str | None = None,
    header: Header = "infer",
    columns: Sequence[str] | None = None,
    max_shards: int | None = None,
    storage_options: Mapping[str, Any] | None = None,
    deadline_seconds: float = 60.0,
    minimum_throughput: float = 2**20,
) -> Manifest:
    """The shards that `shards` (a glob, URI or path, or several) names, each with its size, ETag and number of rows.

    meta_shards: where Spark's `.meta/shards` CSV (id,count) lies; None: beside the shards, and where there is none, every
        object is read once to count its rows
    header: "infer" (a first line of numbers only is data), 0 (the first line names columns) or None (no header lines)
    columns: the columns to read, in the order wanted; None: all, in the first shard's order. Where shards have no header
        line: the names to give to all their columns
    max_shards: the first so many shards with rows, in order
    storage_options: as fsspec's implementation of the scheme (s3fs for s3) names them
    deadline_seconds, minimum_throughput: see `patience.Patience`

    Raises ShardsNotFoundError, RowCountError, RowError, TransferError, BucketError, CredentialsError, ConfigurationError.
    """
    _check(header, columns, max_shards)
    patience = Patience(deadline_seconds, minimum_throughput)
    patterns = [shards] if isinstance(shards, str) else list(shards)
    if not patterns:
        raise ConfigurationError("shards is an empty list: name at least one glob, URI or path.")
    store = open_store(patterns[0], storage_options, patience)
    notes: list[str] = []
    listed = _list_shards(store, patterns, patience, notes)
    counts = find_counts(store, listed, patterns, meta_shards, patience)
    if counts is not None:
        paired = pair(store, listed, patterns, counts, patience, notes, limit=max_shards)
        named, names = _name_columns(store, paired[0][0], header, columns, patience)
    else:
        named, names = _name_first(store, listed, header, columns, patience)
        paired = count_rows(store, listed, names, patience, limit=max_shards)
        notes.append("rows counted by reading every shard once, for there is no .meta/shards beside them")
    found = [entry for entry in paired if entry[1]]
    if not found:
        raise ShardsNotFoundError(f"{', '.join(patterns)} matches {len(listed)} shards, but none of them has rows.")
    if len(paired) > len(found):
        notes.append(f"{len(paired) - len(found)} shards without rows skipped")
    complete = tuple(
        Shard(entry.uri, entry.size, entry.etag or hash_content(store, entry, patience), rows) for entry, rows in found
    )
    return Manifest(complete[:max_shards], named, tuple(notes), names)


def natural_key(uri: str) -> list[tuple[int, int, str]]:
    """Sorts part-2 before part-10."""
    return [(0, int(part), part) if part.isdigit() else (1, 0, part) for part in re.split(r"(\d+)", uri)]


def _check(header: object, columns: Sequence[str] | None, max_shards: int | None) -> None:
    if header not in ("infer", 0, None):
        raise ConfigurationError(f"header is {header!r}; it may be 'infer', 0 or None.")
    if columns is not None and (not columns or isinstance(columns, str) or len(set(columns)) != len(columns)):
        raise ConfigurationError(f"columns is {columns!r}; it must be a list of distinct names.")
    if max_shards is not None and max_shards < 1:
        raise ConfigurationError(f"max_shards is {max_shards}; it must be at least 1.")


def _list_shards(store: Store, patterns: list[str], patience: Patience, notes: list[str]) -> list[Listed]:
    """Everything that the patterns match and that may hold rows, without repetition, each pattern's in natural order."""
    matched: dict[str, Listed] = {}
    for pattern in patterns:
        listing = persist(f"listing {pattern}", patience, lambda pattern=pattern: store.list(pattern))  # type: ignore[misc]
        for entry in sorted(listing, key=lambda entry: natural_key(entry.uri)):
            matched.setdefault(entry.uri, entry)
    data = [entry for entry in matched.values() if not _is_by_product(entry.uri)]
    if not data:
        others = f" (only by-products such as {next(iter(matched))})" if matched else ""
        raise ShardsNotFoundError(f"{', '.join(patterns)} matches no shard{others}. Check bucket, path and pattern.")
    if len(matched) > len(data):
        notes.append(f"{len(matched) - len(data)} by-products (_SUCCESS, .crc, .meta) skipped")
    return data


def _is_by_product(uri: str) -> bool:
    name = uri.rsplit("/", 1)[-1]
    return name.startswith(("_", ".")) or name.endswith(".crc") or "/.meta/" in uri or not name


def _name_first(
    store: Store, listed: list[Listed], header: Header, columns: Sequence[str] | None, patience: Patience
) -> tuple[tuple[str, ...], tuple[str, ...] | None]:
    for entry in listed:
        if entry.size:
            return _name_columns(store, entry, header, columns, patience)
    raise ShardsNotFoundError(f"All {len(listed)} shards are empty; the first is {listed[0].uri}.")


def _name_columns(
    store: Store, entry: Listed, header: Header, columns: Sequence[str] | None, patience: Patience
) -> tuple[tuple[str, ...], tuple[str, ...] | None]:
    """The columns of a batch, and the first shard's header line (None where it has none)."""
    cells = tuple(split_line(first_line(store, entry, patience)))
    if header is None or (header == "infer" and is_numeric(cells)):
        names = tuple(columns) if columns is not None else name_columns(len(cells))
        if len(names) != len(cells):
            raise RowError(f"{entry.uri}, line 1: {len(cells)} cells, but `columns` names {len(names)}. Name all of them.")
        return names, None
    contract = Contract(tuple(columns) if columns is not None else cells, cells)
    contract.check_header(entry.uri, cells)
    return contract.columns, cells
