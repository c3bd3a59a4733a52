"""Where a training starts: trainer, scaling and the stream of batches, from the beginning or from a checkpoint.

Where torch.distributed is initialised, each of its processes starts so, as a rank of one training; nothing here needs
Prefect.
"""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING

from tasks.errors import CheckpointError, ConfigurationError
from tasks.facts import RankTimes, TrainingJob
from tasks.learning.sums import MOMENTS, MomentSums
from tasks.parameters import TrainingParameters
from tasks.ranks.parts import StageClock, stream_batches
from tasks.ranks.passing import start_first_pass
from tasks.redaction import label
from tasks.sources import open_dataset
from tasks.training.opening import most_resident, open_part, open_training

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from tasks.learning.batches import Preparation, Prepared
    from tasks.learning.checkpoints import Checkpoint
    from tasks.learning.features import Features
    from tasks.learning.first_pass import FirstPass
    from tasks.learning.loop import Settings, Trainer
    from tasks.learning.reduction import Reduction
    from tasks.learning.scaling import Scaling
    from tasks.streaming import ColumnStatistics, ObjectStorageDataset

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Started:
    """A trainer at its next iteration, the prepared batches from there on, and what is known of them.

    `ranks` is filled when those have ended that trained instead of this process.
    """

    trainer: Trainer
    batches: Iterator[Prepared]
    dataset: ObjectStorageDataset
    clock: StageClock
    scaled_by: dict[str, str]
    first_pass: FirstPass | None
    ranks: list[RankTimes] = field(default_factory=list)


def start_trainer(job: TrainingJob, kept: Checkpoint | None) -> Started:
    """Return a trainer at its first iteration, or at that of a checkpoint, and the batches from there on.

    A rank's batches are its slices of the whole ones. Raises CheckpointError where the checkpoint was made from other
    shards than those that were listed.
    """
    from tasks.learning.batches import Preparation
    from tasks.learning.loop import Trainer
    from tasks.learning.reduction import find_reduction
    from tasks.learning.scaling import Scaling

    given = job.parameters
    features = job.features
    statistics = job.data.statistics
    resolved = given.resolved()
    device = find_device(given.device, kept)
    settings = make_settings(given)
    require_same_shards(job, kept)
    first = kept.iteration if kept else 0
    dataset = open_training(job, first, device)
    reduction = find_reduction(dataset.batch_size)
    clock = StageClock()
    stream = stream_batches(dataset, given.num_workers, clock)
    stream = itertools.chain(stream, stream_rest(job, dataset, device, clock))
    waited = 0.0
    scaling = Scaling.none(len(features.names))
    if resolved.standardise and not kept:
        asked = time.perf_counter()
        batch = next(stream)
        waited = time.perf_counter() - asked
        stream, scaling = itertools.chain([batch], stream), choose_scaling(batch, features, statistics, reduction)
    trainer = Trainer(features, scaling, settings, device, reduction)
    if kept:
        trainer.restore(kept)
    first_pass = resume_first_pass(job, dataset, reduction, kept)
    preparation = Preparation(
        features=features, scaling=trainer.scaling, dtype=settings.dtype, device=device, first_pass=first_pass
    )
    return Started(
        trainer=trainer,
        batches=keep_batches(given, dataset, preparation, stream, waited),
        dataset=dataset,
        clock=clock,
        scaled_by=name_statistics(job),
        first_pass=first_pass,
    )


def keep_batches(
    given: TrainingParameters,
    dataset: ObjectStorageDataset,
    preparation: Preparation,
    stream: Iterator[Tensor],
    waited: float,
) -> Iterator[Prepared]:
    """Return the prepared batches of a stream whose first one was `waited` for; data that fit are streamed once.

    They stay prepared on the device, or, where they are too large for a GPU, as they are read in the host's memory.
    """
    from tasks.learning.batches import never
    from tasks.learning.residency import InMemory, stay_resident

    rows, size, device = dataset.manifest.rows, dataset.batch_size, preparation.device
    is_ready = never if given.num_workers else dataset.is_ready
    if given.shuffle:  # each epoch has a new order, and only the stream knows it
        return preparation.stream(stream, waited, is_ready)
    resident = most_resident(given, device)
    if device.type == "cuda" and rows // dataset.world_size * preparation.row_bytes > resident:
        memory = InMemory(stream, rows, most_resident(given), batch_rows=size, is_ready=is_ready)
        stream, is_ready = iter(memory), memory.is_ready
    return stay_resident(preparation.stream(stream, waited, is_ready), rows, resident, batch_rows=size)


