"""Decoded shards on local disk: read again without fetching or decoding.

A file is named after the SHA-256 of everything that its rows depend on: the shard's URI, size, ETag and rows, the
contract with its bounds, and the dtype. It begins with one page that repeats this and holds the CRC-32 of the rows that
follow; both are compared when a stream first opens it, and again where its time of change is another after some of it
was read: what was written to or cut short meanwhile reaches no batch. A file that is found damaged goes, and its shard
is fetched again. It is written under another name, with a lock that is gone when its process is, and renamed when the
shard was verified: several processes share the folder, and only one of them fetches each shard.

The folder is kept below `limit` bytes. Files of other data sets are evicted, the longest unused first. What the present
data set itself stored is not evicted for the sake of its other shards: read in turn, each would go just before it is
needed again. So a cache smaller than the data still serves its share of every epoch.
"""

import errno
import fcntl
import hashlib
import json
import logging
import os
import shutil
import threading
import time
from collections.abc import Iterable
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from io import FileIO
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from tasks.errors import ConfigurationError
from tasks.redaction import identify, label, redact
from tasks.streaming.formats.contract import Contract
from tasks.streaming.manifest import Shard
from tasks.streaming.objects.retrying import ClosedError
from tasks.streaming.staging import FileStaging
from tasks.streaming.stored import FileRows, compute_crc

if TYPE_CHECKING:
    from collections.abc import Iterator


FORMAT = "shardline-rows-1"
PAGE = 4096
TOUCHED_EVERY = 600.0  # seconds: which file was used last need not be known better
SHARE_OF_FREE_DISK = 0.8  # where no limit is given

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class CacheSettings:
    """What is kept on local disk for a later run.

    enabled: whether decoded shards are kept, and read from there the next time
    folder: where they are, and the lists of bad rows; None: $XDG_CACHE_HOME/shardline or ~/.cache/shardline
    limit_bytes: how much decoded shards may take; None: four fifths of what the disk has free

    Raises ConfigurationError where the limit is negative.
    """

    enabled: bool = True
    folder: str | os.PathLike[str] | None = None
    limit_bytes: int | None = None

    def __post_init__(self) -> None:
        if self.limit_bytes is not None and self.limit_bytes < 0:
            raise ConfigurationError(f"limit_bytes is {self.limit_bytes}; it must be at least 0, or None")

    @property
    def path(self) -> Path:
        """Where the folder is, ~ being the home folder."""
        folder = self.folder or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "shardline"
        return Path(folder).expanduser()


NO_CACHE = CacheSettings(enabled=False)


