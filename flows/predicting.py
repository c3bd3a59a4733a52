"""Predicts shards with a model from MLflow: `python -m flows.predicting --help` shows all.

The flow's parameters are those of `tasks.parameters.PredictionParameters`. The predictions are written as shards
beside those that were read, or to `output`.
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
from tasks.parameters import PredictionParameters
from tasks.prediction import choose_model, predict_shards, report_predictions, resolve_output
from tasks.ranks.cluster import check_ranks
from tasks.runs.events import announce_drift
from tasks.runs.lifecycle import note_data, tracked
from tasks.runs.lineage import tag_data
from tasks.sources import Sources, check_contract, resolve_shards
from tasks.tracking.views import experiment_beside
from tasks.watching.comparison import compare_data


def name_run() -> str:
    """Return a name that says what is predicted with what: `champion of shardline · csv/test`."""
    given = PredictionParameters(**flow_run.parameters)
    return f"{given.model or 'champion of ' + given.experiment} · {name_place(find_places(given)[0].shards)}"


@flow(name="predicting", flow_run_name=unless_named(name_run))
@parameters(PredictionParameters)
def predict(**parameters: Any) -> State[str]:
    """Predict CSV or Parquet shards with the champion, or another model from MLflow, and write them beside."""
    given = PredictionParameters(**parameters)
    sources, output = find_places(given)
    sources, identity = verify_sources(sources, given, output)
    manifest = locate_shards(sources, given, role="input").manifest
    model = choose_model(given, manifest.columns)
    manifest = manifest.choose([name for name in manifest.columns if name in (*model.inputs, model.target)])
    places = {"shards": sources.shards, "contract": sources.contract, "output": output}
    settings = given.model_dump() | places | {"model": model.uri}
    tags = tag_data("predicting", identity.account, sources.shards, manifest)
    with tracked(experiment_beside(given.experiment, "predictions"), settings, tags) as mlflow_run:
        note_data(mlflow_run.run_id, {"predict": (sources.shards, manifest)})
        predicted = predict_shards(manifest, sources, given, model, output, mlflow_run.run_id)
        drift = (
            compare_data(mlflow_run.run_id, model.reference, predicted.profile, manifest.known, given)
            if model.reference and predicted.profile
            else None
        )
        verdict = report_predictions(mlflow_run, model, predicted, output, drift)
    if drift:
        announce_drift(drift, sources.shards, manifest.fingerprint, mlflow_run)
    return Completed(message=verdict, data=f"{verdict}\n\n  Look     {mlflow_run.pages}")


def find_places(given: PredictionParameters) -> tuple[Sources, str]:
    """Return the shards to read and the folder to write to; raises ConfigurationError where there is none."""
    sources = resolve_shards(given)
    return sources, resolve_output(given, sources.shards)


def check_parameters(given: PredictionParameters) -> None:
    """Raise ConfigurationError for what can be known to fail before anything is started."""
    sources, _ = find_places(given)
    check_contract(sources)
    check_ranks(given.ranks)


if __name__ == "__main__":
    run(predict, PredictionParameters, "flows.predicting", check_parameters)
