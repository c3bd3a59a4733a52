"""The step that asks, before anything else runs, who we are to AWS and whether the buckets may be read.

What is asked, and of whom, is in `tasks.aws.identity`; which buckets and which region, in `tasks.sources`.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace

from prefect.artifacts import create_markdown_artifact
from prefect.context import get_run_context
from prefect.exceptions import MissingContextError
from prefect.logging import get_run_logger

from tasks.aws.identity import Identity, ask_identity
from tasks.naming import escape_markdown
from tasks.parameters import Access
from tasks.policy import step
from tasks.sources import Sources

ARTIFACT_KEY = "identity"


@step("verify credentials")
def verify_sources(sources: Sources, given: Access, *outputs: str) -> tuple[Sources, Identity]:
    """Verify that the shards and the outputs can be listed; return the sources with their owner, and who we are.

    The owner is the parameter bucket_owner, else the caller's account; None where neither is known. Raises what
    `tasks.aws.identity.ask_identity` raises, and is not tried again.
    """
    identity = verify_credentials(
        uris=[*sources.uris, *outputs],
        region=sources.region,
        bucket_owner=given.bucket_owner,
        verify_identity=given.verify_identity,
        anonymous=given.anonymous,
    )
    return replace(sources, owner=given.bucket_owner or identity.account), identity


def verify_credentials(
    *, uris: Sequence[str], region: str | None, bucket_owner: str | None, verify_identity: bool, anonymous: bool
) -> Identity:
    """Ask as `tasks.aws.identity.ask_identity` does; leave an artifact, key `identity`, where there is a run."""
    identity = ask_identity(
        uris=uris,
        region=region,
        bucket_owner=bucket_owner,
        verify_identity=verify_identity,
        anonymous=anonymous,
    )
    _publish(identity)
    return identity


def _publish(identity: Identity) -> None:
    """Log who we are and leave an artifact, where there is a run to log to and to leave it with."""
    try:
        get_run_context()
    except MissingContextError:
        logging.getLogger(__name__).info("%s", identity.note)
        return
    asked = f"account {identity.account}, {identity.arn}; " if identity.account else ""
    get_run_logger().info("%s%s", asked, identity.note)
    rows = {
        "Account": identity.account,
        "ARN": identity.arn,
        "User id": identity.user_id,
        "Region": identity.region,
        "Buckets": ", ".join(identity.buckets),
        "Verified by": identity.verified_by,
        "Note": identity.note,
    }
    lines = [f"| {name} | {escape_markdown(value or 'not asked for')} |" for name, value in rows.items()]
    table = "\n".join(["| Identity | |", "| --- | --- |", *lines])
    create_markdown_artifact(
        table if identity.buckets else escape_markdown(identity.note),
        key=ARTIFACT_KEY,
        description="Who reads the shards",
    )
