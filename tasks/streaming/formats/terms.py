"""What a contract file states of a data set's columns, and how decoded numbers are held against it.

How the file is read is in `listing/contracts.py`.
"""

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Self

from tasks.errors import RowError
from tasks.naming import join_names, suggest

NO_LIMITS = (-math.inf, math.inf, False)


@dataclass(frozen=True, kw_only=True)
class ColumnTerms:
    """What the numbers of one column must be: from `minimum` to `maximum`, both included; None: no such bound.

    whole: whether they have no fraction
    required: whether the shards must have the column

    A stream in float32 rounds the bounds as it rounds the numbers.
    """

    name: str
    minimum: float | None = None
    maximum: float | None = None
    whole: bool = False
    required: bool = True

    @property
    def is_bound(self) -> bool:
        """Whether not every number will do."""
        return self.whole or (self.minimum, self.maximum) != (None, None)

    @property
    def limits(self) -> tuple[float, float, bool]:
        """The least and the most that a number may be, and whether it is whole."""
        least = NO_LIMITS[0] if self.minimum is None else self.minimum
        most = NO_LIMITS[1] if self.maximum is None else self.maximum
        return least, most, self.whole

    def explain(self, number: Any, uri: str) -> str | None:
        """Return how a number (of Python, or a NumPy scalar) breaks the bounds in a file; None where it keeps them."""
        import numpy as np

        with np.errstate(over="ignore"):
            least, most = np.array(self.limits[:2]).astype(getattr(number, "dtype", float))
        if number < least:
            return f"less than {write_number(self.minimum)}, the minimum in {uri}"
        if number > most:
            return f"more than {write_number(self.maximum)}, the maximum in {uri}"
        return f"not whole, as {uri} requires" if self.whole and number != round(number) else None


@dataclass(frozen=True, kw_only=True)
class Terms:
    """What a contract file states of a data set.

    uri: where the file is, for people: without what addresses hold of secrets
    columns: those that it names, in its order
    closed: whether shards may have no other columns
    allowed_share: of a data set's rows, that may break the contract where bad rows are set aside; None: any
    """

    uri: str
    columns: tuple[ColumnTerms, ...] = ()
    closed: bool = False
    allowed_share: float | None = None

    def find(self, name: str) -> ColumnTerms | None:
        """Return what is stated of a column; None where nothing is."""
        return next((column for column in self.columns if column.name == name), None)

    def digest(self, columns: Sequence[str] | None = None) -> str | None:
        """Return a SHA-256 (hex) of the bounds of these columns (None: of all); None where they have none."""
        bounds = [
            (column.name, column.minimum, column.maximum, column.whole)
            for column in sorted(self.columns, key=lambda column: column.name)
            if column.is_bound and (columns is None or column.name in columns)
        ]
        return hashlib.sha256(repr(bounds).encode()).hexdigest() if bounds else None

    def check_columns(self, uri: str, found: Sequence[str]) -> None:
        """Raise RowError where shards, of which `uri` is the first, lack a column or have one that may not be there."""
        for column in self.columns:
            if column.required and column.name not in found:
                raise RowError(
                    f"{uri}: column {column.name!r} is missing, which {self.uri} requires; found {join_names(found)}"
                    f"{suggest(column.name, found)}: correct the shards, or write required: false there"
                )
        named = [column.name for column in self.columns]
        if self.closed and (others := [name for name in found if name not in named]):
            raise RowError(
                f"{uri}: column {others[0]!r} is not named in {self.uri}, which refuses other columns"
                f"{suggest(others[0], named)}: correct the shards, or name it there"
            )

    def require_none(self) -> Self:
        """Return the same for shards that may lack any column."""
        return replace(self, columns=tuple(replace(column, required=False) for column in self.columns))

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types; `from_dict` reads them back."""
        return asdict(self) | {"columns": [asdict(column) for column in self.columns]}

    @classmethod
    def from_dict(cls, facts: Mapping[str, Any]) -> Self:
        """Return what `to_dict` wrote."""
        return cls(**{**facts, "columns": tuple(ColumnTerms(**column) for column in facts["columns"])})


def write_number(number: float | None) -> str:
    """Return a number as people write it, with all its digits: 0 and not 0.0."""
    return str(number).removesuffix(".0")
