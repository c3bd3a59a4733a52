"""A search's trials on streamed shards, of several batch sizes at once: each equals the training of its own."""

from contextlib import closing
from pathlib import Path

import optuna
import pytest

from deployments.generator import write_data
from flows.training import choose_features
from tasks.data import set_aside
from tasks.facts import SearchJob, TrainingData, TrainingJob
from tasks.parameters import CONSTANTS, SearchParameters
from tasks.sources import resolve_sources
from tasks.streaming import locate
from tasks.training.matrices import SearchData
from tasks.training.ranks import train_rank
from tasks.training.search import try_generation
from tasks.training.space import choose_all_features

TRIALS, MULTIPLES = 8, (1, 2, 3, 7)
TRIED = [
    *("iterations=3..12", "learning_rate=0.001..0.1", "gradient_norm", "derive", "optimizer", "optimizer_options"),
    *("schedule", "l2", "features"),
]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Few rows: seven batches of each size below are more than all of them."""
    folder = tmp_path_factory.mktemp("shards")
    write_data(folder, 5000)
    manifest = locate(f"{folder}/csv/dev/part*.csv")
    located = TrainingData(train=manifest, test=None, rows_of="train", judged_on="nothing", statistics={})
    return set_aside(located, 0)


def make_job(data, batch_size, shuffle):
    sizes = "|".join(str(batch_size * multiple) for multiple in MULTIPLES)
    shards = f"{Path(data.train.shards[0].uri).parent}/part*.csv"
    given = SearchParameters(
        shards=shards,
        search=[f"batch_size={sizes}", *TRIED],
        batch_size=batch_size,
        shuffle=shuffle,
        halving=False,
        device="cpu",
    )
    features = choose_all_features(data.train.columns, given)
    return SearchJob(parameters=given, sources=resolve_sources(given), data=data, features=features, run_id="none")


def train_alone(job, chosen):
    """The curve of a training with a trial's parameters."""
    given, manifest = job.parameters.training(chosen), job.data.train
    own = TrainingJob(
        parameters=given,
        sources=job.sources,
        data=job.data,
        features=choose_features(manifest, given),
        run_id=job.run_id,
    )
    curve = {}
    train_rank(own, None, lambda iteration: curve.update({iteration.iteration: iteration.mse}))
    return curve


@pytest.mark.parametrize(
    ("part", "shuffle"),
    [(0.155, False), (0.155, True), *(pytest.param(part, False, marks=pytest.mark.long) for part in (0.2, 1))],
    ids=["batches amid an epoch", "shuffled", "five batches again and again", "all rows again and again"],
)
def test_each_trial_equals_a_training_with_its_batch_size(part, shuffle, data):
    batch_size = int(data.train.rows * part)
    assert (part == 0.155) == bool(data.train.rows % batch_size)
    job = make_job(data, batch_size, shuffle)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=7))
    with closing(SearchData.open(job)) as measured:
        outcomes = try_generation(study, measured, job, TRIALS).values()
    assert {each.state for each in outcomes} == {"complete"}
    assert {each.parameters["optimizer"] for each in outcomes} == set(CONSTANTS)
    assert {each.parameters["batch_size"] for each in outcomes} == {batch_size * each for each in MULTIPLES}
    for each in outcomes:
        assert each.curve == pytest.approx(train_alone(job, each.parameters), rel=1e-12), each.parameters
