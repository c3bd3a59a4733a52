"""Models in MLflow: how they get there, under which name they are registered, and how they are loaded to predict.

How a trained model becomes files is in `.packaging`.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.errors import ConfigurationError
from tasks.files import write_whole
from tasks.naming import join_names, suggest
from tasks.tracking.champions import CHAMPION, GATE, WITHDRAWN, RegisteredVersion, describe_version, promote
from tasks.tracking.client import show_uri, translated
from tasks.tracking.outbox import MODEL, REGISTRATION, MetricRow, read_part, write_part
from tasks.tracking.scratch import ScratchFolder
from tasks.tracking.views import describe_model, name_of_model

if TYPE_CHECKING:
    from mlflow.entities import LoggedModel
    from mlflow.entities.model_registry import ModelVersion
    from mlflow.pyfunc import PyFuncModel
    from torch import Tensor

    from tasks.tracking.client import Client

SHARED_TAGS = ("mlflow.note.content", "mlflow.user", "mlflow.source.name", "mlflow.source.type")  # with its run
SCORES = ("test_", "train_")  # how the metrics begin that are a model's, not a training's
WEIGHTS_FOLDER = "data/weights"  # of a saved model
CARD = "README.md"  # the model's card, beside its MLmodel
OURS = "shardline"  # a key of the metadata of models that this project made


@dataclass(frozen=True, kw_only=True)
class RegistrationPlan:
    """How a run's model is to be registered, once its record is complete.

    name: of the registered model
    description, tags: of the version
    wins: whether it becomes champion
    against: the version of the champion that it was held against, None where there was none
    """

    name: str
    description: str
    tags: dict[str, str]
    wins: bool
    against: str | None


def plan_registration(outbox: Path, plan: RegistrationPlan) -> None:
    """Put a plan into an outbox, for `register` to carry out."""
    write_part(outbox, REGISTRATION, json.dumps(asdict(plan)))


def log_model(client: Client, run_id: str, outbox: Path, rows: Sequence[MetricRow]) -> LoggedModel | None:
    """Log the model that an outbox holds as a logged model of the run; what was done before is not done again.

    The scores among the run's metrics in `rows` (key, value, timestamp, step) are the model's too.
    """
    from mlflow.entities import LoggedModelOutput, LoggedModelStatus, Metric

    folder, run = outbox / MODEL, client.get_run(run_id)
    if not folder.exists():
        return None
    experiment_id = run.info.experiment_id
    last = max((row.step for row in rows), default=0)
    found = client.search_logged_models([experiment_id], filter_string=f"source_run_id = '{run_id}'")
    told = {key: value for key, value in run.data.tags.items() if key in SHARED_TAGS}
    made = found[0] if found else client.create_logged_model(experiment_id, MODEL, run_id, told, run.data.params)
    model_id = str(made.model_id)
    if model_id not in {output.model_id for output in (run.outputs.model_outputs if run.outputs else ())}:
        client.log_outputs(run_id, [LoggedModelOutput(model_id, step=last)])
    if made.status != LoggedModelStatus.READY:
        sign(folder, model_id, run_id)
        client.log_model_artifacts(model_id, str(folder))
        judged_on = {input_.tags[0].value: input_.dataset for input_ in run.inputs.dataset_inputs}
        data = judged_on.get("test") or judged_on.get("train")
        place = {"model_id": model_id} | ({"dataset_name": data.name, "dataset_digest": data.digest} if data else {})
        client.log_batch(run_id, metrics=[Metric(*row, **place) for row in rows if row.key.startswith(SCORES)])
        client.finalize_logged_model(model_id, LoggedModelStatus.READY)
    return made


def sign(folder: Path, model_id: str, run_id: str) -> None:
    """Write into a saved model which logged model it is, and of which run."""
    from mlflow.models import Model
    from mlflow.models.model import MLMODEL_FILE_NAME

    model = Model.load(folder)
    model.model_id = model.model_uuid = model_id
    model.run_id = run_id
    write_whole(folder / MLMODEL_FILE_NAME, model.to_yaml())


def register(client: Client, run_id: str, outbox: Path, logged: LoggedModel | None) -> None:
    """Register a run's model as its plan says; what was done before is not done again.

    It becomes `challenger`, and where it won `champion` too, unless another than it won `against` became that since,
    or it was champion before, and withdrawn.
    """
    planned = read_part(outbox, REGISTRATION, dict)
    if not planned or logged is None:
        return
    plan = RegistrationPlan(**planned)
    name = plan.name
    ensure_registered(client, name)
    found = [each for each in client.search_model_versions(f"run_id = '{run_id}'") if each.name == name]
    made = (
        found[0]
        if found
        else client.create_model_version(name, logged.artifact_location, run_id, plan.tags, model_id=logged.model_id)
    )
    version = str(made.version)
    client.update_model_version(name, version, plan.description + link_card(outbox, logged))
    client.set_registered_model_alias(name, "challenger", version)
    client.set_tag(run_id, "shardline.model", f"models:/{name}/{version}")
    show_version(client, str(logged.model_id), name, version)
    champion = client.get_registered_model(name).aliases.get(CHAMPION)
    if not plan.wins or str(champion) == version or WITHDRAWN in made.tags:
        return
    if str(champion) == str(plan.against):
        promote(client, name, version, plan.against)
    else:
        changed = f"The model stays challenger: version {champion} became champion while it was held against another."
        client.set_model_version_tag(name, version, GATE, changed)
        client.set_tag(run_id, GATE, changed)


def link_card(outbox: Path, logged: LoggedModel) -> str:
    """Return Markdown that leads to a model's card on MLflow's pages; empty for models of before there were cards.

    The page of the model's files has an address, and no file of them one of its own.
    """
    if not (outbox / MODEL / CARD).exists():
        return ""
    place = f"#/experiments/{logged.experiment_id}/models/{logged.model_id}/artifacts?workflowType=machine_learning"
    return f"\n\nThe model's card, `{CARD}` among [its files]({place}), has the rest."


def show_version(client: Client, model_id: str, name: str, version: str) -> None:
    """Say on the logged model's page which version it is; a server does so itself, a store without one does not."""
    from mlflow.utils.mlflow_tags import MLFLOW_MODEL_VERSIONS

    listed = json.loads(client.get_logged_model(model_id).tags.get(MLFLOW_MODEL_VERSIONS, "[]"))
    entry = {"name": name, "version": version}
    if not any({**each, "version": str(each["version"])} == entry for each in listed):
        client.set_logged_model_tags(model_id, {MLFLOW_MODEL_VERSIONS: json.dumps([*listed, entry])})


