"""The steps by which a person replaces the champion: by its former version, or by one that is named."""

from __future__ import annotations

import shlex
from datetime import UTC, datetime

from prefect.artifacts import create_markdown_artifact
from prefect.logging import get_run_logger

from tasks.errors import ConfigurationError
from tasks.naming import escape_markdown, write_code
from tasks.parameters import PromotionParameters
from tasks.policy import step
from tasks.redaction import redact_text
from tasks.runs.events import announce_change
from tasks.runs.lineage import find_user
from tasks.runs.links import page_in_prefect
from tasks.tracking.champions import ChampionChange, Succession, read_succession, replace_champion
from tasks.tracking.client import connect
from tasks.tracking.registry import load_model
from tasks.tracking.views import name_of_model


@step("choose version")
def choose_version(given: PromotionParameters) -> ChampionChange:
    """Return the change of champion that is asked for; nothing is changed yet.

    Raises ConfigurationError where the version is champion already, is not there or cannot be loaded, and where none is
    named and none is known to have been champion before.
    """
    client = connect()
    known = read_succession(client, name_of_model(given.experiment))
    version = known.former if given.version is None else known.find(str(given.version)).version
    if version == known.champion:
        raise ConfigurationError(f"version {version} of {known.name} is champion already: {known.remedy}")
    try:
        load_model(client, f"models:/{known.name}/{version}")
    except ConfigurationError as error:
        raise ConfigurationError(
            f"version {version} of {known.name} cannot be champion, since it cannot be loaded: "
            f"{' '.join(str(error.__cause__ or error).split())}: {known.remedy}"
        ) from error
    return describe_change(known, version, given)


def describe_change(known: Succession, version: str, given: PromotionParameters) -> ChampionChange:
    """Return the change from the present champion to a version, made now, by whom the parameters say, and why."""
    since = known.champions.index(version) if version in known.champions else 0
    return ChampionChange(
        name=known.name,
        version=version,
        before=known.champion,
        withdrawn=known.champions[:since],
        reason=redact_text(given.reason),
        by=redact_text(given.by or find_user() or "unknown"),
        at=datetime.now(UTC).isoformat(timespec="seconds"),
    )


@step("change champion")
def change_champion(change: ChampionChange) -> None:
    """Give the alias to the version, and keep the reason on both versions and on the model."""
    replace_champion(connect(), change)
    get_run_logger().info("%s", change.verdict)


@step("report change")
def report_change(change: ChampionChange, experiment: str) -> str:
    """Tell of the change by an artifact and an event; return its verdict, with what follows from it."""
    undo = f"python -m flows.promoting --experiment {shlex.quote(experiment)} --version {change.before} --reason '…'"
    follows = [
        f"The next training is held against version {change.version}.",
        f"What loads `models:/{change.name}@champion` anew gets it; what has it loaded serves on what it loaded.",
        *([f"To take this back: {write_code(undo)}"] if change.before else []),
    ]
    facts = {
        "champion": change.version,
        "before": change.before or "none",
        "withdrawn": ", ".join(change.withdrawn) or "none",
        "reason": change.reason,
        "by": change.by,
        "at": change.at,
    }
    table = "\n".join(f"| {name} | {escape_markdown(value)} |" for name, value in facts.items())
    create_markdown_artifact(
        key="champion",
        description="Which version is champion now, and why",
        markdown=f"**{escape_markdown(change.verdict)}**\n\n| | |\n|---|---|\n{table}\n\n" + "\n\n".join(follows),
    )
    announce_change(change, page_in_prefect() or "(no page in Prefect)")
    return "\n".join([change.verdict, "", *follows])
