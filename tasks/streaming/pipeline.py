"""The machinery of one pass over the stream: shards are loaded ahead on several threads, batches assembled on one.

Which rows a batch holds is said by `arithmetic.py`; nothing here can change it.
"""

import queue
import threading
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tasks.streaming.arithmetic import Piece, Sequencing, Span, batch_spans, window_permutation
from tasks.streaming.loading import Loaded, Loading
from tasks.streaming.manifest import Manifest
from tasks.streaming.patience import ClosedError

if TYPE_CHECKING:
    from numpy.typing import NDArray

HELD_BYTES = 2**28  # decoded shards that may be held or in flight besides what `prefetch` asks for


@dataclass(frozen=True)
class Request:
    """Which batches one consumer gets: iterations first, first + step, … of one rank."""

    first: int
    step: int
    rank: int
    world_size: int
    batch_size: int
    epochs: int | None
    prefetch: int


@dataclass(frozen=True)
class Assembled:
    """Rows of one batch, [rows, columns], and what they took (thread-seconds)."""

    iteration: int
    rows: "NDArray[Any]"
    fetch_seconds: float
    decode_seconds: float
    assemble_seconds: float


@dataclass(frozen=True)
class _Plan:
    iteration: int
    spans: list[Span]
    shards: tuple[int, ...]  # in the order needed, without repetition


class Pipeline:
    """Yields a request's batches in order. `close()` ends every thread; also called when the iteration ends."""

    def __init__(
        self, manifest: Manifest, sequencing: Sequencing, loading: Loading, request: Request, threads: int
    ) -> None:
        self._manifest = manifest
        self._sequencing = sequencing
        self._loading = loading
        self._request = request
        self._stop = threading.Event()
        self._ready: queue.Queue[Assembled | BaseException | None] = queue.Queue(max(1, request.prefetch))
        self._loaders = ThreadPoolExecutor(threads, thread_name_prefix="shardline-load")
        self._shelf = _Shelf(self)
        self._assembler = threading.Thread(target=self._assemble_all, name="shardline-assemble", daemon=True)

    def __iter__(self) -> Iterator[Assembled]:
        self._assembler.start()
        try:
            while (item := self._ready.get()) is not None:
                if isinstance(item, BaseException):
                    raise item
                yield item
        finally:
            self.close()

    def close(self) -> None:
        """Stops all threads and waits until they are gone."""
        self._stop.set()
        while self._assembler.is_alive():
            self._drain()
            self._assembler.join(0.01)
        self._drain()
        self._loaders.shutdown(wait=True, cancel_futures=True)
        self._shelf.clear()

    def _drain(self) -> None:
        while True:
            try:
                self._ready.get_nowait()
            except queue.Empty:
                return

    def load(self, index: int) -> "Future[Loaded]":
        return self._loaders.submit(self._loading.load, self._manifest.shards[index], self._stop)

    def held_rows(self, index: int) -> int:
        return self._manifest.counts[index]

    def plans(self) -> Iterator[_Plan]:
        """What each batch needs, batch by batch."""
        request = self._request
        iteration = request.first
        while True:
            if request.epochs is not None and iteration * request.batch_size >= request.epochs * self._manifest.rows:
                return
            spans = batch_spans(
                self._manifest.rows, request.batch_size, iteration,
                rank=request.rank, world_size=request.world_size, epochs=request.epochs,
            )  # fmt: skip
            pieces = [piece for span in spans for piece in self._pieces_needed(span)]
            yield _Plan(iteration, spans, tuple(dict.fromkeys(piece.shard for piece in pieces)))
            iteration += request.step

    def _pieces_needed(self, span: Span) -> list[Piece]:
        sequencing = self._sequencing
        if sequencing.window is None:
            return sequencing.pieces(span)
        whole = [sequencing.window_span(span.epoch, number) for number, _ in sequencing.windows(span)]
        return [piece for window in whole for piece in sequencing.pieces(window)]

    def _assemble_all(self) -> None:
        try:
            for plan in self._shelf.plans_ahead():
                self._put(self._assemble(plan))
            self._put(None)
        except ClosedError:
            pass
        except BaseException as error:
            self._put_last(error)

    def _put(self, item: Assembled | BaseException | None) -> None:
        while not self._stop.is_set():
            try:
                return self._ready.put(item, timeout=0.1)
            except queue.Full:
                continue
        raise ClosedError

    def _put_last(self, error: BaseException) -> None:
        with suppress(ClosedError):
            self._put(error)

    def _assemble(self, plan: _Plan) -> Assembled:
        import numpy as np

        fetch, decode = self._shelf.wait_for(plan)
        began = time.perf_counter()
        width = len(self._manifest.columns)
        rows = np.empty((sum(span.rows for span in plan.spans), width), dtype=self._loading.dtype)
        done = 0
        for span in plan.spans:
            self._copy_span(span, rows[done : done + span.rows])
            done += span.rows
        self._shelf.release(plan)
        return Assembled(plan.iteration, rows, fetch, decode, time.perf_counter() - began)

    def _copy_span(self, span: Span, target: "NDArray[Any]") -> None:
        if self._sequencing.window is None:
            return self._copy_pieces(self._sequencing.pieces(span), target)
        done = 0
        for number, inside in self._sequencing.windows(span):
            window, permutation = self._shelf.window(span.epoch, number)
            chosen = permutation[inside.start : inside.stop]
            window.take(chosen, axis=0, out=target[done : done + inside.rows], mode="clip")
            done += inside.rows
        return None

    def _copy_pieces(self, pieces: list[Piece], target: "NDArray[Any]") -> None:
        done = 0
        for piece in pieces:
            target[done : done + piece.rows] = self._shelf.rows(piece.shard)[piece.start : piece.stop]
            done += piece.rows

    def make_window(self, epoch: int, number: int) -> "tuple[NDArray[Any], NDArray[Any]]":
        """A window's rows in the shards' order, and the permutation to read them by."""
        import numpy as np

        span = self._sequencing.window_span(epoch, number)
        window = np.empty((span.rows, len(self._manifest.columns)), dtype=self._loading.dtype)
        self._copy_pieces(self._sequencing.pieces(span), window)
        return window, window_permutation(span.rows, self._sequencing.seed, epoch, number)

    def wait_for(self, future: "Future[Loaded]") -> Loaded:
        """The shard, once it is there; ClosedError where the stream is closed meanwhile."""
        while not self._stop.is_set():
            try:
                return future.result(timeout=0.1)
            except TimeoutError:
                if future.done():
                    raise
        raise ClosedError


