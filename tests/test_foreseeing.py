"""What a run will ask for is foreseen to the request: told by the plan, counted by the stream and by the server."""

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest

from tasks.data import hold_out
from tasks.evaluation import complete_sums, score_beside
from tasks.facts import Located, TrainingData, TrainingJob
from tasks.learning.features import Features
from tasks.learning.loop import train
from tasks.learning.scoring import Moments
from tasks.learning.sums import MomentSums
from tasks.parameters import TrainingParameters
from tasks.runs.promotion import Champion
from tasks.sources import open_dataset, resolve_sources
from tasks.streaming import locate, splitting
from tasks.streaming.objects.traffic import Traffic, read_traffic
from tasks.training import exact
from tasks.training.exact import pass_alone
from tasks.training.foreseeing import foresee_parts
from tasks.training.start import start_trainer
from tests.counting import note_answers, serve_kinds
from tests.servers import BUCKET

COUNTS = (400, 400, 400, 300, 250)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """The URL of a server with shards of each kind."""
    with serve_kinds(tmp_path_factory.mktemp("shards"), COUNTS) as url:
        yield url


@pytest.fixture
def sent(server, monkeypatch, tmp_path):
    """The bytes of each answer of the server, in an empty working directory."""
    monkeypatch.chdir(tmp_path)
    with note_answers(server, monkeypatch) as sent:
        yield sent


@dataclass(frozen=True)
class Silent:
    """Stands where a step would show its progress in Prefect."""

    total: int

    def show(self, done: int) -> None: ...


def make_job(kind="csv", judged="held-out", **given: Any) -> TrainingJob:
    """A job over shards that are located now, as the flow makes it."""
    uri = f"s3://{BUCKET}/{kind}/part*"
    settings = {"shards": uri, "cache": False, "resident_bytes": 0, "batch_size": 250, "iterations": 16, "prefetch": 1}
    parameters = TrainingParameters(**(settings | given))
    manifest = locate(uri)
    whole = TrainingData(train=manifest, test=None, rows_of="train", judged_on="", statistics={})
    test = locate(uri, max_shards=2)
    data = {
        "held-out": lambda: hold_out(Located(manifest=manifest, statistics={})),
        "train": lambda: whole,
        "test": lambda: TrainingData(train=manifest, test=test, rows_of="test", judged_on="", statistics={}),
    }[judged]()
    features = Features.choose(manifest.columns, derive=())
    return TrainingJob(
        parameters=parameters.sized(data.train.rows), sources=resolve_sources(parameters), data=data, features=features,
        run_id="",
    )  # fmt: skip


def learn(job: TrainingJob, first: int = 0) -> Any:
    """Go through all that a run goes through; nothing is recorded."""
    sums: MomentSums | None
    if job.parameters.solver == "exact":
        sums = pass_alone(job).sums
    else:
        started = start_trainer(job, None)
        for _ in train(started.trainer, started.batches):
            pass
        assert started.first_pass
        sums = started.first_pass.sums()
    fit: Any = SimpleNamespace(moments=sums)
    moments = Moments(job.features)
    moments.restore(complete_sums(job, fit))
    model = moments.exact()
    return score_beside(Champion(), {"trained": model}, job)


RUNS: dict[str, dict[str, Any]] = {
    "several passes": {},
    "kept in the cache": {"cache": True},
    "kept in memory": {"resident_bytes": None},
    "kept in memory and in the cache": {"resident_bytes": None, "cache": True},
    "test shards": {"judged": "test"},
    "judged on the training rows": {"judged": "train", "cache": True},
    "the exact solver": {"solver": "exact"},
    "fewer iterations than a pass": {"iterations": 3},
    "bad rows set aside": {"kind": "bad", "on_bad_rows": "quarantine", "judged": "test"},
    "bad rows set aside, kept in the cache": {"kind": "bad", "on_bad_rows": "quarantine", "cache": True},
    "gzip": {"kind": "gzip", "resident_bytes": None},
    "parquet": {"kind": "parquet", "cache": True},
    "shuffled": {"shuffle": True, "resident_bytes": None},
    "a batch larger than the data": {"batch_size": 4000, "iterations": 5},
    "rows not a multiple of a batch, kept in memory": {"batch_size": 333, "resident_bytes": None, "iterations": 40},
}


def check(job: TrainingJob, sent: list[int]) -> int:
    """Hold what is foreseen to what the stream counts, and the server; return the requests."""
    if job.parameters.on_bad_rows == "quarantine":  # as the preview does, which comes before the forecast
        open_dataset(job.data.train, job.sources, job.parameters)
    before, earlier = read_traffic(), len(sent)
    parts = list(foresee_parts(job, 0))
    assert read_traffic() == before
    expected = Traffic(
        requests=sum(part.expected.requests for part in parts), bytes=sum(part.expected.bytes for part in parts)
    )
    learn(job)
    assert read_traffic() - before == expected
    assert Traffic(requests=len(sent) - earlier, bytes=sum(sent[earlier:])) == expected
    return expected.requests


@pytest.mark.parametrize("case", RUNS)
def test_requests_are_as_foreseen(case, sent, monkeypatch):
    monkeypatch.setattr(exact, "ProgressArtifact", Silent)
    job = make_job(**RUNS[case])
    first = check(job, sent)
    again = check(job, sent)  # what the first run left in the cache, or knows of bad rows, is foreseen too
    assert first >= again and first > 0
    assert (again == 0) == job.parameters.cache


@pytest.mark.parametrize("cached", [False, True])
def test_ranges_of_one_large_shard_are_foreseen(cached, sent, monkeypatch):
    monkeypatch.setattr("tasks.streaming.loading.LARGE", 5000)
    monkeypatch.setattr(splitting, "RANGE", 3000)
    job = make_job(cache=cached, iterations=8)
    parts = list(foresee_parts(job, 0))
    before, earlier = read_traffic(), len(sent)
    learn(job)
    expected = sum(part.expected.requests for part in parts)
    assert (read_traffic() - before).requests == len(sent) - earlier == expected > len(COUNTS)


@pytest.mark.parametrize("judged", ["held-out", "test"])
def test_a_run_that_goes_on_asks_for_what_is_left(judged, sent):
    job = make_job(judged=judged)
    whole, rest = (sum(part.expected.requests for part in foresee_parts(job, first)) for first in (0, 12))
    assert 0 < rest < whole


def test_what_stays_in_memory_is_fetched_once_only(sent):
    """Nothing is fetched ahead for a second pass that will take no stream."""
    job = make_job(resident_bytes=None, judged="test", iterations=100)
    earlier = len(sent)
    learn(job)
    assert len(sent) - earlier == len(COUNTS) + len(job.data.judged.shards)


def test_rows_that_do_not_stay_after_all_are_streamed_on_to_the_same_curve(sent, monkeypatch):
    """Whatever was expected of memory, the device may have no room left when it is asked for."""
    streamed = curve_of(make_job(iterations=30))
    monkeypatch.setattr("tasks.learning.tables.Table.allocate", lambda _: False)
    assert curve_of(make_job(iterations=30, resident_bytes=None)) == streamed


def curve_of(job: TrainingJob) -> list[float]:
    started = start_trainer(job, None)
    return [each.mse for each in train(started.trainer, started.batches)]
