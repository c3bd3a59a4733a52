"""Ranks of torch.distributed as processes of this machine, all of which do the same jobs."""

import json
import multiprocessing
import os
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path

import optuna
import torch
import torch._dynamo  # which Adam's first step would import in every rank, in seconds
from torch.multiprocessing.spawn import start_processes

from tasks.facts import SearchJob, TrainingJob
from tasks.learning.linear import LinearModel
from tasks.learning.scoring import Moments
from tasks.learning.sums import MomentSums
from tasks.ranks.judging import Judged, judge_rank
from tasks.ranks.parts import Tally
from tasks.ranks.passing import pass_rank
from tasks.training.matrices import SearchData
from tasks.training.measuring import Measured, Progress, measure_batches, measure_folds
from tasks.training.ranks import train_rank
from tasks.training.search import try_generation

ALONE = 0
Result = dict[str, list[str]]


Jobs = Sequence[TrainingJob | SearchJob]


def run_ranks(sizes: list[int], jobs: Jobs, folder: Path) -> dict[int, list[list[Result]]]:
    """Do the jobs alone and on 1, 2, … ranks; what each rank got from each job, by number of ranks (ALONE: none)."""
    multiprocessing.set_forkserver_preload([__name__])  # what ranks import is imported once, by what they fork from
    start_processes(work_as, (sizes, jobs, folder), nprocs=max(sizes), start_method="forkserver")
    return {
        size: [json.loads((folder / f"{size}-{rank}.json").read_text()) for rank in range(max(size, 1))]
        for size in (ALONE, *sizes)
    }


def work_as(number: int, sizes: list[int], jobs: Jobs, folder: Path) -> None:
    """Be a rank wherever this process's number is one."""
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    for size in (ALONE, *sizes):
        if number >= max(size, 1):
            continue
        if size != ALONE:
            meeting = f"file://{folder}/meeting-{size}"
            torch.distributed.init_process_group("gloo", init_method=meeting, rank=number, world_size=size)
        results = [search_job(job) if isinstance(job, SearchJob) else train_job(job) for job in jobs]
        (folder / f"{size}-{number}.json").write_text(json.dumps(results))
        if size != ALONE:
            torch.distributed.destroy_process_group()


def train_job(job: TrainingJob) -> Result:
    """Return every iteration's loss, the weights, the moments of all rows, and the scores, to the last bit."""
    curve: list[str] = []
    started = train_rank(job, None, lambda iteration: curve.append(iteration.mse.hex()))
    model, sums = started.trainer.model(), started.first_pass.sums() if started.first_pass else None
    passed = pass_rank(job, Tally(0)).sums
    return {
        "curve": curve,
        "weights": [value.hex() for value in (*model.w.flatten().tolist(), model.b.item())],
        "on the way": write_sums(sums),
        "in one pass": write_sums(passed),
        "gone on with": write_sums(pass_rest(job)),
        "scores": judge_model(model, passed, job),
    }


def pass_rest(job: TrainingJob) -> MomentSums:
    """Return the moments of what a training of one iteration takes in, and of the rest of the rows."""
    short = replace(job, parameters=job.parameters.model_copy(update={"iterations": 1}))
    started = train_rank(short, None, lambda _: None)
    assert started.first_pass
    return pass_rank(job, Tally(0), started.first_pass.sums(), shuffle=job.parameters.shuffle).sums


def judge_model(model: LinearModel, passed: MomentSums, job: TrainingJob) -> list[str]:
    """Return the scores of a model beside the exact and the mean-only one, and the profile of the rows."""
    moments = Moments(job.features)
    moments.restore(passed)
    models = {"trained": model, "exact": moments.exact(), "mean": moments.mean_model()}
    rows, given = job.data.judged, job.parameters
    judged = Judged.of(models, None, manifest=rows, sources=job.sources, given=given, profiled=rows.columns)
    found = judge_rank(judged)
    plain = found.scores.to_dict(), asdict(found.scores.density), found.profile and asdict(found.profile)
    return list(map(json.dumps, plain))  # numbers are written to the last bit


def search_job(job: SearchJob) -> Result:
    """Return what became of a generation's trials, a few matrices gone on with, and the folds', to the last bit."""
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    with closing(SearchData.open(job)) as data:
        outcomes = try_generation(study, data, job, job.parameters.trials).values()
        again = Progress(begun=data.begun, number=data.grams.streamed - 2)
        kept = [gram.products.tolist() for gram in islice(data.grams, again.number, data.grams.streamed)]
    rest = [each.products for each in measure_batches(job, again, Tally(0)) if isinstance(each, Measured)]
    assert rest[:2] == kept
    return {
        "trials": [json.dumps([each.state, each.value, each.curve]) for each in outcomes],
        "folds": [json.dumps(asdict(measure_folds(job)))],
    }


def write_sums(sums: MomentSums | None) -> list[str]:
    """Return moments of all rows, and their profile, to the last bit."""
    assert sums and sums.is_complete and sums.profile
    moments = [value.hex() for values in (sums.shift, sums.sums, *sums.products) for value in values]
    return [*moments, json.dumps(asdict(sums.profile))]
