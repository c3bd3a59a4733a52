"""Spark's `.meta/stats`: what it knew of each column when it wrote the shards.

One CSV with the header `summary,<columns>` and a line for each of count, mean, stddev, min, max; other lines are left.
"""

import csv
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from tasks.errors import RowError, ShardError
from tasks.redaction import is_signed
from tasks.streaming.formats.terms import write_number
from tasks.streaming.manifest import Manifest
from tasks.streaming.objects.retrying import RetryPolicy
from tasks.streaming.objects.schemes import open_store
from tasks.streaming.objects.transfer import list_objects, read_object


@dataclass(frozen=True, kw_only=True)
class ColumnStatistics:
    """What Spark knew of one column: how many values it counted, and their figures, all of them finite."""

    count: float
    mean: float
    stddev: float
    min: float
    max: float


KINDS = tuple(field.name for field in fields(ColumnStatistics))


def read_statistics(
    manifest: Manifest,
    storage_options: Mapping[str, Any] | None = None,
    *,
    retry: RetryPolicy = RetryPolicy(),
) -> dict[str, ColumnStatistics]:
    """Return the statistics of each column from `.meta/stats` beside the shards; empty where there is none.

    Raises ShardError, with the place, where the file is there and is not what Spark writes.
    """
    folders = {shard.uri.rsplit("/", 1)[0] for shard in manifest.shards}
    if len(folders) != 1 or is_signed(manifest.shards[0].uri):
        return {}
    store = open_store(manifest.shards[0].uri, storage_options, retry)
    pattern = f"{folders.pop()}/.meta/stats/part-*.csv"
    found = [entry for entry in list_objects(store, pattern, retry) if entry.size]
    if len(found) != 1:
        return {}
    text = b"".join(read_object(store, found[0], retry)).decode("utf-8-sig", errors="replace")
    return _parse(found[0].uri, text)


def check_statistics(manifest: Manifest, statistics: Mapping[str, ColumnStatistics]) -> None:
    """Raise RowError where a column's statistics, being of these rows, state a number that breaks the contract."""
    terms = manifest.terms
    for name in manifest.columns if terms else ():
        stated, bounds = statistics.get(name), terms and terms.find(name)
        for number in (stated.min, stated.max) if stated and bounds and stated.count == manifest.rows else ():
            if terms and bounds and (fault := bounds.explain(number, terms.uri)):
                raise RowError(
                    f".meta/stats states that column {name!r} has the number {write_number(number)}, {fault}; correct "
                    'the shards, or drop and count such lines with on_bad_rows="quarantine"'
                )


def _parse(uri: str, text: str) -> dict[str, ColumnStatistics]:
    remedy = "correct the metadata, or remove it"
    try:
        rows = list(csv.reader(text.splitlines()))
    except csv.Error as error:
        raise ShardError(f"{uri} is no CSV with the header 'summary,…': {error}: {remedy}") from error
    if not rows or rows[0][:1] != ["summary"]:
        raise ShardError(f"{uri}: the header is {','.join(rows[0]) if rows else ''!r}, expected 'summary,…': {remedy}")
    statistics: dict[str, dict[str, float]] = {column: {} for column in rows[0][1:]}
    for line, row in enumerate(rows[1:], start=2):
        if not row or row[0] not in KINDS:
            continue
        if len(row) != len(rows[0]):
            raise ShardError(f"{uri}, line {line}: {len(row)} cells under a header of {len(rows[0])}: {remedy}")
        for column, cell in zip(rows[0][1:], row[1:], strict=True):
            try:
                statistics[column][row[0]] = float(cell)
            except ValueError:
                raise ShardError(f"{uri}, line {line}, column {column}: {cell!r} is no number: {remedy}") from None
    for column, kinds in statistics.items():
        missing = [kind for kind in KINDS if not math.isfinite(kinds.get(kind, math.nan))]
        if missing:
            raise ShardError(f"{uri}: column {column} has no finite {', '.join(missing)}: {remedy}")
    return {column: ColumnStatistics(**kinds) for column, kinds in statistics.items()}
