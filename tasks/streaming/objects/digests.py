"""The digest that a store states for an object's whole content, and how it is computed of what came.

S3 keeps the CRC64NVME of whatever was uploaded without another digest, and awscrt computes CRCs much faster than MD5.
Where there is no awscrt, MD5 is compared; CRC-32, by zlib, where no MD5 is stated.
"""

import base64
import binascii
import functools
import hashlib
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

WIDTHS = {
    "CRC64NVME": 16,
    "CRC32C": 8,
    "CRC32": 8,
    "MD5": 32,
}  # hexadecimal digits; the first that is stated is compared
NO_DIGEST = "size and ETag"


@dataclass(frozen=True)
class Digest:
    """What an object's whole content must give: a key of WIDTHS, and hexadecimal digits."""

    kind: str
    value: str


class Hasher(Protocol):
    """A digest of bytes that come one after the other."""

    def update(self, data: bytes, /) -> None: ...

    def hexdigest(self) -> str: ...


class _Crc:
    def __init__(self, function: Callable[[bytes, int], int], width: int) -> None:
        self._function, self._width, self._value = function, width, 0

    def update(self, data: bytes, /) -> None:
        self._value = self._function(data, self._value)

    def hexdigest(self) -> str:
        return f"{self._value:0{self._width}x}"


def make_hasher(kind: str) -> Hasher:
    """Return what computes a digest of this kind, which `choose_digest` chose."""
    if kind == "MD5":
        return hashlib.md5(usedforsecurity=False)
    return _Crc(_find_functions()[kind], WIDTHS[kind])


def choose_digest(stated: Mapping[str, str]) -> Digest | None:
    """Return which digest to compare, of those stated by kind in hexadecimal digits; None where there is none."""
    functions = _find_functions()
    fast = functions if functions.keys() > {"CRC32"} else {}
    kinds = [*(kind for kind in WIDTHS if kind in fast), "MD5", "CRC32"]
    return next((Digest(kind, stated[kind]) for kind in kinds if kind in stated), None)


def to_hexadecimal(kind: str, encoded: str) -> str | None:
    """Return a digest that came in base64, in hexadecimal digits; None where it is not of this kind's length."""
    try:
        value = base64.b64decode(encoded, validate=True).hex()
    except binascii.Error:
        return None
    return value if len(value) == WIDTHS[kind] else None


@functools.cache
def _find_functions() -> dict[str, Callable[[bytes, int], int]]:
    try:
        from awscrt import checksums
    except ImportError:
        return {"CRC32": zlib.crc32}
    return {"CRC64NVME": checksums.crc64nvme, "CRC32C": checksums.crc32c, "CRC32": checksums.crc32}
