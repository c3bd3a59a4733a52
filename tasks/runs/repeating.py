"""A run started with the parameters of an earlier one: `--like RUN_ID`."""

from __future__ import annotations

import json
from typing import Any, Literal, get_args, get_origin

from prefect.logging import get_run_logger

from tasks.errors import ConfigurationError
from tasks.parameters import MODEL_PARAMETERS, Mark, TrainingParameters
from tasks.runs.resuming import FINGERPRINT
from tasks.runs.unchanged import CODE, digest_code
from tasks.streaming.manifest import Manifest


def repeat_parameters(given: TrainingParameters) -> TrainingParameters:
    """The parameters of the run that `like` names; those given here with another value than their default win.

    Raises ConfigurationError for a run that MLflow does not know or that was not a training run.
    """
    from mlflow.exceptions import MlflowException

    from tasks.tracking.client import connect

    try:
        run = connect().get_run(str(given.like))
    except MlflowException as error:
        raise ConfigurationError(f"like names run {given.like}, which MLflow does not know") from error
    if run.data.tags.get("shardline.flow") != "training":
        raise ConfigurationError(f"like names run {given.like}, which is not a training run")
    fields = TrainingParameters.model_fields
    carried = fields.keys() - TrainingParameters.marked(Mark.OWN)
    kept = {name: _read(name, text) for name, text in run.data.params.items() if name in carried}
    if given.preset != kept.get("preset"):  # what the other preset stood for is not carried over
        kept = {name: value for name, value in kept.items() if name not in MODEL_PARAMETERS}
    changed = {name: value for name, value in given.model_dump().items() if value != fields[name].default}
    if given.bucket_id:
        kept |= {"shards": None, "test_shards": None}
    if run.data.tags.get(CODE) != digest_code():
        commit = run.data.tags.get("mlflow.source.git.commit", "unknown")
        get_run_logger().warning("Run %s was made by other code or libraries (commit %s)", given.like, commit)
    return TrainingParameters(**(kept | changed))


def _read(name: str, text: str) -> Any:
    """A recorded parameter's value: null, text where the parameter is text (an account's digits too), else JSON."""
    annotation = TrainingParameters.model_fields[name].annotation
    is_text = str in (annotation, *get_args(annotation)) or get_origin(annotation) is Literal
    try:
        return text if is_text and text != "null" else json.loads(text)
    except json.JSONDecodeError:
        raise ConfigurationError(f"MLflow kept only the beginning of the parameter {name}: give it here too") from None


def check_same_data(given: TrainingParameters, manifest: Manifest) -> None:
    """Raise ConfigurationError where the shards are not those of the run that `like` names."""
    if not given.like:
        return
    from tasks.tracking.client import connect

    there = connect().get_run(given.like).data.tags.get(FINGERPRINT)
    if there != manifest.fingerprint:
        raise ConfigurationError(
            f"like names run {given.like}, whose shards had the fingerprint {there}; these have "
            f"{manifest.fingerprint}: the data has changed. Give the parameters themselves to train on it"
        )
