"""Which store a URI belongs to: `s3.py` reads s3:// URIs (botocore), `filesystems.py` all others (fsspec)."""

from collections.abc import Mapping
from typing import Any

from tasks.streaming.objects.retrying import RetryPolicy
from tasks.streaming.objects.store import Store


def open_store(uri: str, storage_options: Mapping[str, Any] | None, retry: RetryPolicy) -> Store:
    """Return the store of a URI or path.

    storage_options: as the scheme's fsspec implementation (s3fs for s3) names them
    """
    if uri.startswith(("s3://", "s3a://", "s3n://")):
        from tasks.streaming.objects.s3 import S3Store

        return S3Store(storage_options, retry)
    from tasks.streaming.objects.filesystems import FilesystemStore

    return FilesystemStore(uri, storage_options, retry)
