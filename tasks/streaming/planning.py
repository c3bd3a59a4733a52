"""What each batch of one consumer needs, batch by batch: spans of rows, windows, shards. Pure, like `arithmetic.py`."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from tasks.streaming.arithmetic import Piece, Sequencing, Span, batch_spans


@dataclass(frozen=True)
class Request:
    """Which batches one consumer gets: iterations first, first + step, … of one rank, in whole slices.

    epochs: how many there are; None: without end
    stop: no iteration from this one on; None: no such limit
    epoch: the number of the first epoch
    """

    first: int
    step: int
    rank: int
    world_size: int
    batch_size: int
    epochs: int | None
    stop: int | None = None
    slice_rows: int = 1
    epoch: int = 0


@dataclass(frozen=True)
class BatchPlan:
    """One batch.

    spans: its rows, in order
    windows: the shuffle windows that they lie in, as (epoch, number); none where the stream is not shuffled
    shards: those that must be loaded for it, by their places in the manifest, in the order of need
    """

    iteration: int
    spans: tuple[Span, ...]
    windows: tuple[tuple[int, int], ...]
    shards: tuple[int, ...]

    @property
    def rows(self) -> int:
        return sum(span.rows for span in self.spans)


def plan_batches(sequencing: Sequencing, request: Request) -> Iterator[BatchPlan]:
    """Yield the plans of all batches that the request asks for; without end where nothing limits them."""
    iteration, rows = request.first, None if request.epochs is None else request.epochs * sequencing.rows
    while (request.stop is None or iteration < request.stop) and (
        rows is None or iteration * request.batch_size < rows
    ):
        spans = batch_spans(
            sequencing.rows,
            request.batch_size,
            iteration,
            rank=request.rank,
            world_size=request.world_size,
            slice_rows=request.slice_rows,
            epochs=request.epochs,
        )
        spans = [replace(span, epoch=request.epoch + span.epoch) for span in spans]
        windows = [(span.epoch, number) for span in spans for number, _ in sequencing.windows(span)]
        needed = [sequencing.window_span(*window) for window in windows] or spans
        pieces: list[Piece] = [piece for span in needed for piece in sequencing.pieces(span)]
        shards = tuple(dict.fromkeys(piece.shard for piece in pieces))
        yield BatchPlan(iteration, tuple(spans), tuple(windows), shards)
        iteration += request.step
