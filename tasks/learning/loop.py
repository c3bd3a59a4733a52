"""The training loop: batches in, one iteration's facts out, weights at the end.

The loss curve depends on the batches, the seed and the settings alone. Where CPU and GPU wait for each other is marked.
What is done with an iteration's facts (log line, MLflow, checkpoint) is the caller's.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from tasks.errors import NonFiniteLossError, TrainingError
from tasks.learning.batches import Prepared
from tasks.learning.checkpoints import Checkpoint
from tasks.learning.conditioning import Preconditioner
from tasks.learning.features import Features
from tasks.learning.linear import LinearModel, initial_weights
from tasks.learning.scaling import Scaling


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What the loss curve depends on, beside the batches.

    learning_rate: None is torch's own for the optimiser; for SGD, steps of size 1 along preconditioned gradients
    seed: of the first weights; None: they are zero
    """

    iterations: int
    learning_rate: float | None
    gradient_norm: float
    seed: int | None
    dtype: torch.dtype = torch.float64
    optimizer: str = "SGD"


@dataclass(frozen=True, kw_only=True)
class Iteration:
    """One iteration's facts, times in seconds, and the state after it, from which the next one can go on."""

    iteration: int
    mse: float
    rows: int
    wait_seconds: float
    copy_seconds: float
    compute_seconds: float
    after: Checkpoint = field(repr=False, compare=False)

    @property
    def seconds(self) -> float:
        """The notebook's figure: copying and computing, without waiting for data."""
        return self.copy_seconds + self.compute_seconds

    def __str__(self) -> str:
        return f"Iteration: {self.iteration:03d}, Seconds/Iteration: {self.seconds:.3f} MSE: {self.mse:.2f}"


class Trainer:
    """A linear model in training: weights, optimiser and the number of the next iteration."""

    def __init__(self, features: Features, scaling: Scaling, settings: Settings, device: torch.device) -> None:
        w, b = initial_weights(len(features.names), settings.seed, settings.dtype)
        self.features, self.scaling = features, scaling
        self.settings, self.device = settings, device
        self.w, self.b = w.to(device).requires_grad_(), b.to(device).requires_grad_()
        self.learning_rate = settings.learning_rate
        self.preconditioner: Preconditioner | None = None
        self.iteration = 0
        make = getattr(torch.optim, settings.optimizer)
        chosen = {"lr": settings.learning_rate} if settings.learning_rate else {}
        self._optimizer: torch.optim.Optimizer = make([self.w, self.b], **chosen)
        if settings.optimizer != "SGD":
            self.learning_rate = self._optimizer.param_groups[0]["lr"]

    def step(self, batch: Prepared) -> Tensor:
        """Take one iteration on a prepared batch; return its mean squared error, a scalar perhaps not computed yet."""
        batch.await_copy()
        if self.learning_rate is None:
            self.preconditioner = Preconditioner.of(batch.x)  # CPU and GPU synchronise here, once
            self._optimizer.param_groups[0]["lr"] = self.learning_rate = 1.0
        estimate = batch.x @ self.w + self.b
        mse = torch.nn.functional.mse_loss(estimate, batch.y)
        self._optimizer.zero_grad()
        mse.backward()  # type: ignore[no-untyped-call]
        if self.settings.gradient_norm:
            torch.nn.utils.clip_grad_norm_([self.w, self.b], self.settings.gradient_norm)
        if self.preconditioner:
            self.preconditioner.turn(self.w, self.b, batch.x)
        self._optimizer.step()
        self.iteration += 1
        return mse.detach()

    def state(self) -> Checkpoint:
        """Copy all that the next iteration depends on, beside the batches; taken without waiting for a GPU."""
        tensors = {"w": self.w, "b": self.b, "mean": self.scaling.mean, "scale": self.scaling.scale}
        if self.preconditioner:
            tensors["preconditioner"] = self.preconditioner.inverse
        for index, values in self._optimizer.state_dict()["state"].items():
            held = {name: value for name, value in values.items() if value is not None}
            tensors |= {f"optimizer.{index}.{name}": torch.as_tensor(value) for name, value in held.items()}
        copies = {name: tensor.detach().clone() for name, tensor in tensors.items()}
        facts = {"learning_rate": self.learning_rate, "condition": self.condition}
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


def train(trainer: Trainer, batches: Iterable[Prepared]) -> Iterator[Iteration]:
    """Run the iterations that are left, yielding each one's facts when its loss is known.

    Raises NonFiniteLossError at the first loss that is not a finite number, and TrainingError where the batches end
    before the iterations do.
    """
    stream, late = iter(batches), trainer.device.type == "cuda"
    launched: list[Launched] = []
    while trainer.iteration < trainer.settings.iterations:
        batch = next(stream, None)
        if batch is None:
            raise TrainingError(
                f"the stream ended before iteration {trainer.iteration} of {trainer.settings.iterations}"
            )
        launched.append(Launched(trainer, batch))
        if len(launched) > late:
            yield launched.pop(0).facts()
    for last in launched:
        yield last.facts()


class Launched:
    """An iteration whose step was started; on a GPU its loss is fetched while the next one runs."""

    def __init__(self, trainer: Trainer, batch: Prepared) -> None:
        self.trainer, self.batch = trainer, batch
        self.iteration = trainer.iteration
        self.began = self._mark()
        self.loss = trainer.step(batch)
        self.ended = self._mark()
        if isinstance(self.ended, torch.cuda.Event):  # fetched on its way, so that the next step is not waited for
            self.loss = torch.empty((), dtype=self.loss.dtype, pin_memory=True).copy_(self.loss, non_blocking=True)
            self.fetched = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self.fetched.record()
        self.after = trainer.state()

    def _mark(self) -> float | torch.cuda.Event:
        if self.trainer.device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event

    def facts(self) -> Iteration:
        """Wait for the step's end, and return what is known then."""
        if isinstance(self.began, float) and isinstance(self.ended, float):
            seconds, copying = self.ended - self.began, 0.0
        else:
            self.fetched.synchronize()  # CPU and GPU synchronise here: the GPU runs the next step already
            seconds = self.began.elapsed_time(self.ended) / 1000  # type: ignore[union-attr, arg-type]
            copying = self.batch.copy.seconds() if self.batch.copy else 0.0
        mse = self.loss.item()
        return Iteration(
            iteration=self.iteration,
            mse=_finite(mse, self.iteration, self.batch, self.trainer),
            rows=len(self.batch.x),
            wait_seconds=self.batch.wait_seconds,
            copy_seconds=self.batch.copy_seconds + copying,
            compute_seconds=self.batch.prepare_seconds + seconds,
            after=self.after,
        )


def _finite(mse: float, iteration: int, batch: Prepared, trainer: Trainer) -> float:
    if math.isfinite(mse):
        return mse
    first, place = iteration * len(batch.x), f"the mean squared error of iteration {iteration}"
    columns = (*trainer.features.names, trainer.features.target)
    largest = torch.cat([batch.x.abs().amax(dim=0), batch.y.abs().amax(dim=0)])
    value, at = largest.max(dim=0)
    overflows = float(value) > math.sqrt(torch.finfo(batch.x.dtype).max / len(batch.x))
    raise NonFiniteLossError(
        f"{place} (rows {first} to {first + len(batch.x) - 1} of the endless stream) is {mse}: "
        + (
            f"column {columns[int(at)]!r} reaches {float(value):g} there, whose squares do not fit this dtype; divide "
            "it by a power of ten, or leave it out"
            if overflows
            else f"the step size {trainer.learning_rate:g} is too large for these features; try a smaller "
            "learning_rate, standardise=true, or a gradient_norm"
        )
    )
