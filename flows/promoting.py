"""Rolls back: makes the former champion champion again, or another version: `python -m flows.promoting --help`.

The flow's parameters are those of `tasks.parameters.PromotionParameters`. Rolled back twice, it is two versions back.
"""

from __future__ import annotations

from typing import Any

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.runtime import flow_run
from prefect.states import Completed

from flows.commandline import parameters, run
from flows.names import unless_named
from tasks.parameters import PromotionParameters
from tasks.runs.rollback import change_champion, choose_version, report_change


def name_run() -> str:
    """Return a name that says what becomes champion of what: `version 3 of shardline`."""
    given = PromotionParameters(**flow_run.parameters)
    return f"{f'version {given.version}' if given.version else 'former champion'} of {given.experiment}"


@flow(name="promoting", flow_run_name=unless_named(name_run))
@parameters(PromotionParameters)
def promote(**parameters: Any) -> State[str]:
    """Make the former version of a model its champion again, or the one that is named, and keep the reason."""
    given = PromotionParameters(**parameters)
    change = choose_version(given)
    change_champion(change)
    return Completed(message=change.verdict, data=report_change(change, given.experiment))


if __name__ == "__main__":
    run(promote, PromotionParameters, "flows.promoting", check=lambda given: given)
