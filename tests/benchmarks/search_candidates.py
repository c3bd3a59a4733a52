"""Many models from the shards in S3: on one pass, one run after the other, and by Optuna over kaen.

    python -m tests.benchmarks.search_candidates NAME MODELS     started by search.py, not by hand

A batch is as large as a shard, which suits kaen best: it reads a shard's beginning again for each batch that starts
within. A run has as many iterations as there are shards to train on, so that it is one pass over them.
"""

from __future__ import annotations

import contextlib
import itertools
import tempfile
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING
from unittest.mock import patch

from tests.benchmarks.stream_candidates import GLOB, answer, open_kaen

if TYPE_CHECKING:
    from optuna.trial import Trial
    from torch import Tensor

    from tasks.facts import SearchJob

NORM = 0.5  # at which the notebook clips


def one_pass(models: str) -> Callable[[], float]:
    """Return what searches as the flow does, in generations, with what Optuna chooses and is told, without halving."""
    from tasks.training.matrices import SearchData
    from tasks.training.search import tell, try_generation
    from tasks.training.study import open_study

    job, count = make_job(), int(models)

    def search() -> None:
        study, size = open_study("search", "tpe", 0), job.parameters.generation
        with contextlib.closing(SearchData.open(job)) as data:
            for first in range(0, count, size):
                tell(study, try_generation(study, data, job, min(size, count - first)))

    return clocked(search)


def runs(models: str) -> Callable[[], float]:
    """Return what trains as the training flow does, without its record, so many times: each run streams anew."""
    from tasks.facts import TrainingJob
    from tasks.learning.loop import train
    from tasks.training.start import start_trainer

    job = make_job()
    given = job.parameters.training({"learning_rate": 0.1})
    own = TrainingJob(parameters=given, sources=job.sources, data=job.data, features=job.features, run_id=job.run_id)

    def train_all() -> None:
        for _ in range(int(models)):
            started = start_trainer(own, None)
            for _ in train(started.trainer, started.batches):
                pass

    return clocked(train_all)


def kaen(models: str) -> Callable[[], float]:
    """Return what lets Optuna train so many models by torch over kaen's stream, with a full run for each.

    What would slow it down is left out: the first run fetches the shards, the others read its local copies of them; the
    study is kept in memory; and a model is judged by its loss on the last batch, which it has not learned from yet.
    Runs follow each other: in two of Optuna's threads (n_jobs) they took no less time.
    """
    import optuna
    from fsspec.implementations.cached import WholeFileCacheFileSystem

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    job = make_job()
    rows, iterations = job.parameters.batch_size or 0, job.parameters.iterations

    def search() -> None:
        WholeFileCacheFileSystem.clear_instance_cache()
        study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=0))
        study.optimize(lambda trial: train_by_torch(itertools.islice(open_kaen(rows), iterations), trial), int(models))

    return clocked(search)


def train_by_torch(batches: Iterable[Tensor], trial: Trial) -> float:
    """Return the loss on the last of the batches of a model that is trained as the notebook trains it."""
    import torch

    w, b = (torch.nn.init.kaiming_uniform_(torch.empty(rows, 1, dtype=torch.float64)) for rows in (8, 1))
    w, b = w.requires_grad_(), b.requires_grad_()
    optimizer = torch.optim.SGD(
        [w, b],
        lr=trial.suggest_float("learning_rate", 0.001, 1, log=True),
        momentum=trial.suggest_float("momentum", 0, 0.99),
        weight_decay=trial.suggest_float("l2", 1e-8, 1, log=True),
    )
    for batch in batches:
        optimizer.zero_grad()
        loss = torch.nn.functional.mse_loss(batch[:, 1:] @ w + b, batch[:, :1])
        loss.backward()
        torch.nn.utils.clip_grad_norm_([w, b], NORM)
        optimizer.step()
    return float(loss.detach())


def make_job() -> SearchJob:
    """Return the search of the shards as the flow would begin it, with nothing kept on disk or in memory."""
    from tasks.data import set_aside
    from tasks.facts import SearchJob, TrainingData
    from tasks.parameters import SearchParameters
    from tasks.sources import resolve_sources
    from tasks.streaming import locate
    from tasks.training.space import choose_all_features

    given = SearchParameters(shards=GLOB, cache=False, resident_bytes=0, halving=False, device="cpu")
    located = TrainingData(train=locate(GLOB), test=None, rows_of="train", judged_on="nothing", statistics={})
    data = set_aside(located, 0)
    shards = data.train.shards
    given = given.model_copy(update={"batch_size": shards[0].rows, "iterations": len(shards)})
    features = choose_all_features(data.train.columns, given)
    return SearchJob(parameters=given, sources=resolve_sources(given), data=data, features=features, run_id="none")


def clocked(call: Callable[[], None]) -> Callable[[], float]:
    """Return what measures the seconds of a call in an empty folder, where its study is kept, and kaen's copies."""

    def measure() -> float:
        with tempfile.TemporaryDirectory() as place, contextlib.chdir(place), patch.object(tempfile, "tempdir", place):
            began = time.perf_counter()
            call()
            return time.perf_counter() - began

    return measure


if __name__ == "__main__":
    answer(globals())
