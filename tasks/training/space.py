"""What a trial is: the parameters that Optuna chose for it, and the model that they make."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from pydantic import JsonValue

from tasks.errors import ConfigurationError
from tasks.learning.features import DERIVATIONS, Features
from tasks.parameters import CONSTANTS, MOST_ROWS, Searchable, SearchParameters, TrainingParameters
from tasks.streaming.arithmetic import SMALLEST_WINDOW, find_window
from tasks.training.start import make_settings

if TYPE_CHECKING:
    from optuna.trial import Trial as Asked

    from tasks.learning.scaling import Scaling
    from tasks.learning.trials import Trial


def check_batch_sizes(given: SearchParameters) -> None:
    """Raise ConfigurationError where a larger batch would not be several of the search's own."""
    sizes = [(given.batch_size or MOST_ROWS) * multiple for multiple in (1, *given.multiples)]
    if given.shuffle and len(set(map(find_window, sizes))) > 1:
        raise ConfigurationError(
            f"batches of up to {max(sizes):,} rows are tried while rows are shuffled: with more than "
            f"{SMALLEST_WINDOW // 2:,} rows in a batch their order follows from its size, so that no two sizes see the "
            "same rows; try smaller ones, or give shuffle=false"
        )


def choose_all_features(columns: tuple[str, ...], given: SearchParameters) -> Features:
    """Return all features that a trial may have: where derived ones are tried, each whose columns are there."""
    tried = "derive" in given.searched() and given.derive is None
    return Features.choose(
        columns,
        target=given.target,
        features=given.features,
        derive=tuple(DERIVATIONS) if tried else given.resolved().derive,
        skip_missing=given.derive is None,
    )


def choose_parameters(asked: Asked, given: SearchParameters, features: Features) -> dict[str, JsonValue]:
    """Let Optuna choose what is tried; return the parameters that differ from the search's own."""
    chosen: dict[str, JsonValue] = {"features": list(features.raw), "derive": list(features.derived)}
    searched = given.searched()
    for name, tried in searched.items():
        if name == "features":
            chosen[name] = _choose_members(asked, name, features.raw)
        elif name == "derive":
            chosen[name] = _choose_members(asked, name, features.derived)
        elif name != "optimizer_options":
            chosen[name] = _choose_value(asked, name, tried)
    if "optimizer_options" in searched:
        chosen["optimizer_options"] = _choose_options(asked, given, chosen)
    return chosen


def _choose_members(asked: Asked, name: str, members: tuple[str, ...]) -> list[JsonValue]:
    return [member for member in members if asked.suggest_categorical(f"{name}.{member}", [True, False])]


def _choose_value(asked: Asked, name: str, tried: Searchable) -> JsonValue:
    if tried.choices:
        value: JsonValue = asked.suggest_categorical(name, tried.choices)  # type: ignore[arg-type]
        return value
    if TrainingParameters.model_fields[name].annotation in (int, int | None):
        return asked.suggest_int(name, int(tried.low), int(tried.high), log=tried.log)
    return asked.suggest_float(name, tried.low, tried.high, log=tried.log)


def _choose_options(asked: Asked, given: SearchParameters, chosen: Mapping[str, JsonValue]) -> list[JsonValue]:
    """Return the constants of the trial's optimiser; none where the first batch's Hessian makes the steps."""
    optimizer = str(chosen.get("optimizer", given.optimizer))
    if optimizer == "SGD" and not chosen.get("learning_rate", given.resolved().learning_rate):
        return []
    return [
        f"{name}={asked.suggest_float(f'{optimizer}.{name}', tried.low, tried.high, log=tried.log)!r}"
        for name, constant in CONSTANTS[optimizer].items()
        for tried in [constant.searched]
    ]


def make_trial(parameters: TrainingParameters, all_features: Features, scaling: Scaling, multiple: int = 1) -> Trial:
    """Return the model that a training with these parameters would train.

    scaling: of all features, by its first batch
    multiple: of how many of the search's batches one of its own is made

    Raises ConfigurationError where no raw feature is left.
    """
    from tasks.learning.scaling import Scaling
    from tasks.learning.trials import Trial

    if not parameters.features:
        raise ConfigurationError("no raw feature was chosen, and a model needs one at least")
    resolved = parameters.resolved()
    features = replace(all_features, raw=tuple(parameters.features), derived=resolved.derive)
    at = [all_features.names.index(name) for name in features.names]
    own = Scaling(scaling.mean[at], scaling.scale[at]) if resolved.standardise else Scaling.none(len(at))
    return Trial(features=features, scaling=own, settings=make_settings(parameters), multiple=multiple)
