"""Objects of every scheme but s3, through fsspec: local files, memory, https, gs, abfs.

Where a listing has ETags, the object is asked for its ETag again when a read ends; where it has none, what was listed
is the content's MD5, and that is compared.
"""

import os
import re
from collections.abc import Callable, Mapping
from typing import Any

from tasks.errors import ConfigurationError, ShardChangedError
from tasks.streaming.objects.clouds import SCHEMES as CLOUDS
from tasks.streaming.objects.clouds import translate_cloud_error
from tasks.streaming.objects.digests import Digest
from tasks.streaming.objects.retrying import RetryPolicy, TransientError
from tasks.streaming.objects.store import Body, Listed
from tasks.streaming.objects.traffic import count
from tasks.streaming.objects.web import choose_block_size, make_web_options, translate_web_error

WEB = ("http", "https")
MAGIC = re.compile(r"[*?\[]")
MD5 = re.compile(r"[0-9a-f]{32}")
READ_AHEAD = 2**23


class FilesystemStore:
    """See `store.Store`. The filesystem is made when first needed, in the process that needs it."""

    by_ranges = False  # a disk brings no more so, and not every web server knows ranges

    def __init__(self, uri: str, storage_options: Mapping[str, Any] | None, retry: RetryPolicy) -> None:
        self._scheme = uri.partition("://")[0] if "://" in uri else "file"
        self._options = dict(storage_options or {})
        self._retry = retry
        self._made: dict[int, Any] = {}  # by process: a filesystem must not cross a fork

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_made": {}}

    def list(self, pattern: str) -> list[Listed]:
        filesystem = self._filesystem
        count(requests=1)
        try:
            path = filesystem._strip_protocol(pattern)
            literal = self._scheme == "file" and filesystem.isfile(path)  # x[1].csv is a name, too
            found = {path: filesystem.info(path)} if literal else filesystem.glob(path, detail=True)
            files = {name: info for name, info in found.items() if info["type"] == "file"}
            files |= {
                name: filesystem.info(name) for name, info in files.items() if info["size"] is None
            }  # http's links
            if not files:
                self._ask_whether_it_answers(pattern)
        except Exception as error:
            if translated := self._translate(error, pattern):
                raise translated from error
            if isinstance(error, FileNotFoundError):
                return []
            if isinstance(error, OSError):
                raise TransientError(str(error)) from error
            raise
        return [_list_file(filesystem.unstrip_protocol(name), info) for name, info in files.items()]

    def _ask_whether_it_answers(self, pattern: str) -> None:
        """Raise what a web server answers, or that it does not: where it lists nothing, fsspec keeps that to itself."""
        if self._scheme not in WEB:
            return
        before = MAGIC.split(pattern)[0]
        self._filesystem.info(before if before == pattern else f"{before.rpartition('/')[0]}/")
        if before == pattern:  # it is there after all
            raise TransientError("the server answered only when it was asked again")

    def _translate(self, error: Exception, uri: str) -> Exception | None:
        if self._scheme in WEB:
            return translate_web_error(error, uri)
        return translate_cloud_error(error, uri) if self._scheme in CLOUDS else None

    def matches(self, pattern: str, uri: str) -> bool:
        from fsspec.utils import glob_translate

        pattern, path = self._filesystem._strip_protocol(pattern), self._filesystem._strip_protocol(uri)
        return pattern == path or ("*" in pattern and re.match(glob_translate(pattern), path) is not None)

    def open(self, uri: str, *, offset: int, stop: int, size: int, etag: str | None) -> Body:
        file = None
        count(requests=1)
        try:
            file = self._open_file(uri)
            found = file.seek(0, os.SEEK_END)
            file.seek(offset)
        except Exception as error:
            raise self._translate(error, uri) or _translate_failure(error, uri) from error
        if found != size:
            file.close()
            raise ShardChangedError(f"{uri}: listed with {size} bytes, now has {found}; locate the shards again")
        return _FileBody(uri, file, stop - offset, etag, self._ask_etag, self._translate)

    def _open_file(self, uri: str) -> Any:
        if self._scheme == "file":
            return open(self._filesystem._strip_protocol(uri), "rb", buffering=0)  # noqa: PTH123
        block_size = choose_block_size(self._retry, READ_AHEAD) if self._scheme in WEB else READ_AHEAD
        return self._filesystem.open(uri, "rb", block_size=block_size, cache_type="readahead")

    def _ask_etag(self, uri: str) -> str | None:
        if self._scheme in ("file", "memory"):
            return None
        self._filesystem.invalidate_cache()
        return _find_etag(self._filesystem.info(uri))

    @property
    def _filesystem(self) -> Any:
        made = self._made.get(os.getpid())
        if made is None:
            import fsspec

            try:
                web = self._scheme in WEB
                options = make_web_options(self._options, self._retry, READ_AHEAD) if web else self._options
                made = fsspec.filesystem(self._scheme, **options, skip_instance_cache=self._scheme != "memory")
            except (ValueError, ImportError, TypeError) as error:
                raise ConfigurationError(f"URIs of the scheme {self._scheme}:// cannot be read: {error}") from error
            self._made = {os.getpid(): made}
        return made


class _FileBody:
    def __init__(
        self,
        uri: str,
        file: Any,
        length: int,
        etag: str | None,
        ask_etag: Callable[[str], str | None],
        translate: Callable[[Exception, str], Exception | None],
    ) -> None:
        self._uri = uri
        self._file = file
        self._left = length
        self._etag, self._ask_etag = etag, ask_etag
        self._translate = translate

    @property
    def content_digest(self) -> Digest | None:
        """The listed ETag, where it is the MD5 that this library put in its place."""
        if self._etag and MD5.fullmatch(self._etag) and self._ask_etag(self._uri) is None:
            return Digest("MD5", self._etag)
        return None

    def read(self, most: int) -> bytes:
        try:
            data = bytes(self._file.read(min(most, self._left)))
            self._left -= len(data)
            now = self._ask_etag(self._uri) if self._left == 0 else None
        except Exception as error:
            raise self._translate(error, self._uri) or _translate_failure(error, self._uri) from error
        if now is not None and now != self._etag:
            raise ShardChangedError(
                f"{self._uri} was replaced since it was listed: its ETag was {self._etag}, is {now}; "
                "locate the shards again"
            )
        return data

    def limit(self, seconds: float) -> None:
        """Do nothing: the filesystem has limits of its own."""

    def close(self) -> None:
        self._file.close()


def _translate_failure(error: Exception, uri: str) -> Exception:
    """Return the error that a failure to open or to read stands for; itself where it is none of the system's."""
    if isinstance(error, FileNotFoundError):
        return ShardChangedError(f"{uri} is gone: it was listed, but cannot be found now; locate the shards again")
    if isinstance(error, PermissionError):
        return ConfigurationError(f"{uri} may not be read: {error}")
    return TransientError(str(error)) if isinstance(error, OSError) else error


def _list_file(uri: str, info: Mapping[str, Any]) -> Listed:
    if info["size"] is None:
        raise ConfigurationError(
            f"{uri}: its server states no size, and without it a read cut short goes unnoticed; use another server"
        )
    return Listed(uri, int(info["size"]), _find_etag(info))


def _find_etag(info: Mapping[str, Any]) -> str | None:
    etag = info.get("ETag") or info.get("etag")
    return str(etag).strip('"') if etag else None
