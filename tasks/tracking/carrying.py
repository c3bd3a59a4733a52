"""A model from MLflow as bytes, so that processes that do not reach MLflow's server predict with it too."""

from __future__ import annotations

import io
import zipfile
from dataclasses import dataclass
from pathlib import Path

from tasks.errors import ConfigurationError
from tasks.tracking.registry import ColumnModel, open_files, unwrap
from tasks.tracking.scratch import ScratchFolder


@dataclass(frozen=True, kw_only=True)
class CarriedModel:
    """A `ColumnModel`, its files as a zip archive."""

    uri: str
    version: str | None
    run_id: str
    inputs: tuple[str, ...]
    target: str | None
    columns: tuple[str, ...]
    files: bytes


def carry(model: ColumnModel) -> CarriedModel:
    """Return a model as it can be carried to other processes."""
    from mlflow.models.model import MLMODEL_FILE_NAME

    folder = next(Path(model.folder.name).rglob(MLMODEL_FILE_NAME)).parent
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for path in sorted(folder.rglob("*")):
            archive.write(path, path.relative_to(folder))
    return CarriedModel(
        uri=model.uri,
        version=model.version,
        run_id=model.run_id,
        inputs=model.inputs,
        target=model.target,
        columns=model.columns,
        files=buffer.getvalue(),
    )


def unpack(carried: CarriedModel) -> ColumnModel:
    """Return the model that was carried here, made ready; ConfigurationError where it cannot be loaded here."""
    folder = ScratchFolder("shardline-model-")
    path = Path(folder.name) / "model"
    with zipfile.ZipFile(io.BytesIO(carried.files)) as archive:
        archive.extractall(path)
    try:
        model = unwrap(open_files(str(path)))
    except Exception as error:  # a model's own code may raise anything
        raise ConfigurationError(
            f"the model {carried.uri} cannot be loaded by a rank: {type(error).__name__}: {error}; is what it needs "
            "installed there?"
        ) from error
    return ColumnModel(
        uri=carried.uri,
        version=carried.version,
        run_id=carried.run_id,
        inputs=carried.inputs,
        target=carried.target,
        model=model,
        folder=folder,
        columns=carried.columns,
    )
