"""Spark's `.meta/shards`: how many rows it wrote into each partition, and which shard each count belongs to.

One CSV with the header `id,count`. An id is the partition's number, the NNNNN of part-NNNNN; an empty partition has no
line. Where ids and names do not match, the shards with rows, in natural order, are paired with the ids in order.
"""

import csv
import re
from dataclasses import dataclass

from tasks.errors import RowCountError, ShardsNotFoundError
from tasks.redaction import is_signed
from tasks.streaming.formats.compression import decompress
from tasks.streaming.formats.contract import is_numeric, split_line
from tasks.streaming.listing.counting import FIRST_BYTES
from tasks.streaming.objects.retrying import RetryPolicy
from tasks.streaming.objects.store import Listed, Store
from tasks.streaming.objects.transfer import list_objects, read_object

PARTITION = re.compile(r"part-(\d+)")
LONGEST_COUNT = 18  # digits
SHOWN = 200  # characters of a line
REMEDY = "correct the metadata, or remove it so that the shards are counted by reading"


@dataclass(frozen=True)
class Counts:
    """Rows by partition number, and the URI or glob that they come from."""

    source: str
    by_id: dict[int, int]


def find_counts(store: Store, listed: list[Listed], meta_shards: str | None, retry: RetryPolicy) -> Counts | None:
    """Return the counts that `meta_shards` names, else those beside the shards; None where there are none."""
    folders = {entry.uri.rsplit("/", 1)[0] for entry in listed}
    if meta_shards is None and (len(folders) != 1 or is_signed(listed[0].uri)):
        return None
    pattern = meta_shards or f"{min(folders)}/.meta/shards/part-*.csv"
    files = [entry for entry in list_objects(store, pattern, retry) if entry.size and not entry.uri.endswith(".crc")]
    if not files and meta_shards is not None:
        raise ShardsNotFoundError(f"meta_shards={meta_shards!r} matches nothing; leave it out to count by reading")
    by_id: dict[int, int] = {}
    for entry in files:
        text = b"".join(read_object(store, entry, retry)).decode("utf-8-sig", errors="replace")
        for line, partition, rows in _parse(entry.uri, text):
            if partition in by_id:
                raise RowCountError(f"{entry.uri}, line {line}: id {partition} is there more than once: {REMEDY}")
            by_id[partition] = rows
    if not files:
        return None
    return Counts(files[0].uri if len(files) == 1 else pattern, by_id)


def _parse(uri: str, text: str) -> list[tuple[int, int, int]]:
    try:
        rows = list(csv.reader(text.splitlines()))
    except csv.Error as error:
        raise RowCountError(f"{uri} is no CSV with the header id,count: {error}: {REMEDY}") from error
    if not rows or [cell.strip() for cell in rows[0]] != ["id", "count"]:
        raise RowCountError(
            f"{uri}: the header is {','.join(rows[0]) if rows else ''!r}, expected 'id,count': {REMEDY}"
        )
    found = []
    for line, row in enumerate(rows[1:], start=2):
        if len(row) != 2 or not all(_is_count(cell.strip()) for cell in row):
            raise RowCountError(
                f"{uri}, line {line}: {','.join(row)[:SHOWN]!r} is not two whole numbers (id,count): {REMEDY}"
            )
        found.append((line, int(row[0]), int(row[1])))
    return found


def _is_count(cell: str) -> bool:
    return cell.isdecimal() and len(cell) <= LONGEST_COUNT


def pair(
    store: Store, listed: list[Listed], patterns: list[str], counts: Counts, retry: RetryPolicy, notes: list[str]
) -> list[tuple[Listed, int]]:
    """Return every shard with its rows, 0 where it is empty. Raises RowCountError where they do not fit."""
    notes.append(f"rows counted by {counts.source}")
    numbers = [_partition(entry.uri) for entry in listed]
    named = {number: entry for number, entry in zip(numbers, listed, strict=True) if number is not None}
    rows = [counts.by_id.get(number, 0) if number is not None else 0 for number in numbers]
    empty = [_is_empty(store, entry, retry) if not count else False for entry, count in zip(listed, rows, strict=True)]
    if len(named) == len(listed) and all(count or is_empty for count, is_empty in zip(rows, empty, strict=True)):
        _check_names(store, named, patterns, counts)
        return list(zip(listed, rows, strict=True))
    filled = [entry for entry in listed if not _is_empty(store, entry, retry)]
    in_order = [count for _, count in sorted(counts.by_id.items()) if count]
    if len(filled) != len(in_order):
        raise RowCountError(
            f"{counts.source} counts {len(in_order)} partitions with rows, but {len(filled)} of {len(listed)} shards "
            f"have rows (from {listed[0].uri} on): {REMEDY}"
        )
    notes.append("ids and names do not match: the shards with rows, in natural order, are paired with the ids in order")
    by_uri = dict(zip((entry.uri for entry in filled), in_order, strict=True))
    return [(entry, by_uri.get(entry.uri, 0)) for entry in listed]


def _partition(uri: str) -> int | None:
    found = PARTITION.match(uri.rsplit("/", 1)[-1])
    return int(found.group(1)) if found else None


def _is_empty(store: Store, entry: Listed, retry: RetryPolicy) -> bool:
    """Return whether it has no bytes, or no line but a header."""
    if entry.size == 0 or entry.size > FIRST_BYTES:
        return entry.size == 0
    lines = b"".join(decompress(entry.uri, read_object(store, entry, retry))).split()
    return not lines or (len(lines) == 1 and not is_numeric(split_line(lines[0])))


def _check_names(store: Store, named: dict[int, Listed], patterns: list[str], counts: Counts) -> None:
    """Raise RowCountError where a counted partition that the patterns would match was not listed, or has no bytes."""
    for partition, rows in sorted(counts.by_id.items()):
        if not rows:
            continue
        if partition in named:
            if named[partition].size == 0:
                raise RowCountError(
                    f"{named[partition].uri} is empty, but {counts.source} counts {rows} rows: {REMEDY}"
                )
            continue
        missing = {_rename(entry.uri, partition) for entry in named.values()}
        if any(store.matches(pattern, uri) for pattern in patterns for uri in missing):
            raise RowCountError(
                f"{counts.source} counts {rows} rows in partition {partition}, but no such shard was listed "
                f"(expected {min(missing)}); the listing is incomplete, or the shard is gone: list again, or {REMEDY}"
            )


def _rename(uri: str, partition: int) -> str:
    """Return the URI that another partition of the same job would have."""
    folder, _, name = uri.rpartition("/")
    return f"{folder}/{PARTITION.sub(lambda found: f'part-{partition:0{len(found.group(1))}d}', name, count=1)}"
