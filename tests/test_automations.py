"""What Prefect does by itself: dead runs crashed after some silence, living and ended ones left alone."""

import asyncio
from datetime import timedelta

import pytest
from prefect.client.orchestration import get_client
from prefect.events import Event, EventTrigger, get_events_client
from prefect.states import Completed, Running

from deployments.automations import ENDS, HEARTBEAT, SILENCE, put_in_place, zombie
from deployments.processes import wait_until
from tests.sites import ask

SHORT = timedelta(seconds=10)  # the least that Prefect takes


def emit(*events):
    async def send():
        async with get_events_client() as client:
            for event in events:
                await client.emit(event)

    asyncio.run(send())


@pytest.fixture(scope="module")
def impatient(prefect_api):
    """The automation for dead runs, with ten seconds in the place of ninety, until this module's tests have ended.

    The server is the session's: left there, it would crash any later run that beats only every thirty seconds.
    """
    automation = zombie()
    trigger = automation.trigger.model_copy(update={"within": SHORT})

    async def put():
        async with get_client() as client:
            await put_in_place(client, automation.model_copy(update={"trigger": trigger}))

    async def remove():
        async with get_client() as client:
            for each in await client.read_automations_by_name(automation.name):
                await client.delete_automation(each.id)

    asyncio.run(put())
    yield
    asyncio.run(remove())


def make_run(*states):
    """A flow run that nobody executes, taken through these states."""
    from prefect import flow

    @flow(name="nobody's")
    def nobodys() -> None: ...

    async def make():
        async with get_client() as client:
            run = await client.create_flow_run(nobodys)
            for state in states:
                await client.set_flow_run_state(run.id, state, force=True)
            return run

    return asyncio.run(make())


def state_of(api, run):
    return ask(f"{api}/flow_runs/{run.id}")["state"]


def heartbeat(run):
    return Event(event=HEARTBEAT, resource={"prefect.resource.id": f"prefect.flow-run.{run.id}"})


def test_a_silent_run_is_crashed_and_one_that_ended_unchanged_is_left_alone(prefect_api, impatient):
    silent = make_run(Running())
    emit(heartbeat(silent))
    ended = make_run(Running())
    emit(heartbeat(ended))
    asyncio.run(end(ended, Completed(name="Unchanged")))
    assert wait_until(lambda: state_of(prefect_api, silent)["type"] == "CRASHED", 60, 0.5)
    assert "No heartbeat for 90 seconds" in state_of(prefect_api, silent)["message"]
    assert state_of(prefect_api, ended)["name"] == "Unchanged"


async def end(run, state):
    async with get_client() as client:
        await client.set_flow_run_state(run.id, state)


def test_a_run_that_beats_every_thirty_seconds_is_given_three_beats():
    trigger = zombie().trigger
    assert isinstance(trigger, EventTrigger)
    assert timedelta(seconds=3 * 30) == SILENCE == trigger.within
    assert trigger.expect == {HEARTBEAT, *ENDS}


@pytest.mark.long
def test_an_automation_that_was_switched_off_stays_off(prefect_api, impatient):
    async def switch_off_and_put_again():
        async with get_client() as client:
            (there,) = await client.read_automations_by_name(zombie().name)
            await client.pause_automation(there.id)
            await put_in_place(client, zombie())
            (again,) = await client.read_automations_by_name(zombie().name)
            return there.id == again.id, again.enabled

    assert asyncio.run(switch_off_and_put_again()) == (True, False)
