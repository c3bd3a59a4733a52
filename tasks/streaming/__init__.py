"""Object storage → batches: CSV (or Parquet) shards become an endless, exact stream of tensors.

    locate("s3://bucket/path/part*.csv")                -> Manifest    which shards, with sizes, ETags and row counts
    ObjectStorageDataset.from_manifest(manifest, ...)   -> an iterable-style torch dataset of [batch, columns] tensors
    ObjectStorageDataset("s3://bucket/path/part*.csv")  -> both in one

A library: it knows neither Prefect nor MLflow nor what is learned from its batches. Names are handed on lazily, so that
importing the package imports neither torch nor pyarrow.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tasks.streaming.batches import Batch, Times
    from tasks.streaming.cache import CacheSettings
    from tasks.streaming.dataset import ObjectStorageDataset, StreamOptions
    from tasks.streaming.formats.terms import ColumnTerms, Terms
    from tasks.streaming.listing.contracts import read_terms
    from tasks.streaming.listing.locating import locate
    from tasks.streaming.listing.statistics import ColumnStatistics, read_statistics
    from tasks.streaming.manifest import Manifest, Shard
    from tasks.streaming.objects.retrying import RetryPolicy
    from tasks.streaming.placement import Placement

__all__ = [
    "Batch",
    "CacheSettings",
    "ColumnStatistics",
    "ColumnTerms",
    "Manifest",
    "ObjectStorageDataset",
    "Placement",
    "RetryPolicy",
    "Shard",
    "StreamOptions",
    "Terms",
    "Times",
    "locate",
    "read_statistics",
    "read_terms",
]

_HOMES = {
    "Batch": "batches",
    "CacheSettings": "cache",
    "ColumnStatistics": "listing.statistics",
    "ColumnTerms": "formats.terms",
    "Manifest": "manifest",
    "ObjectStorageDataset": "dataset",
    "Placement": "placement",
    "RetryPolicy": "objects.retrying",
    "Shard": "manifest",
    "StreamOptions": "dataset",
    "Terms": "formats.terms",
    "Times": "batches",
    "locate": "listing.locating",
    "read_statistics": "listing.statistics",
    "read_terms": "listing.contracts",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
