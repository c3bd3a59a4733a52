"""The training loop: batches in, one iteration's facts out, weights at the end.

The loss curve depends on the batches, the seed and the settings alone. Where CPU and GPU wait for each other is marked.
What is done with an iteration's facts (log line, MLflow, checkpoint) is the caller's.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from tasks.errors import TrainingError
from tasks.learning import kernels
from tasks.learning.batches import Prepared
from tasks.learning.blocks import MOST, Blocks
from tasks.learning.checkpoints import Checkpoint
from tasks.learning.conditioning import Preconditioner
from tasks.learning.features import Features
from tasks.learning.linear import LinearModel, initial_weights
from tasks.learning.loss import differentiate, gather_slices
from tasks.learning.optimizers import make_optimizer, share_of_step
from tasks.learning.overflows import explain
from tasks.learning.reduction import ALONE, Reduction, count_rows
from tasks.learning.scaling import Scaling
from tasks.learning.tables import Table


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What the loss curve depends on, beside the batches.

    learning_rate: None is torch's own for the optimiser; for SGD, steps of size 1 along preconditioned gradients
    seed: of the first weights; None: they are zero
    options: constants of the optimiser by name; beta1 and beta2 are the two of torch's betas
    schedule: of the step size, see `tasks.learning.optimizers`
    l2: times the weights' sum of squares, it is added to the loss
    """

    iterations: int
    learning_rate: float | None
    gradient_norm: float
    seed: int | None
    dtype: torch.dtype = torch.float64
    optimizer: str = "SGD"
    options: Mapping[str, float] = field(default_factory=dict)
    schedule: str = "constant"
    l2: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Iteration:
    """One iteration's facts: its rows over all ranks, and where this process's time went, in seconds.

    Waiting, copying and computing add up to the time that passed in the loop. On a GPU, copying is as much of the copy
    as the loop waited for, and computing is all else: preparing, launching, and waiting for the step.
    """

    iteration: int
    mse: float
    rows: int
    wait_seconds: float
    copy_seconds: float
    compute_seconds: float

    @property
    def seconds(self) -> float:
        """The notebook's figure: copying and computing, without waiting for data."""
        return self.copy_seconds + self.compute_seconds

    def __str__(self) -> str:
        waited = f"(without {self.wait_seconds:.3f} s of waiting for data)"
        return f"Iteration: {self.iteration:03d}, Seconds/Iteration: {self.seconds:.3f} MSE: {self.mse:.2f} {waited}"


