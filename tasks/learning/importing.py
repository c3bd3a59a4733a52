"""Torch, and its compiler, which its first optimiser imports: seconds that waiting for the first shards fills."""

from __future__ import annotations

import threading
from functools import cache


@cache
def begin_importing() -> threading.Thread:
    """Import them on a thread, once in a process; whoever needs an optimiser waits for its end."""
    thread = threading.Thread(target=_import_all, name="importing torch", daemon=True)
    thread.start()
    return thread


def _import_all() -> None:
    import torch

    torch.optim.SGD([torch.zeros(1)])
