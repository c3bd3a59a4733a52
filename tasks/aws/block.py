"""AWS credentials from a Prefect block, for as long as a flow runs: the block's name is a parameter, its keys are not.

boto3, s3fs and MLflow look for credentials by themselves; the block answers them through the environment, and so every
process that the run starts. A worker gives each run a process of its own.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tasks.errors import ConfigurationError

KEYS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE")


@contextmanager
def credentials_of(block: str | None) -> Iterator[None]:
    """Let boto3's chain find the credentials of the AwsCredentials block of this name while the context lasts.

    The block's region and endpoint are used where the environment names none. None: nothing is done. Raises
    ConfigurationError where there is no such block, or prefect-aws is not installed.
    """
    if block is None:
        yield
        return
    answers = settings_of(block)
    before = {name: os.environ.get(name) for name in answers}
    _update(answers)
    try:
        yield
    finally:
        _update(before)


def settings_of(name: str) -> dict[str, str | None]:
    """Return the environment that a block stands for; None is for what must not be set."""
    from tasks.aws.refusals import FOREIGN_ERRORS, Question, redact_error, translate_error

    block = load(name)
    try:
        session = block.get_boto3_session()
        found = session.get_credentials()
        keys = found and found.get_frozen_credentials()
    except FOREIGN_ERRORS as error:
        secret = block.aws_secret_access_key
        redact_error(error, [secret.get_secret_value()] if secret else [])
        raise translate_error(error, Question(service="STS", source=f"block {name}")) from error
    if not keys:
        raise ConfigurationError(f"aws_block {name!r} has neither keys nor a profile that has some: give it either")
    answers: dict[str, str | None] = dict.fromkeys(KEYS)
    answers |= {"AWS_ACCESS_KEY_ID": keys.access_key, "AWS_SECRET_ACCESS_KEY": keys.secret_key}
    answers["AWS_SESSION_TOKEN"] = keys.token or None
    if block.region_name and not (os.environ.get("AWS_DEFAULT_REGION") or os.environ.get("AWS_REGION")):
        answers["AWS_DEFAULT_REGION"] = block.region_name
    endpoint = block.aws_client_parameters.endpoint_url
    if endpoint and not os.environ.get("AWS_ENDPOINT_URL"):
        answers["AWS_ENDPOINT_URL"] = endpoint
    return answers


def load(name: str) -> Any:
    """Load the AwsCredentials block of this name; raise ConfigurationError where there is none."""
    try:
        from prefect_aws import AwsCredentials
    except ImportError as error:
        raise ConfigurationError(
            f"aws_block is {name!r}, and prefect-aws is not installed: pip install 'shardline[aws]'"
        ) from error
    try:
        return AwsCredentials.load(name)
    except ValueError as error:
        raise ConfigurationError(
            f"Prefect has no block 'aws-credentials/{name}': make one under Blocks on its page, or leave aws_block out"
        ) from error


def _update(values: dict[str, str | None]) -> None:
    for name, value in values.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