class Trainer:
    """A linear model in training: weights, optimiser and the number of the next iteration."""

    def __init__(
        self,
        features: Features,
        scaling: Scaling,
        settings: Settings,
        device: torch.device,
        reduction: Reduction = ALONE,
    ) -> None:
        w, b = initial_weights(len(features.names), settings.seed, settings.dtype)
        self.features, self.scaling = features, scaling
        self.settings, self.device = settings, device
        self.reduction = reduction
        theta = torch.cat([w, b]).view(-1).to(device)
        self.w, self.b = theta[:-1].view(-1, 1), theta[-1:].view(1, 1)
        self.learning_rate = settings.learning_rate
        self.preconditioner: Preconditioner | None = None
        self.iteration = 0
        self.is_whole = True
        self._optimizer = make_optimizer([self.w, self.b], settings.optimizer, settings.learning_rate, settings.options)
        self.steps: kernels.Steps | None = None
        if settings.optimizer == "SGD" and not settings.options.get("momentum") and kernels.are_usable(theta):
            self.steps = kernels.Steps(theta, settings.gradient_norm, settings.l2, MOST)
        if settings.optimizer != "SGD":
            self.learning_rate = self._optimizer.param_groups[0]["lr"]

    @torch.no_grad()
    def step(self, batch: Prepared) -> Tensor:
        """Take one iteration on a prepared batch; return its mean squared error, a scalar perhaps not computed yet."""
        if self.learning_rate is None:
            # CPU and GPU synchronise here, once
            self.preconditioner = Preconditioner.of(batch.x, self.reduction, self.settings.l2)
            self.learning_rate = 1.0
        if self.steps:
            return self._step_by_kernels(self.steps, batch)
        mse, self.w.grad, self.b.grad = differentiate(self.w, self.b, batch.x, batch.y, self.reduction)
        if self.settings.l2:
            self.w.grad.add_(self.w, alpha=2 * self.settings.l2)
        if self.settings.gradient_norm:
            torch.nn.utils.clip_grad_norm_([self.w, self.b], self.settings.gradient_norm)
        if self.preconditioner:
            self.preconditioner.turn(self.w, self.b, batch.x, self.reduction, self.settings.l2)
        self._optimizer.param_groups[0]["lr"] = self.size_of_step(self.iteration)
        self.is_whole = False  # what stops the process in the next two lines leaves no state to go on from
        self._optimizer.step()
        self.iteration += 1
        self.is_whole = True
        return mse

    def _step_by_kernels(self, steps: kernels.Steps, batch: Prepared) -> Tensor:
        def sum_batch(theta: Tensor, with_target: bool) -> Tensor:
            return gather_slices(theta, batch.x, batch.y if with_target else None, self.reduction)

        self.is_whole = False
        steps.choose_sizes([self.size_of_step(self.iteration)])
        steps.take(0, sum_batch, count_rows(batch.x, self.reduction), self.inverse)
        self.iteration += 1
        self.is_whole = True
        return steps.losses[0].clone()

    def size_of_step(self, iteration: int) -> float:
        """Return how far along the gradient an iteration goes, once the learning rate is known."""
        assert self.learning_rate is not None
        return self.learning_rate * share_of_step(self.settings.schedule, iteration, self.settings.iterations)

    @property
    def inverse(self) -> Tensor | None:
        """What turns gradients into steps, where they are preconditioned."""
        return self.preconditioner.inverse if self.preconditioner else None

    def state(self) -> Checkpoint:
        """Copy all that the next iteration depends on, beside the batches; taken without waiting for a GPU."""
        tensors = {"w": self.w, "b": self.b, "mean": self.scaling.mean, "scale": self.scaling.scale}
        if self.preconditioner:
            tensors["preconditioner"] = self.preconditioner.inverse
        for index, values in self._optimizer.state_dict()["state"].items():
            held = {name: value for name, value in values.items() if value is not None}
            tensors |= {f"optimizer.{index}.{name}": torch.as_tensor(value) for name, value in held.items()}
        copies = {name: tensor.detach().clone() for name, tensor in tensors.items()}
        facts = {"learning_rate": self.learning_rate, "condition": self.condition, "device": self.device.type}
        return Checkpoint(self.iteration, copies, facts)

    def restore(self, checkpoint: Checkpoint) -> None:
        """Go on from a checkpoint's state."""
        tensors = checkpoint.tensors
        with torch.no_grad():
            self.w.copy_(tensors["w"])
            self.b.copy_(tensors["b"])
        self.scaling = Scaling(tensors["mean"], tensors["scale"])
        self.iteration, self.learning_rate = checkpoint.iteration, checkpoint.facts["learning_rate"]
        if "preconditioner" in tensors:
            inverse = tensors["preconditioner"].to(self.device)
            self.preconditioner = Preconditioner(inverse, checkpoint.facts["condition"])
        kept = self._optimizer.state_dict()
        for name, tensor in tensors.items():
            if name.startswith("optimizer."):
                _, index, key = name.split(".", 2)
                kept["state"].setdefault(int(index), {})[key] = tensor
        kept["param_groups"][0]["lr"] = self.learning_rate
        self._optimizer.load_state_dict(kept)

    @property
    def condition(self) -> float | None:
        """The condition number of the first batch's Hessian, where it was taken."""
        return self.preconditioner.condition if self.preconditioner else None

    def model(self) -> LinearModel:
        """Return the model of this moment, for raw features."""
        return LinearModel(self.features, *self.scaling.fold(self.w, self.b))


def train(
    trainer: Trainer,
    batches: Iterable[Prepared],
    keep: Callable[[Trainer], None] | None = None,
    due: Callable[[int], int] = lambda _: MOST,
) -> Generator[Iteration, None, None]:
    """Run the iterations that are left, yielding each one's facts when its loss is known.

    `keep` is called after each step with the trainer, whose state is then the one after that step. On a GPU facts come
    an iteration late while the next batch is at hand, never while one is waited for; over rows that stay there, up to
    MOST iterations are one, and none goes beyond where `due` says, of an iteration, after how many more `keep` is to
    see one. Raises NonFiniteLossError at the first loss that is not a finite number, and TrainingError where the
    batches end before the iterations do.
    """
    stream = iter(batches)
    late: Launched | None = None
    while trainer.iteration < trainer.settings.iterations:
        began = time.perf_counter()
        batch = next(stream, None)
        if batch is None:
            raise TrainingError(
                f"the stream ended before iteration {trainer.iteration} of {trainer.settings.iterations}"
            )
        if batch.table and trainer.steps and trainer.reduction is ALONE:
            if late:
                yield late.facts()
            yield from _train_in_blocks(trainer, batch, batch.table, keep, due)
            return
        launched = Launched(trainer, batch, began)
        if keep:
            keep(trainer)
        if late:
            yield late.facts()
        late = launched if trainer.device.type == "cuda" and batch.next_is_ready else None
        if not late:
            yield launched.facts()
    if late:
        yield late.facts()


