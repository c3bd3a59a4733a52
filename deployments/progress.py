"""What these commands say on standard error: calm lines, and in a terminal a line that counts while something lasts."""

import sys
import time
from types import TracebackType
from typing import Self

REDRAW_SECONDS = 0.1


def say(line: str) -> None:
    """One line for the person who waits, at once."""
    print(line, file=sys.stderr, flush=True)


class Progress:
    """A line in a terminal that says how far something has come, gone at the end of the block; nothing in a log."""

    def __init__(self, label: str) -> None:
        self._label = label
        self._terminal = sys.stderr.isatty()
        self._drawn = 0.0

    def __enter__(self) -> Self:
        return self

    def __call__(self, done: int, total: int) -> None:
        """Show that `done` of `total` are done."""
        now = time.monotonic()
        if self._terminal and now - self._drawn > REDRAW_SECONDS:
            self._drawn = now
            print(f"\r{self._label}: {done:,} of {total:,}", end="\033[K", file=sys.stderr, flush=True)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._terminal:
            print("\r\033[K", end="", file=sys.stderr, flush=True)
