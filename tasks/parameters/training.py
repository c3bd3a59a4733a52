"""What is trained, and how; how it goes on; where its results go."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from tasks.parameters.data import MOST_ROWS, Source, Stream
from tasks.parameters.marks import CURVE, LATER, OWN, RECORD, SPEED, Parameters, Searchable
from tasks.parameters.optimizers import read_options
from tasks.state import STATE

MODEL_PARAMETERS = ("iterations", "learning_rate", "gradient_norm", "standardise", "derive")


@dataclass(frozen=True, kw_only=True)
class Preset:
    """What a preset stands for; an explicit parameter wins over it.

    A `learning_rate` of None, with SGD, is a step of 1 along preconditioned gradients (`tasks.learning.conditioning`).
    from_zero: weights start at zero, not at random by the seed.
    """

    iterations: int
    learning_rate: float | None
    gradient_norm: float
    standardise: bool
    derive: tuple[str, ...]
    from_zero: bool


PRESETS: dict[str, Preset] = {
    "default": Preset(
        iterations=50,
        learning_rate=None,
        gradient_norm=0.0,
        standardise=True,
        derive=("distance_km",),
        from_zero=True,
    ),
    "notebook": Preset(
        iterations=50, learning_rate=0.03, gradient_norm=0.5, standardise=False, derive=(), from_zero=False
    ),
}


class Device(Parameters):
    """Which hardware computes."""

    group: ClassVar[str] = "Device"

    device: Annotated[Literal["auto", "cpu", "cuda"], CURVE] = Field(
        "auto",
        description="Where to compute; auto: CUDA where there is one. A benchmark measures the CPU beside it.",
    )


class Model(Device):
    """What is trained, and how."""

    group: ClassVar[str] = "Model"

    preset: Annotated[Literal["default", "notebook"], CURVE] = Field(
        "default",
        description="default: a model that converges; notebook: the numbers of the notebook that this replaces.",
    )
    iterations: Annotated[int | None, CURVE, Searchable(low=10, high=1000, log=True)] = Field(
        None, ge=1, description="Training iterations, one batch each; empty: from the preset."
    )
    learning_rate: Annotated[float | None, CURVE, Searchable(low=1e-4, high=1.0, log=True)] = Field(
        None, gt=0, description="Step size of the optimiser; empty: from the preset."
    )
    gradient_norm: Annotated[float | None, CURVE, Searchable(choices=(0.0, 0.1, 0.5, 1.0, 5.0, 25.0))] = Field(
        None, ge=0, description="Gradients are clipped to this norm; 0: not clipped; empty: from the preset."
    )
    standardise: Annotated[bool | None, CURVE, Searchable(choices=(True, False))] = Field(
        None, description="Train on features of mean 0 and deviation 1, folded back at the end; empty: from the preset."
    )
    derive: Annotated[
        list[Literal["distance_km", "hour_sine", "hour_cosine"]] | None, CURVE, Searchable(subsets=True)
    ] = Field(
        None,
        description="Engineered features: distance_km, hour_sine, hour_cosine; empty: those of the preset whose "
        "columns are there.",
    )
    resident_bytes: Annotated[int | None, SPEED] = Field(
        None,
        ge=0,
        description="Data that takes no more than this stays prepared in the device's memory after its first pass; "
        "0: never; empty: a quarter of what is free. Shuffled data is streamed in every epoch.",
    )
    optimizer: Annotated[
        Literal["SGD", "Adam", "AdamW", "RMSprop", "Adagrad"],
        CURVE,
        Searchable(choices=("SGD", "Adam", "AdamW", "RMSprop", "Adagrad")),
    ] = Field(
        "SGD",
        description="Optimiser, by its name in torch.optim; an empty learning_rate is torch's own, and for SGD the "
        "step is chosen by the first batch's Hessian.",
    )
    optimizer_options: Annotated[list[str] | None, CURVE, LATER, Searchable()] = Field(
        None,
        description="Constants of the optimiser, as momentum=0.9 (SGD, RMSprop), beta1=0.9, beta2=0.999 (Adam, AdamW), "
        "alpha (RMSprop), lr_decay (Adagrad), weight_decay (AdamW) or eps; empty: torch's own.",
    )
    schedule: Annotated[
        Literal["constant", "linear", "cosine"], CURVE, LATER, Searchable(choices=("constant", "linear", "cosine"))
    ] = Field(
        "constant",
        description="What becomes of the step size by the last iteration: constant: nothing; linear, cosine: it falls "
        "towards 0 evenly, or slowly at first and at last.",
    )
    l2: Annotated[float, CURVE, LATER, Searchable(low=1e-6, high=1.0, log=True)] = Field(
        0.0,
        ge=0,
        description="Penalty on the squares of the weights, as they are trained (standardised or not), beside the mean "
        "squared error; the bias has none. The exact solver takes it too.",
    )
    solver: Annotated[Literal["gradient", "exact"], CURVE] = Field(
        "gradient", description="gradient: iterate; exact: the least-squares model, from one pass over the shards."
    )
    dtype: Annotated[Literal["float64", "float32"], CURVE] = Field(
        "float64", description="Precision of batches and weights."
    )

    @model_validator(mode="after")
    def _options_are_the_optimisers(self) -> Self:
        options = self.options
        if options and self.optimizer == "SGD" and not self.resolved().learning_rate:
            raise ValueError(
                "optimizer_options needs a learning_rate with SGD: without one, the first batch's Hessian makes the "
                "steps, and nothing is left to choose"
            )
        return self

    @property
    def options(self) -> dict[str, float]:
        """The constants of the optimiser that were given, by name."""
        return read_options(self.optimizer, self.optimizer_options or [])

    def resolved(self) -> Preset:
        """Return the five model parameters with every null replaced by its preset's value."""
        preset = PRESETS[self.preset]
        chosen = {name: getattr(self, name) for name in MODEL_PARAMETERS}
        chosen["derive"] = None if self.derive is None else tuple(self.derive)
        return replace(preset, **{name: value for name, value in chosen.items() if value is not None})


