"""Drafts a contract from what the rows of a training were: `python -m flows.contracting --help` shows all.

The flow's parameters are those of `tasks.parameters.ContractParameters`. The file is for people to edit; then flows
that read shards take it by `--contract`.
"""

from __future__ import annotations

from typing import Any

from prefect import flow
from prefect.artifacts import create_markdown_artifact
from prefect.client.schemas.objects import State
from prefect.runtime import flow_run
from prefect.states import Completed

from flows.commandline import parameters, run
from flows.names import unless_named
from tasks.errors import ConfigurationError
from tasks.parameters import ContractParameters
from tasks.runs.contracts import check_output, draft_contract, find_profile


def name_run() -> str:
    """Return a name that says what is drafted from what: `contract.yaml · champion of shardline`."""
    given = ContractParameters(**flow_run.parameters)
    return f"{given.output} · {given.run[:8] if given.run else 'champion of ' + given.experiment}"


@flow(name="contracting", flow_run_name=unless_named(name_run))
@parameters(ContractParameters)
def draft(**parameters: Any) -> State[str]:
    """Draft a contract from what the rows of a training were, for people to edit."""
    given = ContractParameters(**parameters)
    path = check_output(given.output)
    run_id, profile = find_profile(given.experiment, given.run)
    text = draft_contract(profile, run_id, given.margin)
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise ConfigurationError(f"output is {path}, which cannot be written: {error}") from error
    create_markdown_artifact(f"```yaml\n{text}```", key="contract", description=f"The contract in {path}, as drafted")
    verdict = (
        f"{path}: the bounds of {len(profile.columns)} columns, as the {profile.rows:,} rows of run {run_id} had them"
    )
    return Completed(message=verdict, data=f"{verdict}\n\n  Edit it, then   --contract {path}")


def check_parameters(given: ContractParameters) -> None:
    """Raise ConfigurationError for what can be known to fail before anything is started."""
    check_output(given.output)


if __name__ == "__main__":
    run(draft, ContractParameters, "flows.contracting", check_parameters)
