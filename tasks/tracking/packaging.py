"""A model as files that MLflow loads without this project: weights, signature, and a copy of the code that it needs."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from tasks.files import UNFINISHED, move_whole
from tasks.tracking.outbox import keeping
from tasks.tracking.registry import CARD, OURS

if TYPE_CHECKING:
    import pandas as pd  # type: ignore[import-untyped]


def save_model(
    folder: Path,
    example: pd.DataFrame,
    save_weights: Callable[[Path], None],
    *,
    target: str,
    modules: Sequence[str],
    loader: str,
    requirements: Sequence[str],
    card: str,
) -> None:
    """Write an MLflow model that needs nothing of this project but what it brings along, whole, into an outbox.

    `example` are some rows of its input columns, `save_weights` writes its weights into a new folder, `modules` are
    those of this package that go along (their paths, without suffix), `loader` the one of them that loads the weights;
    `card` is Markdown about the model.

    Columns are of any type in its signature: where it says double, MLflow refuses int64, as pandas reads a CSV's years
    and hours, and where it says long, the same column with a missing value. The model itself refuses what is not a
    number, and says which column. The price: MLflow's scoring server then takes JSON only.
    """
    from mlflow import pyfunc
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, Schema
    from mlflow.types.schema import AnyType

    inputs = Schema([ColSpec(AnyType(), name) for name in example.columns])
    made = folder.with_name(f"{folder.name}{UNFINISHED}")
    with keeping(folder.parent), tempfile.TemporaryDirectory(prefix="shardline-model-") as scratch:
        package = ship_code(modules, Path(scratch))
        save_weights(Path(scratch) / "weights")
        shutil.rmtree(made, ignore_errors=True)
        pyfunc.save_model(
            made,
            loader_module=f"{package.name}.{loader.replace('/', '.')}",
            data_path=str(Path(scratch) / "weights"),
            code_paths=[str(package)],
            signature=ModelSignature(inputs=inputs, outputs=Schema([ColSpec(DataType.double)])),
            input_example=example,
            pip_requirements=[f"{name}=={version(name).partition('+')[0]}" for name in requirements],
            metadata={OURS: {"target": target}},
        )
        (made / CARD).write_text(card, encoding="utf-8")
        move_whole(made, folder)


def ship_code(modules: Sequence[str], folder: Path) -> Path:
    """Copy modules into a package in `folder`, named by their content; return its path.

    Under a name of its own it is the code that the model was trained with, whatever `tasks` is where it is loaded.
    """
    root = Path(__file__).parents[1]
    sources = {name: (root / f"{name}.py").read_text(encoding="utf-8") for name in modules}
    package = folder / f"shardline_{hashlib.sha256(json.dumps(sources).encode()).hexdigest()[:12]}"
    for name, source in sources.items():
        path = package / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source.replace("from tasks.", f"from {package.name}."), encoding="utf-8")
    return package
