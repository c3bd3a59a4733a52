"""What every store of objects can do. Which store a URI belongs to is in `schemes.py`."""

from dataclasses import dataclass
from typing import Protocol

from tasks.streaming.objects.digests import Digest


@dataclass(frozen=True)
class Listed:
    """One object of a listing. etag: quotes removed; None where the scheme has none."""

    uri: str
    size: int
    etag: str | None


class Body(Protocol):
    """An open response: bytes of one object from some offset on."""

    @property
    def content_digest(self) -> Digest | None:
        """The digest that the whole object must have; None where the store states none."""

    def read(self, most: int) -> bytes:
        """Return up to `most` bytes, as soon as there are any; b"" at the end. Raises TransientError."""

    def limit(self, seconds: float) -> None:
        """Let a `read` wait so long at most from now on."""

    def close(self) -> None: ...


class Store(Protocol):
    """Objects by URI. Raises TransientError for what may pass, errors of tasks/errors.py for what will not.

    by_ranges: whether several connections bring more of one object than one does
    """

    by_ranges: bool

    def list(self, pattern: str) -> list[Listed]:
        """Return every object that the glob `pattern` matches, in no particular order."""

    def matches(self, pattern: str, uri: str) -> bool:
        """Return whether the glob would list an object of that URI, if it were there."""

    def open(self, uri: str, *, offset: int, stop: int, size: int, etag: str | None) -> Body:
        """Open bytes [offset, stop) of an object of `size` bytes, provided that it still has `etag` (None: any)."""
