"""Ranks on a real Ray, followed by functions of this process: killed, fewer, more, left; the curve is that of one."""

import threading
from contextlib import closing, contextmanager
from dataclasses import replace
from functools import partial

import psutil
import pytest
from prefect.logging import disable_run_logger

from deployments.generator import write_data
from deployments.processes import wait_until
from flows.training import choose_features
from tasks.data import set_aside
from tasks.facts import RankTimes, SearchJob, TrainingData, TrainingJob
from tasks.learning.loop import train
from tasks.parameters import SearchParameters, TrainingParameters
from tasks.ranks.cluster import SHRINKING
from tasks.ranks.parts import Tally
from tasks.sources import resolve_sources
from tasks.streaming import locate
from tasks.training.following import follow_ranks
from tasks.training.matrices import follow_ranks as follow_ranks_of_search
from tasks.training.measuring import Progress, measure_batches
from tasks.training.member import train as train_as_rank
from tasks.training.space import choose_all_features
from tasks.training.start import follow_trainer, start_trainer
from tests.rays import kill_tree, name, ranks_of, start_cluster

pytestmark = pytest.mark.timeout(600)

ITERATIONS, UNTIL = 400, 3  # as many as ranks cannot have told when so few are taken: they wait for the record


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards")
    write_data(folder, 20_000)
    return f"{folder}/csv/dev/part*.csv"


def make_job(shards, ranks=1, iterations=ITERATIONS, **more):
    given = TrainingParameters(shards=shards, iterations=iterations, batch_size=3000, ranks=ranks, **more)
    data = TrainingData(train=locate(shards), test=None, rows_of="train", judged_on="the same rows", statistics={})
    return TrainingJob(
        parameters=given,
        sources=resolve_sources(given),
        data=data,
        features=choose_features(data.train, given),
        run_id="none",
    )


def train_alone(job):
    """The trainer at its end, and the curve."""
    started = start_trainer(job, None)
    return started.trainer, [iteration.mse for iteration in train(started.trainer, started.batches)]


@contextmanager
def joined(monkeypatch, *cpus):
    """A cluster of so many nodes, which this process's ranks run on."""
    with start_cluster(*cpus) as (nodes, variables), disable_run_logger():
        for variable in variables.keys() - SHRINKING.keys():
            monkeypatch.setenv(variable, variables[variable])
        yield nodes


def test_a_rank_that_is_killed_is_started_again_and_the_curve_is_that_of_one_process(shards, monkeypatch):
    """On a cluster of two nodes with room for one rank each."""
    alone, expected = train_alone(make_job(shards))
    job = make_job(shards, ranks=2)
    started, found = follow_trainer(job, None), []
    with joined(monkeypatch, 1, 1) as nodes:
        with closing(follow_ranks(job, started, lambda _: None)) as iterations:
            for iteration in iterations:
                found.append(iteration.mse)
                if len(found) == UNTIL:
                    ranks = ranks_of(nodes)
                    assert len({rank.ppid() for rank in ranks}) == 2
                    ranks[1].kill()
        assert wait_until(lambda: ranks_of(nodes) == [], 30)
    assert found == expected
    assert started.trainer.w.equal(alone.w) and started.trainer.b.equal(alone.b)
    assert not {rank.pid for rank in ranks} & {each.process for each in started.ranks}


def is_one_anew(ranks, before):
    return len(ranks) == 1 and not set(ranks) & set(before)


@pytest.mark.long
def test_ranks_become_fewer_and_more_with_the_cluster_and_the_curve_is_that_of_one_process(shards, monkeypatch):
    alone, expected = train_alone(make_job(shards, iterations=2000))
    job = make_job(shards, ranks=2, fewest_ranks=1, iterations=2000)
    started, found, sizes = follow_trainer(job, None), [], [2]
    monkeypatch.setattr("tasks.ranks.group.RESIZING_SECONDS", 2.0)
    with joined(monkeypatch, 0, 1, 1) as nodes, closing(follow_ranks(job, started, lambda _: None)) as iterations:
        for iteration in iterations:
            found.append(iteration.mse)
            if len(found) == UNTIL:
                first = ranks_of(nodes)
                kill_tree(first[1].parent())
            elif len(found) % 100 == 0 and sizes == [2] and is_one_anew(ranks_of(nodes), first):
                sizes.append(1)
                nodes.stdin.write("1\n")
                nodes.stdin.flush()
                assert wait_until(lambda: len(ranks_of(nodes)) == 2, 120)
                sizes.append(2)
    assert sizes == [2, 1, 2]
    assert found == expected
    assert started.trainer.w.equal(alone.w) and started.trainer.b.equal(alone.b)
    assert [each.rank for each in started.ranks] == [0, 1]


@pytest.mark.long
def test_a_search_whose_rank_is_killed_goes_on_and_measures_what_one_process_does(shards):
    given = SearchParameters(shards=shards, iterations=ITERATIONS, batch_size=3000, ranks=2, shuffle=True)
    data = set_aside(make_job(shards).data, 0)
    features = choose_all_features(data.train.columns, given)
    sources = resolve_sources(given)
    job = SearchJob(parameters=given, sources=sources, data=data, features=features, run_id="none")
    times: list[RankTimes] = []
    found = []
    with disable_run_logger(), closing(follow_ranks_of_search(job, Progress(), times)) as telling:
        for told in telling:
            found.append(told)
            if len(found) == UNTIL:
                killed = ranks_of(psutil.Process())[1]
                killed.kill()
                killed.wait()
    assert len(found) == 1 + ITERATIONS
    assert found == list(measure_batches(job, Progress(), Tally(0)))
    assert [each.rank for each in times] == [0, 1]
    assert killed.pid not in {each.process for each in times}


@pytest.mark.long
def test_ranks_that_are_left_early_leave_no_process_and_nothing_that_waits_for_them(shards):
    job = make_job(shards, ranks=2)
    others = psutil.Process().children(recursive=True)  # of fixtures that outlive a test
    with disable_run_logger(), closing(follow_ranks(job, follow_trainer(job, None), lambda _: None)) as iterations:
        next(iterations)
        kin = [each for each in psutil.Process().children(recursive=True) if each not in others]
        assert len(ranks_of(psutil.Process())) == 2
        assert "ranks" in {thread.name for thread in threading.enumerate()}
    assert wait_until(lambda: "ranks" not in {thread.name for thread in threading.enumerate()}, 5)
    _, left = psutil.wait_procs(kin, timeout=5)
    assert not [name(each) for each in left]


def test_what_ranks_are_given_holds_no_secret(shards, aws):
    import ray.cloudpickle

    job = replace(make_job(shards, ranks=2), sources=resolve_sources(TrainingParameters()))
    given = ray.cloudpickle.dumps(partial(train_as_rank, job=job))
    values = [value for variable, value in aws.environment.items() if "SECRET" in variable or "TOKEN" in variable]
    assert values and not [value for value in values if value.encode() in given]
