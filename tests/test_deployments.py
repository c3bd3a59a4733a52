"""Deployments on real servers with a real worker: scheduled, started, cancelled, killed, skipped, and told of."""

import os
import re
import signal
import time
from pathlib import Path
from uuid import UUID, uuid4

import pandas as pd  # type: ignore[import-untyped]
import psutil
import pytest
from prefect.events import Event, RelatedResource

from deployments.automations import retraining
from deployments.generator import write_data
from deployments.processes import wait_until
from tasks.runs.events import DATA_CHANGED, DATA_DRIFTED
from tests.sites import ask
from tests.test_automations import emit

pytestmark = pytest.mark.timeout(400)


def of_deployment(site, name):
    return ask(f"{site.api}/deployments/name/{name}")


def set_state(site, run_id, kind):
    return ask(f"{site.api}/flow_runs/{run_id}/set_state", {"state": {"type": kind}, "force": False})


def runs_in(site, state):
    return ask(f"{site.api}/flow_runs/filter", {"flow_runs": {"state": {"type": {"any_": [state]}}}})


@pytest.mark.parametrize(
    ("name", "parameters", "schedule"),
    [
        ("training/nightly", {"skip_unchanged": True}, "30 3 * * *"),
        ("training/notebook", {"preset": "notebook"}, None),
        ("training/many-machines", {"ranks": 8}, None),
        ("searching/fifty-trials", {}, None),
        ("promoting/roll-back", {}, None),
        ("monitoring/before-training", {}, "5 3 * * *"),
        ("benchmarking/weekly", {}, "0 6 * * 0"),
        ("predicting/after-training", {}, None),
    ],
)
def test_a_deployment_states_differences_only_and_runs_one_at_a_time(site, name, parameters, schedule):
    deployed = of_deployment(site, name)
    assert deployed["parameters"] == parameters
    assert deployed["description"] and "shardline" in deployed["tags"]
    assert deployed["global_concurrency_limit"]["limit"] == 1
    assert deployed["concurrency_options"]["collision_strategy"] == "ENQUEUE"
    assert deployed["work_pool_name"] == "shardline"
    assert [each["schedule"]["cron"] for each in deployed["schedules"]] == ([schedule] if schedule else [])
    assert {each["schedule"]["timezone"] for each in deployed["schedules"]} <= {"America/New_York"}


@pytest.mark.parametrize("name", ["training/nightly", "monitoring/before-training", "benchmarking/weekly"])
def test_a_schedule_yields_scheduled_runs(site, name):
    deployment = of_deployment(site, name)["id"]
    question = {
        "deployments": {"id": {"any_": [deployment]}},
        "flow_runs": {"state": {"type": {"any_": ["SCHEDULED"]}}},
    }
    assert wait_until(lambda: ask(f"{site.api}/flow_runs/count", question) > 0, 60, 0.5)


def test_a_run_started_by_the_api_completes_with_its_mlflow_run(site, trained):
    assert (trained["state_name"], trained["parameters"]["skip_unchanged"]) == ("Completed", True)
    (run,) = site.in_mlflow(trained["id"])
    assert run["info"]["status"] == "FINISHED"
    params = {each["key"]: each["value"] for each in run["data"]["params"]}
    assert (params["iterations"], params["batch_size"]) == ("12", "2048")
    assert {"identity", "training-shards", "preview", "report"} <= set(site.artifacts(trained["id"]))


@pytest.mark.long
def test_an_unchanged_run_is_skipped_and_links_to_the_success(site, trained):
    run = site.wait(site.start("training/nightly", iterations=12, batch_size=2048))
    assert (run["state_type"], run["state_name"]) == ("COMPLETED", "Unchanged")
    (success,) = site.in_mlflow(trained["id"])
    assert success["info"]["run_id"] in run["state"]["message"]
    assert success["info"]["run_id"] in site.artifacts(run["id"])["unchanged"]["data"]
    assert site.in_mlflow(run["id"]) == []


