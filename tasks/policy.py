"""What every step has in common when Prefect runs it: its name, and which failed attempts are worth another."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any, ParamSpec, TypeVar, cast

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.tasks import Task
from prefect.utilities.annotations import quote

from tasks.errors import ShardlineError
from tasks.redaction import redact_causes

P = ParamSpec("P")
R = TypeVar("R")

READING = (1, 5)  # seconds before a second and a third attempt of a step that goes through shards once
STREAMING = (5, 30)  # of one that streams for long, and goes on from where it was


def step(
    name: str, *, run_name: str | None = None, pauses: Sequence[float] = ()
) -> Callable[[Callable[P, R]], Task[P, R]]:
    """Return a decorator that makes a function a step of a flow, by its name in Prefect.

    `run_name` names each run of it, where that says more than the name, with the step's parameters in braces. `pauses`
    are the seconds before each further attempt: a step has as many, for errors that may be gone by then. Nothing is
    taken from Prefect's cache: what a step reads, it reads anew.
    """
    decorate = task(
        name=name,
        task_run_name=run_name or name,
        cache_policy=NO_CACHE,
        retries=len(pauses),
        retry_delay_seconds=[float(pause) for pause in pauses],
        retry_condition_fn=may_succeed_later,
    )
    return lambda function: decorate(without_secrets(function))


def without_secrets(function: Callable[P, R]) -> Callable[P, R]:
    """Return a function whose errors show no secret of an address when Prefect logs them with all their causes."""

    @wraps(function)
    def guarded(*args: P.args, **given: P.kwargs) -> R:
        try:
            return function(*args, **given)
        except Exception as error:
            redact_causes(error)
            raise

    return guarded


def untracked(value: R) -> R:
    """Hide from Prefect which step a value came from, where another value says that this step follows that one.

    Its graph then has one edge between steps that follow each other, and none that goes past one.
    """
    return cast(R, quote(value))


async def may_succeed_later(_task: Task[..., Any], _run: TaskRun, state: State[Any]) -> bool:
    """Return whether a failed attempt is worth another: only errors that say so of themselves are."""
    error = await state.aresult(raise_on_failure=False)
    return isinstance(error, ShardlineError) and error.retryable
