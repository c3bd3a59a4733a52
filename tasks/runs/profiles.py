"""What data holds: a run's page of it, the profile that travels with a model, and the edges that both share."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from prefect.artifacts import create_markdown_artifact
from prefect.logging import get_run_logger

from tasks.errors import ShardlineError
from tasks.learning.edges import lay_edges
from tasks.learning.profiles import PROFILE, DataProfile
from tasks.naming import write_code
from tasks.streaming.listing.statistics import ColumnStatistics
from tasks.tracking.client import connect
from tasks.tracking.registry import find_champion_version, read_beside_weights

if TYPE_CHECKING:
    from tasks.tracking.client import Client
    from tasks.tracking.outbox import Outbox

TITLE = "What the columns hold"
DEVIATIONS = 4.0  # from the mean: of a normal distribution, 1 row of 16,000 is farther away


def load_profile(client: Client, uri: str) -> DataProfile | None:
    """Return what the rows held that the registered model at models:/… was trained on; None where it does not say.

    Raises TrackingError where there is no such model, or no answer.
    """
    text = read_beside_weights(client, uri, PROFILE)
    return DataProfile.from_dict(json.loads(text)) if text else None


def choose_edges(experiment: str, stated: Mapping[str, ColumnStatistics]) -> dict[str, tuple[float, ...]]:
    """Return the edges of histograms by column: those of the champion's profile, else as `.meta/stats` suggests.

    Where neither knows a column it is left out. A champion that cannot be asked does not stop the run.
    """
    edges = {name: edges_of(statistics) for name, statistics in stated.items()}
    try:
        client = connect()
        if champion := find_champion_version(client, experiment):
            profile = load_profile(client, f"models:/{champion.name}/{champion.version}")
            edges |= profile.edges if profile else {}
    except ShardlineError as error:
        get_run_logger().warning("The champion's profile cannot be read: %s", error)
    return edges


def edges_of(stated: ColumnStatistics) -> tuple[float, ...]:
    """Return edges of bins for a column of which no more is known than what `.meta/stats` states."""
    low = max(stated.min, stated.mean - DEVIATIONS * stated.stddev)
    high = min(stated.max, stated.mean + DEVIATIONS * stated.stddev)
    whole = stated.min.is_integer() and stated.max.is_integer()
    return lay_edges(low, max(low, high), whole=whole)


def show_profiles(outbox: Outbox, profiles: Mapping[str, DataProfile | None], target: str) -> None:
    """Put what data sets, named train and test, hold into the record, as JSON and drawn, and on a page in Prefect."""
    known = {name: profile for name, profile in profiles.items() if profile}
    if not known:
        return
    from tasks.learning.figures import shrink
    from tasks.learning.multiples import render_profiles

    outbox.keep(f"data/{PROFILE}", json.dumps({name: profile.to_dict() for name, profile in known.items()}))
    figure = render_profiles(known, target)
    outbox.keep("figures/profile.png", figure)
    picture = base64.b64encode(shrink(figure)).decode()
    create_markdown_artifact(
        key="profile",
        description=TITLE,
        markdown=f"![{TITLE}](data:image/png;base64,{picture})\n\n" + "\n".join(write_table(known)),
    )


def write_table(profiles: Mapping[str, DataProfile]) -> Iterator[str]:
    """Yield the lines of a table in Markdown: each column's figures, to six digits, in each data set."""
    figures = ("mean", "deviation", "least", "most")
    heads = [f"{name} {figure}" for name in profiles for figure in figures]
    yield "| column | " + " | ".join(heads) + " |"
    yield "|---|" + "---:|" * len(heads)
    for columns in zip(*(profile.columns for profile in profiles.values()), strict=True):
        cells = [f"{getattr(column, figure):.6g}" for column in columns for figure in figures]
        yield f"| {write_code(columns[0].name)} | " + " | ".join(cells) + " |"
