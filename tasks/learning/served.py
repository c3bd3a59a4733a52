"""A trained model as it is served: from columns by name to predictions, by the code that it was trained with.

A copy of this module, and of those that it imports, goes with every model (`tasks.registration`); MLflow loads the copy
by `_load_pyfunc`. The weights are safetensors, all else is JSON: nothing is pickled.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors.torch import load, save

from tasks.errors import ConfigurationError
from tasks.learning.features import Features
from tasks.learning.linear import LinearModel
from tasks.naming import join_names, suggest

if TYPE_CHECKING:
    from numpy.typing import NDArray

FEATURES, WEIGHTS = "features.json", "weights.safetensors"


def save_served(model: LinearModel, folder: Path) -> None:
    """Write what `_load_pyfunc` reads into a new folder."""
    folder.mkdir(parents=True)
    features = replace(model.features, columns=model.features.inputs)
    (folder / FEATURES).write_text(json.dumps(features.to_dict(), indent=1), encoding="utf-8")
    tensors = {"w": model.w.contiguous(), "b": model.b.contiguous()}
    (folder / WEIGHTS).write_bytes(save(tensors, metadata=features.explain()))


def _load_pyfunc(data_path: str) -> ServedModel:
    folder = Path(data_path)
    features = Features.from_dict(json.loads((folder / FEATURES).read_text(encoding="utf-8")))
    weights = load((folder / WEIGHTS).read_bytes())
    return ServedModel(LinearModel(features, weights["w"], weights["b"]))


class ServedModel:
    """A model that predicts from tables: data frames, or mappings of column names to arrays."""

    def __init__(self, model: LinearModel) -> None:
        self.model = model

    def predict(self, table: Mapping[str, Any]) -> NDArray[np.float64]:
        """Return predictions [rows] in float64 from columns by name, in any order; those not needed are ignored.

        Raises ConfigurationError for a column that is missing or not of numbers.
        """
        columns = [self._column(table, name) for name in self.model.features.columns]
        return self.model.predict(torch.stack(columns, dim=1)).flatten().numpy()

    def _column(self, table: Mapping[str, Any], name: str) -> torch.Tensor:
        if name not in table:
            there = list(map(str, table))
            raise ConfigurationError(
                f"column {name!r} is missing: the rows have {join_names(there)}{suggest(name, there)}"
            )
        try:
            return torch.from_numpy(np.array(table[name], dtype=np.float64))
        except (TypeError, ValueError) as error:
            raise ConfigurationError(f"column {name!r} is not of numbers: {error}") from error

    def get_raw_model(self) -> ServedModel:
        """Return itself: MLflow's wrapper hands it out, for those who need no check of every cell."""
        return self