def _train_in_blocks(
    trainer: Trainer,
    first: Prepared,
    table: Table,
    keep: Callable[[Trainer], None] | None,
    due: Callable[[int], int],
) -> Generator[Iteration, None, None]:
    """Run the iterations that are left, over a table of their rows; a block's are told while the next one runs."""
    blocks = Blocks(trainer, table, first.x.size(0))
    late: LaunchedBlock | None = None
    while (left := trainer.settings.iterations - trainer.iteration) > 0:
        launched = LaunchedBlock(blocks, min(left, MOST, due(trainer.iteration)))
        if keep:
            keep(trainer)
        if late:
            yield from late.facts()
        late = launched
    if late:
        yield from late.facts()


class LaunchedBlock:
    """Iterations that were started together, and whose losses are fetched together."""

    def __init__(self, blocks: Blocks, count: int) -> None:
        self.blocks, self.first = blocks, blocks.trainer.iteration
        began = time.perf_counter()
        self.fetched = Fetched(blocks.launch(count), blocks.trainer.device)
        self.seconds = time.perf_counter() - began

    def facts(self) -> Iterator[Iteration]:
        """Yield what is known when all have ended; waits for that."""
        asked = time.perf_counter()
        losses: list[float] = self.fetched.wait().tolist()
        seconds = (self.seconds + time.perf_counter() - asked) / len(losses)
        trainer, table = self.blocks.trainer, self.blocks.table
        for number, mse in enumerate(losses, self.first):
            if not math.isfinite(mse):
                x, y = table.take(number)
                raise explain(mse, number, Prepared(x, y), trainer)
            yield Iteration(
                iteration=number,
                mse=mse,
                rows=self.blocks.size,
                wait_seconds=0.0,
                copy_seconds=0.0,
                compute_seconds=seconds,
            )


class Fetched:
    """Losses on their way from a GPU, behind the steps that make them; on the CPU they are there."""

    def __init__(self, losses: Tensor, device: torch.device) -> None:
        self._losses, self._event = losses, None
        if device.type == "cuda":
            self._losses = torch.empty(losses.shape, dtype=losses.dtype, pin_memory=True)
            self._losses.copy_(losses, non_blocking=True)
            self._event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._event.record(torch.cuda.current_stream(device))  # the device's need not be the current one's

    def wait(self) -> Tensor:
        """Return them when they are there; CPU and GPU synchronise here, and the GPU may run the next step already."""
        if self._event:
            self._event.synchronize()
        return self._losses


class Launched:
    """An iteration whose step was started; on a GPU its loss may be fetched while the next one runs."""

    def __init__(self, trainer: Trainer, batch: Prepared, began: float) -> None:
        self.trainer, self.batch = trainer, batch
        self.iteration = trainer.iteration
        batch.await_copy()
        self.fetched = Fetched(trainer.step(batch), trainer.device)
        self.seconds = time.perf_counter() - began + batch.earlier_seconds

    def facts(self) -> Iteration:
        """Return what is known when the step has ended; waits for that."""
        batch, asked = self.batch, time.perf_counter()
        mse = self.fetched.wait().item()
        if not math.isfinite(mse):
            raise explain(mse, self.iteration, batch, self.trainer)
        waited = time.perf_counter() - asked
        copying = batch.copy_seconds + (min(waited, batch.copy.seconds()) if batch.copy else 0.0)
        computing = self.seconds + waited - batch.wait_seconds - copying
        return Iteration(
            iteration=self.iteration,
            mse=mse,
            rows=count_rows(batch.x, self.trainer.reduction),
            wait_seconds=batch.wait_seconds,
            copy_seconds=copying,
            compute_seconds=computing,
        )