def ensure_registered(client: Client, name: str) -> None:
    """Make the registered model of this name where it is not there, and describe it where nobody has."""
    from mlflow.exceptions import MlflowException

    text = describe_model(name, show_uri(client.tracking_uri))
    try:
        client.create_registered_model(name, description=text)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
        if not client.get_registered_model(name).description:
            client.update_registered_model(name, text)


def find_champion_version(client: Client, experiment: str) -> RegisteredVersion | None:
    """Return the version that is an experiment's champion, None without one; raise TrackingError without an answer."""
    from mlflow.exceptions import MlflowException

    name = name_of_model(experiment)
    with translated("the model registry does not answer"):
        try:
            version = client.get_registered_model(name).aliases.get(CHAMPION)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return None
        return None if version is None else describe_version(client.get_model_version(name, str(version)))


@dataclass(frozen=True)
class ColumnModel:
    """A model from MLflow that predicts batches of tensors.

    uri: models:/name/version, where it was asked for by an alias too
    version: of the registered model, where it is one
    run_id: of the run that made it
    inputs: the columns that it needs
    target: the column that it predicts, where the model says so
    folder: where its files are for as long as it lives
    columns: those of the batches; set by `on`
    """

    uri: str
    version: str | None
    run_id: str
    inputs: tuple[str, ...]
    target: str | None
    model: Any
    folder: ScratchFolder
    columns: tuple[str, ...] = ()

    def on(self, columns: Sequence[str]) -> ColumnModel:
        """Return the same model for batches of these columns; ConfigurationError where one is missing."""
        for name in self.inputs:
            if name not in columns:
                raise ConfigurationError(
                    f"the model {self.uri} needs column {name!r}, and the shards have {join_names(columns)}"
                    f"{suggest(name, columns)}"
                )
        return replace(self, columns=tuple(columns))

    def predict(self, batch: Tensor) -> Tensor:
        """Return predictions [rows, 1] in float64 for a [rows, columns] batch."""
        import numpy as np
        import pandas as pd  # type: ignore[import-untyped]
        import torch

        at = [self.columns.index(name) for name in self.inputs]
        table = pd.DataFrame(batch[:, at].double().numpy(), columns=list(self.inputs))
        found = np.asarray(self.model.predict(table), dtype=np.float64)
        return torch.from_numpy(found).reshape(len(batch), 1)


