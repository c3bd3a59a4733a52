"""The main job: verify → locate → preview → train → evaluate → register → report (`python -m flows.training --help`).

The flow's parameters are those of `tasks.parameters.TrainingParameters`; each step's policy is in its module in tasks/.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.runtime import flow_run
from prefect.states import Completed
from pydantic import JsonValue

from flows.benchmarking import benchmark
from flows.commandline import parameters, run
from flows.names import name_place, unless_named
from tasks.aws.identity import Identity
from tasks.benchmark.hardware import describe_hardware
from tasks.credentials import verify_sources
from tasks.data import locate_data, preview_batch
from tasks.evaluation import evaluate_model
from tasks.facts import Evaluation, Fit, TrainingData, TrainingJob
from tasks.learning.features import Features
from tasks.learning.importing import begin_importing
from tasks.parameters import MODEL_PARAMETERS, BenchmarkParameters, TrainingParameters
from tasks.policy import untracked
from tasks.ranks.cluster import check_ranks
from tasks.redaction import redact
from tasks.registration import register_model
from tasks.reporting import report_run
from tasks.runs.checkpoints import check_checkpoint_url, checkpoint_folder, discard_checkpoints
from tasks.runs.events import announce_champion
from tasks.runs.history import compare_with_last_success, find_unfinished, repeat_parameters, require_same_data
from tasks.runs.lifecycle import Run, note_data, tracked
from tasks.runs.lineage import KEY, digest_settings, settle_contract, tag_data, tags_of_work
from tasks.runs.profiles import choose_edges
from tasks.sources import Sources, check_contract, resolve_sources
from tasks.streaming.manifest import Manifest
from tasks.tracking.client import show_uri, tracking_uri
from tasks.tracking.views import name_of_model
from tasks.training.exact import solve_model
from tasks.training.foreseeing import foresee_run
from tasks.training.gradient import train_model
from tasks.training.start import find_device
from tasks.usage.account import metered
from tasks.usage.measuring import read_meters
from tasks.usage.prices import read_prices
from tasks.usage.wording import write_forecast
from tasks.watching.comparison import compare_with_champion


def name_run() -> str:
    """Return a name that says what is trained on what: `default · csv/dev · 50 iterations`."""
    given = TrainingParameters(**flow_run.parameters)
    if given.like:
        return f"like {given.like[:8]}"
    work = f"× {given.batch_size}" if given.batch_size else "iterations"
    plan = "plan · " if given.plan else ""
    return f"{plan}{given.preset} · {name_place(resolve_sources(given).shards)} · " + (
        "exact" if given.solver == "exact" else f"{given.resolved().iterations} {work}"
    )


@flow(name="training", flow_run_name=unless_named(name_run))
@parameters(TrainingParameters)
def train(**parameters: Any) -> State[str]:
    """Train a linear model on CSV shards in object storage, and say what it is worth."""
    begun = read_meters()
    given = TrainingParameters(**parameters)
    given = repeat_parameters(given) if given.like else given
    sources, identity = verify_sources(resolve_sources(given), given)
    data = locate_data(sources, given)
    require_same_data(given, data.train)
    features = choose_features(data.train, given)
    settings = record_settings(given, sources, features) | settle_contract(given, data.train)
    tags = make_tags(identity, data, settings)
    if unchanged := compare_with_last_success(given.experiment, untracked(tags), skip=given.skip_unchanged):
        return Completed(name="Unchanged", message=unchanged, data=unchanged)
    if given.solver == "gradient":
        begin_importing(given.optimizer)  # while the preview waits for its shards
    given = given.sized(data.train.rows)
    recorded = settings | {"batch_size": given.batch_size}
    preview = preview_batch(data, untracked(sources), given)
    hardware = describe_hardware()
    job = TrainingJob(parameters=given, sources=sources, data=data, features=features, run_id="")
    if given.plan:
        forecast = foresee_run(untracked(job), begun, untracked(preview), hardware)
        return Completed(name="Planned", message="What the run would take", data=write_forecast(forecast))
    if given.benchmark:
        benchmark(**shared_with_benchmark(given), mode="quick")
    find = partial(
        find_unfinished,
        experiment=given.experiment,
        recorded=recorded,
        key=tags[KEY],
        manifest=data.train,
        checkpoint_url=checkpoint_folder(given.checkpoint_url),
    )
    with tracked(given.experiment, recorded, tags | {"shardline.judged_on": data.judged_on}, find) as mlflow_run:
        given = given.model_copy(update={"batch_size": int(mlflow_run.parameters["batch_size"])})  # as it began
        edges = choose_edges(given.experiment, data.statistics)
        job = replace(job, parameters=given, run_id=mlflow_run.run_id, edges=edges)
        job = deepcopy(job)  # what comes from the first steps goes through the preview, as Prefect draws it
        note_data(mlflow_run.run_id, name_data(job))
        forecast = foresee_run(untracked(job), begun, untracked(preview), hardware)
        with metered(job, forecast, begun) as account:
            fit = fit_model(job)
            evaluation = evaluate_model(untracked(job), fit)
            drift = compare_with_champion(untracked(job), evaluation)
            register_model(untracked(job), untracked(fit), evaluation, untracked(preview))
            report_run(
                untracked(mlflow_run),
                untracked(job),
                untracked(fit),
                evaluation,
                untracked(identity),
                hardware,
                untracked(account()),
                drift,
            )
    discard_checkpoints(given.checkpoint_url, mlflow_run.run_id)
    announce_champion(given.experiment, mlflow_run)
    return Completed(message=evaluation.verdict, data=write_summary(job, evaluation, mlflow_run))


def fit_model(job: TrainingJob) -> Fit:
    """Fit the model by the step that the parameter `solver` names."""
    return solve_model(job) if job.parameters.solver == "exact" else train_model(job)


def shared_with_benchmark(given: TrainingParameters) -> dict[str, Any]:
    """Return the parameters that the benchmark has too."""
    return given.model_dump(include=set(BenchmarkParameters.model_fields))


def name_data(job: TrainingJob) -> dict[str, tuple[str, Manifest]]:
    """Return what MLflow is told of the data: glob and manifest by context."""
    sources, data = job.sources, job.data
    named = {"train": (sources.shards, data.train)}
    if data.test:
        named["test"] = (sources.test_shards or sources.shards, data.test)
    return named


def choose_features(manifest: Manifest, given: TrainingParameters) -> Features:
    """Choose target, raw and derived features; raises ConfigurationError where a column is not there."""
    return Features.choose(
        manifest.columns,
        target=given.target,
        features=given.features,
        derive=given.resolved().derive,
        skip_missing=given.derive is None,
    )


def record_settings(given: TrainingParameters, sources: Sources, features: Features) -> dict[str, JsonValue]:
    """Return the parameters as MLflow records them: every null that was resolved is replaced by what it stands for."""
    resolved = given.resolved()
    return given.model_dump() | {
        **{name: getattr(resolved, name) for name in MODEL_PARAMETERS},
        "shards": sources.shards,
        "test_shards": sources.test_shards,
        "contract": sources.contract,
        "region": sources.region,
        "target": features.target,
        "features": list(features.raw),
        "derive": list(features.derived),
    }


def make_tags(identity: Identity, data: TrainingData, settings: Mapping[str, JsonValue]) -> dict[str, str]:
    """Return the tags that a run is found by: account, shards, their fingerprints, settings and code."""
    shared = tag_data("training", identity.account, str(settings["shards"]), data.train)
    return shared | {KEY: digest_settings(settings), **tags_of_work(data.test)}


def check_parameters(given: TrainingParameters) -> None:
    """Raise ConfigurationError for what can be known to fail before anything is started."""
    if not given.like:
        check_contract(resolve_sources(given))
    check_ranks(given.ranks)
    if given.device == "cuda" and given.ranks == 1:
        find_device(given.device)
    if given.checkpoint_url:
        check_checkpoint_url(given.checkpoint_url)
    if given.prices:
        read_prices(given.prices)


def write_summary(job: TrainingJob, evaluation: Evaluation, mlflow_run: Run) -> str:
    """Return what the run's end says: what the model is worth, whether it is champion, and what can be done next."""
    given, alias = job.parameters, "champion" if evaluation.promotion.wins else "challenger"
    model = f"models:/{name_of_model(given.experiment)}@{alias}"
    shards = shlex.quote(redact(given.shards)) if given.shards else "'s3://bucket/path/part*.csv'"
    chosen = f" --experiment {shlex.quote(given.experiment)}" if evaluation.promotion.wins else f" --model {model}"
    python, mlflow = (write_command(name) for name in ("python", "mlflow"))
    return f"""
{evaluation.verdict}
{evaluation.promotion.verdict}

  Look     {mlflow_run.pages}
  Predict  {python} -m flows.predicting --shards {shards}{chosen}
  Serve    MLFLOW_TRACKING_URI={show_uri(tracking_uri())} {mlflow} models serve -m {model} --env-manager local"""


def write_command(name: str) -> str:
    """Return how a command beside this Python is called from here: by its path where the environment lies below."""
    beside = Path(sys.executable).with_name(name)
    return str(beside.relative_to(Path.cwd())) if beside.is_relative_to(Path.cwd()) else name


if __name__ == "__main__":
    run(train, TrainingParameters, "flows.training", check_parameters)
