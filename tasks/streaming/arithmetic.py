"""Which rows a batch holds: a pure function of (counts, batch size, rank, world size, seed, iteration).

Positions are counted over an endless sequence of epochs, N rows each. Batch i of B rows covers the positions
[i·B, (i+1)·B); rank r of W takes the rows [r·b/W, (r+1)·b/W), rounded down, of a batch of b rows (b < B only in the
last batch of a finite number of epochs). This is the row formula of kaen 1.0.1.31 with shard_size = B/W. Where ranks
are to take whole slices of a batch, b counts slices.

Shuffled, an epoch's shards are permuted, and its rows are permuted inside consecutive windows of a fixed number of
rows. The permutations come from Philox's raw bits, which NumPy promises not to change (NEP 19), seeded by (seed, epoch,
window).
"""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from numpy import int64
    from numpy.typing import NDArray

SMALLEST_WINDOW = 2**18  # rows
SHARD_ORDER = 2**32  # where a window's number would stand in the seed, for the order of an epoch's shards


@dataclass(frozen=True)
class Span:
    """Rows [start, stop) of one epoch's sequence of rows."""

    epoch: int
    start: int
    stop: int

    @property
    def rows(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True)
class Piece:
    """Rows [start, stop) of one shard, by its place in the manifest."""

    shard: int
    start: int
    stop: int

    @property
    def rows(self) -> int:
        return self.stop - self.start


def count_batches(rows: int, batch_size: int, epochs: int) -> int:
    """Return Return ceil(epochs · rows / batch_size)."""
    return -(-epochs * rows // batch_size)


def split_batch(length: int, rank: int, world_size: int, slice_rows: int = 1) -> tuple[int, int]:
    """Return the rows [first, last) of a batch of `length` rows that rank `rank` of `world_size` takes.

    They are whole slices of `slice_rows` rows, of which the batch's last one may be shorter.
    """
    slices = -(-length // slice_rows)
    first, last = (number * slices // world_size * slice_rows for number in (rank, rank + 1))
    return min(first, length), min(last, length)


def batch_spans(
    rows: int,
    batch_size: int,
    iteration: int,
    *,
    rank: int = 0,
    world_size: int = 1,
    slice_rows: int = 1,
    epochs: int | None = None,
) -> list[Span]:
    """Return one rank's rows of batch `iteration`, as spans of epochs, in order; none past the last epoch's end."""
    first = iteration * batch_size
    last = first + batch_size
    if epochs is not None:
        last = min(last, epochs * rows)
    if first >= last:
        return []
    low, high = split_batch(last - first, rank, world_size, slice_rows)
    return list(_cut_at_epochs(rows, first + low, first + high))


def _cut_at_epochs(rows: int, first: int, last: int) -> Iterator[Span]:
    while first < last:
        epoch, start = divmod(first, rows)
        stop = min(rows, start + last - first)
        yield Span(epoch, start, stop)
        first += stop - start


def shard_order(count: int, seed: int, epoch: int) -> list[int]:
    """Return the order in which epoch `epoch` of a shuffled stream goes through `count` shards."""
    return [int(index) for index in _permutation(count, (seed, epoch, SHARD_ORDER))]


def find_window(batch_size: int) -> int:
    """Return how many rows a shuffle window has, where batches have so many."""
    return max(2 * batch_size, SMALLEST_WINDOW)


def window_permutation(rows: int, seed: int, epoch: int, window: int) -> "NDArray[int64]":
    """Return where row j of a shuffled window of `rows` rows comes from, counted inside the window."""
    return _permutation(rows, (seed, epoch, window))


def _permutation(length: int, entropy: tuple[int, int, int]) -> "NDArray[int64]":
    import numpy as np

    bits = np.random.Philox(np.random.SeedSequence(entropy)).random_raw(length)
    return np.argsort(bits, kind="stable")


class Sequencing:
    """The order of rows in every epoch: of the shards, and of the windows where it is shuffled.

    counts: rows of each shard, all positive. window: rows of a shuffle window; None: not shuffled.
    """

    def __init__(self, counts: Sequence[int], *, window: int | None = None, seed: int = 0) -> None:
        self.counts = tuple(counts)
        self.rows = sum(self.counts)
        self.window = window
        self.seed = seed
        self._in_order = (tuple(range(len(self.counts))), _boundaries(self.counts))
        self._latest: tuple[int, tuple[int, ...], list[int]] | None = None

    def pieces(self, span: Span) -> list[Piece]:
        """Return the shards' rows that lie at the positions of `span`, before any shuffling inside windows."""
        order, boundaries = self._epoch(span.epoch)
        found = []
        place = bisect_right(boundaries, span.start) - 1
        start = span.start
        while start < span.stop:
            offset = boundaries[place]
            stop = min(span.stop, boundaries[place + 1])
            found.append(Piece(order[place], start - offset, stop - offset))
            start = stop
            place += 1
        return found

    def windows(self, span: Span) -> list[tuple[int, Span]]:
        """Return the windows that `span` touches, each with the part of `span` in it, counted inside the window."""
        found: list[tuple[int, Span]] = []
        if self.window is None:
            return found
        start = span.start
        while start < span.stop:
            number, inside = divmod(start, self.window)
            stop = min(span.stop, (number + 1) * self.window)
            found.append((number, Span(span.epoch, inside, inside + stop - start)))
            start = stop
        return found

    def window_span(self, epoch: int, number: int) -> Span:
        """Return the positions of window `number` in its epoch; the last one may be short."""
        assert self.window is not None
        return Span(epoch, number * self.window, min(self.rows, (number + 1) * self.window))

    def _epoch(self, epoch: int) -> tuple[tuple[int, ...], list[int]]:
        if self.window is None:
            return self._in_order
        latest = self._latest
        if latest is None or latest[0] != epoch:
            order = tuple(shard_order(len(self.counts), self.seed, epoch))
            latest = self._latest = (epoch, order, _boundaries([self.counts[index] for index in order]))
        return latest[1], latest[2]


def _boundaries(counts: Sequence[int]) -> list[int]:
    return [0, *accumulate(counts)]
