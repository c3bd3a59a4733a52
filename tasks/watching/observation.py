"""The step that goes through today's shards once: what each column holds, and how far off the model is on them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from tasks.errors import ConfigurationError
from tasks.facts import Observed, Reference
from tasks.naming import join_names
from tasks.parameters import MonitoringParameters
from tasks.policy import READING, step
from tasks.sources import Sources, open_dataset
from tasks.tracking.registry import ColumnModel, load_model

if TYPE_CHECKING:
    from torch import Tensor

    from tasks.learning.scores import Score
    from tasks.streaming import Manifest


@step("profile shards", pauses=READING)
def observe_shards(manifest: Manifest, sources: Sources, given: MonitoringParameters, reference: Reference) -> Observed:
    """Profile the columns that the model was trained on; where its target is among them, score the model as well.

    Raises ConfigurationError where none of them is there.
    """
    from tasks.learning.profiled import take_profile
    from tasks.tracking.client import connect

    edges = reference.profile.edges
    columns = [name for name in edges if name in manifest.known]
    if not columns:
        raise ConfigurationError(
            f"the model {reference.model} was trained on {join_names(edges)}, and the shards have "
            f"{join_names(manifest.known)}"
        )
    dataset = open_dataset(manifest.choose(columns), sources, given, epochs=1)
    model = load_model(connect(), reference.model)
    errors = Errors(model, columns) if {model.target, *model.inputs} <= {*columns} else None
    profile = take_profile(errors.watch(dataset) if errors else dataset, columns, edges)
    return Observed(
        profile=profile,
        score=errors.score() if errors else None,
        bad_rows=dataset.bad_rows,
        bad_rows_file=str(dataset.bad_rows_file) if dataset.bad_rows else None,
    )


class Errors:
    """A model's errors over the batches that pass by, whose columns hold its inputs and its target."""

    def __init__(self, model: ColumnModel, columns: list[str]) -> None:
        from tasks.learning.scoring import ErrorSums

        self._model, self._at = model.on(columns), columns.index(str(model.target))
        self._sums = ErrorSums(1)
        self._shift: float | None = None

    def watch(self, batches: Iterable[Tensor]) -> Iterator[Tensor]:
        """Yield [rows, columns] batches as they come, after their rows were taken in."""
        import torch

        for batch in batches:
            target = batch[:, self._at].double()
            self._shift = float(target.mean()) if self._shift is None else self._shift
            error = self._model.predict(batch).flatten() - target
            self._sums.add(error, target - self._shift, torch.zeros(len(batch), dtype=torch.int64))
            yield batch

    def score(self) -> Score | None:
        """Return the score over the rows so far; None where there are none."""
        return self._sums.score()
