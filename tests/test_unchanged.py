"""A run that would repeat the last success ends at once; other data, parameters or code make it run."""

import json
import shutil
from pathlib import Path

import pytest
from mlflow import MlflowClient

from deployments.generator import write_data
from flows.training import train
from tasks.runs import events, lineage
from tasks.tracking import client as record
from tests.flowruns import ended
from tests.sites import ask

SMALL = {"batch_size": 100, "iterations": 2, "skip_unchanged": True}

pytestmark = pytest.mark.usefixtures("prefect_api")


@pytest.fixture(scope="module")
def workplace(workplace):
    """A working directory with shards, its own MLflow store, and a run that succeeded."""
    write_data(workplace / "data", 1_000)
    assert run(workplace).name == "Completed"
    return workplace


def run(folder, **given):
    return ended(train, shards=f"{folder}/data/csv/dev/part*.csv", **(SMALL | given))


def runs():
    client = MlflowClient(tracking_uri=record.tracking_uri())
    return client.search_runs([client.get_experiment_by_name("shardline").experiment_id])


def test_a_repetition_ends_at_once_and_says_which_run_it_would_repeat(workplace):
    before = runs()
    state = run(workplace)
    assert (state.name, state.type.value) == ("Unchanged", "COMPLETED")
    assert "Data, code and parameters are those of an earlier success" in state.message
    assert any(each.info.run_id in state.message for each in before)
    assert len(runs()) == len(before)


def test_what_does_not_change_the_result_does_not_make_it_run(workplace):
    assert run(workplace, prefetch=3, verify_identity=False).name == "Unchanged"


@pytest.mark.long
@pytest.mark.parametrize("given", [{"iterations": 3}, {"skip_unchanged": False}], ids=str)
def test_other_parameters_make_it_run(workplace, given):
    assert run(workplace, **given).name == "Completed"


@pytest.mark.long
def test_a_run_with_an_empty_batch_size_is_the_same_work_when_it_is_repeated_by_its_id(workplace):
    first = run(workplace, batch_size=None)
    (recorded,) = [each for each in runs() if each.data.tags["prefect.flow_run_id"] == flow_run_of(first)]
    profile = json.loads(recorded.inputs.dataset_inputs[0].dataset.profile)
    assert recorded.data.params["batch_size"] == str(profile["num_rows"])
    state = run(workplace, batch_size=None, like=recorded.info.run_id)
    assert state.name == "Unchanged"
    assert recorded.info.run_id in state.message


def flow_run_of(state):
    return str(state.state_details.flow_run_id)


@pytest.mark.long
def test_other_code_makes_it_run(workplace, monkeypatch):
    monkeypatch.setattr(lineage, "digest_code", lambda: "other")
    assert run(workplace, iterations=4).name == "Completed"
    monkeypatch.undo()
    monkeypatch.chdir(workplace)
    assert run(workplace, iterations=4).name == "Completed"


def test_the_digest_changes_with_any_module_and_with_nothing_else(tmp_path, monkeypatch):
    root = tmp_path / "copy"
    for folder in ("flows", "tasks"):
        shutil.copytree(Path(lineage.__file__).parents[2] / folder, root / folder)
    monkeypatch.setattr(lineage, "__file__", str(root / "tasks" / "runs" / "lineage.py"))
    before = lineage.digest_code()
    (root / "README.md").write_text("new")
    assert lineage.digest_code() == before
    with (root / "tasks" / "streaming" / "batches.py").open("a") as module:
        module.write("# a comment\n")
    assert lineage.digest_code() != before


def test_other_data_makes_it_run_and_is_announced(workplace, prefect_api):
    shard = next((workplace / "data" / "csv" / "dev").glob("part-00002*"))
    shard.write_text(shard.read_text().replace("2015", "2016", 1))
    assert run(workplace).name == "Completed"

    def announced():
        question = {"filter": {"event": {"name": [events.DATA_CHANGED]}}, "limit": 10}
        return ask(f"{prefect_api}/events/filter", question)["events"]

    from deployments.processes import wait_until

    assert wait_until(lambda: bool(announced()), 30, 0.3)
    assert announced()[0]["resource"]["prefect.resource.name"] == f"{workplace}/data/csv/dev/part*.csv"
