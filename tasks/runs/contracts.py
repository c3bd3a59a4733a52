"""A contract drafted from what a training's rows were, for people to edit: observed bounds are not yet right ones."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path

from tasks.errors import ConfigurationError
from tasks.learning.profiles import PROFILE, ColumnProfile, DataProfile
from tasks.streaming.formats.terms import write_number
from tasks.tracking.client import connect
from tasks.tracking.recorded import read_artifact
from tasks.tracking.registry import find_champion_version


def find_profile(experiment: str, run_id: str | None) -> tuple[str, DataProfile]:
    """Return what the training rows of a run held, of the champion's where none is named, and the run's id.

    Raises ConfigurationError where there is no champion, or no profile in the run's record.
    """
    client = connect()
    if run_id is None:
        champion = find_champion_version(client, experiment)
        if champion is None:
            raise ConfigurationError(f"experiment {experiment} has no champion: name a run with --run")
        run_id = champion.run_id
    text = read_artifact(client, run_id, f"data/{PROFILE}")
    held = json.loads(text).get("train") if text else None
    if held is None:
        raise ConfigurationError(
            f"run {run_id} has no profile of training rows (data/{PROFILE}), which a training leaves that goes through "
            "all of them: name another run with --run"
        )
    return run_id, DataProfile.from_dict(held)


def check_output(output: str) -> Path:
    """Return the path of a file to write; raises ConfigurationError where one is there, which may have been edited."""
    path = Path(output).expanduser()
    if path.exists():
        raise ConfigurationError(f"output is {path}, which is there already: name another file, or remove it")
    return path


def draft_contract(profile: DataProfile, run_id: str, margin: float) -> str:
    """Return a contract with the bounds that the rows had, each wider by a share `margin` of its column's range."""
    return "\n".join(_write_lines(profile, run_id, margin)) + "\n"


def _write_lines(profile: DataProfile, run_id: str, margin: float) -> Iterator[str]:
    wider = f", wider by {margin:.3%} of each column's range" if margin else ""
    yield f"# Bounds of the {profile.rows:,} rows that run {run_id} was trained on{wider}."
    yield "# They are what was seen, not what is right: edit them, and leave out what may be any number."
    yield "# allowed_share_of_bad_rows: 0.01    # with --on-bad-rows quarantine, a run ends where more are bad"
    yield "# other_columns: refuse              # shards may have no column that is not named here"
    yield "columns:"
    for column in profile.columns:
        least, most = widen(column, margin)
        yield f"  {quote_name(column.name)}:    # mean {column.mean:.6g}, deviation {column.deviation:.6g}"
        yield f"    minimum: {_write(least)}"
        yield f"    maximum: {_write(most)}"
        if column.least.is_integer() and column.most.is_integer():
            yield "    # whole: true    # both bounds are: where all numbers must be"


def widen(column: ColumnProfile, margin: float) -> tuple[float, float]:
    """Return a column's least and most number, apart by a share `margin` of its range on both sides.

    Between whole numbers bounds are whole; numbers that all have one sign keep it.
    """
    room = margin * (column.most - column.least)
    least, most = column.least - room, column.most + room
    if column.least.is_integer() and column.most.is_integer():
        least, most = float(math.floor(least)), float(math.ceil(most))
    return max(least, 0.0) if column.least >= 0 else least, min(most, 0.0) if column.most <= 0 else most


def quote_name(name: str) -> str:
    """Return a column's name as a key of YAML."""
    import yaml

    plain = yaml.safe_dump(name, allow_unicode=True, width=math.inf).removesuffix("\n").removesuffix("\n...")
    quoted = yaml.safe_dump(name, allow_unicode=True, width=math.inf, default_style='"').removesuffix("\n")
    return str(plain if plain == name and ":" not in name else quoted)


def _write(number: float) -> str:
    text = write_number(number)
    return text if "." in text else text.replace("e", ".0e")  # else YAML takes it for a text
