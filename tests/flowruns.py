"""Flows as tests call them: run to their end, whatever that is."""

from collections.abc import Callable
from typing import Any

from prefect.client.schemas.objects import State


def ended(flow: Callable[..., Any], **given: Any) -> State[Any]:
    """The state in which a flow with these parameters ended."""
    state = flow(**given, return_state=True)
    assert isinstance(state, State)
    return state
