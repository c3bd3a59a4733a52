"""Prefect's picture of a training run: which step follows which, and what of its time belongs to no step."""

import itertools
from datetime import datetime

import pytest

from flows.training import train
from tests.flowruns import ended
from tests.sites import ask

EDGES = {
    ("verify credentials", "locate training shards"),
    ("verify credentials", "locate test shards"),
    ("locate training shards", "preview batch"),
    ("locate test shards", "preview batch"),
    ("describe hardware", "foresee"),
    ("preview batch", "train"),
    ("open the record", "train"),
    ("train", "evaluate"),
    ("evaluate", "compare with the champion's data"),
    ("evaluate", "register model"),
    ("evaluate", "report"),
    ("describe hardware", "report"),
}


@pytest.fixture(scope="module")
def trained(generated, prefect_api, tmp_path_factory):
    """A run on generated shards, as Prefect has it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("graph"))
        folder = f"{generated}/csv"
        state = ended(train, shards=f"{folder}/dev/part*.csv", test_shards=f"{folder}/test/part*.csv", batch_size=500)
    assert state.is_completed(), state.message
    return ask(f"{prefect_api}/flow_runs/{state.state_details.flow_run_id}")


def tasks_of(api, run):
    return ask(f"{api}/task_runs/filter", {"flow_runs": {"id": {"any_": [run["id"]]}}})


def test_its_edges_are_those_between_steps_that_follow_each_other(trained, prefect_api):
    tasks = tasks_of(prefect_api, trained)
    names = {each["id"]: each["name"] for each in tasks}
    edges = {
        (names[source["id"]], each["name"])
        for each in tasks
        for sources in each["task_inputs"].values()
        for source in sources
        if source["input_type"] == "task_run"
    }
    assert edges == EDGES


def test_no_second_of_it_belongs_to_no_step(trained, prefect_api):
    spans = sorted((moment(each["start_time"]), moment(each["end_time"])) for each in tasks_of(prefect_api, trained))
    bounds = [(moment(trained["start_time"]),) * 2, *spans, (moment(trained["end_time"]),) * 2]
    gaps = [max(0.0, after[0] - before[1]) for before, after in itertools.pairwise(bounds)]
    assert max(gaps) < 1.0, [round(gap, 2) for gap in gaps]


def moment(text):
    return datetime.fromisoformat(text).timestamp()


def test_its_state_says_the_verdict(trained):
    assert trained["state"]["name"] == "Completed"
    assert trained["state"]["message"].startswith("This model explains ")
