"""Object storage → batches: CSV (or Parquet) shards become an endless, exact stream of tensors.

    locate("s3://bucket/path/part*.csv")                -> Manifest    which shards, with sizes, ETags and row counts
    ObjectStorageDataset(manifest, batch_size=2**20)    -> an iterable-style torch dataset of [batch, columns] tensors

A library: it knows neither Prefect nor MLflow nor what is learned from its batches. Names are handed on lazily, so that
importing the package imports neither torch nor pyarrow.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tasks.streaming.batches import Batch, Times
    from tasks.streaming.dataset import ObjectStorageDataset
    from tasks.streaming.listing.locating import locate
    from tasks.streaming.listing.statistics import ColumnStatistics, read_statistics
    from tasks.streaming.manifest import Manifest, Shard

__all__ = [
    "Batch",
    "ColumnStatistics",
    "Manifest",
    "ObjectStorageDataset",
    "Shard",
    "Times",
    "locate",
    "read_statistics",
]

_HOMES = {
    "Batch": "batches",
    "ColumnStatistics": "listing.statistics",
    "Manifest": "manifest",
    "ObjectStorageDataset": "dataset",
    "Shard": "manifest",
    "Times": "batches",
    "locate": "listing.locating",
    "read_statistics": "listing.statistics",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
