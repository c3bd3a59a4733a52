"""A search's trials on streamed shards, of several batch sizes at once: each equals the training of its own."""

import optuna
import pytest

from deployments.generator import write_data
from flows.training import choose_features
from tasks.data import set_aside
from tasks.facts import SearchJob, TrainingData, TrainingJob
from tasks.parameters import SearchParameters
from tasks.sources import resolve_sources
from tasks.streaming import locate
from tasks.training.matrices import SearchData
from tasks.training.ranks import train_rank
from tasks.training.search import try_generation
from tasks.training.space import choose_all_features

BATCH, TRIALS = 700, 16
TRIED = [
    *("batch_size=700|1400|2100|4900", "iterations=3..12", "learning_rate=0.001..0.1", "gradient_norm", "derive"),
    *("optimizer", "optimizer_options", "schedule", "l2", "features"),
]


@pytest.fixture(scope="module", params=[False, True], ids=["as stored", "shuffled"])
def job(request, tmp_path_factory):
    """A search over few rows: the largest batches begin again where they end, and none is a part of an epoch."""
    folder = tmp_path_factory.mktemp("shards")
    write_data(folder, 5000)
    given = SearchParameters(
        shards=f"{folder}/csv/dev/part*.csv",
        search=TRIED,
        batch_size=BATCH,
        shuffle=request.param,
        halving=False,
        device="cpu",
    )
    manifest = locate(str(given.shards))
    located = TrainingData(train=manifest, test=None, rows_of="train", judged_on="nothing", statistics={})
    data = set_aside(located, 0)
    assert data.train.rows % BATCH
    assert data.train.rows < 4900
    features = choose_all_features(manifest.columns, given)
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


def test_each_trial_equals_a_training_with_its_batch_size(job):
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1))
    data = SearchData.open(job)
    outcomes = try_generation(study, data, job, TRIALS).values()
    assert {each.state for each in outcomes} == {"complete"}
    assert {each.parameters["batch_size"] for each in outcomes} == {700, 1400, 2100, 4900}
    for each in outcomes:
        assert each.curve == pytest.approx(train_alone(job, each.parameters), rel=1e-12), each.parameters
