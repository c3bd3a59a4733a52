"""An iteration of the training loop, as tasks.devices times it beside other kernels."""

from __future__ import annotations

import itertools
from functools import partial
from typing import TYPE_CHECKING

from tasks.devices.kernels import FEATURES

if TYPE_CHECKING:
    from tasks.devices.timing import Kernel


def build_step(device: str, dtype: str, rows: int) -> Kernel:
    """Return an iteration on `rows` random rows that lie on the device, with all that the loop does in one.

    On a GPU it returns the iteration before it, as the loop does while the next batch is at hand.
    """
    import torch

    from tasks.learning.batches import Prepared
    from tasks.learning.features import Features
    from tasks.learning.loop import Settings, Trainer, train
    from tasks.learning.scaling import Scaling

    numbers = getattr(torch, dtype)
    features = Features.choose(["y", *(f"x{number}" for number in range(FEATURES))])
    settings = Settings(iterations=10**9, learning_rate=None, gradient_norm=0.0, seed=None, dtype=numbers)
    x, y = (torch.rand(rows, columns, dtype=numbers, device=device) for columns in (FEATURES, 1))
    trainer = Trainer(features, Scaling.none(FEATURES), settings, torch.device(device))
    return partial(next, train(trainer, itertools.repeat(Prepared(x, y, next_is_ready=True))))
