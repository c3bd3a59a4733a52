"""A search's trials on one pass, beside as many separate runs, and beside Optuna with a full run for each trial.

    python -m tests.benchmarks.search [rows [most separate runs]]

Every run streams the same local shards and decodes them anew (no cache on disk, nothing resident), for as many
iterations as one pass has batches. Optuna keeps its study in SQLite in both ways; the search's time has its choosing
and telling in it, without halving. Times are of one process, in turn; ratios are to one streamed run. Where there
would be more separate runs than asked for, they are left out.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path

from deployments.generator import provide_data
from tasks.data import set_aside
from tasks.facts import SearchJob, TrainingData, TrainingJob
from tasks.learning.loop import train
from tasks.parameters import SearchParameters, TrainingParameters
from tasks.sources import resolve_sources
from tasks.streaming import locate
from tasks.training.matrices import SearchData
from tasks.training.measuring import measure_rows
from tasks.training.search import tell, try_generation
from tasks.training.space import choose_all_features, choose_parameters, make_trial
from tasks.training.start import start_trainer
from tasks.training.study import open_study
from tests.benchmarks.stream_setting import ROOT, describe_machine

ROWS, BATCHES, TRIALS, ROUNDS = 2**22, 16, (1, 8, 50, 200), 3
TRIED = ["learning_rate", "optimizer", "optimizer_options", "schedule", "l2"]


def prepare(rows: int) -> SearchJob:
    """Return the search of some generated rows, on shards of this machine's disk."""
    folder, _ = provide_data(ROOT / ".shardline" / "generated", rows)
    given = SearchParameters(
        shards=f"{folder}/csv/dev/part*.csv", search=TRIED, cache=False, resident_bytes=0, halving=False, device="cpu"
    )
    located = TrainingData(
        train=locate(str(given.shards)), test=None, rows_of="train", judged_on="nothing", statistics={}
    )
    data = set_aside(located, 0)
    batch = -(-data.train.rows // BATCHES)
    given = given.model_copy(update={"batch_size": batch, "iterations": BATCHES})
    features = choose_all_features(data.train.columns, given)
    return SearchJob(parameters=given, sources=resolve_sources(given), data=data, features=features, run_id="none")


def run_alone(job: SearchJob, parameters: TrainingParameters) -> None:
    """Train one model as the training flow does, without its record."""
    own = TrainingJob(
        parameters=parameters, sources=job.sources, data=job.data, features=job.features, run_id=job.run_id
    )
    started = start_trainer(own, None)
    for _ in train(started.trainer, started.batches):
        pass


def train_apart(job: SearchJob, parameters: TrainingParameters, count: int) -> None:
    """Train so many models, one after the other."""
    for _ in range(count):
        run_alone(job, parameters)


def search_together(job: SearchJob, count: int) -> None:
    """Try so many trials on one pass, in generations."""
    study = open_study("together", "tpe", 0)
    with closing(SearchData.open(job)) as data:
        for first in range(0, count, job.parameters.generation):
            tell(study, try_generation(study, data, job, min(job.parameters.generation, count - first)))


def search_apart(job: SearchJob, count: int) -> None:
    """Let Optuna try as many with a full run each, judged on the validation rows."""
    study, given = open_study("apart", "tpe", 0), job.parameters
    assert job.data.validation
    with closing(SearchData.open(job)) as data:
        for _ in range(count):
            asked = study.ask()
            chosen = given.training(choose_parameters(asked, given, job.features))
            make_trial(chosen, job.features, data.begun.scaling(1))
            run_alone(job, chosen)
            measure_rows(job.data.validation, job, data.grams.units)
            study.tell(asked, 0.0)


def timed(call: Callable[[], None]) -> float:
    """Return the seconds of a call in a folder of its own, where its study is kept."""
    with tempfile.TemporaryDirectory() as folder:
        here = Path.cwd()
        os.chdir(folder)
        try:
            began = time.perf_counter()
            call()
            return time.perf_counter() - began
        finally:
            os.chdir(here)


def main(rows: int = ROWS, most: int = TRIALS[-1]) -> None:
    """Measure in turn, and print the table."""
    job = prepare(rows)
    plain = job.parameters.training({"learning_rate": 0.1})
    run_alone(job, plain)
    one = statistics.median(timed(lambda: run_alone(job, plain)) for _ in range(ROUNDS))
    print(f"one streamed run: {one:.3f} s\n")
    print("| trials | on one pass, s | ratio | separate runs, s | ratio | Optuna, a run a trial, s | ratio |")
    print("|---:|" + "---:|" * 6)
    for count in TRIALS:
        calls = [partial(search_together, job, count)]
        calls += [partial(train_apart, job, plain, count), partial(search_apart, job, count)] if count <= most else []
        times = map(timed, calls)
        cells = [f"{seconds:.3f} | {seconds / one:.2f}" for seconds in times]
        print(f"| {count} | " + " | ".join(cells + ["– | –"] * (3 - len(cells))) + " |", flush=True)
    train_rows = job.data.train.rows
    print(f"\n{train_rows:,} rows, {BATCHES} batches; {describe_machine()}; one run: median of {ROUNDS}")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
