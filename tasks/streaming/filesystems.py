"""Objects of every scheme but s3, through fsspec: local files, memory, https, gs, abfs.

Local files are opened directly. Schemes whose listing has an ETag are asked for it again when a read ends.
"""

import re
from collections.abc import Mapping
from typing import Any

from tasks.errors import ConfigurationError, ShardChangedError
from tasks.streaming.patience import Interrupted
from tasks.streaming.stores import Body, Listed

MD5 = re.compile(r"[0-9a-f]{32}")
READ_AHEAD = 2**23


class FilesystemStore:
    """See `stores.Store`. The filesystem is made when first needed, in the process that needs it."""

    def __init__(self, uri: str, storage_options: Mapping[str, Any] | None) -> None:
        self._scheme = uri.partition("://")[0] if "://" in uri else "file"
        self._options = dict(storage_options or {})
        self._made: Any = None

    def list(self, pattern: str) -> list[Listed]:
        filesystem = self._filesystem
        path = filesystem._strip_protocol(pattern)
        try:
            found = filesystem.glob(path, detail=True)
        except FileNotFoundError:
            return []
        except OSError as error:
            raise Interrupted(str(error)) from error
        facts = [(filesystem.unstrip_protocol(name), info) for name, info in found.items() if info.get("type") == "file"]
        return [Listed(uri, int(info["size"]), _etag(info)) for uri, info in facts if info.get("size") is not None]

    def open(self, uri: str, *, offset: int, stop: int, size: int, etag: str | None) -> Body:
        try:
            if self._scheme == "file":
                file = open(self._filesystem._strip_protocol(uri), "rb", buffering=0)  # noqa: SIM115, PTH123
            else:
                file = self._filesystem.open(uri, "rb", block_size=READ_AHEAD, cache_type="readahead")
            file.seek(offset)
        except FileNotFoundError as error:
            raise ShardChangedError(f"{uri} is gone: it was listed, but cannot be found now.") from error
        except PermissionError as error:
            raise ConfigurationError(f"{uri} may not be read: {error}.") from error
        except OSError as error:
            raise Interrupted(str(error)) from error
        return _FileBody(file, stop - offset, etag)

    @property
    def _filesystem(self) -> Any:
        if self._made is None:
            import fsspec

            try:
                self._made = fsspec.filesystem(self._scheme, **self._options)
            except (ValueError, ImportError, TypeError) as error:
                raise ConfigurationError(f"URIs of the scheme {self._scheme}:// cannot be read: {error}") from error
        return self._made


class _FileBody:
    def __init__(self, file: Any, length: int, etag: str | None) -> None:
        self._file = file
        self._left = length
        self.content_md5 = etag if etag is not None and MD5.fullmatch(etag) else None

    def read(self, most: int) -> bytes:
        try:
            data = bytes(self._file.read(min(most, self._left)))
        except OSError as error:
            raise Interrupted(str(error)) from error
        self._left -= len(data)
        return data

    def close(self) -> None:
        self._file.close()


def _etag(info: Mapping[str, Any]) -> str | None:
    etag = info.get("ETag") or info.get("etag")
    return str(etag).strip('"') if etag else None
