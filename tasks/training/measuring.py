"""The matrices that a search learns from, as one process or each of several ranks measures them, in plain numbers.

Where torch.distributed is initialised, each of its processes measures its slices of every batch, and all have the
matrix of the whole one, to the last bit that of one process.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import reduce
from itertools import islice
from typing import TYPE_CHECKING

from tasks.facts import SearchJob
from tasks.parameters import MOST_ROWS
from tasks.ranks.judging import open_parts
from tasks.ranks.member import Member
from tasks.ranks.parts import StageClock, Tally, stream_batches
from tasks.sources import open_dataset
from tasks.training.opening import place

if TYPE_CHECKING:
    from torch import Tensor

    from tasks.learning.features import Features
    from tasks.learning.grams import Gram, Units
    from tasks.learning.reduction import Reduction
    from tasks.learning.scaling import Scaling
    from tasks.streaming import Manifest

Numbers = Sequence[float]
MOST_FOLDS = 10


@dataclass(frozen=True, kw_only=True)
class Measured:
    """The matrix of a batch, see `tasks.learning.grams.Gram`."""

    products: Sequence[Numbers]
    rows: int

    @classmethod
    def of(cls, gram: Gram) -> Measured:
        """Write a matrix in plain numbers."""
        return cls(products=gram.products.tolist(), rows=gram.rows)

    def gram(self) -> Gram:
        """Return the matrix."""
        from tasks.learning.grams import Gram

        return Gram(make_tensor(self.products), self.rows)

    def advance(self, state: Progress) -> Progress:
        """Return what is told after one batch more."""
        return replace(state, number=state.number + 1)


@dataclass(frozen=True, kw_only=True)
class MeasuredIn:
    """What rows are measured in, see `tasks.learning.grams.Units`."""

    mean: Numbers
    scale: Numbers
    target_mean: float

    @classmethod
    def of(cls, units: Units) -> MeasuredIn:
        """Write units in plain numbers."""
        return cls(mean=units.mean.tolist(), scale=units.scale.tolist(), target_mean=units.target_mean)

    def units(self, features: Features) -> Units:
        """Return the units."""
        from tasks.learning.grams import Units

        return Units(features, make_tensor(self.mean), make_tensor(self.scale), self.target_mean)


@dataclass(frozen=True, kw_only=True)
class Begun:
    """What the first batches show, and the matrix of the validation rows.

    scalings: mean and scale of all features, by the first batch of those trials that see so many batches as one
    """

    measured_in: MeasuredIn
    scalings: Mapping[int, tuple[Numbers, Numbers]]
    validation: Measured

    def scaling(self, multiple: int) -> Scaling:
        """Return how a trial's features are scaled that sees so many batches as one."""
        from tasks.learning.scaling import Scaling

        return Scaling(*map(make_tensor, self.scalings[multiple]))

    def advance(self, _: Progress) -> Progress:
        """Return what is told after this."""
        return Progress(begun=self)


@dataclass(frozen=True, kw_only=True)
class Folds:
    """The matrices of the folds, and what their rows are measured in."""

    measured_in: MeasuredIn
    folds: tuple[Measured, ...]


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far the telling of a search's matrices has come: the batch `number` is the next."""

    begun: Begun | None = None
    number: int = 0


Telling = Generator[Begun | Measured, None, None]


def make_tensor(numbers: Numbers | Sequence[Numbers]) -> Tensor:
    """Return plain numbers as a tensor in float64."""
    import torch

    return torch.tensor(numbers, dtype=torch.float64)


def measure_batches(job: SearchJob, progress: Progress, tally: Tally) -> Telling:
    """Yield what the first batches show, unless that is told, then the matrices of the batches to come, in order."""
    from tasks.learning.reduction import find_reduction

    reduction = find_reduction(job.parameters.batch_size or MOST_ROWS)
    with closing(open_batches(job, progress.number)) as stream:  # type: ignore[type-var]
        first: list[Tensor] = []
        if not (begun := progress.begun):
            first = list(islice(stream, max(job.parameters.multiples)))
            begun = begin(job, first, reduction)
            yield begun
        units = begun.measured_in.units(job.features)
        asked, gathered = time.perf_counter(), reduction.gather_seconds
        for batch in put_back(first, stream):
            arrived = time.perf_counter()
            measured = Measured.of(units.measure(batch, reduction))
            waited, asked = arrived - asked, time.perf_counter()
            before, gathered = gathered, reduction.gather_seconds
            tally.count_rows(len(batch))
            tally.add(waited, 0.0, asked - arrived, gathered - before)
            yield measured


def put_back(first: list[Tensor], stream: Iterator[Tensor]) -> Iterator[Tensor]:
    """Yield the batches that were taken, then the rest of the stream."""
    while first:
        yield first.pop(0)
    yield from stream


