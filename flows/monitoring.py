"""Compares shards with what a model was trained on: `python -m flows.monitoring --help` shows all.

The flow's parameters are those of `tasks.parameters.MonitoringParameters`. A run whose data has drifted ends as
"Drifted", and emits the event `shardline.data.drifted`.
"""

from __future__ import annotations

from typing import Any

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.runtime import flow_run
from prefect.states import Completed

from flows.commandline import parameters, run
from flows.names import name_place, unless_named
from tasks.credentials import verify_sources
from tasks.data import locate_shards
from tasks.parameters import MonitoringParameters
from tasks.runs.events import announce_drift
from tasks.runs.lifecycle import note_data, tracked
from tasks.runs.lineage import tag_data
from tasks.sources import check_contract, resolve_shards
from tasks.tracking.views import experiment_beside
from tasks.watching.comparison import compare_data
from tasks.watching.observation import observe_shards
from tasks.watching.reference import choose_reference
from tasks.watching.report import report_drift


def name_run() -> str:
    """Return a name that says what is compared with what: `champion of shardline · csv/dev`."""
    given = MonitoringParameters(**flow_run.parameters)
    return f"{given.model or 'champion of ' + given.experiment} · {name_place(resolve_shards(given).shards)}"


@flow(name="monitoring", flow_run_name=unless_named(name_run))
@parameters(MonitoringParameters)
def monitor(**parameters: Any) -> State[str]:
    """Say whether shards have drifted from what the champion, or another model from MLflow, was trained on."""
    given = MonitoringParameters(**parameters)
    sources, identity = verify_sources(resolve_shards(given), given)
    manifest = locate_shards(sources, given, role="input").manifest
    reference = choose_reference(given)
    places = {"shards": sources.shards, "contract": sources.contract}
    settings = given.model_dump() | places | {"model": reference.model}
    tags = tag_data("monitoring", identity.account, sources.shards, manifest)
    with tracked(experiment_beside(given.experiment, "monitoring"), settings, tags) as mlflow_run:
        note_data(mlflow_run.run_id, {"monitor": (sources.shards, manifest)})
        observed = observe_shards(manifest, sources, given, reference)
        drift = compare_data(mlflow_run.run_id, reference, observed.profile, manifest.known, given)
        verdict = report_drift(mlflow_run, reference, observed, drift)
    announce_drift(drift, sources.shards, manifest.fingerprint, mlflow_run)
    said = f"{verdict}\n\n  Look     {mlflow_run.pages}"
    return Completed(name="Drifted" if drift.drifted else "Completed", message=verdict, data=said)


def check_parameters(given: MonitoringParameters) -> None:
    """Raise ConfigurationError for what can be known to fail before anything is started."""
    check_contract(resolve_shards(given))


if __name__ == "__main__":
    run(monitor, MonitoringParameters, "flows.monitoring", check_parameters)
