"""A search's study: what Optuna was told, in a database that outlives the process.

It is the SQLite file `studies.db` in STATE, or the database of OPTUNA_STORAGE, as Optuna's own command line takes it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING

from tasks.errors import ConfigurationError, TrackingError
from tasks.redaction import redact_text
from tasks.state import STATE

FAULT = "fault"  # a trial's attribute: why it failed
ERROR = "MSE on the validation rows"
NOTHING_TO_SAY = (ValueError, RuntimeError, ZeroDivisionError)  # of Optuna, about fewer trials than it needs
MOST_DRAWN = 6  # parameters side by side
WIDTHS = {"parallel_coordinate": 15, "slice": 18}  # inches; of the others 9

if TYPE_CHECKING:
    from optuna.storages import RDBStorage
    from optuna.study import Study
    from optuna.trial import FrozenTrial
    from sqlalchemy.engine.interfaces import DBAPIConnection


def require_optuna() -> None:
    """Raise ConfigurationError where Optuna is not installed."""
    if not find_spec("optuna"):
        raise ConfigurationError("a search needs Optuna, which is not installed: pip install 'shardline[search]'")


def open_study(name: str, sampler: str, seed: int) -> Study:
    """Return the study of this name, with those that an earlier process left RUNNING told FAIL; it is made if need be.

    Raises TrackingError where its database does not answer.
    """
    require_optuna()
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    optuna.logging.enable_propagation()
    STATE.mkdir(parents=True, exist_ok=True)
    url = os.environ.get("OPTUNA_STORAGE") or f"sqlite:///{(STATE / 'studies.db').absolute()}"
    with translated():
        study = optuna.create_study(study_name=name, storage=open_storage(url), load_if_exists=True)
        trials = study.get_trials(deepcopy=False)
        for trial in trials:
            if trial.state == optuna.trial.TrialState.RUNNING:
                study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
        drawn = seed + len(trials)  # one that goes on does not draw again what it drew before
        study.sampler = (
            optuna.samplers.RandomSampler(seed=drawn)
            if sampler == "random"
            else optuna.samplers.TPESampler(seed=drawn, constant_liar=True)
        )
    return study


def open_storage(url: str) -> RDBStorage:
    """Return Optuna's storage in a database; SQLite does not wait for the disk at each of the many things it is told.

    With its write-ahead log, what a power cut takes are the last of them, and never the file.
    """
    import sqlalchemy
    from optuna.storages import RDBStorage

    storage = RDBStorage(url)
    if storage.engine.dialect.name == "sqlite":
        sqlalchemy.event.listen(storage.engine, "connect", _write_ahead)
        storage.engine.dispose()  # connections that were made before
    return storage


def _write_ahead(connection: DBAPIConnection, _: object) -> None:
    for pragma in ("journal_mode=wal", "synchronous=normal"):
        connection.cursor().execute(f"pragma {pragma}")


@contextmanager
def translated() -> Iterator[None]:
    """Raise TrackingError where the database of studies fails in the block."""
    from optuna.exceptions import OptunaError
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (OptunaError, SQLAlchemyError, OSError) as error:
        text = redact_text(" ".join(str(error).split()))[:400]
        raise TrackingError(f"the study cannot be kept in OPTUNA_STORAGE, or in {STATE}/studies.db: {text}") from None


def find_told(study: Study) -> Sequence[FrozenTrial]:
    """Return the trials of which something is known: all but those that were asked for and then lost by a kill."""
    from optuna.trial import TrialState

    with translated():
        trials = study.get_trials(deepcopy=False)
    ended = (TrialState.COMPLETE, TrialState.PRUNED)
    return [trial for trial in trials if trial.state in ended or FAULT in trial.user_attrs]


def name_most_important(study: Study) -> list[str]:
    """Return the parameters that all finished trials have, and that matter most, where that can be said."""
    import optuna

    try:
        return list(optuna.importance.get_param_importances(study))[:MOST_DRAWN]
    except NOTHING_TO_SAY:
        return sorted(study.best_params)[:MOST_DRAWN]


def draw_study(study: Study) -> Mapping[str, bytes]:
    """Return Optuna's own pictures of a study, as PNG by name, but for those that need more trials than there are."""
    import warnings

    import matplotlib

    matplotlib.use("Agg")
    from optuna.visualization import matplotlib as draw

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that they are experimental, and of what there are few trials
        weighed = name_most_important(study)
        draws: dict[str, Callable[[], object]] = {
            "history": lambda: draw.plot_optimization_history(study, target_name=ERROR),
            "importance": lambda: draw.plot_param_importances(study, target_name=ERROR),
            "parallel_coordinate": lambda: draw.plot_parallel_coordinate(study, params=weighed, target_name=ERROR),
            "slice": lambda: draw.plot_slice(study, params=weighed, target_name=ERROR),
        }
        pictures = {name: render(call, WIDTHS.get(name, 9)) for name, call in draws.items()}
    return {name: picture for name, picture in pictures.items() if picture}


def render(draw: Callable[[], object], width: float) -> bytes | None:
    """Return as PNG what Optuna draws, so many inches wide; None where it cannot."""
    import io

    from matplotlib import pyplot

    try:
        draw()
    except NOTHING_TO_SAY:
        return None
    finally:
        figure, buffer = pyplot.gcf(), io.BytesIO()
        pyplot.close(figure)
    figure.set_size_inches(width, 5)
    for axes in figure.axes:
        axes.xaxis.label.set_fontsize(8)  # names of columns are long
    figure.savefig(buffer, format="png", dpi=110, bbox_inches="tight")
    return buffer.getvalue()