def test_prediction_follows_training_and_not_a_run_that_was_skipped(site, trained):
    def predictions():
        return ask(f"{site.api}/flow_runs/filter", {"flows": {"name": {"any_": ["predicting"]}}})

    assert wait_until(lambda: len(predictions()) > 0, 60, 0.5)
    assert site.wait(predictions()[0]["id"])["state_name"] == "Completed"
    of_the_training = {"experiment": "shardline", "shards": None, "bucket_id": None}
    assert {name: predictions()[0]["parameters"][name] for name in of_the_training} == of_the_training
    created = [each for each in predictions() if each["created_by"] and each["created_by"]["type"] == "AUTOMATION"]
    question = {
        "deployments": {"id": {"any_": [of_deployment(site, "training/nightly")["id"]]}},
        "flow_runs": {"state": {"name": {"any_": ["Completed"]}}},
    }
    assert len(created) == ask(f"{site.api}/flow_runs/count", question)


@pytest.mark.long
def test_drift_starts_a_training_on_its_shards_once_that_is_switched_on(site, trained, receiver, tmp_path):
    (there,) = of_name(site, retraining(UUID(int=0)).name)
    assert not there["enabled"]
    drifted = write_drifted(tmp_path)
    quiet = site.wait(site.start("monitoring/before-training", shards=drifted))
    assert quiet["state_name"] == "Drifted"
    receiver.await_text("The data has drifted", drifted, "fareamount_double (PSI ")
    ask(f"{site.api}/automations/{there['id']}", {"enabled": True}, method="PATCH")
    try:
        assert site.wait(site.start("monitoring/before-training", shards=drifted))["state_name"] == "Drifted"
        assert wait_until(lambda: bool(on_shards(site, drifted)), 60, 0.5)
    finally:
        ask(f"{site.api}/automations/{there['id']}", {"enabled": False}, method="PATCH")
    (training,) = on_shards(site, drifted)
    assert site.wait(training["id"])["state_name"] == "Completed"


def of_name(site, name):
    return ask(f"{site.api}/automations/filter", {"automations": {"name": {"any_": [name]}}})


def on_shards(site, shards):
    """The runs of the training that read these."""
    runs = ask(f"{site.api}/flow_runs/filter", {"flows": {"name": {"any_": ["training"]}}})
    return [each for each in runs if each["parameters"].get("shards") == shards]


def write_drifted(folder):
    """A glob of generated shards in which fares are twice what they were."""
    write_data(folder, 3000)
    for path in (folder / "csv" / "dev").glob("part*.csv"):
        if path.stat().st_size:
            table = pd.read_csv(path)
            table.assign(fareamount_double=2 * table["fareamount_double"]).to_csv(path, index=False)
    return f"{folder}/csv/dev/part*.csv"


def test_a_cancelled_run_is_cancelled_in_prefect_and_killed_in_mlflow(site):
    run_id = site.start("training/notebook", iterations=100_000_000, batch_size=2048)
    assert wait_until(lambda: bool(site.in_mlflow(run_id)), 120, 0.5), site.log()
    set_state(site, run_id, "CANCELLING")
    assert site.wait(run_id, "CANCELLED")["state_name"] == "Cancelled"
    assert wait_until(lambda: site.in_mlflow(run_id)[0]["info"]["status"] == "KILLED", 60, 0.5)


@pytest.mark.long
def test_a_cancelled_run_over_ranks_leaves_no_process_of_ray(site):
    run_id = site.start("training/many-machines", ranks=2, iterations=100_000, batch_size=2**20)
    assert wait_until(lambda: "seconds_per_iteration" in str(site.in_mlflow(run_id)), 240, 0.5), site.log()
    ray = [process for process in processes_of(site, run_id) if "ray" in " ".join(process.cmdline())]
    assert len(ray) > 2
    began = time.monotonic()
    set_state(site, run_id, "CANCELLING")
    assert site.wait(run_id, "CANCELLED")["state_name"] == "Cancelled"
    _, left = psutil.wait_procs(ray, timeout=30)
    assert not left
    assert wait_until(lambda: site.in_mlflow(run_id)[0]["info"]["status"] == "KILLED", 60, 0.5)
    assert time.monotonic() - began < 30  # the worker looks for cancelled runs every ten seconds


