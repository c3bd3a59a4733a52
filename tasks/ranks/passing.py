"""The moments of all rows, over which each rank goes for its slices of every batch."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tasks.facts import RankTimes, StreamTimes, TrainingJob
from tasks.learning.sums import MomentSums
from tasks.parameters import MOST_ROWS
from tasks.ranks.member import Member
from tasks.ranks.parts import StageClock, Tally, stream_batches
from tasks.sources import open_dataset
from tasks.streaming.objects.traffic import Traffic, read_traffic

if TYPE_CHECKING:
    from tasks.learning.first_pass import FirstPass
    from tasks.learning.reduction import Reduction
    from tasks.streaming import ObjectStorageDataset


@dataclass(frozen=True, kw_only=True)
class Passed:
    """The moments of all rows, from one pass over them, and how it read; of several ranks, where their time went."""

    sums: MomentSums
    dataset: ObjectStorageDataset
    clock: StageClock
    ranks: Sequence[RankTimes] = ()


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What a rank that has ended read, and how: see `ObjectStorageDataset` and `Fit`.

    moments: of all rows, where it was to take them and nothing else; equal on every rank
    traffic: what its process has asked of the store
    """

    device: str
    stream: StreamTimes | None
    checks: Mapping[str, str]
    damaged: tuple[str, ...]
    moments: MomentSums | None = None
    traffic: Traffic = field(default_factory=Traffic)


def describe_reading(
    dataset: ObjectStorageDataset, clock: StageClock, *, device: str, moments: MomentSums | None = None
) -> Reading:
    """Return how a rank read."""
    return Reading(
        device=device,
        stream=clock.total,
        checks=dict(dataset.checks),
        damaged=tuple(dataset.damaged),
        moments=moments,
        traffic=read_traffic(),
    )


def take_moments(member: Member, job: TrainingJob, known: MomentSums | None, *, shuffle: bool) -> Reading:
    """Go through the rows once as a rank; after a stop, from the beginning."""
    member.begin()
    passed = pass_rank(job, member.tally, known, shuffle=shuffle)
    return describe_reading(passed.dataset, passed.clock, device="cpu", moments=passed.sums)


def pass_rank(job: TrainingJob, tally: Tally, known: MomentSums | None = None, *, shuffle: bool = False) -> Passed:
    """Take in the moments of all training rows, of every batch this rank's slices: they are equal on every rank.

    known: what was taken in of the first batches, of which none is streamed again

    The last batch goes on at the beginning of the data, so that ranks cut it as any other; what is beyond the end
    counts for nothing.
    """
    from tasks.learning.reduction import find_reduction, slice_rows
    from tasks.streaming import Placement

    given, size = job.parameters, job.parameters.batch_size or MOST_ROWS
    dataset = open_dataset(
        job.data.train,
        job.sources,
        given,
        start=known.batches if known else 0,
        stop=-(-job.data.train.rows // size),
        shuffle=shuffle,
        seed=given.seed,
        placement=Placement(slice_rows=slice_rows(size)),
    )
    reduction = find_reduction(dataset.batch_size)
    first_pass = start_first_pass(job, dataset, reduction, known)
    clock = StageClock()
    asked, gathered = time.perf_counter(), reduction.gather_seconds
    for batch in stream_batches(dataset, given.num_workers, clock):
        arrived = time.perf_counter()
        first_pass.take(batch)
        waited, asked = arrived - asked, time.perf_counter()
        before, gathered = gathered, reduction.gather_seconds
        tally.count_rows(len(batch))
        tally.add(waited, 0.0, asked - arrived, gathered - before)
    sums = first_pass.sums()
    assert sums is not None, "no data set is without rows"
    return Passed(sums=sums, dataset=dataset, clock=clock)


def start_first_pass(
    job: TrainingJob, dataset: ObjectStorageDataset, reduction: Reduction, known: MomentSums | None
) -> FirstPass:
    """Return where the first pass over the data stands after what is known of it."""
    from tasks.learning.first_pass import FirstPass
    from tasks.streaming.arithmetic import split_batch

    offset, _ = split_batch(dataset.batch_size, dataset.rank, dataset.world_size, dataset.slice_rows)
    first_pass = FirstPass(
        job.features,
        dataset.manifest.rows,
        dataset.batch_size,
        edges=job.edges,
        offset=offset,
        reduction=reduction,
    )
    if known:
        first_pass.restore(known)
    return first_pass
