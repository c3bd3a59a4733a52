"""Where objects lie: what every store can do, and which store a URI belongs to.

`s3.py` is the store of s3:// URIs (boto3), `filesystems.py` that of every other scheme (fsspec).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from tasks.streaming.objects.retrying import Patience


@dataclass(frozen=True)
class Listed:
    """One object of a listing. etag: quotes removed; None where the scheme has none."""

    uri: str
    size: int
    etag: str | None


class Body(Protocol):
    """An open response: bytes of one object from some offset on."""

    @property
    def content_md5(self) -> str | None:
        """The MD5 (hex) that the whole object must have; None where the store vouches for none."""

    def read(self, most: int) -> bytes:
        """Up to `most` bytes, as soon as there are any; b"" at the end. Raises PassingError."""

    def limit(self, seconds: float) -> None:
        """From now on a `read` waits so long at most."""

    def close(self) -> None: ...


class Store(Protocol):
    """Objects by URI. Raises PassingError for what may pass, errors of tasks/errors.py for what will not."""

    def list(self, pattern: str) -> list[Listed]:
        """Every object that the glob `pattern` matches, in no particular order."""

    def matches(self, pattern: str, uri: str) -> bool:
        """Whether the glob would list an object of that URI, were it there."""

    def open(self, uri: str, *, offset: int, stop: int, size: int, etag: str | None) -> Body:
        """Bytes [offset, stop) of an object of `size` bytes, provided that it still has `etag` (None: any)."""


def open_store(uri: str, storage_options: Mapping[str, Any] | None, patience: Patience) -> Store:
    """The store of a URI or path. `storage_options` as the scheme's fsspec implementation (s3fs for s3) names them."""
    if uri.startswith(("s3://", "s3a://", "s3n://")):
        from tasks.streaming.objects.s3 import S3Store

        return S3Store(storage_options, patience)
    from tasks.streaming.objects.filesystems import FilesystemStore

    return FilesystemStore(uri, storage_options)
