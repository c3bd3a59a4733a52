"""Batches of columns → batches of features and target on the training device.

Preparation (choosing, deriving, standardising, converting) happens once for each row that is streamed; what fits in
memory stays prepared on the device, and later passes over the data take no stream at all.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from tasks.learning.features import Features, Scaling


@dataclass(frozen=True)
class Prepared:
    """Standardised features x [rows, features] and target y [rows, 1] on the device, and what they cost in seconds."""

    x: Tensor
    y: Tensor
    wait_seconds: float = 0.0
    copy_seconds: float = 0.0
    prepare_seconds: float = 0.0


def prepare(
    batches: Iterable[Tensor], features: Features, scaling: Scaling, dtype: torch.dtype, device: torch.device
) -> Iterator[Prepared]:
    """Prepare [rows, columns] batches as they come."""
    stream = iter(batches)
    while True:
        began = time.perf_counter()
        batch = next(stream, None)
        if batch is None:
            return
        arrived = time.perf_counter()
        x, y = scaling.apply(features.of(batch)).to(dtype), features.target_of(batch).to(dtype)
        prepared = time.perf_counter()
        x, y = x.to(device, non_blocking=True), y.to(device, non_blocking=True)
        copied = time.perf_counter()
        yield Prepared(x, y, arrived - began, copied - prepared, prepared - arrived)
