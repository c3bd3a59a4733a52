"""One rank as Ray Train runs it: it works, tells the mailbox, and lets itself be heard of while it does."""

from __future__ import annotations

import threading
import time
from collections import deque
from typing import Any

from tasks.errors import ShardlineError
from tasks.ranks.mailbox import Told
from tasks.ranks.parts import Tally

BEAT_SECONDS = 1.0
UNANSWERED = 8  # things told that the mailbox has not taken in yet
UNTAKEN = 256  # things that wait in it for the record, from which on the ranks wait too
PAUSE_SECONDS = 0.05


def be_rank(given: dict[str, Any]) -> None:
    """Be the rank of this process: Ray Train calls it in each, with the `mailbox`, and what to do."""
    import ray.train

    mailbox, context = given["mailbox"], ray.train.get_context()
    share_cores(context.get_local_world_size())
    member = Member(mailbox, Tally(context.get_world_rank()))
    try:
        with member:
            member.end(given["work"](member))
    except ShardlineError as error:
        ray.get(mailbox.fail.remote(error))
        raise


def share_cores(ranks: int) -> None:
    """Let torch compute with this rank's share of the cores that all ranks of this machine have."""
    import torch

    from tasks.devices import describe_cpu

    torch.set_num_threads(max(1, int(describe_cpu().usable) // ranks))


class Member:
    """A rank, and what it tells: that it lives, every second, and what it has done."""

    def __init__(self, mailbox: Any, tally: Tally) -> None:
        self.mailbox, self.tally = mailbox, tally
        self.attempt = 0
        self._unanswered: deque[Any] = deque()
        self._ended = threading.Event()
        self._beating = threading.Thread(target=self._beat, name="beating", daemon=True)

    def __enter__(self) -> Member:
        self._beating.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._beating.join()

    @property
    def rank(self) -> int:
        """Its number, from 0 on."""
        return self.tally.times.rank

    def begin(self) -> Any:
        """Return the state to begin from, the same for all ranks."""
        import ray
        import torch.distributed

        answer: list[tuple[int, Any]] = [(0, None)]
        if self.rank == 0:
            answer[0] = ray.get(self.mailbox.begin.remote(torch.distributed.get_world_size()))
        torch.distributed.broadcast_object_list(answer)
        self.attempt, state = answer[0]
        return state

    def tell(self, told: Told) -> None:
        """Tell what was done; waits where too much that was told is on its way."""
        import ray

        self._unanswered.append(self.mailbox.tell.remote(self.attempt, told))
        while len(self._unanswered) > UNANSWERED:
            if ray.get(self._unanswered.popleft()) > UNTAKEN:
                time.sleep(PAUSE_SECONDS)

    def end(self, result: object) -> None:
        """Tell that all is told, and hand in what is there at the end."""
        import ray

        ray.get([*self._unanswered, self.mailbox.end.remote(self.attempt, self.tally.times, result)])

    def _beat(self) -> None:
        while True:
            self.mailbox.beat.remote(self.tally.times)
            if self._ended.wait(BEAT_SECONDS):
                return
