"""Sums over rows from which means, covariances and the exact model follow: plain, so that they can be kept anywhere."""

from dataclasses import dataclass

MOMENTS = "moments"  # under this name they stand in a checkpoint's facts


@dataclass(frozen=True, kw_only=True)
class MomentSums:
    """Sums over the first `rows` of a data set's `of` rows, each less `shift`: features first, then the target.

    batches: from how many batches they were taken
    products: of each two columns, [features + 1, features + 1], row by row
    """

    rows: int
    of: int
    batches: int
    shift: tuple[float, ...]
    sums: tuple[float, ...]
    products: tuple[tuple[float, ...], ...]

    @property
    def is_complete(self) -> bool:
        """Whether they are over all rows."""
        return self.rows == self.of
