"""Trainings and searches over ranks: the same curves, weights and scores, to the last bit, for every number of them."""

import json
from typing import Any

import pytest

from deployments.generator import write_data
from flows.training import choose_features
from tasks.data import set_aside
from tasks.facts import SearchJob, TrainingData, TrainingJob
from tasks.learning.reduction import slice_rows
from tasks.parameters import SearchParameters, TrainingParameters
from tasks.sources import resolve_sources
from tasks.streaming import ObjectStorageDataset, Placement, locate
from tasks.training.space import choose_all_features
from tests.awsproxy import AwsProxy
from tests.ranks import ALONE, run_ranks
from tests.servers import BUCKET, serve_rclone
from tests.shards import write_shards

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
    jobs.append(make_search(shards, data))
    sizes = [*SIZES, *MORE] if request.config.getoption("--long") else SIZES
    return run_ranks(sizes, jobs, tmp_path_factory.mktemp("ranks"))


def make_search(shards, data):
    """A search whose largest batches are more than all rows, with one that is a slice alone to compare trials on."""
    tried = ["batch_size=2999|5998", "learning_rate=0.001..0.1", "optimizer", "features", "iterations=4..8"]
    given = SearchParameters(shards=shards, search=tried, batch_size=2999, trials=6, device="cpu")
    return SearchJob(
        parameters=given,
        sources=resolve_sources(given),
        data=set_aside(data, 0),
        features=choose_all_features(data.train.columns, given),
        run_id="none",
    )


@pytest.mark.parametrize("size", [*SIZES, *(pytest.param(size, marks=pytest.mark.long) for size in MORE)])
@pytest.mark.parametrize("job", JOBS)
def test_every_rank_has_the_curve_the_weights_and_the_scores_of_one_process_to_the_last_bit(job, size, found):
    at = list(JOBS).index(job)
    alone = found[ALONE][0][at]
    assert len(alone["curve"]) == ITERATIONS
    assert len(set(alone["curve"])) > 2
    assert alone["gone on with"] == alone["on the way"]
    assert [rank[at] for rank in found[size]] == [alone] * size


@pytest.mark.parametrize("size", [*SIZES, *(pytest.param(size, marks=pytest.mark.long) for size in MORE)])
def test_every_rank_has_the_trials_of_a_search_in_one_process_to_the_last_bit(size, found):
    alone = found[ALONE][0][-1]
    states, values, _ = zip(*map(json.loads, alone["trials"]), strict=True)
    assert {"complete", "pruned"} <= set(states)
    assert len(set(values)) == 6
    assert [rank[-1] for rank in found[size]] == [alone] * size


SHARDS, SHARD_ROWS = 60, 100


@pytest.fixture(scope="module")
def bucket(tmp_path_factory):
    """The bytes of many small shards, and the URL of a server of them."""
    folder = tmp_path_factory.mktemp("s3")
    write_shards(folder / BUCKET, [SHARD_ROWS] * SHARDS, metadata=True)
    with serve_rclone(folder) as url:
        yield sum(path.stat().st_size for path in (folder / BUCKET).glob("part*")), url


@pytest.mark.parametrize(
    ("size", "batch_size", "options"),
    [
        (4, 6000, {"stop": 1}),
        (2, 3000, {"stop": 2}),
        (2, 2500, {"epochs": 1}),
        (5, 6000, {"epochs": 1}),
    ],
)
def test_a_rank_fetches_the_shards_that_it_has_rows_of_and_all_ranks_little_more_than_the_data(
    size, batch_size, options, bucket, monkeypatch
):
    data, server = bucket
    for name, value in {"ACCESS_KEY_ID": "key", "SECRET_ACCESS_KEY": "secret", "DEFAULT_REGION": "us-east-1"}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    manifest = locate(f"s3://{BUCKET}/part*.csv", storage_options={"endpoint_url": server})
    fetched = 0
    for rank in range(size):
        with AwsProxy(upstream=server) as proxy:
            placement = Placement(rank=rank, world_size=size, slice_rows=slice_rows(batch_size))
            storage = {"endpoint_url": proxy.url}
            dataset = ObjectStorageDataset(
                manifest, batch_size=batch_size, placement=placement, storage_options=storage, **options
            )
            numbers = [int(number) // SHARD_ROWS for batch in dataset for number in batch[:, 0]]
        wanted = {f"GET /{BUCKET}/part-{number:05d}.csv" for number in numbers}
        assert {asked for asked, _ in proxy.sent} == wanted
        fetched += sum(bytes_ for _, bytes_ in proxy.sent)
    assert data <= fetched <= 1.1 * data
