"""An object as a file, for formats that read a part of it and then another."""

import io

from tasks.streaming.objects.retrying import RetryPolicy
from tasks.streaming.objects.store import Listed, Store
from tasks.streaming.objects.transfer import read_object


class ObjectFile(io.RawIOBase):
    """A seekable file that fetches what is read from it."""

    def __init__(self, store: Store, entry: Listed, retry: RetryPolicy) -> None:
        self._store = store
        self._entry = entry
        self._retry = retry
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._entry.size}[whence]
        return self._at

    def read(self, size: int = -1) -> bytes:
        end = self._entry.size if size < 0 else min(self._entry.size, self._at + size)
        pieces = read_object(self._store, self._entry, self._retry, begin=self._at, end=end)
        data = b"".join(pieces) if self._at < end else b""
        self._at += len(data)
        return data
