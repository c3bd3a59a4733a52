"""Iterations over rows that stay on a GPU, many launched at once, and as one CUDA graph: nothing waits in between.

They are the steps that `Trainer.step` takes, to the last bit: a batch is the table's rows from one of them on, and the
kernels go on at the table's beginning themselves.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tasks.learning import kernels
from tasks.learning.reduction import slice_rows

if TYPE_CHECKING:
    from tasks.learning.loop import Trainer
    from tasks.learning.tables import Table

MOST = 64  # iterations


class Blocks:
    """The iterations to come of a trainer that takes its steps by kernels, and has the batches' rows to itself.

    size: rows of a batch
    """

    def __init__(self, trainer: Trainer, table: Table, size: int) -> None:
        assert trainer.steps is not None
        self.trainer, self.steps, self.table, self.size = trainer, trainer.steps, table, size
        self._firsts = torch.zeros(MOST, dtype=torch.int64, device=trainer.device)
        self._graphs: dict[int, torch.cuda.CUDAGraph] = {}
        self._launched: set[int] = set()  # how many were launched one by one before: their kernels are built

    def launch(self, count: int) -> Tensor:
        """Launch so many iterations; return their losses, [count], perhaps not computed yet."""
        trainer = self.trainer
        numbers = range(trainer.iteration, trainer.iteration + count)
        trainer.is_whole = False
        self.steps.choose_sizes([trainer.size_of_step(number) for number in numbers])
        kernels.send(self._firsts, [self.table.start_of(number) for number in numbers])
        if trainer.device.type == "cuda" and count in self._launched:
            self._replay(count)
        else:
            self._take(count)
            self._launched.add(count)
        trainer.iteration += count
        trainer.is_whole = True
        return self.steps.losses[:count].clone()

    def _take(self, count: int) -> None:
        for number in range(count):
            self.steps.take(number, partial(self._sum, number), self.size, self.trainer.inverse)

    def _sum(self, number: int, theta: Tensor, with_target: bool) -> Tensor:
        x, y = self.table.parts
        first = self._firsts[number : number + 1]
        return kernels.sum_slices(
            theta, x, y if with_target else None, slice_rows(self.size), first=first, size=self.size
        )

    def _replay(self, count: int) -> None:
        with torch.cuda.device(self.trainer.device):
            if count not in self._graphs:
                graph = torch.cuda.CUDAGraph()
                with torch.cuda.graph(graph):
                    self._take(count)
                self._graphs[count] = graph
            self._graphs[count].replay()