class Cache:
    """The decoded shards of one data set (`shards`), in a folder that others use too.

    damaged: where the URI of a shard is noted each time that its file is found damaged
    """

    def __init__(
        self, settings: CacheSettings, shards: Iterable[Shard], contract: Contract, dtype: str, damaged: list[str]
    ) -> None:
        import numpy as np

        self.folder = settings.path
        self._contract = contract
        self._dtype = dtype
        self._limit = settings.limit_bytes
        self._row_bytes = len(contract.columns) * np.dtype(dtype).itemsize
        self._own = {self._path(shard).name for shard in shards}
        self._refused: str | None = None
        self._checked: dict[str, tuple[int, int]] = {}  # identity of each file when it was checked
        self._damaged = damaged
        self._lock = threading.Lock()

    def open(self, shard: Shard) -> FileRows | None:
        """Return the shard's rows; None where they are not there, or were damaged."""
        path = self._path(shard)
        try:
            with path.open("rb", buffering=0) as file:
                if self._is_whole(shard, file):
                    return FileRows(path, PAGE, self._row_bytes, partial(self._is_whole, shard))
        except FileNotFoundError:
            return None
        except OSError as error:
            self.give_up(error)
            return None
        self.discard(shard, "its content is not what was stored")
        return None

    def find(self, shards: Iterable[Shard]) -> frozenset[str]:
        """Return the names of the files of these shards that are there; whether they are whole is seen when opened."""
        return frozenset(name for name in map(self.name, shards) if (self.folder / name).exists())

    def name(self, shard: Shard) -> str:
        """Return the name of a shard's file."""
        return self._path(shard).name

    def size(self, shard: Shard) -> int:
        """Return how many bytes a shard's file has."""
        return PAGE + shard.rows * self._row_bytes

    def count_room(self) -> int:
        """Return how many bytes of this data set's shards it takes in all: files of others go for them."""
        with suppress(FileNotFoundError):  # a folder that the first shard makes
            return self._find_limit(sum(facts.st_size for facts in self._stat_files().values()))
        return self._find_limit(0)

    def discard(self, shard: Shard, fault: str) -> None:
        """Remove a shard's file, which was found damaged; where it is gone, another process evicted it."""
        path = self._path(shard)
        self._checked.pop(shard.uri, None)
        if not path.exists():
            return
        log.warning("Cached shard %s is damaged and will be fetched again (%s): %s", path, redact(shard.uri), fault)
        self._damaged.append(redact(shard.uri))
        with suppress(OSError):  # on a disk that became read-only: it will be found damaged again
            path.unlink(missing_ok=True)

    @contextmanager
    def reserve(self, shard: Shard, stop: threading.Event) -> "Iterator[FileStaging | None]":
        """Make room for a shard that `open` did not find, while other processes wait; None: do without the cache.

        None also where another process stored the shard meanwhile: ask `open` again.
        """
        file = self._lock_partial(shard, stop)
        if file is None:
            yield None
            return
        with file:
            try:
                if self._path(shard).exists() or not self._make_room(shard, file):
                    yield None
                else:
                    yield FileStaging(file, len(self._contract.columns), self._dtype, offset=PAGE)
            finally:
                if _is_at(file, self._partial(shard)):  # not stored; the lock, still held, makes sure that it is ours
                    self._partial(shard).unlink()

    def store(self, shard: Shard, staging: FileStaging) -> None:
        """Give a verified shard its name. Raises OSError where the disk is full."""
        page = json.dumps(self._facts(shard, label(shard.uri)) | {"crc32": staging.checksum}).encode()
        if len(page) > PAGE:
            raise OSError(errno.EFBIG, "the facts of a cached shard do not fit one page")
        staging.file.seek(0)
        staging.file.write(page.ljust(PAGE))
        staging.file.flush()
        with self._locked_folder():  # so that nobody who adds up the files misses it
            self._partial(shard).rename(self._path(shard))

    def give_up(self, reason: OSError) -> None:
        """Store nothing more, since the disk is full, read-only or broken, and warn."""
        with self._lock:
            if self._refused is None:
                self._refused = str(reason)
                log.warning(
                    "The cache in %s stores nothing more (%s); the stream goes on without it", self.folder, reason
                )

    def _facts(self, shard: Shard, uri: str) -> dict[str, Any]:
        return {
            "format": FORMAT, "uri": uri, "size": shard.size, "etag": shard.etag, "rows": shard.rows,
            "columns": list(self._contract.columns), "header": self._contract.header and sorted(self._contract.header),
            "drop_bad_rows": self._contract.drops_bad_rows, "dtype": self._dtype,
            **({} if self._contract.cells is None else {"cells": list(self._contract.cells)}),
            **({} if self._contract.digest is None else {"bounds": self._contract.digest}),
        }  # fmt: skip

    def _path(self, shard: Shard) -> Path:
        return (
            self.folder
            / f"{hashlib.sha256(json.dumps(self._facts(shard, identify(shard.uri))).encode()).hexdigest()[:40]}.rows"
        )

    def _partial(self, shard: Shard) -> Path:
        return self._path(shard).with_suffix(".partial")

    def _is_whole(self, shard: Shard, file: FileIO) -> bool:
        """Return whether the file holds the shard's rows; it is read for that where nobody knows it as it is now."""
        if self._checked.get(shard.uri) == _identify(file):
            return True
        _touch(file)
        identity = _identify(file)
        try:
            whole = self._compare(shard, file)
        except OSError as error:  # a disk that cannot be read
            log.warning("Cached shard %s cannot be read: %s", self._path(shard), error)
            whole = False
        if whole:
            self._checked[shard.uri] = identity
        return whole

    def _compare(self, shard: Shard, file: FileIO) -> bool:
        if os.fstat(file.fileno()).st_size != self.size(shard):
            return False
        file.seek(0)
        try:
            facts = json.loads(file.read(PAGE))
            checksum = facts.pop("crc32")
            facts["uri"] = label(facts["uri"])  # an earlier version kept the whole of it
        except (ValueError, KeyError, AttributeError):
            return False
        return bool(facts == self._facts(shard, label(shard.uri)) and compute_crc(file, PAGE) == checksum)

    def _lock_partial(self, shard: Shard, stop: threading.Event) -> IO[bytes] | None:
        """Return the partial file, empty and locked, once no other process holds it; None to store nothing more."""
        path = self._partial(shard)
        while self._refused is None:
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                file: IO[bytes] = open(path, "r+b", buffering=0, opener=_open_or_create)  # noqa: SIM115
            except OSError as error:
                self.give_up(error)
                return None
            if _lock(file):
                if _is_at(file, path):  # else its former holder stored it under its final name
                    file.truncate(0)
                    return file
            elif stop.wait(0.05):
                file.close()
                raise ClosedError
            file.close()
        return None

    def _make_room(self, shard: Shard, file: IO[bytes]) -> bool:
        """Evict until the shard fits, give `file` its final size, and return whether it fits."""
        wanted = self.size(shard)
        with self._locked_folder():
            self._remove_abandoned()
            sizes = self._stat_files()
            used = sum(facts.st_size for facts in sizes.values())
            limit = self._find_limit(used)
            others = [path for path in sizes if path.suffix == ".rows" and path.name not in self._own]
            if used + wanted - sum(sizes[path].st_size for path in others) > limit:
                log.info(
                    "The cache in %s holds %d bytes at most: %s is not stored", self.folder, limit, redact(shard.uri)
                )
                return False
            for path in sorted(others, key=lambda path: sizes[path].st_mtime):
                if used + wanted <= limit:
                    break
                path.unlink(missing_ok=True)
                used -= sizes[path].st_size
            file.truncate(wanted)
        return True

    def _find_limit(self, used: int) -> int:
        if self._limit is not None:
            return self._limit
        return int((used + shutil.disk_usage(find_existing(self.folder)).free) * SHARE_OF_FREE_DISK)

    @contextmanager
    def _locked_folder(self) -> "Iterator[None]":
        with (self.folder / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _stat_files(self) -> dict[Path, os.stat_result]:
        """Return the facts of whole and partial files, but for those that are removed meanwhile."""
        found = {}
        for path in self.folder.iterdir():
            if path.suffix in (".rows", ".partial"):
                with suppress(FileNotFoundError):
                    found[path] = path.stat()
        return found

    def _remove_abandoned(self) -> None:
        """Remove partial files of processes that are gone: nobody holds their locks."""
        for path in self.folder.glob("*.partial"):
            with suppress(FileNotFoundError), path.open("rb") as file:
                if _lock(file):
                    path.unlink()


def find_existing(folder: Path) -> Path:
    """Return the folder, or the nearest one above it that is there: its disk is the one that the folder will be on."""
    return next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())


def _identify(file: FileIO) -> tuple[int, int]:
    """Return inode and time of change, which nobody can set: a file that still has them was not written to since."""
    found = os.fstat(file.fileno())
    return found.st_ino, found.st_ctime_ns


def _touch(file: FileIO) -> None:
    """Note that the file is being used, where that was not noted lately."""
    if time.time() - os.fstat(file.fileno()).st_mtime > TOUCHED_EVERY:
        with suppress(OSError):
            os.utime(file.fileno())


def _open_or_create(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CREAT, 0o600)


def _lock(file: IO[bytes]) -> bool:
    """Lock the file, and return whether that worked; a lock ends when the file is closed, or its process is gone."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_at(file: IO[bytes], path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False
