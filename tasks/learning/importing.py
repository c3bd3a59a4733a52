"""Torch, and its compiler for all optimisers but SGD, imported while the first shards are waited for: seconds."""

from __future__ import annotations

import threading
from functools import cache


@cache
def begin_importing(optimizer: str) -> None:
    """Import what an optimiser of that name needs on a thread, once in a process; who needs it waits for the import."""
    threading.Thread(target=_import_all, args=(optimizer,), name="importing torch", daemon=True).start()


def _import_all(optimizer: str) -> None:
    import torch

    from tasks.learning.optimizers import make_optimizer

    make_optimizer([torch.zeros(1)], optimizer, None, {})
