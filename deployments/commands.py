"""What the words of a command, and the environment, say about what it needs; local.py provides that.

A flow's own words are checked here before any server is started, by the same parser that the flow uses.
"""

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from flows.commandline import parse
from tasks.errors import ConfigurationError
from tasks.parameters import (
    BenchmarkParameters,
    ContractParameters,
    MonitoringParameters,
    Parameters,
    PredictionParameters,
    PromotionParameters,
    ReplayParameters,
    TrainingParameters,
)
from tasks.sources import BUCKET_ID_FILE, resolve_sources

# With one of these the command knows its data, or who asks for it: no stand-in then.
OWN_DATA = ("--shards", "--bucket-id", "--aws-block")
FLOWS: dict[str, tuple[type[Parameters], Callable[[Any], Any] | None]] = {
    "flows.training": (TrainingParameters, resolve_sources),
    "flows.benchmarking": (BenchmarkParameters, None),
    "flows.predicting": (PredictionParameters, None),
    "flows.promoting": (PromotionParameters, None),
    "flows.monitoring": (MonitoringParameters, None),
    "flows.replaying": (ReplayParameters, None),
    "flows.contracting": (ContractParameters, None),
}


def wants_help(command: Sequence[str]) -> bool:
    """Whether the command only asks how it is used."""
    return any(word in ("-h", "--help") for word in command)


def check(command: Sequence[str], *, standin: bool) -> None:
    """Leave with one line and exit code 2 where a flow's words are not valid; other commands are not looked into.

    With the stand-in the flow's data will be there; without it, whether something names the data is checked too.
    """
    if "-m" not in command[:-1] or (module := command[command.index("-m") + 1]) not in FLOWS:
        return
    model, resolve = FLOWS[module]
    given = parse(model, command[command.index("-m") + 2 :], module, "")
    try:
        if resolve and not standin:
            resolve(given)
    except ConfigurationError as error:
        print(f"{module}: {error}", file=sys.stderr)
        sys.exit(2)


def needs_standin(command: Sequence[str]) -> bool:
    """Whether nothing says where the command's data is: no BUCKET_ID, no AWS credentials, no option that names it."""
    named = any(word == option or word.startswith(f"{option}=") for word in command for option in OWN_DATA)
    has_bucket = bool(os.environ.get("BUCKET_ID")) or Path(BUCKET_ID_FILE).is_file()
    return not named and not has_bucket and not has_credentials()


def has_credentials() -> bool:
    """Whether boto3's chain finds credentials, without asking the network: the machine's own role is not looked for.

    A container's role and a profile that leads to a role or to single sign-on count as credentials, unasked.
    """
    if any(os.environ.get(f"AWS_CONTAINER_CREDENTIALS_{kind}_URI") for kind in ("RELATIVE", "FULL")):
        return True
    import botocore.exceptions
    import botocore.session

    try:
        resolver = botocore.session.Session().get_component("credential_provider")
        resolver.remove("iam-role")
        return resolver.load_credentials() is not None
    except (botocore.exceptions.BotoCoreError, botocore.exceptions.ClientError):
        return True  # there are some, and they are faulty: the command says what is wrong with them


def find_region(command: Sequence[str]) -> str | None:
    """The region that the command names for its bucket, else None."""
    for word, following in zip(command, [*command[1:], ""], strict=True):
        if word == "--region" and following:
            return following
        if word.startswith("--region="):
            return word.removeprefix("--region=")
    return None
