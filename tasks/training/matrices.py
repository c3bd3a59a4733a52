"""What a search's trials learn from and are judged by: matrices of the batches, and of all rows of some shards."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, cast

from tasks.facts import RankTimes, SearchJob
from tasks.ranks.group import Group, are_of_use
from tasks.ranks.parts import Tally
from tasks.training.measuring import (
    Begun,
    Measured,
    Progress,
    Telling,
    find_period,
    measure_as_rank,
    measure_batches,
)

if TYPE_CHECKING:
    from tasks.learning.grams import Gram, GramStream


@dataclass(frozen=True, kw_only=True)
class SearchData:
    """What all trials learn from and are judged by: matrices of the batches and of the validation rows.

    ranks: where their time went, when those have ended that measured instead of this process
    """

    begun: Begun
    telling: Telling
    grams: GramStream
    validation: Gram
    ranks: list[RankTimes] = field(default_factory=list)

    @classmethod
    def open(cls, job: SearchJob) -> SearchData:
        """Measure the first batches and the validation rows; the other batches follow when a trial asks for them."""
        from tasks.learning.grams import GramStream

        ranks: list[RankTimes] = []
        telling = tell(job, Progress(), ranks)
        begun = cast(Begun, next(telling))
        grams = GramStream(
            begun.measured_in.units(job.features),
            lambda number: read(tell(job, Progress(begun=begun, number=number), ranks)),
            find_period(job),
            begun=read(telling),
        )
        return cls(begun=begun, telling=telling, grams=grams, validation=begun.validation.gram(), ranks=ranks)

    def close(self) -> None:
        """End the stream, and the ranks."""
        self.grams.close()
        self.telling.close()


def tell(job: SearchJob, progress: Progress, ranks: list[RankTimes]) -> Telling:
    """Yield what is measured from there on, here or by ranks: to the same bits."""
    if are_of_use(job.parameters, job.data.train.rows):
        return follow_ranks(job, progress, ranks)
    return measure_batches(job, progress, Tally(0))


def follow_ranks(job: SearchJob, progress: Progress, times: list[RankTimes]) -> Telling:
    """Yield what ranks measure, as `measure_batches` does; `times` gets where theirs went. Raises as `Group` does."""
    with Group(job.parameters, partial(measure_as_rank, job=job), state=progress) as group:
        while True:
            news = group.take()
            times[:] = [news.times[rank] for rank in sorted(news.times)]
            yield from news.told
            if news.is_over:
                return


def read(telling: Telling) -> Generator[Gram, None, None]:
    """Yield the matrices that are told."""
    with closing(telling):
        for told in telling:
            yield cast(Measured, told).gram()
