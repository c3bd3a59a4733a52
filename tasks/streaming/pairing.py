"""Spark's `.meta/shards`: how many rows it wrote into each partition, and which shard each count belongs to.

One CSV with the header `id,count`. An id is the partition's number, the NNNNN of part-NNNNN; an empty partition has no
row. Where ids and names do not match, the shards that are not empty, in natural order, are paired with the ids in order.
"""

import csv
import re

from tasks.errors import RowCountError, ShardError, ShardsNotFoundError
from tasks.streaming.counting import FIRST_BYTES, first_line
from tasks.streaming.patience import Patience, persist
from tasks.streaming.stores import Listed, Store
from tasks.streaming.transfer import read_object

PARTITION = re.compile(r"part-(\d+)")


def find_counts(
    store: Store, listed: list[Listed], patterns: list[str], meta_shards: str | None, patience: Patience
) -> tuple[str, dict[int, int]] | None:
    """Where the counts lie, and rows by partition number; None where there is no `.meta/shards` beside the shards."""
    folders = sorted({entry.uri.rsplit("/", 1)[0] for entry in listed})
    if meta_shards is None and len(folders) != 1:
        return None
    pattern = meta_shards or f"{folders[0]}/.meta/shards/part-*.csv"
    listing = persist(f"listing {pattern}", patience, lambda: store.list(pattern))
    files = [entry for entry in listing if entry.size and not entry.uri.endswith(".crc")]
    if not files:
        if meta_shards is not None:
            raise ShardsNotFoundError(f"meta_shards={meta_shards!r} matches nothing; leave it out to count by reading.")
        return None
    counts: dict[int, int] = {}
    for entry in files:
        text = b"".join(read_object(store, entry, patience)).decode("utf-8-sig", errors="replace")
        for partition, rows in _parse(entry.uri, text):
            if partition in counts:
                raise RowCountError(f"{entry.uri}: id {partition} stands there more than once. {_REMEDY}")
            counts[partition] = rows
    return files[0].uri if len(files) == 1 else pattern, counts


_REMEDY = "Correct the metadata, or remove it so that the shards are counted by reading."


def _parse(uri: str, text: str) -> list[tuple[int, int]]:
    rows = [row for row in csv.reader(text.splitlines()) if row]
    if not rows or [cell.strip() for cell in rows[0]] != ["id", "count"]:
        raise RowCountError(f"{uri}: the header is {','.join(rows[0]) if rows else ''!r}, expected 'id,count'. {_REMEDY}")
    found = []
    for line, row in enumerate(rows[1:], start=2):
        if len(row) != 2 or not all(cell.strip().isdigit() for cell in row):
            raise RowCountError(f"{uri}, line {line}: {','.join(row)!r} is not two whole numbers (id,count). {_REMEDY}")
        found.append((int(row[0]), int(row[1])))
    return found


def pair(
    store: Store, listed: list[Listed], patterns: list[str], counts: tuple[str, dict[int, int]], patience: Patience,
    notes: list[str], *, limit: int | None,
) -> list[tuple[Listed, int]]:  # fmt: skip
    """Every shard with its rows, 0 where it is empty. Raises RowCountError where counts and shards cannot be brought together."""
    source, by_id = counts
    numbers = [_partition(entry.uri) for entry in listed]
    known = [number for number in numbers if number is not None]
    notes.append(f"rows counted by {source}")
    matches = len(known) == len(set(known)) == len(listed)
    if matches and all(number in by_id or _is_empty(store, entry, patience) for number, entry in zip(known, listed, strict=True)):
        _check_complete(source, listed, set(known), by_id, patterns)
        return [(entry, by_id.get(number, 0)) for number, entry in zip(known, listed, strict=True)]
    filled = [entry for entry in listed if not _is_empty(store, entry, patience)]
    ids = sorted(partition for partition, rows in by_id.items() if rows)
    if len(filled) != len(ids):
        raise RowCountError(
            f"{source} counts {len(ids)} partitions with rows, but {len(filled)} shards are not empty "
            f"(the first is {filled[0].uri if filled else listed[0].uri}). {_REMEDY}"
        )
    notes.append("ids and names do not match: shards with rows, in natural order, were paired with the ids in order")
    rows = dict(zip((entry.uri for entry in filled), (by_id[partition] for partition in ids), strict=True))
    return [(entry, rows.get(entry.uri, 0)) for entry in listed]


def _partition(uri: str) -> int | None:
    found = PARTITION.match(uri.rsplit("/", 1)[-1])
    return int(found.group(1)) if found else None


def _is_empty(store: Store, entry: Listed, patience: Patience) -> bool:
    """Zero bytes, or a header line alone."""
    if entry.size == 0:
        return True
    if entry.size > FIRST_BYTES:
        return False
    content = b"".join(read_object(store, entry, patience))
    line = first_line(store, entry, patience)
    return content.removeprefix(line).strip() == b"" and not any(char.isdigit() for char in line[:1].decode(errors="replace"))


def _check_complete(source: str, listed: list[Listed], known: set[int], by_id: dict[int, int], patterns: list[str]) -> None:
    """A partition that the metadata counts, whose shard the glob would match, but that was not listed, is missing."""
    from fsspec.utils import glob_translate

    for partition in sorted(set(by_id) - known):
        if not by_id[partition]:
            continue
        for entry in listed:
            folder, _, name = entry.uri.rpartition("/")
            missing = f"{folder}/{PARTITION.sub(lambda m: 'part-' + str(partition).zfill(len(m.group(1))), name, count=1)}"
            if any(re.match(glob_translate(pattern), missing) for pattern in patterns):
                raise ShardError(
                    f"{source} counts {by_id[partition]} rows in partition {partition}, but no such shard was listed "
                    f"(expected {missing}). The listing is incomplete, or a shard is missing."
                )
            break
