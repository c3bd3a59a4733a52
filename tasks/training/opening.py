"""How a training's stream is opened: which slices are this rank's, and where it ends if its rows stay in memory."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from tasks.facts import TrainingJob
from tasks.parameters import MOST_ROWS, TrainingParameters
from tasks.sources import open_dataset

if TYPE_CHECKING:
    import torch

    from tasks.streaming import ObjectStorageDataset, Placement

RESIDENT_SHARE = 4  # a quarter of what is free
ITEM_BYTES = {"float64": 8, "float32": 4}


def open_training(job: TrainingJob, first: int, device: torch.device, rank: int | None = None) -> ObjectStorageDataset:
    """Return the stream of a training's batches, of this rank or another one, from iteration `first` on.

    It ends with the iterations, or with the first pass where all rows are to stay in memory: what is fetched ahead for
    a second pass would be fetched for nothing. Where they do not stay after all, whoever streams goes on behind it.
    """
    from tasks.learning.tables import count_batches
    from tasks.streaming.arithmetic import split_batch

    iterations = job.parameters.resolved().iterations
    dataset = open_part(job, first, iterations, device, rank)
    if not stays(job, dataset, device, 1 if rank is None else job.parameters.ranks):
        return dataset
    low, high = split_batch(dataset.batch_size, dataset.rank, dataset.world_size, dataset.slice_rows)
    once = count_batches(dataset.manifest.rows, dataset.batch_size, high - low)
    return open_part(job, first, min(iterations, first + once), device, rank)


def open_part(
    job: TrainingJob, start: int, stop: int, device: torch.device, rank: int | None = None
) -> ObjectStorageDataset:
    """Return the stream of a training's batches [start, stop), of this rank or another one."""
    from tasks.learning.batches import pin_pages

    given = job.parameters
    return open_dataset(
        job.data.train,
        job.sources,
        given,
        start=start,
        stop=stop,
        shuffle=given.shuffle,
        seed=given.seed,
        placement=place(given, rank),
        pages=pin_pages if device.type == "cuda" and not given.num_workers else None,
    )


def stays(job: TrainingJob, dataset: ObjectStorageDataset, device: torch.device, ranks: int = 1) -> bool:
    """Return whether a rank's rows are to stay in memory: prepared on the device, else as they are read in the host's.

    ranks: that share the memory and are not started yet
    """
    given, rows = job.parameters, dataset.manifest.rows // dataset.world_size
    if given.shuffle:  # each epoch has a new order, and only the stream knows it
        return False
    prepared = rows * (len(job.features.names) + 1) * ITEM_BYTES[given.dtype]
    if prepared <= most_resident(given, device) // ranks:
        return True
    read = rows * len(dataset.manifest.columns) * ITEM_BYTES["float64"]
    return device.type == "cuda" and read <= most_resident(given) // ranks


def place(given: TrainingParameters, rank: int | None = None) -> Placement:
    """Return which slices of a batch this process takes, or the one that is rank `rank` of `given.ranks`."""
    from tasks.learning.reduction import slice_rows
    from tasks.streaming import Placement

    slices = slice_rows(given.batch_size or MOST_ROWS)
    return Placement(rank=rank, world_size=None if rank is None else given.ranks, slice_rows=slices)


def most_resident(given: TrainingParameters, device: torch.device | None = None) -> int:
    """Return how many bytes may stay on a device (None: the host): as the parameter says, else a quarter of the free.

    Ranks of one machine share that quarter, where who starts them says how many they are.
    """
    if given.resident_bytes is not None:
        return given.resident_bytes
    if device and device.type == "cuda":
        import torch

        return int(torch.cuda.mem_get_info(device)[0]) // RESIDENT_SHARE
    from tasks.devices import describe_memory

    return describe_memory().available // RESIDENT_SHARE // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
