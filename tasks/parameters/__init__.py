"""Every parameter of every flow, defined once: name, type, bounds, default, what it touches, and a sentence.

The flows' signatures, the forms in the Prefect UI, the command lines and their `--help`, MLflow's params, and which of
them a stopped run must have the same to go on, derive from the models here (`flows.commandline`, `tasks.runs`). A model
is frozen and knows its own cross-field rules; what needs the environment to be answered (which bucket, which region) is
in `tasks.sources`.
"""

from tasks.parameters.data import ADDRESSES, MOST_ROWS, Access, Checked, Listing, Reading, Rows, Shards, Source, Stream
from tasks.parameters.flows import (
    BenchmarkParameters,
    ContractParameters,
    Drifting,
    MonitoringParameters,
    PredictionParameters,
    PromotionParameters,
    ReplayParameters,
)
from tasks.parameters.marks import Mark, Parameters, Searchable
from tasks.parameters.optimizers import CONSTANTS
from tasks.parameters.searching import SearchParameters
from tasks.parameters.training import (
    MODEL_PARAMETERS,
    PRESETS,
    Device,
    Model,
    Preset,
    Ranks,
    Resuming,
    Tracking,
    TrainingParameters,
)

__all__ = [
    "ADDRESSES",
    "CONSTANTS",
    "MODEL_PARAMETERS",
    "MOST_ROWS",
    "PRESETS",
    "Access",
    "BenchmarkParameters",
    "Checked",
    "ContractParameters",
    "Device",
    "Drifting",
    "Listing",
    "Mark",
    "Model",
    "MonitoringParameters",
    "Parameters",
    "PredictionParameters",
    "Preset",
    "PromotionParameters",
    "Ranks",
    "Reading",
    "ReplayParameters",
    "Resuming",
    "Rows",
    "SearchParameters",
    "Searchable",
    "Shards",
    "Source",
    "Stream",
    "Tracking",
    "TrainingParameters",
]