def load_model(client: Client, uri: str) -> ColumnModel:
    """Return the model at models:/… or runs:/…, made ready to predict; nothing is unpickled.

    It predicts by the code that it came with. Raises ConfigurationError where there is none, it cannot be loaded here,
    or it does not say which columns it needs.
    """
    from mlflow import artifacts
    from mlflow.exceptions import MlflowException

    folder = ScratchFolder("shardline-model-")
    try:
        version = find_version(client, uri)
        source = client.get_model_version_download_uri(version.name, version.version) if version else uri
        loaded = open_files(
            artifacts.download_artifacts(source, dst_path=folder.name, tracking_uri=client.tracking_uri)
        )
    except MlflowException as error:
        raise ConfigurationError(
            f"no model at {uri}: {' '.join(str(error).split())}; train one that becomes champion, or name another with "
            "--model"
        ) from error
    except Exception as error:  # a model's own code may raise anything
        raise ConfigurationError(f"the model {uri} cannot be loaded here: {type(error).__name__}: {error}") from error
    inputs = loaded.metadata.get_input_schema()
    if inputs is None or not inputs.has_input_names():
        raise ConfigurationError(f"the model {uri} has no signature that names its columns, so it cannot be fed shards")
    ours = (loaded.metadata.metadata or {}).get(OURS)
    return ColumnModel(
        uri=f"models:/{version.name}/{version.version}" if version else uri,
        version=str(version.version) if version else None,
        run_id=str(version.run_id or "") if version else uri.removeprefix("runs:/").partition("/")[0],
        inputs=tuple(inputs.input_names()),
        target=ours["target"] if ours else None,
        model=unwrap(loaded),
        folder=folder,
    )


def read_beside_weights(client: Client, uri: str, name: str) -> str | None:
    """Return the text of a file that stands beside the weights of the registered model at models:/…; None without one.

    Nothing of the model is loaded. Raises TrackingError where there is no such model, or no answer.
    """
    from mlflow import artifacts

    with translated(f"{name} of the model {uri} cannot be read"), ScratchFolder("shardline-beside-") as folder:
        version = find_version(client, uri)
        source = client.get_model_version_download_uri(version.name, version.version) if version else uri
        beside = f"{source}/{WEIGHTS_FOLDER}"
        found = artifacts.list_artifacts(artifact_uri=beside, tracking_uri=client.tracking_uri)
        if not any(each.path.endswith(f"/{name}") for each in found):
            return None
        path = artifacts.download_artifacts(f"{beside}/{name}", dst_path=folder, tracking_uri=client.tracking_uri)
        return Path(path).read_text(encoding="utf-8")


def open_files(path: str) -> PyFuncModel:
    """Return the model whose files are in a folder, which has predicted its own example; nothing is unpickled."""
    os.environ.setdefault("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
    from mlflow import pyfunc

    loaded = pyfunc.load_model(path)
    if loaded.input_example is not None:
        loaded.predict(loaded.input_example)  # what does not work on its own example works on nothing
    return loaded


def unwrap(loaded: PyFuncModel) -> Any:
    """Return what is to predict: a model of ours itself, which checks its columns at once, MLflow every cell."""
    return loaded.get_raw_model() if OURS in (loaded.metadata.metadata or {}) else loaded


def find_version(client: Client, uri: str) -> ModelVersion | None:
    """Return the version that a models:/name@alias or models:/name/version stands for now; None for other URIs."""
    if matched := re.fullmatch("models:/([^/@]+)@(.+)", uri):
        return client.get_model_version_by_alias(*matched.groups())
    matched = re.fullmatch("models:/([^/@]+)/([0-9]+)", uri)
    return client.get_model_version(*matched.groups()) if matched else None
