"""Shards that are predicted one by one, each rank its own: read, and written again with a column more."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.learning.profiles import DataProfile
from tasks.learning.sums import ProfileSums
from tasks.parameters import MOST_ROWS, PredictionParameters
from tasks.ranks.member import Member
from tasks.sources import Sources, open_shards
from tasks.streaming.manifest import Manifest
from tasks.streaming.writing import OutputFolder, ShardWriter, name_shards
from tasks.tracking.carrying import CarriedModel, unpack
from tasks.tracking.registry import ColumnModel
from tasks.tracking.scratch import ScratchFolder

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from tasks.streaming import ObjectStorageDataset


@dataclass(frozen=True, kw_only=True)
class ToPredict:
    """Shards, and the folder that their predictions go to.

    edges: of the histograms of a profile of their rows, by column; without those of all columns none is taken
    """

    manifest: Manifest
    sources: Sources
    given: PredictionParameters
    output: str
    edges: Mapping[str, tuple[float, ...]] = field(default_factory=dict)

    def open(self) -> ObjectStorageDataset:
        """Return the dataset of the shards that have good rows."""
        return open_shards(self.manifest, self.sources, self.given)

    def folder(self) -> OutputFolder:
        """Return the folder; raises as that does."""
        return OutputFolder(self.output, self.sources.storage_options(self.output))


@dataclass(frozen=True, kw_only=True)
class Written:
    """A shard of predictions that is in the folder.

    place: the shard's among those that have good rows
    squares: the sum of the squared errors over its rows, None where the target is not among the columns
    profile: of its rows, None where none was taken
    """

    place: int
    rows: int
    squares: float | None
    profile: ProfileSums | None = None

    def advance(self, state: set[int] | None) -> set[int]:
        """Return the places of the shards that are written, with this one."""
        done = set() if state is None else state
        done.add(self.place)
        return done


def predict_as_rank(member: Member, asked: ToPredict, carried: CarriedModel) -> int:
    """Predict this rank's share of the shards that are not written yet, and tell each one; return how many."""
    import torch.distributed

    done = member.begin() or set()
    dataset = asked.open()
    left = [place for place in range(len(dataset.manifest.shards)) if place not in done]
    mine = left[member.rank :: torch.distributed.get_world_size()]
    for written in predict_places(asked, dataset, unpack(carried), mine):
        member.tally.count_rows(written.rows)
        member.tell(written)
    return len(mine)


def predict_places(
    asked: ToPredict, dataset: ObjectStorageDataset, model: ColumnModel, places: Sequence[int]
) -> Iterator[Written]:
    """Predict the shards at these places of the dataset in order; yield each one when it is in the folder.

    What is held in memory is some rows, on disk one shard; it is put into the folder once all of it was verified.
    """
    given, folder, shards = asked.given, asked.folder(), dataset.manifest.shards
    names = name_shards([shard.uri for shard in shards], given.format)
    chosen = [shards[place] for place in places]
    with ScratchFolder("shardline-predictions-") as scratch, closing(dataset.originals(chosen)) as originals:
        path = Path(scratch) / "shard"
        for place, (shard, parts) in zip(places, originals, strict=True):
            predictor = Predictor(model.on(dataset.manifest.columns), given.batch_size or MOST_ROWS, asked.edges)
            with ShardWriter(path, given.format) as writer:
                for part in parts:
                    writer.write(part, predictor.predict(part.numbers))
            folder.put(path, names[place])
            yield Written(place=place, rows=shard.rows, squares=predictor.squares, profile=predictor.profile)


class Predictor:
    """A model at work on a shard's rows, at most `most` at a time; `edges` are those of `ToPredict`."""

    def __init__(self, model: ColumnModel, most: int, edges: Mapping[str, tuple[float, ...]]) -> None:
        from tasks.learning.profiled import Profiler

        self._model = model
        self._most = most
        self._profiler = Profiler(model.columns, edges) if {*model.columns} <= {*edges} else None
        self._at = model.columns.index(model.target) if model.target in model.columns else None
        self._squares = 0.0

    @property
    def squares(self) -> float | None:
        """The sum of the squared errors so far; None where the model's target is not among the columns."""
        return None if self._at is None else self._squares

    @property
    def profile(self) -> ProfileSums | None:
        """What the columns hold so far; None where no profile is taken, or there were no rows."""
        return self._profiler.sums() if self._profiler else None

    def predict(self, numbers: NDArray[Any]) -> list[float]:
        """Return a prediction for each of [rows, columns]."""
        import torch

        if not len(numbers):
            return []  # of lines that are all empty, or bad
        rows = torch.from_numpy(numbers)
        predictions = torch.cat([self._model.predict(some) for some in torch.split(rows, self._most)])
        if self._profiler:
            self._profiler.add(rows)
        if self._at is not None:
            self._squares += float(((rows[:, self._at : self._at + 1] - predictions) ** 2).sum())
        return predictions.flatten().tolist()


def measure_error(written: Iterable[Written]) -> float | None:
    """Return the root mean squared error over all shards, in any order of them; None where there is no target."""
    rows, squares = 0, []
    for each in written:
        if each.squares is None:
            return None
        rows += each.rows
        squares.append(each.squares)
    return math.sqrt(math.fsum(squares) / rows)


def join_profiles(written: Iterable[Written]) -> DataProfile | None:
    """Return the profile of all shards together, the same in any order of them; None where none was taken."""
    from tasks.learning.profiled import merge_sums

    parts = [each.profile for each in sorted(written, key=lambda each: each.place)]
    whole = merge_sums([part for part in parts if part])
    return whole.profile() if whole else None
