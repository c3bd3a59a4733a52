"""How good models are, as plain facts: what scoring finds, and what travels on without torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

AT_BOTH_ENDS = "at both ends of the target nearly any regression errs most"  # beside slices by the target itself


@dataclass(frozen=True, kw_only=True)
class Score:
    """A model's errors over some rows, one at least.

    `mse` is the mean squared error, `rmse` its root, `mae` the mean absolute error, `r2` the share of the target's
    variance that the model explains, None where the target is constant, or where it says nothing: among rows that were
    chosen by the target itself it varies too little for any model to explain much of it.
    """

    rows: int
    mse: float
    rmse: float
    mae: float
    r2: float | None


NO_ROWS = dict.fromkeys(each.name for each in fields(Score)) | {"rows": 0}  # what a file has of a slice without rows


@dataclass(frozen=True, kw_only=True)
class Slice:
    """The scores by model over the rows of one slice, such as an hour or a range of the target; None without rows.

    `by_target` says that rows were chosen by the target itself: see AT_BOTH_ENDS.
    """

    name: str
    scores: Mapping[str, Score | None]
    by_target: bool = False

    def to_row(self) -> dict[str, Any]:
        """Return a flat row of plain values: the slice, then `trained_rows`, `trained_mse`, … of each model."""
        values = {
            f"{model}_{key}": value
            for model, score in self.scores.items()
            for key, value in (asdict(score) if score else NO_ROWS).items()
        }
        return {"slice": self.name, **values}


@dataclass(frozen=True, kw_only=True)
class Density:
    """How the first model's predictions lie beside the target: rows counted in bins, of which the outer ones are open.

    `counts` are those by bin of the target, then of the prediction, with the same `edges`; `residual_counts` are those
    of predictions less the target. `beyond` rows lie outside the edges, `residual_beyond` outside those of residuals.
    """

    edges: tuple[float, ...]
    counts: tuple[tuple[int, ...], ...]
    residual_edges: tuple[float, ...]
    residual_counts: tuple[int, ...]
    beyond: int = 0
    residual_beyond: int = 0


@dataclass(frozen=True, kw_only=True)
class Scores:
    """The scores by model over all rows, and over the rows of each slice; the first model's density."""

    overall: Mapping[str, Score]
    slices: tuple[Slice, ...]
    density: Density

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types: {"all": {model: its score}, "slices": [a flat row for each slice]}."""
        return {
            "all": {model: asdict(score) for model, score in self.overall.items()},
            "slices": [each.to_row() for each in self.slices],
        }
