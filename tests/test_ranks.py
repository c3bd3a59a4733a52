"""A training over ranks: the same curve and the same weights, to the last bit, for every number of them."""

from typing import Any

import pytest

from deployments.generator import write_data
from flows.training import choose_features
from tasks.facts import TrainingData, TrainingJob
from tasks.parameters import TrainingParameters
from tasks.sources import resolve_sources
from tasks.streaming import locate
from tests.ranks import ALONE, run_ranks

ROWS, ITERATIONS = 5000, 12
SIZES, MORE = [1, 2, 3, 4, 8], [7, 9]  # ranks, each a process that imports torch
JOBS: dict[str, dict[str, Any]] = {
    "SGD, a batch that no number of ranks divides, rows that all ranks see": {"batch_size": 2999},
    "SGD, streamed": {"batch_size": 2999, "resident_bytes": 0},
    "SGD, each rank keeps its rows": {"batch_size": 2500},
    "SGD, float32": {"batch_size": 5000, "dtype": "float32"},
    "SGD, one slice: all ranks but one are without rows": {"batch_size": 700},
    "Adam, shuffled": {"batch_size": 2999, "optimizer": "Adam", "learning_rate": 0.05, "shuffle": True},
    "Adam, clipped": {"batch_size": 7001, "optimizer": "Adam", "learning_rate": 0.05, "gradient_norm": 0.5},
}


@pytest.fixture(scope="module")
def found(tmp_path_factory, request):
    """What each rank got from each job, by number of ranks."""
    folder = tmp_path_factory.mktemp("shards")
    write_data(folder, ROWS)
    shards = f"{folder}/csv/dev/part*.csv"
    manifest = locate(shards)
    data = TrainingData(train=manifest, test=None, rows_of="train", judged_on="the same rows", statistics={})
    jobs = []
    for words in JOBS.values():
        given = TrainingParameters(shards=shards, iterations=ITERATIONS, **words)
        jobs.append(
            TrainingJob(
                parameters=given,
                sources=resolve_sources(given),
                data=data,
                features=choose_features(manifest, given),
                run_id="none",
            )
        )
    assert manifest.rows == ROWS
    sizes = [*SIZES, *MORE] if request.config.getoption("--long") else SIZES
    return run_ranks(sizes, jobs, tmp_path_factory.mktemp("ranks"))


@pytest.mark.parametrize("size", [*SIZES, *(pytest.param(size, marks=pytest.mark.long) for size in MORE)])
@pytest.mark.parametrize("job", JOBS)
def test_every_rank_has_the_curve_and_the_weights_of_one_process_to_the_last_bit(job, size, found):
    at = list(JOBS).index(job)
    alone = found[ALONE][0][at]
    assert len(alone["curve"]) == ITERATIONS
    assert len(set(alone["curve"])) > 2
    assert [rank[at] for rank in found[size]] == [alone] * size
