"""Whether data has drifted from what a model was trained on: two formulas, over histograms that both have.

A column has drifted where it moved further than people allow, and further than chance would move so few rows.

Below a population stability index of 0.1 a column has not shifted, from 0.25 on its shift is large (Siddiqi 2006,
Credit Risk Scorecards, Wiley). A normal column whose mean moves by d deviations has an index of d² (Jeffreys 1946,
Proc. R. Soc. A 186:453) and a Kolmogorov–Smirnov distance of 2Φ(d/2) − 1: 0.1 and 0.125 are of the same move.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import accumulate, pairwise
from statistics import NormalDist
from typing import Any

from tasks.errors import ConfigurationError
from tasks.learning.profiles import ColumnProfile, DataProfile
from tasks.naming import join_names

FALSE_ALARMS = 0.001  # of comparisons of data that has not drifted, over all of their columns together
LEAST_EXPECTED = 5  # rows in a bin of the smaller data set, for χ² to be near: Cochran 1954, Biometrics 10:417
MOST_NAMED = 3  # columns in a sentence


@dataclass(frozen=True, kw_only=True)
class ColumnDrift:
    """How far a column is from where it was, and how far chance alone moves one of so many rows.

    psi: the population stability index, see `measure_psi`; by_chance_psi: its critical value
    ks: the Kolmogorov–Smirnov distance, from 0 to 1; by_chance_ks: its critical value
    """

    name: str
    psi: float
    ks: float
    by_chance_psi: float
    by_chance_ks: float
    drifted: bool


@dataclass(frozen=True, kw_only=True)
class Limits:
    """From which distances on a column has drifted, where chance does not explain them."""

    psi: float
    ks: float


@dataclass(frozen=True, kw_only=True)
class Drift:
    """How far a data set is from the one that a model was trained on, the columns that moved most first.

    model: whose training data it is compared with
    gone: columns of the training data that are not there any more
    new: columns that the training data did not have
    """

    model: str
    rows: int
    trained_rows: int
    columns: tuple[ColumnDrift, ...]
    gone: tuple[str, ...] = ()
    new: tuple[str, ...] = ()

    @property
    def drifted(self) -> tuple[str, ...]:
        """The names of the columns that have drifted, those that are gone among them."""
        return (*(each.name for each in self.columns if each.drifted), *self.gone)

    @property
    def can_tell(self) -> bool:
        """Whether there are rows enough for any drift to be told from chance."""
        return any(each.by_chance_ks < 1 for each in self.columns)

    @property
    def verdict(self) -> str:
        """One sentence that names the columns that moved most, those that are gone and those that are new."""
        moved = [each for each in self.columns if each.drifted]
        return f"{self._write_columns(moved)}{_list('gone', self.gone)}{_list('new', self.new)}."

    def _write_columns(self, moved: Sequence[ColumnDrift]) -> str:
        trained = f"what {self.model} was trained on"
        if not self.columns:
            return f"None of these columns is among {trained}"
        if not self.can_tell:
            return f"{self.rows:,} and {self.trained_rows:,} rows are too few to tell drift from {trained}"
        count = len(self.columns)
        if not moved:
            return f"None of {count} columns has drifted from {trained}: moved most has {_name(self.columns[:1])}"
        verb = "has" if len(moved) == 1 else "have"
        return f"{len(moved)} of {count} columns {verb} drifted from {trained}: {_name(moved)}"

    def to_dict(self) -> dict[str, Any]:
        """Return the same as plain JSON types, with the verdict."""
        return {"verdict": self.verdict, **asdict(self)}


def compare_profiles(
    reference: DataProfile,
    found: DataProfile,
    *,
    model: str,
    limits: Limits,
    gone: Sequence[str] = (),
    new: Sequence[str] = (),
) -> Drift:
    """Return how far a data set is from the training data of a model, whose profile is `reference`.

    Compared are the columns that both have. Raises ConfigurationError where histograms have no edge in common.
    """
    before, now = ({each.name: each for each in profile.columns} for profile in (reference, found))
    pairs = [(before[name], now[name]) for name in before if name in now]
    alpha = FALSE_ALARMS / (2 * max(len(pairs), 1))  # Bonferroni's: two tests a column
    columns = [compare_columns(*pair, limits, alpha) for pair in pairs]
    return Drift(
        model=model,
        rows=found.rows,
        trained_rows=reference.rows,
        columns=tuple(sorted(columns, key=lambda each: (-each.drifted, -each.psi, -each.ks, each.name))),
        gone=tuple(gone),
        new=tuple(new),
    )


def compare_columns(reference: ColumnProfile, found: ColumnProfile, limits: Limits, alpha: float) -> ColumnDrift:
    """Return how far a column is from the reference; `alpha` is the share of false alarms that each test may give."""
    pairs = _pair_counts(reference, found)
    pooled = pool_bins(pairs)
    rows = (reference.rows, found.rows)
    psi, by_chance_psi = measure_psi(pooled), critical_psi(*rows, len(pooled), alpha)
    ks, by_chance_ks = measure_ks(pairs), critical_ks(*rows, alpha)
    drifted = psi >= max(limits.psi, by_chance_psi) or ks >= max(limits.ks, by_chance_ks)
    return ColumnDrift(
        name=found.name, psi=psi, ks=ks, by_chance_psi=by_chance_psi, by_chance_ks=by_chance_ks, drifted=drifted
    )


def measure_psi(pairs: Sequence[tuple[int, int]]) -> float:
    """Return the population stability index of two data sets from their rows in the same bins: Σ (q − p) ln(q / p).

    p and q are a bin's shares of the rows of each, taken from half a row more than there are, so that an empty bin has
    a logarithm (Haldane 1956, Annals of Human Genetics 20:309).
    """
    n, m = (rows + len(pairs) / 2 for rows in _count_rows(pairs))
    shares = [((a + 0.5) / n, (b + 0.5) / m) for a, b in pairs]
    return sum((q - p) * math.log(q / p) for p, q in shares)


def measure_ks(pairs: Sequence[tuple[int, int]]) -> float:
    """Return the Kolmogorov–Smirnov distance: how far the shares of rows below an edge differ, at most.

    Within bins nothing is known, so that it may be less than the rows' own, by no more than the largest bin's share.
    """
    n, m = _count_rows(pairs)
    below = zip(accumulate(a for a, _ in pairs), accumulate(b for _, b in pairs), strict=True)
    return max(abs(a / n - b / m) for a, b in below)


def critical_psi(n: int, m: int, bins: int, alpha: float) -> float:
    """Return the index that n and m rows of the same distribution exceed with probability alpha.

    It is distributed as (1/n + 1/m) · χ² with one degree of freedom less than there are bins (Yurdakul 2018,
    Statistical properties of population stability index, Western Michigan University); quantiles of χ² by Wilson and
    Hilferty 1931 (Proc. Natl. Acad. Sci. 17:684).
    """
    freedom = bins - 1
    if not freedom:
        return 0.0  # as the index is itself
    part = 2 / (9 * freedom)
    return (1 / n + 1 / m) * freedom * math.pow(1 - part + NormalDist().inv_cdf(1 - alpha) * math.sqrt(part), 3)


def critical_ks(n: int, m: int, alpha: float) -> float:
    """Return the distance that n and m rows of the same distribution exceed with probability alpha.

    It is for many rows of a continuous distribution (Smirnov 1948, Annals of Mathematical Statistics 19:279, of whose
    series the first term counts); for few, for repeated values and for histograms the true one is smaller.
    """
    return math.sqrt(-math.log(alpha / 2) / 2 * (1 / n + 1 / m))


def pool_bins(pairs: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return the same rows in fewer bins: neighbours are put together until LEAST_EXPECTED are in each.

    Counted are the rows that the smaller data set would have there if both had their mean share.
    """
    n, m = _count_rows(pairs)
    pooled: list[tuple[int, int]] = []
    a = b = 0
    for one, other in pairs:
        a, b = a + one, b + other
        if min(n, m) * (a / n + b / m) / 2 >= LEAST_EXPECTED:
            pooled.append((a, b))
            a = b = 0
    last = pooled.pop() if pooled else (0, 0)
    return [*pooled, (last[0] + a, last[1] + b)]


