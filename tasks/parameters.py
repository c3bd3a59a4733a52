"""Every parameter of every flow, defined once: name, type, bounds, default and the sentence that describes it.

The flows' signatures, the forms in the Prefect UI, the command lines and their `--help`, and MLflow's params derive
from the models below (`flows.commandline` does that). A model is frozen and knows its own cross-field rules; what needs
the environment to be answered (which bucket, which region) is in `tasks.sources`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

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


class Parameters(BaseModel):
    """Base of all parameter models: frozen, closed, and finite where it is a number."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
    group: ClassVar[str] = ""  # what forms and --help put a class's own fields under

    @classmethod
    def group_of(cls, name: str) -> str:
        """The group of the class that brought a field in."""
        bases = (base for base in reversed(cls.__mro__) if issubclass(base, Parameters))
        return next(base.group for base in bases if name in base.__annotations__)


class Access(Parameters):
    """Where the data is, and who asks for it."""

    group: ClassVar[str] = "Access"

    bucket_id: str | None = Field(
        None,
        pattern="^[0-9a-f]{32}$",
        description="32 hexadecimal digits that name the bucket dc-taxi-{bucket_id}-{region}; "
        "null: the environment's BUCKET_ID, else the file BUCKET_ID in the working directory.",
    )
    region: str | None = Field(
        None,
        pattern="^[a-z0-9-]+$",
        description="AWS region of the bucket; null: AWS_DEFAULT_REGION, AWS_REGION or the profile's.",
    )
    bucket_owner: str | None = Field(
        None,
        pattern="^[0-9]{12}$",
        description="AWS account that must own the bucket; null: the account of the caller.",
    )
    verify_identity: bool = Field(
        True, description="Ask STS who the caller is; false for stores without STS (MinIO, Ceph, R2)."
    )
    anonymous: bool = Field(False, description="Read a public bucket without credentials.")
    aws_block: str | None = Field(
        None,
        min_length=1,
        description="Name of a Prefect AWS Credentials block to use; null: boto3's own chain (environment, profile, "
        "role).",
    )


class Listing(Access):
    """Which shards are read, and how they name their columns."""

    group: ClassVar[str] = "Shards"

    shards: str | None = Field(
        None,
        min_length=1,
        description="Glob of the shards to read (s3://bucket/path/part*.csv, file://, https://, a local path); "
        "null: csv/dev/part*.csv in the bucket of bucket_id.",
    )
    meta_shards: str | None = Field(
        None,
        min_length=1,
        description="Glob of the CSV with each shard's row count (id,count); null: .meta/shards beside the shards, "
        "else the rows are counted.",
    )
    header: Literal["infer", "none"] = Field(
        "infer", description="Whether each shard begins with a header line (infer) or with data (none)."
    )
    columns: list[str] | None = Field(
        None,
        min_length=1,
        description="The columns to read, by name, in this order; without a header, the names of all columns; "
        "null: those of the first shard's header.",
    )
    max_shards: int | None = Field(None, ge=1, description="Read the first so many shards only; null: all.")

    @model_validator(mode="after")
    def _listing_agrees(self) -> Self:
        if self.shards and self.bucket_id:
            raise ValueError("shards and bucket_id both say where the data is: leave one out")
        if self.columns and len(set(self.columns)) < len(self.columns):
            raise ValueError(f"columns names a column twice: {','.join(self.columns)}")
        if self.header == "none" and not self.columns:
            raise ValueError("header is none, so nothing names the columns: list them in columns")
        return self


class Shards(Listing):
    """Which columns are learned from, and which one is learned."""

    target: str | None = Field(None, min_length=1, description="Column to predict; null: the first one.")
    features: list[str] | None = Field(None, min_length=1, description="Columns to predict it from; null: all others.")

    @model_validator(mode="after")
    def _columns_agree(self) -> Self:
        if self.features and len(set(self.features)) < len(self.features):
            raise ValueError(f"features names a column twice: {','.join(self.features)}")
        if self.target and self.features and self.target in self.features:
            raise ValueError(f"target {self.target!r} is among the features: leave it out of one of them")
        for used in [self.target, *(self.features or [])]:
            if used and self.columns and used not in self.columns:
                raise ValueError(f"column {used!r} is used as target or feature and is not among columns: add it there")
        return self


class Source(Shards):
    """The shards to train on, and those to be judged on."""

    test_shards: str | None = Field(
        None,
        min_length=1,
        description="Glob of the shards that the model is judged on; null: csv/test/part*.csv with a bucket_id, "
        "else none.",
    )


class Reading(Parameters):
    """How rows are read."""

    group: ClassVar[str] = "Stream"

    batch_size: int = Field(2**20, ge=1, description="Rows in a batch, over all ranks together.")
    prefetch: int = Field(2, ge=1, le=64, description="Batches made ready ahead of the one in use.")
    on_bad_rows: Literal["error", "quarantine"] = Field(
        "error",
        description="A row that breaks the contract: error stops the run and names it; quarantine leaves it out, "
        "counts it and lists it in a side file.",
    )
    cache: bool = Field(True, description="Keep decoded shards on local disk, so that they are fetched once.")
    cache_dir: str | None = Field(
        None, min_length=1, description="Folder of that cache, shared by runs; null: .shardline/cache."
    )
    cache_bytes: int | None = Field(
        None, ge=0, description="Most bytes that the cache may hold; null: four fifths of what the disk has free."
    )


class Stream(Reading):
    """How rows become the batches of a training."""

    seed: int = Field(0, ge=0, lt=2**63, description="Seed of the initial weights and of the shuffling.")
    shuffle: bool = Field(
        False, description="New order in each epoch: shards permuted, rows shuffled in windows; false: as stored."
    )
    num_workers: int = Field(
        0, ge=0, le=64, description="DataLoader worker processes that read and decode; 0: threads of the trainer."
    )


