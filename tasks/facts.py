"""What passes from step to step: plain facts, frozen, that Prefect's JSON serializer writes and reads back.

Their fields' types are imported here and not for a type checker alone, since the serializer needs them; none of these
imports brings torch, pyarrow or MLflow.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from pydantic import JsonValue

from tasks.learning.features import Features
from tasks.learning.profiles import DataProfile
from tasks.learning.scores import Density, Score, Slice
from tasks.learning.sums import MomentSums
from tasks.parameters import SearchParameters, TrainingParameters
from tasks.sources import Sources
from tasks.streaming.listing.statistics import ColumnStatistics
from tasks.streaming.manifest import Manifest
from tasks.streaming.objects.traffic import Traffic

RowsOf = Literal["test", "held-out", "train"]
ROWS_OF: Mapping[RowsOf, str] = {"test": "test", "held-out": "held-out", "train": "training"}  # for people


@dataclass(frozen=True, kw_only=True)
class Located:
    """The shards that a glob matches, and what `.meta/stats` states of their columns; empty where it is of no use."""

    manifest: Manifest
    statistics: Mapping[str, ColumnStatistics]


@dataclass(frozen=True, kw_only=True)
class TrainingData:
    """The shards to train on, and those to judge the model on; `test` is None where they are the same.

    `validation` are those that training leaves to a search, None where none are. `judged_on` says in words what the
    model is judged on; `statistics` are of the rows to train on, empty where nobody stated them.
    """

    train: Manifest
    test: Manifest | None
    rows_of: RowsOf
    judged_on: str
    statistics: Mapping[str, ColumnStatistics]
    validation: Manifest | None = None

    @property
    def judged(self) -> Manifest:
        """The shards that the model is judged on."""
        return self.test or self.train


@dataclass(frozen=True, kw_only=True)
class FirstRead:
    """What was read for the first batch, and what it took, in seconds of one thread; none of fetching from a cache.

    rows, columns, bytes: of the shards that have that batch
    asked: what the store was asked for, a pass that looks for bad rows included
    """

    rows: int
    columns: int
    bytes: int
    asked: Traffic
    fetch_seconds: float
    decode_seconds: float


@dataclass(frozen=True, kw_only=True)
class Preview:
    """The shape and dtype of the training's batches, and what the first rows show of each column.

    `ranges` are (least, most) by column of the first `rows` rows; `outside` has a sentence for each column that leaves
    the range that `.meta/stats` states; `doubts` are of how the first line was taken, and of numbers that are rounded;
    `read` is what it took to read them.
    """

    batch_shape: tuple[int, int]
    dtype: str
    rows: int
    ranges: Mapping[str, tuple[float, float]]
    outside: tuple[str, ...]
    first: tuple[tuple[float, ...], ...]
    doubts: tuple[str, ...] = ()
    read: FirstRead | None = None


@dataclass(frozen=True, kw_only=True)
class TrainingJob:
    """One training: its parameters, where its shards are, what they hold, what is learned of them, its MLflow run.

    `edges` are those of the profile's histograms, by column; of others they are chosen by the first batch.
    """

    parameters: TrainingParameters
    sources: Sources
    data: TrainingData
    features: Features
    run_id: str
    edges: Mapping[str, tuple[float, ...]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class SearchJob:
    """One search, as `TrainingJob` is one training; `features` are all that a trial may have."""

    parameters: SearchParameters
    sources: Sources
    data: TrainingData
    features: Features
    run_id: str


@dataclass(frozen=True, kw_only=True)
class Searched:
    """What a search has found: the best trial's number, its parameters where they are not the search's own, its error.

    `mse` is the mean squared error on the validation rows; `counts` are of the trials by their state; so many batches
    were `streamed`.
    """

    number: int
    best: Mapping[str, JsonValue]
    mse: float
    counts: Mapping[str, int]
    validation_rows: int
    streamed: int
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Ridge:
    """The strength of the penalty with which the exact model has the least error over `folds` folds of shards.

    `mse` is that error, cross-validated, and `without` the one without a penalty.
    """

    l2: float
    mse: float
    without: float
    folds: int


@dataclass(frozen=True, kw_only=True)
class StreamTimes:
    """Seconds that the stream's stages took in the background, added up over its batches and threads."""

    fetch_seconds: float
    decode_seconds: float
    assemble_seconds: float


@dataclass(frozen=True, kw_only=True)
class FitTimes:
    """How long fitting took, and for which parts of it the loop waited, copied and computed, in seconds.

    `stream` is None where worker processes streamed, or nothing was left to stream: nobody counted. `stages` has the
    seconds of each iteration by what it did (waiting, copying, computing); it is empty for a model solved in one pass.
    """

    seconds: float
    wait_seconds: float
    copy_seconds: float
    compute_seconds: float
    stream: StreamTimes | None
    stages: Mapping[str, tuple[float, ...]]


