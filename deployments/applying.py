"""Puts work pool, deployments and automations in place on a Prefect server: `python -m deployments.applying`.

It may be repeated: what is there is brought up to date. The server is the one that PREFECT_API_URL or the active
profile names. SHARDLINE_WEBHOOK_URL, where it is set, is kept in a Webhook block, and failures, data that changed or
drifted and new champions are told there; it may hold a secret, and so it is no argument of a command.
"""

import argparse
import asyncio
import os
import subprocess
import sys
from pathlib import Path
from typing import Any
from uuid import UUID

from deployments.automations import notifications, put_in_place, retraining, zombie
from deployments.pools import PACKAGES, base_job_template
from deployments.progress import say
from tasks.errors import ConfigurationError, ShardlineError

POOL = "shardline"  # the one that deployments/prefect.yaml names; its type is the platform
PREFECT_FILE = Path(__file__).with_name("prefect.yaml")
WEBHOOK = "SHARDLINE_WEBHOOK_URL"
WEBHOOK_BLOCK = "shardline"


def apply(platform: str) -> None:
    """Put all of it in place; raises ConfigurationError."""
    asyncio.run(_apply_pool(platform))
    command = [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all", "--prefect-file", str(PREFECT_FILE)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=PREFECT_FILE.parents[1])
    if done.returncode:
        raise ConfigurationError(f"`prefect deploy` failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    asyncio.run(_apply_automations(os.environ.get(WEBHOOK)))


async def _apply_pool(platform: str) -> None:
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.actions import WorkPoolCreate, WorkPoolUpdate
    from prefect.exceptions import ObjectNotFound

    template = base_job_template(platform)
    async with get_client() as client:
        try:
            pool = await client.read_work_pool(POOL)
        except ObjectNotFound:
            await client.create_work_pool(WorkPoolCreate(name=POOL, type=platform, base_job_template=template))
            return
        if pool.type != platform:
            raise ConfigurationError(
                f"work pool {POOL!r} is of type {pool.type}, not {platform}: delete it, or name {pool.type} as platform"
            )
        if platform != "process":  # what was changed on the page stays, unless a file of ours says what it is to be
            await client.update_work_pool(POOL, WorkPoolUpdate(base_job_template=template))


async def _apply_automations(webhook: str | None) -> None:
    from prefect.client.orchestration import get_client

    async with get_client() as client:
        training = await client.read_deployment_by_name("training/nightly")
        automations = [zombie(), retraining(training.id)]
        if webhook:
            automations += notifications(await _keep_webhook(webhook))
        for automation in automations:
            await put_in_place(client, automation)


async def _keep_webhook(url: str) -> UUID:
    from prefect.blocks.webhook import Webhook

    block: Any = Webhook(url=url)
    return UUID(str(await block.asave(WEBHOOK_BLOCK, overwrite=True)))


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m deployments.applying", description=__doc__.splitlines()[0])
    parser.add_argument("--platform", choices=PACKAGES, default="process", help="type of the work pool [%(default)s]")
    platform = parser.parse_args().platform
    try:
        apply(platform)
    except ShardlineError as error:
        print(f"deployments.applying: {error}", file=sys.stderr)
        return 2
    say(f"Deployments, automations and the {platform} work pool {POOL!r} are in place.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