class Device(Parameters):
    """Which hardware computes."""

    group: ClassVar[str] = "Device"

    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto",
        description="Where to compute; auto: CUDA where there is one. A benchmark measures the CPU beside it.",
    )


class Model(Device):
    """What is trained, and how."""

    group: ClassVar[str] = "Model"

    preset: Literal["default", "notebook"] = Field(
        "default",
        description="default: a model that converges; notebook: the numbers of the notebook that this replaces.",
    )
    iterations: int | None = Field(
        None, ge=1, description="Training iterations, one batch each; null: from the preset."
    )
    learning_rate: float | None = Field(None, gt=0, description="Step size of the optimiser; null: from the preset.")
    gradient_norm: float | None = Field(
        None, ge=0, description="Gradients are clipped to this norm; 0: not clipped; null: from the preset."
    )
    standardise: bool | None = Field(
        None, description="Train on features of mean 0 and deviation 1, folded back at the end; null: from the preset."
    )
    derive: list[Literal["distance_km", "hour_sine", "hour_cosine"]] | None = Field(
        None,
        description="Engineered features: distance_km, hour_sine, hour_cosine; null: those of the preset whose columns "
        "are there.",
    )
    resident_bytes: int | None = Field(
        None,
        ge=0,
        description="Data that takes no more than this stays prepared in the device's memory after its first pass; "
        "0: never; null: a quarter of what is free. Shuffled data is streamed in every epoch.",
    )
    optimizer: Literal["SGD", "Adam", "AdamW", "RMSprop", "Adagrad"] = Field(
        "SGD",
        description="Optimiser, by its name in torch.optim; a null learning_rate is torch's own, and for SGD the step "
        "is chosen by the first batch's Hessian.",
    )
    solver: Literal["gradient", "exact"] = Field(
        "gradient", description="gradient: iterate; exact: the least-squares model, from one pass over the shards."
    )
    dtype: Literal["float64", "float32"] = Field("float64", description="Precision of batches and weights.")

    def resolved(self) -> Preset:
        """The five model parameters with every null replaced by its preset's value."""
        preset = PRESETS[self.preset]
        chosen = {name: getattr(self, name) for name in MODEL_PARAMETERS}
        chosen["derive"] = None if self.derive is None else tuple(self.derive)
        return replace(preset, **{name: value for name, value in chosen.items() if value is not None})


class Resuming(Parameters):
    """How a run that was stopped goes on."""

    group: ClassVar[str] = "Resuming"

    checkpoint_url: str | None = Field(
        None,
        min_length=1,
        description="Folder for checkpoints, a local path or any fsspec URL; null: .shardline/checkpoints.",
    )
    checkpoint_every: str = Field(
        "30s",
        pattern="^[1-9][0-9]*s?$",
        description="Iterations (100) or seconds (30s) between checkpoints; the first follows the first iteration.",
    )
    resume: str = Field(
        "auto",
        pattern="^(auto|never|[0-9a-f]{32})$",
        description="auto: go on with an unfinished run of the same settings and data; never: start anew; "
        "or the id of the MLflow run to go on with.",
    )
    like: str | None = Field(
        None,
        pattern="^[0-9a-f]{32}$",
        description="MLflow run id whose parameters are taken where none other than the default is given here; "
        "refused where its data has changed.",
    )


class Tracking(Parameters):
    """Where the results go."""

    group: ClassVar[str] = "Record"

    experiment: str = Field("shardline", min_length=1, description="MLflow experiment that the run is recorded in.")


class TrainingParameters(Tracking, Resuming, Model, Stream, Source):
    """All parameters of the training flow, flat, in the order of its form."""

    group: ClassVar[str] = "Run"

    benchmark: bool = Field(
        False, description="Measure the hardware first, in quick mode, as a subflow with an MLflow run of its own."
    )

    skip_unchanged: bool = Field(
        False,
        description="End at once, as Unchanged, where data, code and parameters are those of the last success.",
    )


class ReplayParameters(Parameters):
    """The replaying flow needs none: it completes what it finds."""


class BenchmarkParameters(Tracking, Device, Shards):
    """All parameters of the benchmarking flow, flat, in the order of its form."""

    group: ClassVar[str] = "Benchmark"

    mode: Literal["quick", "standard", "thorough"] = Field(
        "standard", description="How much is measured, how often repeated: for seconds, two minutes or a quarter hour."
    )
    max_size: int | None = Field(
        None,
        ge=1,
        le=2**34,
        description="Most elements of the vectors in a + b; null: 2**22 in quick mode, else 2**27.",
    )
    time_budget: float | None = Field(
        None, gt=0, description="Seconds after which no further figure is begun; null: 8, 120 or 900, by mode."
    )
    against: str | None = Field(
        None, pattern="^[0-9a-f]{32}$", description="MLflow run id of an earlier benchmark to be compared with."
    )


class PredictionParameters(Tracking, Reading, Listing):
    """All parameters of the predicting flow, flat, in the order of its form."""

    group: ClassVar[str] = "Prediction"

    cache: bool = Field(False, description=Reading.model_fields["cache"].description)
    model: str | None = Field(
        None,
        pattern="^(models|runs):/.+",
        description="The model to predict with, models:/name@alias, models:/name/version or runs:/id/model; "
        "null: the champion of the experiment.",
    )
    output: str | None = Field(
        None,
        min_length=1,
        description="Folder to write to, a local path or any fsspec URL; null: predictions beside the shards.",
    )
    format: Literal["csv", "parquet"] = Field("csv", description="What the predictions are written as.")