class Resuming(Parameters):
    """How a run that was stopped goes on."""

    group: ClassVar[str] = "Resuming"

    checkpoint_url: Annotated[str | None, RECORD] = Field(
        None,
        min_length=1,
        description=f"Folder for checkpoints, a local path or any fsspec URL; empty: {STATE}/checkpoints.",
    )
    checkpoint_every: Annotated[str, RECORD] = Field(
        "30s",
        pattern="^[1-9][0-9]*s?$",
        description="Iterations (100) or seconds (30s) between checkpoints; the first follows the first iteration.",
    )
    resume: Annotated[str, RECORD, OWN] = Field(
        "auto",
        pattern="^(auto|never|[0-9a-f]{32})$",
        description="auto: go on with an unfinished run of the same settings and data; never: start anew; "
        "or the id of the MLflow run to go on with.",
    )
    like: Annotated[str | None, RECORD, OWN] = Field(
        None,
        pattern="^[0-9a-f]{32}$",
        description="MLflow run id whose parameters are taken where none other than the default is given here; "
        "refused where its data has changed.",
    )


class Ranks(Parameters):
    """How many processes or machines work together."""

    group: ClassVar[str] = "Ranks"

    ranks: Annotated[int, SPEED] = Field(
        1,
        ge=1,
        le=4096,
        description="Processes that work together, each on its part of the data: on the Ray cluster of RAY_ADDRESS, "
        "else on one started here for this run. What comes out is the same to the last bit.",
    )
    fewest_ranks: Annotated[int | None, SPEED] = Field(
        None,
        ge=1,
        description="With how many of the ranks the work goes on where a cluster has lost room for the others, until "
        "it has room again; empty: with all of them alone.",
    )
    rank_timeout: Annotated[int, SPEED] = Field(
        60, ge=5, description="Seconds after which a rank that nothing is heard of ends the attempt, named."
    )

    @model_validator(mode="after")
    def _check_ranks(self) -> Self:
        if self.fewest_ranks and self.fewest_ranks > self.ranks:
            raise ValueError(
                f"fewest_ranks is {self.fewest_ranks}, more than ranks, which is {self.ranks}: give at most as many"
            )
        return self


class Tracking(Parameters):
    """Where the results go."""

    group: ClassVar[str] = "Record"

    experiment: Annotated[str, RECORD, OWN] = Field(
        "shardline", min_length=1, description="MLflow experiment that the run is recorded in."
    )


class Curve(Parameters):
    """How much of the loss curve MLflow shows."""

    group: ClassVar[str] = "Record"

    thin_mse: Annotated[bool, RECORD, LATER] = Field(
        False,
        description="Beyond 500 iterations, give MLflow every n-th iteration's mse alone, as it gets their times; all "
        "stand in the run's file metrics/iterations.csv.",
    )


class TrainingParameters(Curve, Tracking, Resuming, Ranks, Model, Stream, Source):
    """All parameters of the training flow, flat, in the order of its form."""

    group: ClassVar[str] = "Run"

    benchmark: Annotated[bool, RECORD] = Field(
        False, description="Measure the hardware first, in quick mode, as a subflow with an MLflow run of its own."
    )

    plan: Annotated[bool, RECORD, OWN] = Field(
        False,
        description="Say what the run would read and take (requests, bytes, memory, time, disk), and end without "
        "training.",
    )
    prices: Annotated[str | None, RECORD, OWN] = Field(
        None,
        min_length=1,
        description="YAML or JSON file with currency, per_1000_requests, per_GB (10^9 bytes read), per_cpu_hour and "
        "per_gpu_hour, by which the report says what the run cost.",
    )
    skip_unchanged: Annotated[bool, RECORD, OWN] = Field(
        False,
        description="End at once, as Unchanged, where data, code and parameters are those of the last success.",
    )

    def sized(self, rows: int) -> Self:
        """Return the same with a batch_size for so many rows: all of them, at most 2**20, where none is chosen."""
        chosen = self.batch_size or (MOST_ROWS if self.preset == "notebook" else min(MOST_ROWS, rows))
        return self.model_copy(update={"batch_size": chosen})
