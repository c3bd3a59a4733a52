"""What a flow run is called: what its parameters say, unless somebody has given it a name."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, wraps
from typing import Any

from prefect.runtime import flow_run

from tasks.redaction import redact


def unless_named(describe: Callable[[], str]) -> Callable[[], str]:
    """Make a flow's `flow_run_name`: a name typed into Prefect's form is kept, one that Prefect drew is replaced."""

    @wraps(describe)
    def name() -> str:
        given = str(flow_run.name or "")
        return given if given and not is_drawn(given) else describe()

    return name


def name_place(shards: str) -> str:
    """Return the two folders that shards lie in, for the name of a run: `csv/dev`."""
    return "/".join(redact(shards).split("/")[-3:-1])


def is_drawn(name: str) -> bool:
    """Return whether a name is of the kind that Prefect draws by lot: two words of its lists, `amber-otter`."""
    words = name.split("-")
    return len(words) == 2 and set(words) <= words_to_draw()


@cache
def words_to_draw() -> frozenset[str]:
    """Return the words that Prefect draws names from."""
    from coolname.data import config

    lists: dict[str, Any] = dict(config)
    return frozenset(word for entry in lists.values() if entry["type"] == "words" for word in entry["words"])
