"""What Prefect does by itself when something happens: a dead run marked crashed, people told, a training started.

The events are Prefect's own and those of `tasks.runs.events`. deployments/applying.py puts the automations in
place; one that was switched off on Prefect's page stays off.
"""

from datetime import timedelta
from typing import Any
from uuid import UUID

from prefect.automations import AutomationCore, EventTrigger, Posture
from prefect.client.schemas.objects import StateType
from prefect.events.actions import CallWebhook, ChangeFlowRunState, RunDeployment

from tasks.runs.events import CHAMPION_CHANGED, DATA_CHANGED, DATA_DRIFTED

HEARTBEAT = "prefect.flow-run.heartbeat"  # every 30 seconds, as deployments/prefect.yaml asks for
SILENCE = timedelta(seconds=90)
# The names of all states that a run of ours ends in; a run that ended without one of them would be taken for dead.
ENDS = tuple(
    f"prefect.flow-run.{name}" for name in ("Completed", "Unchanged", "Drifted", "Failed", "Crashed", "Cancelled")
)
OURS = {"prefect.resource.id": "prefect.tag.shardline"}  # runs of the deployments in prefect.yaml have this tag

# Jinja, filled in by Prefect's server; {"text": …} is what Slack, Mattermost and Teams' workflows understand.
FAILURE = """{{ flow.name }} · {{ flow_run.name }}: {{ flow_run.state.name }}
{{ flow_run.state.message }}
{{ flow_run | ui_url }}"""
DATA = """The data has changed: {{ event.resource.name }}
{{ flow_run | ui_url }}"""
DRIFT = """The data has drifted: {{ event.resource.name }}
{{ event.payload.verdict }}
{{ flow_run | ui_url }}"""
CHAMPION = """{{ event.resource.name }} has a new champion, version {{ event.payload.version }}
{{ event.payload.description }}
{{ event.payload.run }}"""


def zombie() -> AutomationCore:
    """Mark a run as crashed that sends no heartbeat for 90 seconds, which frees its deployment's slot."""
    return AutomationCore(
        name="shardline: crash dead runs",
        description="A run whose process was killed sends no heartbeat any more: it is marked as crashed, and the next "
        "run of its deployment can start.",
        trigger=EventTrigger(
            match={"prefect.resource.id": "prefect.flow-run.*"},
            for_each={"prefect.resource.id"},
            after={HEARTBEAT},
            expect={HEARTBEAT, *ENDS},
            posture=Posture.Proactive,
            threshold=1,
            within=SILENCE,
        ),
        actions=[
            ChangeFlowRunState(
                state=StateType.CRASHED,
                name="Crashed",
                message=f"No heartbeat for {SILENCE.seconds} seconds: its process, its worker or its machine is gone. "
                "The next run with the same settings goes on from its last checkpoint.",
            )
        ],
    )


def notifications(webhook: UUID) -> list[AutomationCore]:
    """Tell a webhook of failed runs, data that changed or drifted, and new champions."""
    return [
        _notify(
            "shardline: tell of failures",
            "A run of a deployment failed or crashed.",
            EventTrigger(
                match={"prefect.resource.id": "prefect.flow-run.*"},
                match_related=OURS,
                expect={"prefect.flow-run.Failed", "prefect.flow-run.Crashed"},
                posture=Posture.Reactive,
                threshold=1,
            ),
            webhook,
            FAILURE,
        ),
        _notify(
            "shardline: tell of changed data",
            "A training found other shards than the last success with the same settings.",
            _trigger("shardline.data.*", DATA_CHANGED),
            webhook,
            DATA,
        ),
        _notify(
            "shardline: tell of drifted data",
            "Shards that were monitored or predicted have drifted from what the model was trained on.",
            _trigger("shardline.data.*", DATA_DRIFTED),
            webhook,
            DRIFT,
        ),
        _notify(
            "shardline: tell of a new champion",
            "A trained model became the champion, or a person replaced the champion.",
            _trigger("shardline.model.*", CHAMPION_CHANGED),
            webhook,
            CHAMPION,
        ),
    ]


def retraining(training: UUID) -> AutomationCore:
    """Start a deployment of the training where a monitoring run finds drift; off until somebody switches it on.

    It trains with the experiment and on the shards of that run, whose parameters a person may have chosen in its form.
    """
    return AutomationCore(
        name="shardline: train when data has drifted",
        description="A monitoring run whose data has drifted starts training/nightly. Off at first: a training costs "
        "what it costs.",
        enabled=False,
        trigger=EventTrigger(
            match={"prefect.resource.id": "shardline.data.*"},
            match_related={"prefect.resource.role": "flow", "prefect.resource.name": "monitoring"},
            expect={DATA_DRIFTED},
            posture=Posture.Reactive,
            threshold=1,
        ),
        actions=[
            RunDeployment(
                source="selected",
                deployment_id=training,
                parameters={
                    "experiment": _fill_in("{{ flow_run.parameters.get('experiment', 'shardline') | tojson }}"),
                    "shards": _fill_in("{{ flow_run.parameters.get('shards') | tojson }}"),
                    "bucket_id": _fill_in("{{ flow_run.parameters.get('bucket_id') | tojson }}"),
                },
            )
        ],
    )


def _fill_in(template: str) -> dict[str, Any]:
    """Return a parameter's value that Prefect's server makes of a template, which is JSON once it is filled in."""
    return {"__prefect_kind": "json", "value": {"__prefect_kind": "jinja", "template": template}}


def _trigger(resource: str, event: str) -> EventTrigger:
    return EventTrigger(match={"prefect.resource.id": resource}, expect={event}, posture=Posture.Reactive, threshold=1)


def _notify(name: str, description: str, trigger: EventTrigger, webhook: UUID, text: str) -> AutomationCore:
    payload = "{% set text %}" + text + '{% endset %}{"text": {{ text | tojson }}}'
    action = CallWebhook(block_document_id=webhook, payload=payload)
    return AutomationCore(name=name, description=description, trigger=trigger, actions=[action])


async def put_in_place(client: Any, automation: AutomationCore) -> None:
    """Create an automation, or bring the one of its name up to date, switched off where it is."""
    existing = await client.read_automations_by_name(automation.name)
    if existing:
        kept = automation.model_copy(update={"enabled": existing[0].enabled})
        await client.update_automation(existing[0].id, kept)
    else:
        await client.create_automation(automation)
