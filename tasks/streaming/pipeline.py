"""The machinery of one pass over the stream: shards are loaded ahead on several threads, batches assembled on one.

Which rows a batch holds is said by `arithmetic.py`, what it needs by `planning.py`; nothing here can change it.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tasks.streaming.arithmetic import Piece, Sequencing, Span, window_permutation
from tasks.streaming.handover import HandOver
from tasks.streaming.planning import BatchPlan
from tasks.streaming.prefetching import Prefetcher
from tasks.streaming.staging import PagePool
from tasks.streaming.stored import DamagedError

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Assembled:
    """Rows of one batch, [rows, columns], and what they took (thread-seconds)."""

    iteration: int
    rows: "NDArray[Any]"
    fetch_seconds: float
    decode_seconds: float
    assemble_seconds: float


class Pipeline:
    """Yields the prefetcher's plans as batches, in order, one being kept ready. Threads end when the iteration does."""

    def __init__(self, prefetcher: Prefetcher, sequencing: Sequencing, width: int, dtype: str, pages: PagePool) -> None:
        self._prefetcher = prefetcher
        self._sequencing = sequencing
        self._width, self._dtype = width, dtype
        self._pages = pages
        self._windows: dict[tuple[int, int], tuple[NDArray[Any], NDArray[Any]]] = {}
        assembled = map(self._assemble, prefetcher.plans())
        self._ready = HandOver(assembled, 1, prefetcher.closed, "shardline-assemble")

    def __iter__(self) -> Iterator[Assembled]:
        self._ready.start()
        try:
            yield from self._ready
        finally:
            self._prefetcher.closed.set()
            self._ready.join()
            self._prefetcher.close()

    def is_ready(self) -> bool:
        """Return whether the next batch can be had without waiting."""
        return self._ready.has_item()

    def _assemble(self, plan: BatchPlan) -> Assembled:
        fetch, decode = self._prefetcher.wait_for(plan)
        began = time.perf_counter()
        rows = self._pages.allocate(plan.rows, self._width, self._dtype)
        done = 0
        for span in plan.spans:
            target = rows[done : done + span.rows]
            if plan.windows:
                self._copy_shuffled(span, target)
            else:
                self._copy(self._sequencing.pieces(span), target)
            done += span.rows
        self._prefetcher.release(plan)
        return Assembled(plan.iteration, rows, fetch, decode, time.perf_counter() - began)

    def _copy(self, pieces: list[Piece], target: "NDArray[Any]") -> None:
        done = 0
        for piece in pieces:
            self._copy_piece(piece, target[done : done + piece.rows])
            done += piece.rows

    def _copy_piece(self, piece: Piece, target: "NDArray[Any]") -> None:
        try:
            self._prefetcher.rows(piece.shard).copy(piece.start, piece.stop, target)
        except DamagedError as error:
            self._prefetcher.reload(piece.shard, str(error)).copy(piece.start, piece.stop, target)

    def _copy_shuffled(self, span: Span, target: "NDArray[Any]") -> None:
        done = 0
        for number, inside in self._sequencing.windows(span):
            rows, permutation = self._open_window(span.epoch, number)
            chosen = permutation[inside.start : inside.stop]
            rows.take(chosen, axis=0, out=target[done : done + inside.rows], mode="clip")  # "raise" would copy twice
            done += inside.rows

    def _open_window(self, epoch: int, number: int) -> "tuple[NDArray[Any], NDArray[Any]]":
        """Return a window's rows in the shards' order, and the permutation to read them by."""
        if (epoch, number) not in self._windows:
            self._windows.clear()  # the one before it was read to its end
            span = self._sequencing.window_span(epoch, number)
            rows = self._pages.allocate(span.rows, self._width, self._dtype)
            self._copy(self._sequencing.pieces(span), rows)
            self._windows[epoch, number] = rows, window_permutation(span.rows, self._sequencing.seed, epoch, number)
        return self._windows[epoch, number]
