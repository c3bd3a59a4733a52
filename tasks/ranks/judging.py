"""What models are worth on some rows, over which each rank goes for its slices of every batch."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from tasks.learning.features import Features
from tasks.learning.scores import Scores
from tasks.learning.sums import ProfileSums
from tasks.parameters import MOST_ROWS, Reading
from tasks.ranks.member import Member
from tasks.sources import Sources, open_dataset
from tasks.streaming.manifest import Manifest
from tasks.tracking.carrying import CarriedModel, unpack

if TYPE_CHECKING:
    from torch import Tensor

    from tasks.learning.linear import LinearModel
    from tasks.learning.reduction import Reduction
    from tasks.streaming import ObjectStorageDataset


@dataclass(frozen=True, kw_only=True)
class Judged:
    """Models, the champion beside them, and the rows that they are scored on.

    models: weights, one a feature, and bias by name
    profiled: the first columns, of which a profile is taken too, between these edges where there are some
    """

    manifest: Manifest
    sources: Sources
    given: Reading
    features: Features
    models: Mapping[str, tuple[tuple[float, ...], float]]
    champion: CarriedModel | None
    profiled: tuple[str, ...]
    edges: Mapping[str, Sequence[float]]

    @classmethod
    def of(
        cls,
        models: Mapping[str, LinearModel],
        champion: CarriedModel | None,
        *,
        manifest: Manifest,
        sources: Sources,
        given: Reading,
        profiled: tuple[str, ...] = (),
        edges: Mapping[str, Sequence[float]] | None = None,
    ) -> Judged:
        """Return models as plain numbers; they have the same features."""
        return cls(
            manifest=manifest,
            sources=sources,
            given=given,
            features=next(iter(models.values())).features,
            models={name: (tuple(model.w.flatten().tolist()), model.b.item()) for name, model in models.items()},
            champion=champion,
            profiled=profiled,
            edges=edges or {},
        )


@dataclass(frozen=True, kw_only=True)
class Found:
    """What models are worth on the rows, and what these hold, None where that was not asked for."""

    scores: Scores
    profile: ProfileSums | None


def judge_as_rank(member: Member, judged: Judged) -> Found:
    """Score models as a rank; after a stop, from the beginning."""
    member.begin()
    return judge_rank(judged)


def judge_rank(judged: Judged) -> Found:
    """Return what is found on all rows, from this rank's slices of every batch: it is equal on every rank."""
    from tasks.learning.linear import LinearModel
    from tasks.learning.scoring import score

    models = {name: LinearModel.of(judged.features, *numbers) for name, numbers in judged.models.items()}
    others = {"champion": unpack(judged.champion)} if judged.champion else None
    parts = list(open_parts(judged.manifest, judged.sources, judged.given))
    profiling = Profiling(judged)
    scores = score(
        itertools.chain.from_iterable(profiling.watch(*part) for part in parts),
        models,
        others,
        itertools.chain.from_iterable(itertools.repeat(reduction, len(dataset)) for dataset, reduction in parts),
    )
    return Found(scores=scores, profile=profiling.sums)


class Profiling:
    """The profile of the rows that go by, part after part of a pass; `sums` has it when a part has ended."""

    def __init__(self, judged: Judged) -> None:
        self._judged = judged
        self.sums: ProfileSums | None = None

    def watch(self, dataset: ObjectStorageDataset, reduction: Reduction) -> Iterator[Tensor]:
        """Yield this rank's slices of a part's batches, taken in where a profile is asked for."""
        from tasks.learning.profiled import Profiler

        columns = self._judged.profiled
        profiler = Profiler(columns, self._judged.edges, reduction=reduction)
        if self.sums:
            profiler.restore(self.sums)
        for batch in dataset:
            if columns:
                profiler.add(batch[:, : len(columns)])
            yield batch
        self.sums = profiler.sums()


def open_parts(
    manifest: Manifest, sources: Sources, given: Reading
) -> Iterator[tuple[ObjectStorageDataset, Reduction]]:
    """Yield the whole batches of one pass, then the shorter last one, each with what adds up the ranks' slices of it.

    A batch's slices follow from its rows: those of the last one are others. One process has all of both.
    """
    from tasks.learning.reduction import ALONE, find_reduction, slice_rows
    from tasks.streaming import Placement

    open_epoch = partial(open_dataset, manifest, sources, given, epochs=1)
    size = given.batch_size or MOST_ROWS
    if find_reduction(size) is ALONE:
        yield open_epoch(), ALONE
        return
    dataset = open_epoch(placement=Placement(slice_rows=slice_rows(size)))
    whole, rest = divmod(dataset.manifest.rows, size)
    if whole:
        yield open_epoch(stop=whole, placement=Placement(slice_rows=slice_rows(size))), find_reduction(size)
    if rest:
        yield open_epoch(start=whole, placement=Placement(slice_rows=slice_rows(rest))), find_reduction(rest)
