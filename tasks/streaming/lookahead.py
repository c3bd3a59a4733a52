"""How far loading goes ahead of the batch in hand: arithmetic, which no thread and no clock can change.

So what a stream will load, and how often each shard, can be told before it is begun.
"""

from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence

from tasks.streaming.planning import BatchPlan

PLANS_AT_ONCE = 50  # how far the look ahead grows with each batch, so that the first one does not wait for thousands


class Lookahead:
    """Takes up `plans` and says which shards are to be loaded for them, and when they may be let go.

    counts: rows of each shard
    ahead: plans whose shards are loaded ahead of the one in hand
    held_rows: besides, loading goes on ahead while the shards held have fewer rows than this
    """

    def __init__(self, plans: Iterator[BatchPlan], counts: Sequence[int], *, ahead: int, held_rows: int) -> None:
        self.rows = 0  # of the shards held
        self._plans = plans
        self._counts = counts
        self._ahead = ahead
        self._held_rows = held_rows
        self._uses: Counter[int] = Counter()  # of each shard held, by plans that were taken up and not yet released

    def plans(self, load: Callable[[int], None]) -> Iterator[BatchPlan]:
        """Yield the plans in order, each to be released; `load` is called with each shard that a later one needs."""
        upcoming: deque[BatchPlan] = deque()
        planned = 0
        while True:
            for _ in range(self._ahead + PLANS_AT_ONCE):
                if len(upcoming) > self._ahead and not self._may_hold_more(planned):
                    break
                plan = next(self._plans, None)
                if plan is None:
                    break
                self._take_up(plan, load)
                upcoming.append(plan)
                planned += plan.rows
            if not upcoming:
                return
            planned -= upcoming[0].rows
            yield upcoming.popleft()

    def release(self, plan: BatchPlan) -> list[int]:
        """Return the shards of a plan that no other plan that was taken up needs: they are held no longer."""
        self._uses.subtract(plan.shards)
        free = [index for index in plan.shards if not self._uses[index]]
        for index in free:
            del self._uses[index]
            self.rows -= self._counts[index]
        return free

    def _may_hold_more(self, planned: int) -> bool:
        return max(planned, self.rows) < self._held_rows and len(self._uses) < len(self._counts)

    def _take_up(self, plan: BatchPlan, load: Callable[[int], None]) -> None:
        for index in plan.shards:
            if index not in self._uses:
                self.rows += self._counts[index]
                load(index)
        self._uses.update(plan.shards)
