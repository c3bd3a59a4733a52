"""Whether a new model becomes champion: it must beat the present one on the same rows.

The verdict stands in the run's report; what it brings about in the registry is in `tasks.tracking.registry`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tasks.errors import ShardlineError
from tasks.facts import ROWS_OF, Promotion, RowsOf
from tasks.learning.scores import Score
from tasks.naming import join_names
from tasks.tracking.champions import BECOMES
from tasks.tracking.client import connect
from tasks.tracking.registry import ColumnModel, find_champion_version, load_model

APART = "models of other data are kept apart by an experiment of their own (the parameter experiment)"


@dataclass(frozen=True)
class Champion:
    """The present champion, ready to predict, or why it cannot; all None: there is none."""

    version: str | None = None
    model: ColumnModel | None = None
    fault: str | None = None


def find_champion(experiment: str, target: str, columns: Sequence[str]) -> Champion:
    """Find the experiment's champion, for rows of these columns.

    Whatever is wrong with it does not stop the run whose model is held against it.
    """
    version = None
    try:
        client = connect()
        registered = find_champion_version(client, experiment)
        if registered is None:
            return Champion()
        version = registered.version
        model = load_model(client, f"models:/{registered.name}/{version}")
        if model.target not in (target, None):
            return Champion(version, fault=f"it predicts {model.target}, and this model {target}: {APART}")
        if not set(model.inputs) <= set(columns):
            return Champion(version, fault=f"it needs {join_names(model.inputs)}, not all of which are read: {APART}")
        return Champion(version, model.on(columns))
    except ShardlineError as error:
        return Champion(version, fault=str(error))


def judge(scores: Mapping[str, Score], rows_of: RowsOf, champion: Champion) -> Promotion:
    """Decide whether the trained model becomes champion.

    It must have a smaller error than the champion on the same rows, which were held out from its training; where there
    is no champion, than always guessing the mean.
    """
    rival = f"the champion (version {champion.version})" if champion.version else "the champion"
    trained, other = scores["trained"], scores.get("champion")
    if champion.fault:
        return _stay(champion, f"it cannot be compared with {rival}: {champion.fault}")
    if champion.version and (other is None or rows_of == "train"):
        return _stay(champion, f"there are no rows but those it was trained on to compare it with {rival}")
    if champion.version and trained.r2 is None:
        return _stay(
            champion, f"the target of the {ROWS_OF[rows_of]} rows is constant, which is no test against {rival}"
        )
    if other is None:
        rival, other = "always guessing the mean, there being no champion yet", scores["mean"]
    figures = f"RMSE {trained.rmse:.6g} against {other.rmse:.6g} on the {trained.rows:,} {ROWS_OF[rows_of]} rows"
    if not trained.mse < other.mse:
        return _stay(champion, f"it does not beat {rival}: {figures}")
    verdict = f"{BECOMES}, for it beats {rival}: {figures}."
    return Promotion(wins=True, against=champion.version, verdict=verdict)


def _stay(champion: Champion, reason: str) -> Promotion:
    return Promotion(wins=False, against=champion.version, verdict=f"The model stays challenger, for {reason}.")