@dataclass(frozen=True, kw_only=True)
class RankTimes:
    """Where one rank's time went since it began last, in seconds; `gather_seconds`, a part of computing, it waited for
    the sums of the others.

    process: its number on `host`
    rows: of its own, those of all its iterations together
    """

    rank: int
    host: str
    process: int
    iterations: int
    rows: int
    wait_seconds: float
    copy_seconds: float
    compute_seconds: float
    gather_seconds: float

    @property
    def busy_seconds(self) -> float:
        """How long it took without waiting for other ranks: that of the slowest one is what the run takes."""
        return self.wait_seconds + self.copy_seconds + self.compute_seconds - self.gather_seconds


@dataclass(frozen=True, kw_only=True)
class Fit:
    """A fitted model for raw features, and how it came about.

    `curve` is the mean squared error of each iteration; `rows` are those of all iterations together; `learning_rate` is
    None for a model that was solved exactly, `condition` the condition number of the first batch's Hessian where the
    steps were made by it; `bad_rows` were left out, and `bad_rows_file` lists them; so many shards of the cache were
    found `damaged` meanwhile, and fetched again; `moments`
    are of the rows that were trained on, each taken once; None where a part of them is not known; `ranks` are those
    that trained, where there were several.
    """

    weights: tuple[float, ...]
    bias: float
    learning_rate: float | None
    condition: float | None
    device: str
    curve: tuple[float, ...]
    rows: int
    times: FitTimes
    bad_rows: int
    bad_rows_file: str | None
    moments: MomentSums | None
    damaged: int = 0
    ranks: tuple[RankTimes, ...] | None = None  # () is one object everywhere, and Prefect's graph goes by objects

    @property
    def iterations(self) -> int:
        """How often the weights were moved."""
        return len(self.curve)


@dataclass(frozen=True, kw_only=True)
class Promotion:
    """Whether a model becomes champion, against which version it was held (None: there was none), and why."""

    wins: bool
    against: str | None
    verdict: str


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What a model is worth: its score beside those of other models on the same rows, and a sentence.

    `scores` are of the models trained, exact and mean, and of the champion where it was comparable; `slices` have them
    by slice of the rows. `density` is of the trained model, and `standardised` its weights, in deviations of the target
    for one deviation of the feature. `train_mse` is the mean squared error over all rows trained on, without the
    champion's. `train_profile` says what the rows trained on hold, `test_profile`, between the same edges, those that
    were held out; None where there are none of them, or an earlier version took a part in.
    """

    rows_of: RowsOf
    scores: Mapping[str, Score]
    slices: tuple[Slice, ...]
    density: Density
    standardised: Mapping[str, float]
    verdict: str
    promotion: Promotion
    train_mse: Mapping[str, float]
    train_profile: DataProfile | None = None
    test_profile: DataProfile | None = None


@dataclass(frozen=True, kw_only=True)
class Reference:
    """What a model was trained on, which other data is compared with, and how far off it was when it was judged.

    model: its URI by version
    known: names of all columns that its training shards had, read or not
    rmse: its error when it was judged, on what `judged_on` says in words; None where the run that made it is not there
    """

    model: str
    profile: DataProfile
    known: tuple[str, ...]
    target: str | None
    rmse: float | None
    judged_on: str


@dataclass(frozen=True, kw_only=True)
class ChosenModel:
    """A model to predict with: its URI by version, the run that made it where known, and what it predicts from what.

    `reference` is what it was trained on, None where it does not say.
    """

    uri: str
    run_id: str
    target: str | None
    inputs: tuple[str, ...]
    reference: Reference | None = None


@dataclass(frozen=True, kw_only=True)
class Predicted:
    """What was predicted, how fast, and how far from the target; `rmse` is None where the shards do not have it.

    `bad_rows` were left out, and `bad_rows_file` lists them. `profile` is what the columns hold that were read, None
    where the model does not say what it was trained on.
    """

    model: str
    rows: int
    shards: int
    seconds: float
    bad_rows: int
    bad_rows_file: str | None
    rmse: float | None
    profile: DataProfile | None = None


@dataclass(frozen=True, kw_only=True)
class Observed:
    """What shards hold today, and a model's errors on them; `score` is None where they do not have its target.

    `bad_rows` were left out, and `bad_rows_file` lists them.
    """

    profile: DataProfile
    score: Score | None
    bad_rows: int
    bad_rows_file: str | None