@pytest.mark.parametrize(
    ("name", "payload", "told"),
    [
        (DATA_CHANGED, {}, ["The data has changed"]),
        (DATA_DRIFTED, {"verdict": 'one has: "fare" (PSI 1)'}, ["The data has drifted", 'one has: "fare" (PSI 1)']),
    ],
)
def test_data_that_changed_or_drifted_is_told_of(name, payload, told, site, trained, receiver):
    from prefect.settings import PREFECT_API_URL, temporary_settings

    shards = f"s3://bucket-{uuid4().hex}/part*.csv"
    event = Event(
        event=name,
        payload=payload,
        resource={"prefect.resource.id": "shardline.data.0123", "prefect.resource.name": shards},
        related=[
            RelatedResource(
                {"prefect.resource.id": f"prefect.flow-run.{trained['id']}", "prefect.resource.role": "flow-run"}
            )
        ],
    )
    with temporary_settings({PREFECT_API_URL: site.api}):
        emit(event)
    receiver.await_text(*told, shards, trained["id"])


def test_a_failed_run_and_a_new_champion_are_told_of(site, trained, receiver):
    run = site.wait(site.start("training/notebook", shards="/nowhere/part*.csv"))
    assert run["state_type"] == "FAILED"
    receiver.await_text("training", run["name"], "Failed", "/nowhere/part*.csv", run["id"])
    (success,) = site.in_mlflow(trained["id"])
    receiver.await_text("shardline has a new champion, version 1", success["info"]["run_id"])


@pytest.mark.long
def test_a_version_becomes_champion_by_a_form_and_the_former_one_by_the_same_with_a_reason_alone(
    site, trained, receiver
):
    site.wait(site.start("training/notebook", iterations=4, batch_size=2048))
    mlflow = f"{site.pages.mlflow}/api/2.0/mlflow/registered-models/get?name=shardline"
    aliases = {each["alias"]: each["version"] for each in ask(mlflow)["registered_model"]["aliases"]}
    number, former = aliases["challenger"], aliases["champion"]
    run = site.wait(site.start("promoting/roll-back", version=int(number), reason="to look at it", by="me"))
    assert run["state"]["message"].startswith(f"Version {number} is champion of shardline now, in place of version")
    receiver.await_text(f"shardline has a new champion, version {number}", "to look at it", run["id"])
    run = site.wait(site.start("promoting/roll-back", reason="seen"))
    assert run["state"]["message"] == (
        f"Version {former} is champion of shardline again, in place of version {number}: seen"
    )
    assert f"| before | {number} |" in site.artifacts(run["id"])["champion"]["data"]


@pytest.mark.long
def test_a_run_name_that_was_typed_is_kept(site):
    form = {"name": "before-the-change", "parameters": {"shards": "/nowhere/part*.csv"}}
    assert site.wait(site.submit("training/notebook", form))["name"] == "before-the-change"


@pytest.mark.long
def test_a_killed_workers_run_is_crashed_by_the_automation_and_the_next_scheduled_one_starts(site):
    first = site.start("training/notebook", iterations=100_000_000, batch_size=2048)
    assert wait_until(lambda: bool(site.in_mlflow(first)), 120, 0.5), site.log()
    time.sleep(35)  # one heartbeat, at least
    second = site.start("training/notebook", iterations=4, batch_size=2048)
    worker, *run = processes_of(site, first)
    for process in (worker, *run):
        os.kill(process.pid, signal.SIGKILL)
    crashed = site.wait(first, "CRASHED", seconds=240)
    assert "No heartbeat for 90 seconds" in crashed["state"]["message"]
    assert site.wait(second, "COMPLETED", seconds=240)["state_name"] == "Completed"
    assert site.in_mlflow(first)[0]["info"]["status"] == "KILLED"


def processes_of(site, run_id):
    """The worker's process, and those below it."""
    up = psutil.Process(site.pages.pid)
    worker = next(each for each in up.children() if "worker" in each.cmdline())
    return [worker, *worker.children(recursive=True)]


def test_the_operations_page_quotes_messages_that_there_are():
    root = Path(__file__).parents[1]
    page = (root / "deployments" / "README.md").read_text()
    rows = [line.split(" | ")[0] for line in page.split("| it says | do |")[1].splitlines() if line.startswith("| `")]
    quoted = [re.findall("`(.*?)`", row)[0] for row in rows if "Prefect's words" not in row]
    assert len(quoted) > 10
    text = "".join(path.read_text() for folder in ("tasks", "deployments") for path in (root / folder).rglob("*.py"))
    told = re.sub(r'"\s*\n\s*f?"', "", text)
    assert not [part for message in quoted for part in message.split(" … ") if part not in told]
    assert all((root / "deployments" / link).exists() for link in re.findall(r"\]\(([\w./-]+)\)", page))
