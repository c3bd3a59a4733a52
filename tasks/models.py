"""Models in MLflow's registry: under which name they stand there, and how they are loaded to predict.

How a trained model gets there is in `tasks.registering`.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from tasks.errors import ConfigurationError

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion
    from torch import Tensor

OURS = "shardline"  # a key of the metadata of models that this project made


def name_of_model(experiment: str) -> str:
    """The registered model's name: the experiment's, without the two characters that MLflow does not take there."""
    return re.sub("[/:]", "-", experiment)


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
    folder: tempfile.TemporaryDirectory[str]
    columns: tuple[str, ...] = ()

    def on(self, columns: Sequence[str]) -> ColumnModel:
        """The same model for batches of these columns; ConfigurationError where it needs one that is not there."""
        for name in self.inputs:
            if name not in columns:
                raise ConfigurationError(
                    f"the model {self.uri} needs column {name!r}, and the shards have {', '.join(columns)}"
                )
        return replace(self, columns=tuple(columns))

    def predict(self, batch: Tensor) -> Tensor:
        """Predictions [rows, 1] in float64 for a [rows, columns] batch."""
        import numpy as np
        import pandas as pd  # type: ignore[import-untyped]
        import torch

        at = [self.columns.index(name) for name in self.inputs]
        table = pd.DataFrame(batch[:, at].double().numpy(), columns=list(self.inputs))
        found = np.asarray(self.model.predict(table), dtype=np.float64)
        return torch.from_numpy(found).reshape(len(batch), 1)


def load_model(client: MlflowClient, uri: str) -> ColumnModel:
    """The model at models:/… or runs:/…, made ready to predict by the code that it came with; nothing is unpickled.

    Raises ConfigurationError where there is none, it cannot be loaded here, or it does not say which columns it needs.
    """
    os.environ.setdefault("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
    from mlflow import artifacts, pyfunc
    from mlflow.exceptions import MlflowException

    folder = tempfile.TemporaryDirectory(prefix="shardline-model-", ignore_cleanup_errors=True)
    try:
        version = find_version(client, uri)
        source = client.get_model_version_download_uri(version.name, version.version) if version else uri
        loaded = pyfunc.load_model(
            artifacts.download_artifacts(source, dst_path=folder.name, tracking_uri=client.tracking_uri)
        )
        if loaded.input_example is not None:
            loaded.predict(loaded.input_example)  # what does not work on its own example works on nothing
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
        model=loaded.get_raw_model() if ours else loaded,  # ours checks its columns at once, MLflow every cell
        folder=folder,
    )


def find_version(client: MlflowClient, uri: str) -> ModelVersion | None:
    """The version that a models:/name@alias or models:/name/version stands for now; None for other URIs."""
    if matched := re.fullmatch("models:/([^/@]+)@(.+)", uri):
        return client.get_model_version_by_alias(*matched.groups())
    matched = re.fullmatch("models:/([^/@]+)/([0-9]+)", uri)
    return client.get_model_version(*matched.groups()) if matched else None