def stream_rest(
    job: TrainingJob, dataset: ObjectStorageDataset, device: torch.device, clock: StageClock
) -> Iterator[Tensor]:
    """Yield the batches behind those of a dataset that ends with its first pass: nobody asks where its rows stay."""
    reached, iterations = dataset.stop or 0, job.parameters.resolved().iterations
    if reached < iterations:
        yield from stream_batches(open_part(job, reached, iterations, device), job.parameters.num_workers, clock)


def follow_trainer(job: TrainingJob, kept: Checkpoint | None) -> Started:
    """Return a trainer that trains nothing: it is given the states of one over ranks, and has no batches.

    Raises CheckpointError as `start_trainer` does.
    """
    import torch

    from tasks.learning.loop import Trainer
    from tasks.learning.reduction import ALONE
    from tasks.learning.scaling import Scaling
    from tasks.streaming import Placement

    require_same_shards(job, kept)
    given, features = job.parameters, job.features
    trainer = Trainer(features, Scaling.none(len(features.names)), make_settings(given), torch.device("cpu"))
    if kept:
        trainer.restore(kept)
    dataset = open_dataset(job.data.train, job.sources, given, placement=Placement(rank=0, world_size=1))
    return Started(
        trainer=trainer,
        batches=iter(()),
        dataset=dataset,
        clock=StageClock(),
        scaled_by=name_statistics(job),
        first_pass=resume_first_pass(job, dataset, ALONE, kept),
    )


def copy_state(started: Started) -> Checkpoint:
    """Copy the trainer's state, and the moments that the first pass had when it reached that iteration."""
    state = started.trainer.state()
    sums = started.first_pass.sums(state.iteration) if started.first_pass else None
    return replace(state, facts={**state.facts, MOMENTS: asdict(sums)}) if sums else state


def make_settings(given: TrainingParameters) -> Settings:
    """Return what the loss curve depends on, beside the batches."""
    import torch

    from tasks.learning.loop import Settings

    resolved = given.resolved()
    return Settings(
        iterations=resolved.iterations,
        learning_rate=resolved.learning_rate,
        gradient_norm=resolved.gradient_norm,
        seed=None if resolved.from_zero else given.seed,
        dtype=getattr(torch, given.dtype),
        optimizer=given.optimizer,
        options=given.options,
        schedule=given.schedule,
        l2=given.l2,
    )


def require_same_shards(job: TrainingJob, kept: Checkpoint | None) -> None:
    """Raise CheckpointError where a checkpoint was made from other shards than those that were listed."""
    if kept and {label(uri): etag for uri, etag in kept.facts["shards"].items()} != job.data.train.etags:
        raise CheckpointError("the checkpoints of this run are of other shards: start anew with resume=never")


def name_statistics(job: TrainingJob) -> dict[str, str]:
    """Return where the scaling of a feature comes from, for those that it is stated of."""
    return dict.fromkeys(job.data.statistics, ".meta/stats") if job.parameters.resolved().standardise else {}


def resume_first_pass(
    job: TrainingJob, dataset: ObjectStorageDataset, reduction: Reduction, kept: Checkpoint | None
) -> FirstPass | None:
    """Return where the first pass over the data stands; None where a checkpoint does not say what was taken in."""
    if kept and MOMENTS not in kept.facts:
        return None
    known = MomentSums.from_dict(kept.facts[MOMENTS]) if kept else None
    return start_first_pass(job, dataset, reduction, known)


def find_device(asked: str, kept: Checkpoint | None = None) -> torch.device:
    """Return the device to train on; ConfigurationError where CUDA is asked for and there is none.

    Where it may be chosen, a training goes on on the kind of device that a checkpoint was made on; a warning says where
    that is not the kind that a new one would take, or is not here.
    """
    import torch

    has_cuda = torch.cuda.is_available()
    if asked == "cuda" and not has_cuda:
        raise ConfigurationError("device is cuda, and torch finds no CUDA device here: use device=auto or device=cpu")
    wanted = kept.facts.get("device", asked) if kept and asked == "auto" else asked
    if wanted == "cuda" and not has_cuda:
        logger.warning(
            "This training began on a CUDA device, and torch finds none here: it goes on on the CPU, where iterations "
            "may differ in their last digits"
        )
    if wanted != asked and wanted == "cpu" and has_cuda:
        logger.warning("This training began on the CPU and goes on there; resume=never starts anew, on CUDA")
    return torch.device("cuda" if wanted != "cpu" and has_cuda else "cpu")


def choose_scaling(
    first: Tensor, features: Features, stated: Mapping[str, ColumnStatistics], reduction: Reduction
) -> Scaling:
    """Return how features are scaled: as `.meta/stats` states, else as the first batch shows."""
    from tasks.learning.scaling import Scaling

    known = {
        index: (stated[name].mean, stated[name].stddev) for index, name in enumerate(features.names) if name in stated
    }
    return Scaling.of(features.of(first), known, reduction)
