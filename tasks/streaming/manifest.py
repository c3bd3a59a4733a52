"""What was listed: the shards of one data set, as plain facts that can be stored, compared and read again.

How a manifest comes about is in `locating.py`; that what is read equals what was listed is seen to in `transfer.py`.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import accumulate
from typing import Any

from tasks.errors import ConfigurationError
from tasks.naming import join_names, suggest
from tasks.redaction import identify, is_withheld, label, redact
from tasks.streaming.formats.terms import Terms


@dataclass(frozen=True)
class Shard:
    """One object with rows: its URI, size in bytes, ETag (quotes removed) and number of rows.

    Where a scheme has no ETags (file, memory), `etag` is the MD5 of the content.
    """

    uri: str
    size: int
    etag: str
    rows: int


@dataclass(frozen=True)
class Manifest:
    """The shards of one data set in reading order, none of them empty.

    shards:  in natural order (part-2 before part-10)
    columns: names of the columns that a batch holds, in its order
    notes:   sentences for people about how the manifest came about
    header:  the first shard's header line as it stands in the object; None where shards have no header line
    cells:   where they have none, and not all is read: the names that were given to all cells of a line; else None
    terms:   what a contract file states of the data; None where there is none
    """

    shards: tuple[Shard, ...]
    columns: tuple[str, ...]
    notes: tuple[str, ...] = ()
    header: tuple[str, ...] | None = field(default=None)
    cells: tuple[str, ...] | None = None
    terms: Terms | None = None

    @cached_property
    def counts(self) -> tuple[int, ...]:
        """Rows of each shard, in reading order."""
        return tuple(shard.rows for shard in self.shards)

    @cached_property
    def rows(self) -> int:
        """Rows of all shards together."""
        return sum(self.counts)

    @cached_property
    def size(self) -> int:
        """Bytes of all shards together, as they lie in the store."""
        return sum(shard.size for shard in self.shards)

    @property
    def known(self) -> tuple[str, ...]:
        """Names of all columns that the shards have, read or not."""
        return self.header or self.cells or self.columns

    @property
    def unchecked(self) -> tuple[str, ...]:
        """Names of the columns that the contract bounds and nobody reads."""
        bound = (column.name for column in self.terms.columns if column.is_bound) if self.terms else ()
        return tuple(name for name in bound if name not in self.columns)

    @property
    def etags(self) -> dict[str, str]:
        """ETags by what each URI names: what a checkpoint keeps, to tell which shards have changed since."""
        return {label(shard.uri): shard.etag for shard in self.shards}

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hex) over URI, size, ETag and rows of every shard, in order: equal data, equal fingerprint.

        Of a URI it takes what that names: not who reads it, nor how that is signed.
        """
        digest = hashlib.sha256()
        for shard in self.shards:
            digest.update(repr((identify(shard.uri), shard.size, shard.etag, shard.rows)).encode())
        return digest.hexdigest()

    def choose(self, columns: Sequence[str] | None = None, max_shards: int | None = None) -> "Manifest":
        """Return the manifest of these columns and of the first shards; None: of all.

        Raises ConfigurationError where a column is not there.
        """
        if max_shards is not None and max_shards < 1:
            raise ConfigurationError(f"max_shards is {max_shards}; it must be at least 1")
        chosen = replace(self, shards=self.shards[:max_shards])
        if columns is None or tuple(columns) == self.columns:
            return chosen
        known = self.known
        if unknown := [column for column in columns if column not in known]:
            raise ConfigurationError(
                f"columns names {unknown[0]!r}, which the shards do not have: {join_names(known)}"
                f"{suggest(unknown[0], known)}"
            )
        return replace(chosen, columns=tuple(columns), cells=known if self.header is None else None)

    def begin(self, rows: int) -> "Manifest":
        """Return the manifest of the first shards that hold so many rows together, or of all."""
        needed = next((number for number, total in enumerate(accumulate(self.counts), 1) if total >= rows), None)
        return replace(self, shards=self.shards[:needed])

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types, without what URIs hold of secrets; `from_dict` reads them back."""
        return {
            "fingerprint": self.fingerprint,
            "rows": self.rows,
            "size": self.size,
            "columns": list(self.columns),
            "header": None if self.header is None else list(self.header),
            **({} if self.cells is None else {"cells": list(self.cells)}),
            **({} if self.terms is None else {"terms": self.terms.to_dict()}),
            "notes": list(self.notes),
            "shards": [vars(shard) | {"uri": redact(shard.uri)} for shard in self.shards],
        }

    @classmethod
    def from_dict(cls, facts: Mapping[str, Any]) -> "Manifest":
        """Return the manifest that `to_dict` wrote. Raises ConfigurationError where it is none, or was changed."""
        try:
            manifest = cls._read(facts)
            fingerprint = manifest.fingerprint  # of values of any kind, until now
        except (LookupError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise ConfigurationError(
                f"This is no manifest ({type(error).__name__}: {error}): it was changed by hand or cut short; locate "
                "the shards again"
            ) from error
        if facts.get("fingerprint", fingerprint) != fingerprint:
            if hidden := next((shard.uri for shard in manifest.shards if is_withheld(shard.uri)), None):
                raise ConfigurationError(
                    f"The manifest keeps {hidden} without the values of its query, so it cannot be read from it: "
                    "locate the shards again"
                )
            raise ConfigurationError(
                f"The manifest says that its fingerprint is {facts['fingerprint']}, but its shards give "
                f"{fingerprint}: it was changed by hand or cut short; locate the shards again"
            )
        return manifest

    @classmethod
    def _read(cls, facts: Mapping[str, Any]) -> "Manifest":
        return cls(
            shards=tuple(Shard(s["uri"], int(s["size"]), s["etag"], int(s["rows"])) for s in facts["shards"]),
            columns=tuple(facts["columns"]),
            notes=tuple(facts.get("notes", ())),
            header=None if facts.get("header") is None else tuple(facts["header"]),
            cells=None if facts.get("cells") is None else tuple(facts["cells"]),
            terms=None if facts.get("terms") is None else Terms.from_dict(facts["terms"]),
        )