def _count_rows(pairs: Sequence[tuple[int, int]]) -> tuple[int, int]:
    return sum(a for a, _ in pairs), sum(b for _, b in pairs)


def align(reference: ColumnProfile, found: ColumnProfile) -> tuple[ColumnProfile, ColumnProfile]:
    """Return both with histograms between the edges that both have; ConfigurationError where there are none."""
    if reference.edges == found.edges:
        return reference, found
    shared = tuple(sorted({*reference.edges} & {*found.edges}))
    if not shared:
        raise ConfigurationError(
            f"the histograms of column {found.name!r} have no edge in common: profile it between the other's edges"
        )
    one, other = (replace(each, edges=shared, counts=_recount(each, shared)) for each in (reference, found))
    return one, other


def _recount(column: ColumnProfile, edges: Sequence[float]) -> tuple[int, ...]:
    """Return a histogram's counts between some of its edges."""
    below = dict(zip(column.edges, accumulate(column.counts), strict=False))  # of all bins but the last
    return tuple(end - start for start, end in pairwise([0, *(below[edge] for edge in edges), column.rows]))


def _pair_counts(reference: ColumnProfile, found: ColumnProfile) -> list[tuple[int, int]]:
    """Return the rows of both in each bin; of values that are all apart, in a bin of their own."""
    if reference.most < found.least or found.most < reference.least:
        return [(reference.rows, 0), (0, found.rows)]
    one, other = align(reference, found)
    return list(zip(one.counts, other.counts, strict=True))


def _name(columns: Sequence[ColumnDrift]) -> str:
    """Return the first columns with their distances, and how many more there are."""
    named = [f"{join_names([each.name])} (PSI {each.psi:.3g}, KS {each.ks:.3g})" for each in columns[:MOST_NAMED]]
    more = len(columns) - len(named)
    return ", ".join(named) + (f" and {more} more" if more else "")


def _list(word: str, names: Sequence[str]) -> str:
    return f"; {word}: {join_names(names)}" if names else ""
