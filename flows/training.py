"""The main job: verify → locate → preview → train → evaluate → register → report (`python -m flows.training --help`).

The flow's parameters are those of `tasks.parameters.TrainingParameters`; each step's policy is in its module in tasks/.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.logging import get_run_logger
from prefect.runtime import flow_run

from flows.benchmarking import benchmark
from flows.commandline import parameters, run
from tasks.aws.identity import Identity
from tasks.benchmark.hardware import describe_hardware
from tasks.credentials import verify_sources
from tasks.data import locate_shards, preview_batch
from tasks.devices.description import Hardware
from tasks.evaluation import evaluate_model
from tasks.parameters import MODEL_PARAMETERS, BenchmarkParameters, TrainingParameters
from tasks.registration import register_model
from tasks.reporting import report_run
from tasks.runs.lifecycle import Run, note_data, page_in_prefect, tracked
from tasks.runs.repeating import check_same_data, repeat_parameters
from tasks.runs.resuming import (
    FINGERPRINT,
    KEY,
    check_checkpoint_url,
    checkpoint_folder,
    discard_checkpoints,
    find_unfinished,
    settings_key,
)
from tasks.runs.unchanged import announce_champion, compare_with_last_success, tags_of_work
from tasks.sources import Sources, resolve_sources
from tasks.splitting import split_rows
from tasks.training.exact import solve_model
from tasks.training.gradient import train_model
from tasks.training.start import training_device


def name_run() -> str:
    """A name that says what is trained on what: `default · csv/dev · 50 × 1048576`."""
    given = TrainingParameters(**flow_run.parameters)
    if given.like:
        return f"like {given.like[:8]}"
    where = "/".join(resolve_sources(given).shards.split("/")[-3:-1])
    work = "exact" if given.solver == "exact" else f"{given.resolved().iterations} × {given.batch_size}"
    return f"{given.preset} · {where} · {work}"


@flow(name="training", flow_run_name=name_run)
@parameters(TrainingParameters)
def train(**parameters: Any) -> str | State[str]:
    """Train a linear model on CSV shards in object storage, and say what it is worth."""
    given = TrainingParameters(**parameters)
    given = repeat_parameters(given) if given.like else given
    sources = resolve_sources(given)
    sources, identity = verify_sources(sources, given)
    manifest, test_manifest, kind, judged_on, statistics = locate_rows(sources, given)
    check_same_data(given, manifest)
    features = choose_features(manifest, given)
    settings = recorded(given, sources, features)
    tags = tags_of(identity, manifest, settings) | tags_of_work(test_manifest)
    if unchanged := compare_with_last_success(given.experiment, tags, skip=given.skip_unchanged):
        return unchanged
    preview = preview_batch(manifest, sources, given, statistics)
    hardware = describe_hardware()
    if given.benchmark:
        benchmark(**shared_with_benchmark(given), mode="quick")
    find = partial(
        find_unfinished,
        experiment=given.experiment,
        recorded=settings,
        manifest=manifest,
        checkpoint_url=checkpoint_folder(given.checkpoint_url),
    )
    with tracked(given.experiment, settings, tags | {"shardline.judged_on": judged_on}, find) as mlflow_run:
        run_id = mlflow_run.run_id
        note_data(run_id, data_of(sources, manifest, test_manifest))
        if given.solver == "exact":
            trained = solve_model(manifest, features, sources, given, run_id)
        else:
            trained = train_model(manifest, features, sources, given, run_id, statistics)
        evaluation = evaluate_model(manifest, test_manifest, kind, features, trained, sources, given, run_id)
        register_model(manifest, features, trained, evaluation, sources, given, run_id)
        facts = facts_of(sources, identity, manifest, preview, hardware, trained) | {"Judged on": judged_on}
        report_run(mlflow_run, facts, manifest, trained, evaluation)
    discard_checkpoints(given.checkpoint_url, mlflow_run.run_id)
    announce_champion(given.experiment, mlflow_run)
    summary = summarise(f"{evaluation['verdict']}\n{evaluation['gate']['verdict']}", mlflow_run)
    get_run_logger().info("%s", summary)
    return summary


def locate_rows(
    sources: Sources, given: TrainingParameters
) -> tuple[dict[str, Any], dict[str, Any] | None, str, str, dict[str, Any]]:
    """What `tasks.splitting.split_rows` returns for the shards, and the statistics of those to train on."""
    located = locate_shards(sources, given)
    manifest, test_manifest = located["manifest"], None
    if sources.test_shards:  # in the order of the training shards' columns
        same_columns = given.model_copy(update={"columns": manifest["columns"]})
        test_manifest = locate_shards(sources, same_columns, role="test")["manifest"]
    manifest, test_manifest, kind, judged_on = split_rows(manifest, test_manifest, given.preset)
    get_run_logger().info("The model will be judged on %s", judged_on)
    statistics = {} if kind == "held-out" else located["statistics"]  # they are of the rows held out, too
    return manifest, test_manifest, kind, judged_on, statistics


def shared_with_benchmark(given: TrainingParameters) -> dict[str, Any]:
    """The parameters that the benchmark has too."""
    return given.model_dump(include=set(BenchmarkParameters.model_fields))


def data_of(
    sources: Sources, manifest: dict[str, Any], test_manifest: dict[str, Any] | None
) -> dict[str, tuple[str, dict[str, Any]]]:
    """What MLflow is told of the data: glob and manifest by context."""
    data = {"train": (sources.shards, manifest)}
    if test_manifest:
        data["test"] = (sources.test_shards or sources.shards, test_manifest)
    return data


def choose_features(manifest: dict[str, Any], given: TrainingParameters) -> dict[str, Any]:
    """Target, raw and derived features as plain JSON types; ConfigurationError where a column is not there."""
    from tasks.learning.features import Features

    return Features.choose(
        manifest["columns"],
        target=given.target,
        features=given.features,
        derive=given.resolved().derive,
        skip_missing=given.derive is None,
    ).to_dict()


def recorded(given: TrainingParameters, sources: Sources, features: dict[str, Any]) -> dict[str, Any]:
    """The parameters as MLflow records them: every null that has been resolved is replaced by what it stands for."""
    resolved = given.resolved()
    return given.model_dump() | {
        **{name: getattr(resolved, name) for name in MODEL_PARAMETERS},
        "shards": sources.shards,
        "test_shards": sources.test_shards,
        "region": sources.region,
        "target": features["target"],
        "features": features["raw"],
        "derive": features["derived"],
    }


def tags_of(identity: Identity, manifest: dict[str, Any], settings: dict[str, Any]) -> dict[str, str]:
    """Tags that a run is found by: the account, the shards and their fingerprint."""
    return {
        "aws.account": identity.account or "none",
        "shardline.flow": "training",
        "shardline.shards": settings["shards"],
        FINGERPRINT: manifest["fingerprint"],
        KEY: settings_key(settings),
    }


def facts_of(
    sources: Sources,
    identity: Identity,
    manifest: dict[str, Any],
    preview: dict[str, Any],
    hardware: Hardware,
    trained: dict[str, Any],
) -> dict[str, str]:
    """What the report lists below its verdict."""
    return {
        "Shards": f"`{sources.shards}`: {len(manifest['shards'])}, {manifest['rows']:,} rows, "
        f"fingerprint `{manifest['fingerprint'][:12]}`",
        "Account": identity.account or identity.note,
        "Batches": f"{preview['batch_shape']} of {preview['dtype']}",
        "Hardware": f"{hardware.cpu.model}, {hardware.cpu.usable:g} cores"
        + "".join(f", {device.name}" for device in hardware.cuda),
        "Learning rate": f"{trained['learning_rate']:.6g}" if trained["learning_rate"] else "none: solved exactly",
    }


def check(given: TrainingParameters) -> None:
    """Raise ConfigurationError for what can be known to fail before anything is started."""
    if not given.like:
        resolve_sources(given)
    if given.device == "cuda":
        training_device(given.device)
    if given.checkpoint_url:
        check_checkpoint_url(given.checkpoint_url)


def summarise(verdict: str, mlflow_run: Run) -> str:
    """What the run's end says: the verdict, and where to look next."""
    return f"""{verdict}
  Prefect  {page_in_prefect() or "(a temporary server, gone with this run)"}
  MLflow   {mlflow_run.url}
  Both pages: `make ui`"""


if __name__ == "__main__":
    run(train, TrainingParameters, "flows.training", check)
