"""The parameters of the flows beside training, each model made of the same parts."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from tasks.parameters.data import Checked, Listing, Reading, Rows, Shards
from tasks.parameters.marks import OWN, RECORD, Parameters
from tasks.parameters.training import Device, Ranks, Tracking


class ReplayParameters(Parameters):
    """The replaying flow needs none: it completes what it finds."""


class ContractParameters(Tracking):
    """All parameters of the contracting flow, flat, in the order of its form."""

    group: ClassVar[str] = "Contract"

    experiment: Annotated[str, RECORD, OWN] = Field(
        "shardline", min_length=1, description="MLflow experiment whose champion's rows the contract is drafted from."
    )
    run: str | None = Field(
        None,
        pattern="^[0-9a-f]{32}$",
        description="MLflow run id of a training whose rows it is drafted from; empty: that of the champion.",
    )
    margin: float = Field(
        0.0,
        ge=0,
        description="Bounds are wider than what was seen by this share of each column's range; 0: they are as seen.",
    )
    output: str = Field(
        "contract.yaml", min_length=1, description="File to write, a local path; one that is there is left as it is."
    )


class BenchmarkParameters(Tracking, Device, Shards):
    """All parameters of the benchmarking flow, flat, in the order of its form."""

    group: ClassVar[str] = "Benchmark"

    experiment: Annotated[str, RECORD, OWN] = Field(
        "shardline",
        min_length=1,
        description="MLflow experiment of the trainings that this is about; the benchmark is recorded beside it, in "
        "shardline-benchmarks.",
    )
    mode: Literal["quick", "standard", "thorough"] = Field(
        "standard", description="How much is measured, how often repeated: for seconds, two minutes or a quarter hour."
    )
    max_size: int | None = Field(
        None,
        ge=1,
        le=2**34,
        description="Most elements of the vectors in a + b; empty: 2^22 in quick mode, else 2^27.",
    )
    time_budget: float | None = Field(
        None, gt=0, description="Seconds after which no further figure is begun; empty: 8, 120 or 900, by mode."
    )
    against: str | None = Field(
        None, pattern="^[0-9a-f]{32}$", description="MLflow run id of an earlier benchmark to be compared with."
    )


class Drifting(Parameters):
    """From when on data is said to have drifted from what a model was trained on."""

    group: ClassVar[str] = "Drift"

    drift_psi: Annotated[float, RECORD] = Field(
        0.1,
        gt=0,
        description="Population stability index from which a column has drifted, where chance does not explain it in "
        "so few rows; 0.1: a small shift, 0.25: a large one.",
    )
    drift_ks: Annotated[float, RECORD] = Field(
        0.125,
        gt=0,
        le=1,
        description="Kolmogorov-Smirnov distance from which a column has drifted likewise; where the mean of a normal "
        "column moves, 0.125 is as far as an index of 0.1, 0.2 as one of 0.25.",
    )


class PredictionParameters(Tracking, Drifting, Ranks, Rows, Checked, Listing):
    """All parameters of the predicting flow, flat, in the order of its form."""

    group: ClassVar[str] = "Prediction"

    experiment: Annotated[str, RECORD, OWN] = Field(
        "shardline",
        min_length=1,
        description="MLflow experiment whose champion predicts; the run is recorded beside it, in "
        "shardline-predictions.",
    )
    model: str | None = Field(
        None,
        pattern="^(models|runs):/.+",
        description="The model to predict with, models:/name@alias, models:/name/version or runs:/id/model; "
        "empty: the champion of the experiment.",
    )
    output: str | None = Field(
        None,
        min_length=1,
        description="Folder to write to, a local path or any fsspec URL; empty: predictions beside the shards.",
    )
    format: Literal["csv", "parquet"] = Field(
        "csv",
        description="What the predictions are written as; csv adds a cell to each line of CSV, parquet keeps Parquet's "
        "types.",
    )


class PromotionParameters(Tracking):
    """All parameters of the promoting flow, flat, in the order of its form."""

    group: ClassVar[str] = "Promotion"

    experiment: Annotated[str, RECORD, OWN] = Field(
        "shardline", min_length=1, description="MLflow experiment whose model gets another champion."
    )
    version: int | None = Field(
        None,
        ge=1,
        description="Version that becomes champion; empty: the one that was champion before the present one.",
    )
    reason: str = Field(
        min_length=1, max_length=2000, description="Why; it is kept with the versions, and told to whoever is notified."
    )
    by: str | None = Field(
        None, min_length=1, max_length=200, description="Who decided it; empty: the user that the run runs as."
    )


class MonitoringParameters(Tracking, Drifting, Reading, Checked, Listing):
    """All parameters of the monitoring flow, flat, in the order of its form."""

    group: ClassVar[str] = "Monitoring"

    experiment: Annotated[str, RECORD, OWN] = Field(
        "shardline",
        min_length=1,
        description="MLflow experiment whose champion's training data the shards are compared with; the run is "
        "recorded beside it, in shardline-monitoring.",
    )
    model: str | None = Field(
        None,
        pattern="^(models|runs):/.+",
        description="The model whose training data the shards are compared with, models:/name@alias, "
        "models:/name/version or runs:/id/model; empty: the champion of the experiment.",
    )