def begin(job: SearchJob, first: Sequence[Tensor], reduction: Reduction) -> Begun:
    """Return what the first batches show, this rank's slices of which are given, and measure the validation rows.

    Raises ConfigurationError for a column whose squares cannot be added up.
    """
    from tasks.learning.grams import Units

    assert job.data.validation, "the flow sets shards aside"
    if len(first[0]):
        job.features.refuse_overflow(first[0])
    units = Units.of(job.features, first[0], reduction)
    scalings = take_scalings(job, first, reduction)
    return Begun(
        measured_in=MeasuredIn.of(units),
        scalings={at: (found.mean.tolist(), found.scale.tolist()) for at, found in scalings.items()},
        validation=measure_rows(job.data.validation, job, units),
    )


def take_scalings(job: SearchJob, first: Sequence[Tensor], reduction: Reduction) -> dict[int, Scaling]:
    """Return mean and scale of all features over the first batch, and over several as one: of those, all have all rows.

    A batch of several has other slices than each of them.
    """
    import torch

    from tasks.learning.reduction import gather_rows
    from tasks.learning.scaling import Scaling

    parts, size = [job.features.of(batch) for batch in first], job.parameters.batch_size or MOST_ROWS
    if len(parts) == 1:
        return {1: Scaling.of(parts[0], reduction=reduction)}
    x = torch.cat([gather_rows(part.contiguous(), reduction) for part in parts])
    return {multiple: Scaling.of(x[: size * multiple]) for multiple in job.parameters.multiples}


def measure_rows(manifest: Manifest, job: SearchJob, units: Units) -> Measured:
    """Return the matrix of all rows of some shards."""
    from tasks.learning.grams import Gram

    parts = open_parts(manifest, job.sources, job.parameters)
    grams = (units.measure(batch, reduction) for dataset, reduction in parts for batch in dataset)
    return Measured.of(reduce(Gram.add, grams))


def open_batches(job: SearchJob, first: int) -> Iterator[Tensor]:
    """Return this process's part of the training batches from one on, as a training of its own would see them."""
    given = job.parameters
    dataset = open_dataset(
        job.data.train,
        job.sources,
        given,
        start=first,
        stop=count_streamed(job),
        shuffle=given.shuffle,
        seed=given.seed,
        placement=place(given),
    )
    return stream_batches(dataset, given.num_workers, StageClock())


def count_streamed(job: SearchJob) -> int:
    """Return how many batches are streamed: as many as a trial may see, once each where their matrices are kept.

    They are enough for the first one of every trial.
    """
    from tasks.learning.grams import count_kept

    given, period = job.parameters, find_period(job)
    tried = given.searched().get("iterations")
    largest = max(given.multiples)
    longest = largest * (int(tried.high) if tried else given.resolved().iterations)
    return max(largest, min(longest, period)) if period and period <= count_kept(len(job.features.names)) else longest


def find_period(job: SearchJob) -> int | None:
    """Return after how many batches the same ones come again; None: never."""
    from tasks.learning import grams

    given, rows = job.parameters, job.data.train.rows
    return None if given.shuffle else grams.find_period(rows, given.batch_size or MOST_ROWS)


def measure_as_rank(member: Member, job: SearchJob) -> None:
    """Measure as a rank, from where the mailbox says; rank 0 tells."""
    for told in measure_batches(job, member.begin(), member.tally):
        if member.rank == 0:
            member.tell(told)


def cut_folds(manifest: Manifest) -> list[Manifest]:
    """Return the folds' shards; the contract's share of bad rows is one of all rows, and was looked at."""
    shards, terms = manifest.shards, manifest.terms and replace(manifest.terms, allowed_share=None)
    count = min(len(shards), MOST_FOLDS)
    parts = [shards[at * len(shards) // count : (at + 1) * len(shards) // count] for at in range(count)]
    return [replace(manifest, shards=part, terms=terms) for part in parts]


def measure_folds(job: SearchJob) -> Folds:
    """Measure all training rows, as one process or as a rank: the same on every one."""
    from tasks.learning.grams import Units

    manifests = cut_folds(job.data.train)
    dataset, reduction = next(open_parts(manifests[0], job.sources, job.parameters))
    units = Units.of(job.features, next(iter(dataset)), reduction)
    folds = (measure_rows(manifest, job, units) for manifest in manifests)
    return Folds(measured_in=MeasuredIn.of(units), folds=tuple(folds))


def measure_folds_as_rank(member: Member, job: SearchJob) -> Folds:
    """Measure as a rank; after a stop, from the beginning."""
    member.begin()
    return measure_folds(job)
