"""Steps that find the shards and look at their first rows, before anything is trained on them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Unpack

from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.logging import get_run_logger

from tasks.parameters import Listing, Reading, TrainingParameters
from tasks.policy import READING, step
from tasks.sources import Sources
from tasks.tracking.outbox import STATE

if TYPE_CHECKING:
    from torch import Tensor

    from tasks.streaming import ColumnStatistics, Manifest, ObjectStorageDataset, StreamOptions

MOST_SHARDS_IN_A_TABLE = 100
PREVIEWED_ROWS = 1000
SHOWN_ROWS = 5


@step("locate shards", run_name="locate {role} shards", pauses=READING)
def locate_shards(sources: Sources, given: Listing, role: str = "training") -> dict[str, Any]:
    """List the shards of a role (test: those of `test_shards`); a table artifact shows them. Returns plain JSON types:

    {"manifest": as Manifest.to_dict, "statistics": {column: ColumnStatistics}, empty where nobody wrote them or where
    they are of other rows}.
    """
    from tasks.streaming import locate, read_statistics

    uri = str(sources.test_shards) if role == "test" else sources.shards
    manifest = locate(
        uri,
        meta_shards=None if role == "test" else given.meta_shards,
        header="infer" if given.header == "infer" else None,
        columns=given.columns,
        max_shards=given.max_shards,
        storage_options=sources.storage_options(uri),
    )
    logger = get_run_logger()
    logger.info(
        "%s: %d shards, %s rows, %s, fingerprint %s",
        uri,
        len(manifest.shards),
        f"{manifest.rows:,}",
        readable_bytes(manifest.size),
        manifest.fingerprint[:12],
    )
    for note in manifest.notes:
        logger.info("%s", note)
    show_shards(manifest, uri, role)
    statistics = read_statistics(manifest, sources.storage_options(uri))
    counted = {stated.count for stated in statistics.values()}
    if statistics and counted != {manifest.rows} and not given.max_shards:
        logger.warning(".meta/stats is of %s rows, the shards have %d: left unused", counted, manifest.rows)
        statistics = {}
    return {"manifest": manifest.to_dict(), "statistics": statistics}


def show_shards(manifest: Manifest, uri: str, role: str) -> None:
    """Leave a table artifact of the first shards, with the sums of all."""
    first = manifest.shards[:MOST_SHARDS_IN_A_TABLE]
    create_table_artifact(
        key=f"{role}-shards",
        table=[{"shard": s.uri.rsplit("/", 1)[-1], "rows": s.rows, "bytes": s.size, "etag": s.etag} for s in first],
        description="\n".join(
            [
                f"**{role.capitalize()} shards** of `{uri}`: {len(manifest.shards)} shards, {manifest.rows:,} rows, "
                f"{readable_bytes(manifest.size)}; fingerprint `{manifest.fingerprint}`",
                *(["", f"The table shows the first {len(first)}."] if len(first) < len(manifest.shards) else []),
                *(f"- {note}" for note in manifest.notes),
            ]
        ),
    )


@step("preview batch", pauses=READING)
def preview_batch(
    manifest: dict[str, Any],
    sources: Sources,
    given: TrainingParameters,
    statistics: Mapping[str, ColumnStatistics] | None = None,
) -> dict[str, Any]:
    """Read the first rows and hold them against the contract: columns, dtype and, where stated, ranges.

    A markdown artifact shows the shape and dtype of the training batch, each column's range and five rows, and warns
    where a column leaves the range that `.meta/stats` states.
    """
    from tasks.streaming import Manifest

    located = Manifest.from_dict(manifest)
    dataset = open_dataset(manifest, sources, given, batch_size=min(PREVIEWED_ROWS, located.rows), epochs=1)
    batch = next(iter(dataset))
    facts = {
        "columns": list(located.columns),
        "dtype": given.dtype,
        "batch_shape": [given.batch_size, batch.shape[1]],
        "previewed_rows": len(batch),
    }
    low, high = batch.min(dim=0).values.tolist(), batch.max(dim=0).values.tolist()
    ranges = dict(zip(located.columns, zip(low, high, strict=True), strict=True))
    outside = [
        f"column {name} runs from {least:g} to {most:g}, and .meta/stats states {stated.min:g} to {stated.max:g}"
        for name, (least, most) in ranges.items()
        if (stated := (statistics or {}).get(name)) and not stated.min <= least <= most <= stated.max
    ]
    for fault in outside:
        get_run_logger().warning("The statistics are of other data: %s", fault)
    held = ", and within those of `.meta/stats`" if statistics and not outside else ""
    show_batch(facts, ranges, batch[:SHOWN_ROWS], held, outside)
    get_run_logger().info("Batches of shape %s, dtype %s", facts["batch_shape"], facts["dtype"])
    return facts


def show_batch(
    facts: dict[str, Any], ranges: dict[str, tuple[float, float]], rows: Tensor, held: str, outside: list[str]
) -> None:
    """Leave a markdown artifact: the training batches, the columns' ranges, the first rows, and what is amiss."""
    height, width = facts["batch_shape"]
    lines = [
        f"| {name} | {least:.8g} | {most:.8g} | " + " | ".join(f"{value:g}" for value in column) + " |"
        for (name, (least, most)), column in zip(ranges.items(), rows.T.double().tolist(), strict=True)
    ]
    create_markdown_artifact(
        key="preview",
        description="The first rows against the data contract",
        markdown="\n".join(
            [
                f"Training batches are **{height:,} × {width}** tensors of **{facts['dtype']}**. "
                f"Ranges are of the first {facts['previewed_rows']:,} rows{held}.",
                *(f"- ⚠ {fault}" for fault in outside),
                "",
                "| column | min | max | " + " | ".join(f"row {i}" for i in range(len(rows))) + " |",
                "|---|---:|---:|" + "---:|" * len(rows),
                *lines,
            ]
        ),
    )


def open_dataset(
    manifest: dict[str, Any], sources: Sources, given: Reading, **options: Unpack[StreamOptions]
) -> ObjectStorageDataset:
    """Return the dataset over a manifest's shards, as the stream's parameters say; `options` win over them."""
    from tasks.streaming import CacheSettings, Manifest, ObjectStorageDataset

    located = Manifest.from_dict(manifest)
    chosen: StreamOptions = {
        "batch_size": given.batch_size,
        "on_bad_rows": given.on_bad_rows,
        "prefetch": given.prefetch,
        "cache": CacheSettings(
            enabled=given.cache, folder=given.cache_dir or STATE / "cache", limit_bytes=given.cache_bytes
        ),
        "storage_options": sources.storage_options(located.shards[0].uri),
    }
    return ObjectStorageDataset.from_manifest(located, **(chosen | options))


def readable_bytes(size: float) -> str:
    """A number of bytes as people write it, in powers of 1024."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"
