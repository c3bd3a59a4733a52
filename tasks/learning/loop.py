"""The training loop: batches in, one iteration's facts out, weights at the end.

The loss curve depends on the batches, the seed and the settings alone. Where CPU and GPU wait for each other is marked.
What is done with an iteration's facts (log line, MLflow, checkpoint) is the caller's.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator, Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from tasks.errors import NonFiniteLossError, TrainingError
from tasks.learning.batches import Prepared
from tasks.learning.checkpoints import Checkpoint
from tasks.learning.conditioning import Preconditioner
from tasks.learning.features import Features
from tasks.learning.linear import LinearModel, initial_weights
from tasks.learning.loss import differentiate
from tasks.learning.optimizers import make_optimizer, share_of_step
from tasks.learning.reduction import ALONE, Reduction, by_slice, count_rows
from tasks.learning.scaling import Scaling


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
        self.w, self.b = w.to(device), b.to(device)
        self.learning_rate = settings.learning_rate
        self.preconditioner: Preconditioner | None = None
        self.iteration = 0
        self.is_whole = True
        self._optimizer = make_optimizer([self.w, self.b], settings.optimizer, settings.learning_rate, settings.options)
        if settings.optimizer != "SGD":
            self.learning_rate = self._optimizer.param_groups[0]["lr"]

    @torch.no_grad()
    def step(self, batch: Prepared) -> Tensor:
        """Take one iteration on a prepared batch; return its mean squared error, a scalar perhaps not computed yet."""
        if self.learning_rate is None:
            # CPU and GPU synchronise here, once
            self.preconditioner = Preconditioner.of(batch.x, self.reduction, self.settings.l2)
            self.learning_rate = 1.0
        mse, self.w.grad, self.b.grad = differentiate(self.w, self.b, batch.x, batch.y, self.reduction)
        if self.settings.l2:
            self.w.grad.add_(self.w, alpha=2 * self.settings.l2)
        if self.settings.gradient_norm:
            torch.nn.utils.clip_grad_norm_([self.w, self.b], self.settings.gradient_norm)
        if self.preconditioner:
            self.preconditioner.turn(self.w, self.b, batch.x, self.reduction, self.settings.l2)
        share = share_of_step(self.settings.schedule, self.iteration, self.settings.iterations)
        self._optimizer.param_groups[0]["lr"] = self.learning_rate * share
        self.is_whole = False  # what stops the process in the next two lines leaves no state to go on from
        self._optimizer.step()
        self.iteration += 1
        self.is_whole = True
        return mse

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
    trainer: Trainer, batches: Iterable[Prepared], keep: Callable[[Trainer], None] | None = None
) -> Generator[Iteration, None, None]:
    """Run the iterations that are left, yielding each one's facts when its loss is known.

    `keep` is called after each step with the trainer, whose state is then the one after that step. On a GPU facts come
    an iteration late while the next batch is at hand, never while one is waited for. Raises NonFiniteLossError at the
    first loss that is not a finite number, and TrainingError where the batches end before the iterations do.
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


class Launched:
    """An iteration whose step was started; on a GPU its loss may be fetched while the next one runs."""

    def __init__(self, trainer: Trainer, batch: Prepared, began: float) -> None:
        self.trainer, self.batch = trainer, batch
        self.iteration = trainer.iteration
        self.fetched: torch.cuda.Event | None = None
        batch.await_copy()
        self.loss = trainer.step(batch)
        if trainer.device.type == "cuda":
            self._fetch(torch.cuda.current_stream(trainer.device))
        self.seconds = time.perf_counter() - began + batch.earlier_seconds

    def _fetch(self, stream: torch.cuda.Stream) -> None:
        """Send the loss on its way to the CPU, behind the step; the device's stream need not be the current one's."""
        self.loss = torch.empty((), dtype=self.loss.dtype, pin_memory=True).copy_(self.loss, non_blocking=True)
        self.fetched = torch.cuda.Event()  # type: ignore[no-untyped-call]
        self.fetched.record(stream)

    def facts(self) -> Iteration:
        """Return what is known when the step has ended; waits for that."""
        batch, asked = self.batch, time.perf_counter()
        if self.fetched:
            self.fetched.synchronize()  # CPU and GPU synchronise here: the GPU may run the next step already
        mse = self.loss.item()
        waited = time.perf_counter() - asked
        copying = batch.copy_seconds + (min(waited, batch.copy.seconds()) if batch.copy else 0.0)
        computing = self.seconds + waited - batch.wait_seconds - copying
        return Iteration(
            iteration=self.iteration,
            mse=_finite(mse, self.iteration, batch, self.trainer),
            rows=count_rows(batch.x, self.trainer.reduction),
            wait_seconds=batch.wait_seconds,
            copy_seconds=copying,
            compute_seconds=computing,
        )


def _finite(mse: float, iteration: int, batch: Prepared, trainer: Trainer) -> float:
    """Return the loss; raise NonFiniteLossError, on every rank alike, where it is none."""
    if math.isfinite(mse):
        return mse
    rows = count_rows(batch.x, trainer.reduction)
    first, place = iteration * rows, f"the mean squared error of iteration {iteration}"
    columns = (*trainer.features.names, trainer.features.target)
    largest = by_slice(_find_largest, batch.x, batch.y, reduction=trainer.reduction).amax(dim=0)
    value, at = largest.max(dim=0)
    overflows = float(value) > math.sqrt(torch.finfo(batch.x.dtype).max / rows)
    raise NonFiniteLossError(
        f"{place} (rows {first} to {first + rows - 1} of the endless stream) is {mse}: "
        + (
            f"column {columns[int(at)]!r} reaches {float(value):g} there, whose squares do not fit this dtype; divide "
            "it by a power of ten, or leave it out"
            if overflows
            else f"the step size {trainer.learning_rate:g} is too large for these features; try a smaller "
            "learning_rate, standardise=true, or a gradient_norm"
        )
    )


def _find_largest(x: Tensor, y: Tensor) -> Tensor:
    """Return the largest magnitude in each column of slices: [slices, features + 1]."""
    return torch.cat([x.abs().amax(dim=1), y.abs().amax(dim=1)], dim=1)
