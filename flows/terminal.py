"""What a person at a terminal sees of a run: each thing once, iterations as one line that counts, Ctrl-C in two lines.

Prefect's pages and MLflow's have all of it; here is only what `python -m flows.NAME` prints.
"""

from __future__ import annotations

import logging
import re
import signal
import sys
from types import FrameType

from tasks.errors import ShardlineError

ITERATION = "Iteration: "  # how the log line of one begins
NEEDLESS = re.compile(
    r"Finished in state .*(Failed|Crashed|Cancelled|Running|Completed.*\('.*)|Crash detected!|Still processing items"
)
INTERRUPTED = 130  # the exit code that shells know Ctrl-C by


class Screen(logging.Filter):
    """Keep from the screen what is said once more at the end; in a terminal, let iterations overwrite each other."""

    def __init__(self) -> None:
        super().__init__()
        self._terminal = sys.stderr.isatty()
        self._counting = False

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether the record gets a line of its own."""
        text = record.getMessage()
        if is_needless(record, text):
            return False
        if self._terminal and text.startswith(ITERATION):
            print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)
            self._counting = True
            return False
        self.end_line()
        return True

    def end_line(self) -> None:
        """End the line that counts, where there is one; the last iteration stays to be seen."""
        if self._counting:
            self._counting = False
            print(file=sys.stderr, flush=True)


def is_needless(record: logging.LogRecord, text: str) -> bool:
    """Return whether a record says again how a run ends (see `flows.commandline.run`), or counts what is to be sent."""
    return bool(getattr(record, "told", False) or NEEDLESS.match(text))


def without_traceback(record: logging.LogRecord) -> bool:
    """Take the traceback off the log record of an error whose message says all that a reader needs."""
    if record.exc_info and isinstance(record.exc_info[1], ShardlineError):
        record.exc_info, record.told = None, True
    return True


def tidy_screen() -> Screen:
    """Put a screen before what Prefect prints; returns it."""
    screen = Screen()
    for handler in logging.getLogger().handlers:
        handler.addFilter(screen)
    return screen


class Interrupts:
    """Ctrl-C from now on: the first ends the run in order, a second one this process, at once."""

    def __init__(self) -> None:
        self.heard = False
        signal.signal(signal.SIGINT, self._stop)

    def _stop(self, number: int, _: FrameType | None) -> None:
        self.heard = True
        signal.signal(number, signal.SIG_DFL)
        raise KeyboardInterrupt
