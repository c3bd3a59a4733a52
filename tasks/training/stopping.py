"""Ctrl-C while a model is trained: heard at once, obeyed when what the loop has done is recorded."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType


class Stop:
    """Holds the first Ctrl-C back for as long as it would lose an iteration; a second one ends the process at once.

    `loses_nothing` says whether it may be obeyed now. Only the main thread hears signals: elsewhere nothing is changed.
    """

    def __init__(self, loses_nothing: Callable[[], bool]) -> None:
        self.loses_nothing = loses_nothing
        self.asked = False

    def __enter__(self) -> Stop:
        self._listens = threading.current_thread() is threading.main_thread()
        if self._listens:
            self._before = signal.signal(signal.SIGINT, self._hear)
        return self

    def __exit__(self, *_: object) -> None:
        if self._listens and not self.asked:
            signal.signal(signal.SIGINT, self._before)

    def _hear(self, number: int, _: FrameType | None) -> None:
        self.asked = True
        signal.signal(number, signal.SIG_DFL)
        if self.loses_nothing():
            self.obey()

    def obey(self) -> None:
        """Stop as whoever listened before would have: by KeyboardInterrupt."""
        if callable(self._before):
            self._before(signal.SIGINT, None)
        raise KeyboardInterrupt
