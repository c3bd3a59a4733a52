"""The step that makes a trained model one that others can load: from MLflow, by name, in a process of its own.

It is saved into the run's outbox with the code that it predicts by, and a plan of how it is to be registered;
`tasks.tracking.recovery` carries the plan out when all else is recorded, now or later.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from prefect.logging import get_run_logger

from tasks.facts import Evaluation, Fit, TrainingJob
from tasks.policy import READING, step
from tasks.sources import open_dataset
from tasks.tracking.registry import OURS, name_of_model

if TYPE_CHECKING:
    import pandas as pd  # type: ignore[import-untyped]
    from torch import Tensor

    from tasks.learning.linear import LinearModel

SHIPPED = ("__init__", "errors", "learning/__init__", "learning/features", "learning/linear", "learning/served")
REQUIRED = ("mlflow", "torch", "numpy", "pandas", "safetensors")
EXAMPLE_ROWS = 5


@step("register model", pauses=READING)
def register_model(job: TrainingJob, fit: Fit, evaluation: Evaluation) -> None:
    """Save the model into the run's outbox, and plan its registration: as challenger, and champion where it won."""
    from tasks.learning.linear import LinearModel
    from tasks.tracking.outbox import MODEL, REGISTRATION, Outbox

    outbox, manifest = Outbox(job.run_id), job.data.train
    model = LinearModel.of(job.features, fit.weights, fit.bias)
    batch = next(
        iter(open_dataset(manifest, job.sources, job.parameters, batch_size=EXAMPLE_ROWS, epochs=1, prefetch=1))
    )
    save_model(model, example_of(model, batch), outbox.path / MODEL)
    promotion = evaluation.promotion
    plan = {
        "name": name_of_model(job.parameters.experiment),
        "description": evaluation.verdict,
        "tags": {"shardline.gate": promotion.verdict, "shardline.fingerprint": manifest.fingerprint},
        "wins": promotion.wins,
        "against": promotion.against,
    }
    (outbox.path / REGISTRATION).write_text(json.dumps(plan), encoding="utf-8")
    get_run_logger().info("The model will be registered as %r when the record is complete", plan["name"])


def example_of(model: LinearModel, batch: Tensor) -> pd.DataFrame:
    """Return the model's input columns of the first rows of a batch, as a data frame."""
    import pandas as pd

    at = [model.features.columns.index(name) for name in model.features.inputs]
    return pd.DataFrame(batch[:EXAMPLE_ROWS, at].double().numpy(), columns=list(model.features.inputs))


def save_model(model: LinearModel, example: pd.DataFrame, folder: Path) -> None:
    """Write an MLflow model that needs nothing of this project but what it brings along; a folder there is replaced.

    Columns are of any type in its signature: MLflow would refuse integers, as a CSV's years and hours are read, where
    it says double. The model itself refuses what is not a number, and says which column.
    """
    from mlflow import pyfunc
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, Schema
    from mlflow.types.schema import AnyType

    from tasks.learning.served import save_served

    inputs = Schema([ColSpec(AnyType(), name) for name in model.features.inputs])
    shutil.rmtree(folder, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix="shardline-model-") as scratch:
        package = ship_code(Path(scratch))
        save_served(model, Path(scratch) / "weights")
        pyfunc.save_model(
            folder,
            loader_module=f"{package.name}.learning.served",
            data_path=str(Path(scratch) / "weights"),
            code_paths=[str(package)],
            signature=ModelSignature(inputs=inputs, outputs=Schema([ColSpec(DataType.double)])),
            input_example=example,
            pip_requirements=[f"{name}=={version(name).partition('+')[0]}" for name in REQUIRED],
            metadata={OURS: {"target": model.features.target}},
        )


def ship_code(folder: Path) -> Path:
    """Copy the modules that predicting takes into a package in `folder`, named by their content; its path.

    Under a name of its own it is the code that the model was trained with, whatever `tasks` is where it is loaded.
    """
    root = Path(__file__).parent
    sources = {name: (root / f"{name}.py").read_text(encoding="utf-8") for name in SHIPPED}
    package = folder / f"shardline_{hashlib.sha256(json.dumps(sources).encode()).hexdigest()[:12]}"
    for name, source in sources.items():
        path = package / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source.replace("from tasks.", f"from {package.name}."), encoding="utf-8")
    return package
