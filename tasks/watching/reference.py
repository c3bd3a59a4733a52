"""The step that finds what shards are compared with: the profile of a model's training data."""

from __future__ import annotations

from prefect.logging import get_run_logger

from tasks.errors import ConfigurationError
from tasks.facts import Reference
from tasks.parameters import MonitoringParameters
from tasks.policy import step
from tasks.runs.reference import find_reference
from tasks.tracking.registry import load_model
from tasks.tracking.views import name_of_model


@step("choose model")
def choose_reference(given: MonitoringParameters) -> Reference:
    """Return what a model was trained on; raises ConfigurationError where there is none, or it does not say."""
    from tasks.tracking.client import connect

    client, uri = connect(), given.model or f"models:/{name_of_model(given.experiment)}@champion"
    model = load_model(client, uri)
    reference = find_reference(client, model.uri, model.run_id, model.target)
    if reference is None:
        raise ConfigurationError(
            f"the model {model.uri} has no profile of what it was trained on: it was made before models had one; train "
            "again, or name another with --model"
        )
    get_run_logger().info("Comparing with what %s (%s) was trained on", model.uri, uri)
    return reference
