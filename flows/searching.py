"""Searches for the best parameters: many models are tried on one pass (`python -m flows.searching --help`).

The flow's parameters are those of `tasks.parameters.SearchParameters`: its own, and the training's. The best trial is
then trained as any model is, by the training flow, which judges and registers it.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.runtime import flow_run
from prefect.states import Completed
from pydantic import JsonValue

from flows.commandline import parameters, run
from flows.names import name_place, unless_named
from flows.training import check_parameters as check_training
from flows.training import train
from tasks.credentials import verify_sources
from tasks.data import locate_data, set_aside
from tasks.errors import ConfigurationError
from tasks.facts import SearchJob
from tasks.parameters import SearchParameters
from tasks.policy import untracked
from tasks.reporting import report_search
from tasks.runs.history import find_unfinished_search
from tasks.runs.lifecycle import note_data, tracked
from tasks.runs.lineage import KEY, digest_settings, settle_contract, tag_data
from tasks.sources import resolve_sources
from tasks.tracking.client import connect
from tasks.tracking.recorded import find_runs
from tasks.tracking.views import experiment_beside
from tasks.training.ridge import trace_ridge
from tasks.training.search import search_models
from tasks.training.space import check_batch_sizes, choose_all_features
from tasks.training.study import require_optuna


def name_run() -> str:
    """Return a name that says what is tried on what: `50 trials · csv/dev`."""
    given = SearchParameters(**flow_run.parameters)
    return f"{given.trials} trials · {name_place(resolve_sources(given).shards)}"


@flow(name="searching", flow_run_name=unless_named(name_run))
@parameters(SearchParameters)
def search(**parameters: Any) -> State[str]:
    """Try many models on one pass over the shards, and train the best one."""
    given = SearchParameters(**parameters)
    check_parameters(given)
    sources, identity = verify_sources(resolve_sources(given), given)
    data = locate_data(sources, given)
    data = data if data.validation else set_aside(data, given.validation_shards)
    assert data.validation, "shards were set aside"
    aside = {"validation_shards": len(data.validation.shards)}
    given = given.model_copy(update=aside).sized(data.train.rows)
    features = choose_all_features(data.train.columns, given)
    places = {"shards": sources.shards, "test_shards": sources.test_shards, "contract": sources.contract}
    recorded = given.model_dump() | places | settle_contract(given, data.train)
    tags = tag_data("searching", identity.account, sources.shards, data.train) | {KEY: digest_search(recorded)}
    beside = experiment_beside(given.experiment, "searches")
    find = partial(find_unfinished_search, experiment=beside, resume=given.resume, tags=tags)
    with tracked(beside, recorded, tags, find) as mlflow_run:
        manifests = {"train": data.train, "validation": data.validation}
        note_data(mlflow_run.run_id, {name: (sources.shards, manifest) for name, manifest in manifests.items()})
        job = SearchJob(parameters=given, sources=sources, data=data, features=features, run_id=mlflow_run.run_id)
        searched = search_models(untracked(job))
        ridge = trace_ridge(untracked(job))
        state = train(**given.training(searched.best).model_dump(), return_state=True)
        summary: str = state.result()
        verdict = report_search(untracked(mlflow_run), searched, find_trained(given, state), ridge)
    return Completed(message=verdict, data=f"\n{verdict}\n\n  Trials   {mlflow_run.pages}\n{summary}")


def digest_search(recorded: dict[str, JsonValue]) -> str:
    """Return a digest of what a search's trials depend on: not of how many there are."""
    return digest_settings({name: value for name, value in recorded.items() if name != "trials"})


def find_trained(given: SearchParameters, state: State[str]) -> str:
    """Return the id of the MLflow run that a training left."""
    tags = {"prefect.flow_run_id": str(state.state_details.flow_run_id)}
    return find_runs(connect(), given.experiment, tags=tags, most=1)[0].run_id


def check_parameters(given: SearchParameters) -> None:
    """Raise ConfigurationError for what can be known to fail before anything is started."""
    require_optuna()
    if given.like or given.skip_unchanged:
        name = "like" if given.like else "skip_unchanged"
        raise ConfigurationError(f"{name} is of a training: give it to python -m flows.training")
    check_batch_sizes(given)
    check_training(given)


if __name__ == "__main__":
    run(search, SearchParameters, "flows.searching", check_parameters)
