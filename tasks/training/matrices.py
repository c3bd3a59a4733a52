"""What a search's trials learn from and are judged by: matrices of the batches, and of all rows of some shards."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from functools import reduce
from itertools import islice
from typing import TYPE_CHECKING

from tasks.facts import SearchJob
from tasks.ranks.parts import StageClock, stream_batches
from tasks.sources import open_dataset

if TYPE_CHECKING:
    from torch import Tensor

    from tasks.learning.grams import Gram, GramStream, Units
    from tasks.learning.scaling import Scaling
    from tasks.streaming import Manifest


@dataclass(frozen=True, kw_only=True)
class SearchData:
    """What all trials learn from and are judged by: matrices of the batches and of the validation rows.

    scalings: of all features, by the first batch of those trials that see so many of the search's batches as one
    """

    grams: GramStream
    validation: Gram
    scalings: Mapping[int, Scaling]

    @classmethod
    def open(cls, job: SearchJob) -> SearchData:
        """Stream the first batches and the validation rows; the other batches follow when a trial asks for them."""
        import torch

        from tasks.learning.grams import GramStream, Units, find_period
        from tasks.learning.scaling import Scaling

        given = job.parameters
        assert job.data.validation, "the flow sets shards aside"
        stream = open_batches(job, 0)
        first = list(islice(stream, max(given.multiples)))
        job.features.refuse_overflow(first[0])
        units = Units.of(job.features, first[0])
        x = torch.cat([job.features.of(batch) for batch in first])
        size = len(first[0])
        scalings = {multiple: Scaling.of(x[: size * multiple]) for multiple in given.multiples}
        begun = [put_back(first, stream)]
        rows = job.data.train.rows
        return cls(
            grams=GramStream(
                units,
                lambda number: begun.pop() if begun and not number else open_batches(job, number),
                None if given.shuffle else find_period(rows, given.batch_size or rows),
            ),
            validation=measure_rows(job.data.validation, job, units),
            scalings=scalings,
        )


def put_back(first: list[Tensor], stream: Iterator[Tensor]) -> Iterator[Tensor]:
    """Yield the batches that were taken, then the rest of the stream, which is closed with this."""
    with closing(stream):  # type: ignore[type-var]
        while first:
            yield first.pop(0)
        yield from stream


def open_batches(job: SearchJob, first: int) -> Iterator[Tensor]:
    """Return the training batches from an iteration on, as a training of its own would see them."""
    given = job.parameters
    dataset = open_dataset(
        job.data.train, job.sources, given, start=first, stop=longest(job), shuffle=given.shuffle, seed=given.seed
    )
    return stream_batches(dataset, given.num_workers, StageClock())


def longest(job: SearchJob) -> int:
    """Return how many batches a trial may see."""
    given = job.parameters
    tried = given.searched().get("iterations")
    return max(given.multiples) * (int(tried.high) if tried else given.resolved().iterations)


def measure_rows(manifest: Manifest, job: SearchJob, units: Units) -> Gram:
    """Return the matrix of all rows of some shards."""
    from tasks.learning.grams import Gram

    dataset = open_dataset(manifest, job.sources, job.parameters, epochs=1)
    return reduce(Gram.add, (units.measure(batch) for batch in dataset))