class _Shelf:
    """Shards that are loaded or being loaded, and how many of the batches planned so far still need each."""

    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline
        self._futures: dict[int, Future[Loaded]] = {}
        self._needed: dict[int, int] = {}
        self._counted: set[int] = set()
        self._windows: dict[tuple[int, int], tuple[NDArray[Any], NDArray[Any]]] = {}

    def plans_ahead(self) -> Iterator[_Plan]:
        """The plans in order, while the shards of later ones are being loaded."""
        request, loading = self._pipeline._request, self._pipeline._loading
        import numpy as np

        width = len(self._pipeline._manifest.columns) * np.dtype(loading.dtype).itemsize
        batch_bytes = -(-request.batch_size // request.world_size) * width
        most = max(HELD_BYTES, (request.prefetch + 1) * batch_bytes)
        upcoming: deque[_Plan] = deque()
        plans = self._pipeline.plans()
        more = True
        while True:
            while more and (len(upcoming) <= request.prefetch or self._held() * width < most) and len(upcoming) < 1000:
                plan = next(plans, None)
                if plan is None:
                    more = False
                else:
                    self._take_up(plan)
                    upcoming.append(plan)
            if not upcoming:
                return
            yield upcoming.popleft()

    def _held(self) -> int:
        return sum(self._pipeline.held_rows(index) for index in self._futures)

    def _take_up(self, plan: _Plan) -> None:
        for index in plan.shards:
            self._needed[index] = self._needed.get(index, 0) + 1
            if index not in self._futures:
                self._futures[index] = self._pipeline.load(index)
                self._counted.discard(index)

    def wait_for(self, plan: _Plan) -> tuple[float, float]:
        """Waits for the plan's shards; seconds of fetching and decoding for those that nobody waited for before."""
        fetch = decode = 0.0
        for index in plan.shards:
            loaded = self._pipeline.wait_for(self._futures[index])
            if index not in self._counted:
                self._counted.add(index)
                fetch += loaded.fetch_seconds
                decode += loaded.decode_seconds
        return fetch, decode

    def rows(self, index: int) -> "NDArray[Any]":
        return self._futures[index].result().rows

    def window(self, epoch: int, number: int) -> "tuple[NDArray[Any], NDArray[Any]]":
        key = (epoch, number)
        if key not in self._windows:
            for old in [old for old in self._windows if old < (epoch, number - 1)]:
                del self._windows[old]
            self._windows[key] = self._pipeline.make_window(epoch, number)
        return self._windows[key]

    def release(self, plan: _Plan) -> None:
        for index in plan.shards:
            self._needed[index] -= 1
            if not self._needed[index]:
                del self._needed[index], self._futures[index]

    def clear(self) -> None:
        self._futures.clear()
        self._windows.clear()
