"""What one thread makes and another takes: in order, a few at most waiting in between."""

import threading
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Generic, TypeVar

from tasks.streaming.objects.retrying import ClosedError

T = TypeVar("T")
LOOKS_UP = 0.1  # seconds between two looks at whether it was closed


class HandOver(Generic[T]):
    """Items that are made on a thread, at most `most` of them ahead, and taken by going through this, once.

    An error of their making is raised where they are taken, behind those that were made before it. The thread ends with
    the items, or soon after `closed` is set, which whoever takes them sees as ClosedError. It holds no item that it has
    handed over, and neither does this hold one that was taken.
    """

    def __init__(self, items: Iterable[T], most: int, closed: threading.Event, name: str) -> None:
        self._items = items
        self._most = most
        self._closed = closed
        self._ready: deque[T] = deque()
        self._changed = threading.Condition()
        self._ended = False
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._make_all, name=name, daemon=True)

    def start(self) -> None:
        """Begin to make items."""
        self._thread.start()

    def __iter__(self) -> Iterator[T]:
        return self.take_until(self._closed)

    def take_until(self, stop: threading.Event) -> Iterator[T]:
        """Yield the items. Raises ClosedError soon after `stop` is set, whoever sets it."""
        while self._wait(stop):
            yield self._take()

    def has_item(self) -> bool:
        """Return whether an item waits to be taken."""
        return bool(self._ready)

    def join(self) -> None:
        """Wait until the thread has ended; where nobody takes the items any more, `closed` is to be set before."""
        with self._changed:
            self._changed.notify_all()
        if self._thread.ident is not None:
            self._thread.join()

    def _wait(self, stop: threading.Event) -> bool:
        """Wait for an item, and return whether there is one; raises what making them raised."""
        with self._changed:
            while not (self._ready or self._ended):
                if stop.is_set():
                    raise ClosedError
                self._changed.wait(LOOKS_UP)
            if not self._ready and self._error is not None:
                raise self._error
            return bool(self._ready)

    def _take(self) -> T:
        with self._changed:
            self._changed.notify_all()
            return self._ready.popleft()

    def _make_all(self) -> None:
        try:
            for item in self._items:
                self._put(item)
                del item  # while the next one is made, nobody here holds the last
        except BaseException as error:
            self._error = error
        finally:
            if close := getattr(self._items, "close", None):
                close()  # a generator's own threads end before this one
            with self._changed:
                self._ended = True
                self._changed.notify_all()

    def _put(self, item: T) -> None:
        with self._changed:
            while len(self._ready) >= self._most:
                if self._closed.is_set():
                    raise ClosedError
                self._changed.wait(LOOKS_UP)
            if self._closed.is_set():
                raise ClosedError
            self._ready.append(item)
            self._changed.notify_all()
