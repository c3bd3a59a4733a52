"""A line that a person watches in a terminal while shards are read; nothing where standard error is no terminal."""

import sys
import threading
import time
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Self

EVERY = 0.2  # seconds between two drawings
WIDTH = 24  # characters of the bar


class ProgressBar:
    """`what: ████····  34 %  1.4 of 4.1 GB, 312 MB/s`, redrawn in place, and wiped away at the end.

    total: None where there is no end. unit: B for bytes, or rows
    """

    def __init__(self, what: str, total: int | None, unit: str = "B") -> None:
        self._what = what
        self._total = total
        self._unit = unit
        self._done = 0
        self._began = self._drawn = time.monotonic()
        self._lock = threading.Lock()
        self._shown = sys.stderr is not None and sys.stderr.isatty()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Wipe the line away."""
        if self._shown:
            print("\r\033[K", end="", file=sys.stderr, flush=True)

    def advance(self, amount: int) -> None:
        """Add to what is done; may be called from any thread."""
        if not self._shown:
            return
        with self._lock:
            self._done += amount
            now = time.monotonic()
            if now - self._drawn >= EVERY:
                self._drawn = now
                print(f"\r\033[K{self._draw(now)}", end="", file=sys.stderr, flush=True)

    def _draw(self, now: float) -> str:
        done, rate = self._say(self._done), self._say(self._done / (now - self._began))
        if self._total is None:
            return f"{self._what}: {done}, {rate}/s"
        share = min(1.0, self._done / max(1, self._total))
        bar = "█" * round(share * WIDTH) + "·" * (WIDTH - round(share * WIDTH))
        return f"{self._what}: {bar} {share:4.0%}  {done} of {self._say(self._total)}, {rate}/s"

    def _say(self, amount: float) -> str:
        letters = ["", "k", "M", "G"]
        while amount >= 1000 and len(letters) > 1:
            amount /= 1000
            letters.pop(0)
        return f"{amount:.3g} {letters[0]}{' ' if letters[0] and self._unit != 'B' else ''}{self._unit}"


def watch(pieces: Iterable[bytes], progress: ProgressBar) -> Iterator[bytes]:
    """Yield the pieces, their lengths added to the progress."""
    for piece in pieces:
        progress.advance(len(piece))
        yield piece
