"""A champion is taken back: its former version is champion again, the reason stays, and the next gate asks for it."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from mlflow import MlflowClient

from deployments.processes import wait_until
from flows.promoting import promote
from flows.training import train
from tasks.errors import ConfigurationError
from tasks.tracking import client as record
from tasks.tracking.champions import (
    BEFORE,
    CHANGED,
    GATE,
    WITHDRAWN,
    ChampionChange,
    RegisteredVersion,
    Succession,
    read_succession,
    replace_champion,
)
from tasks.tracking.outbox import MODEL, REGISTRATION, Outbox
from tasks.tracking.recovery import complete_outbox
from tests.flowruns import ended
from tests.shards import draw_rows, to_csv
from tests.sites import ask

pytestmark = pytest.mark.filterwarnings("ignore::pandas.errors.Pandas4Warning")  # MLflow's own, of pandas 3.1

WON = {GATE: "The model becomes champion, for it beats always guessing the mean, there being no champion yet: RMSE 1"}
LOST = {GATE: "The model stays challenger, for it does not beat the champion (version 2): RMSE 2 against 1"}


def made(champion, **tags):
    """The succession of a model whose versions, v1 and on, have these tags."""
    versions = [
        RegisteredVersion(name="m", version=name.removeprefix("v"), run_id="", description="", tags=each)
        for name, each in reversed(tags.items())
    ]
    return Succession(name="m", versions=tuple(versions), champion=champion)


@pytest.mark.parametrize(
    ("known", "champions"),
    [
        (made("4", v1=WON, v2=WON | {BEFORE: "1"}, v3=LOST, v4=WON | {BEFORE: "2"}), ("4", "2", "1")),
        (made("2", v1=WON, v2=WON | {BEFORE: "1"}, v3=LOST, v4=WON | {BEFORE: "2", WITHDRAWN: "bad"}), ("2", "1")),
        (made("4", v1=WON, v2=WON, v3=LOST, v4=WON), ("4", "2", "1")),  # of before there were tags for it
        (made("3", v1=WON, v2=WON | {WITHDRAWN: "bad"}, v3=LOST), ("3", "1")),  # made champion on MLflow's page
        (made("1", v1={BEFORE: "3"}, v2=LOST, v3={BEFORE: "2"}), ("1", "3", "2")),  # named by a person
        (made("1", v1={BEFORE: "2"}, v2={BEFORE: "1"}), ("1", "2")),  # nobody's, but it ends
        (made(None, v1=WON), ()),
    ],
)
def test_champions_are_followed_back_by_what_each_was_before_else_by_their_gates_verdict(known, champions):
    assert known.champions == champions
    if champions[1:]:
        assert known.former == champions[1]


@pytest.mark.parametrize(
    ("known", "words"),
    [
        (
            made("2", v1=LOST, v2=WON, v3=LOST),
            "no version of m is known to have been champion before version 2: name the one that is to be champion with "
            "--version; there are 3 (challenger), 2 (champion), 1 (challenger)",
        ),
        (
            made("4", v1=WON, v3=LOST | {WITHDRAWN: "bad"}, v4=WON | {BEFORE: "2"}),
            "version 2 of m, champion before version 4, is not there any more: name the one that is to be champion "
            "with --version; there are 4 (champion), 3 (withdrawn), 1 (was champion)",
        ),
        (made(None, v1=LOST), "m has no champion that another was before: name the one .* there are 1"),
        (made(None), "m has no champion that another was before: it has no versions, so train one first"),
    ],
)
def test_where_no_former_champion_is_known_the_error_names_the_versions_that_are_there(known, words):
    with pytest.raises(ConfigurationError, match=words.replace("(", r"\(").replace(")", r"\)")):
        _ = known.former


@pytest.fixture(scope="module")
def client(workplace):
    """A client of the local store in a working directory of its own."""
    return record.connect()


def aliases(client: MlflowClient, name: str) -> dict[str, str]:
    return {alias: str(version) for alias, version in client.get_registered_model(name).aliases.items()}


def tags_of(client: MlflowClient, name: str, version: int) -> dict[str, str]:
    return dict(client.get_model_version(name, str(version)).tags)


def change(name, version, before, withdrawn=()):
    return ChampionChange(
        name=name, version=version, before=before, withdrawn=withdrawn, reason="it drifts", by="me", at="now"
    )


def test_a_version_that_is_named_becomes_champion_and_a_withdrawn_one_may_come_back(client):
    client.create_registered_model("o'named")
    for _ in range(3):
        client.create_model_version("o'named", "/elsewhere")
    client.set_registered_model_alias("o'named", "champion", "1")
    replace_champion(client, change("o'named", "3", "1"))
    replace_champion(client, change("o'named", "1", "3", ("3",)))
    assert WITHDRAWN in tags_of(client, "o'named", 3)
    assert read_succession(client, "o'named").champions == ("1",)
    replace_champion(client, change("o'named", "3", "1"))
    assert WITHDRAWN not in tags_of(client, "o'named", 3)
    assert read_succession(client, "o'named").champions == ("3", "1")
    assert client.get_registered_model("o'named").tags[CHANGED] == (
        "Version 3 is champion of o'named now, in place of version 1: it drifts (me, now)"
    )


def test_a_champion_that_came_in_the_meantime_is_not_replaced(client):
    client.create_registered_model("meantime")
    for _ in range(3):
        client.create_model_version("meantime", "/elsewhere")
    client.set_registered_model_alias("meantime", "champion", "3")
    with pytest.raises(ConfigurationError, match="version 3 of meantime became champion in the meantime"):
        replace_champion(client, change("meantime", "1", "2", ("2",)))
    assert aliases(client, "meantime") == {"champion": "3"}
    assert not tags_of(client, "meantime", 2)


def test_a_model_that_nobody_registered_is_named(client):
    with pytest.raises(ConfigurationError, match="there is no registered model 'nobody': name the experiment"):
        read_succession(client, "nobody")


def test_a_withdrawn_champion_does_not_come_back_when_its_record_is_completed_again(client, tmp_path):
    """It won against the version that is champion again by then."""
    client.create_registered_model("again")
    client.create_model_version("again", "/elsewhere")
    client.set_registered_model_alias("again", "champion", "1")
    outbox = Outbox(record.begin(client, experiment="again", name="run", parameters={}, tags={}))
    (outbox.path / MODEL).mkdir()
    (outbox.path / MODEL / "MLmodel").write_text("flavors: {}\n")
    plan = {"name": "again", "description": "fine", "tags": WON, "wins": True, "against": "1"}
    (outbox.path / REGISTRATION).write_text(json.dumps(plan))
    shutil.copytree(outbox.path, tmp_path / "kept")
    complete_outbox(client, outbox.path, "FINISHED")
    assert aliases(client, "again") == {"challenger": "2", "champion": "2"}
    replace_champion(client, change("again", "1", "2", ("2",)))
    shutil.copytree(tmp_path / "kept", outbox.path)
    complete_outbox(client, outbox.path, "FINISHED")
    assert aliases(client, "again")["champion"] == "1"
    assert tags_of(client, "again", 2)[GATE] == WON[GATE]


@pytest.fixture(scope="module")
def learn(prefect_api, client, tmp_path_factory):
    """A function that trains on 160 rows, or on worse ones, and is judged on 40; its tags in MLflow."""
    folder = tmp_path_factory.mktemp("shards")
    rows = draw_rows(200)
    rows[:, 0] = 2.5 + 0.5 * rows[:, 2] + np.random.default_rng(1).normal(0, 0.5, 200)
    for kind, table in {"good": rows, "worse": rows * [-100, 1, 1]}.items():
        (folder / kind).mkdir()
        for name, part in {"part-00000.csv": table[:160], "part-00001.csv": table[160:]}.items():
            (folder / kind / name).write_bytes(to_csv(part))

    def run(kind, **given):
        state = ended(train, shards=f"{folder}/{kind}/part*.csv", experiment="fares", **given)
        assert state.is_completed(), state.message
        found = f"tags.`prefect.flow_run_id` = '{state.state_details.flow_run_id}'"
        return client.search_runs([client.get_experiment_by_name("fares").experiment_id], found)[0].data.tags

    return run


@pytest.mark.long
def test_a_champion_of_worse_data_is_rolled_back_and_the_next_model_is_held_against_the_former_one(
    learn, client, prefect_api
):
    learn("good", iterations=20, learning_rate=0.1)
    assert learn("worse")["shardline.gate"].startswith("The model becomes champion, for it beats the champion (version")
    assert tags_of(client, "fares", 2)[BEFORE] == "1"

    state = ended(promote, experiment="fares", reason="fares in cents | s3://me:secret@b/x", by="a *person*")
    assert state.is_completed(), state.message
    assert aliases(client, "fares") == {"challenger": "2", "champion": "1"}
    verdict = "Version 1 is champion of fares again, in place of version 2: fares in cents | s3://***@b/x"
    assert state.message == verdict
    assert tags_of(client, "fares", 2)[WITHDRAWN].startswith(f"{verdict} (a *person*, 2")
    assert tags_of(client, "fares", 1)[CHANGED] == client.get_registered_model("fares").tags[CHANGED]
    told = artifact_of(prefect_api, state)
    assert "| reason | fares in cents \\| s3&#58;//\\*\\*\\*@b/x |" in told
    assert "python -m flows.promoting --experiment fares --version 2 --reason" in told
    assert wait_until(lambda: bool(events_of(prefect_api, state)), 20, 0.2)
    (event,) = events_of(prefect_api, state)
    assert event["payload"] == event["payload"] | {"version": "1", "before": "2", "description": verdict}

    again = ended(promote, experiment="fares", reason="more")
    assert again.is_failed()
    assert "before version 1: name the one that is to be champion with --version; there are 2 (withdrawn)" in str(
        again.result(raise_on_failure=False)
    )
    assert learn("good", solver="exact")["shardline.gate"].startswith(
        "The model becomes champion, for it beats the champion (version 1): RMSE"
    )
    assert aliases(client, "fares")["champion"] == "3"
    shutil.rmtree(Path(client.get_model_version("fares", "1").source.removeprefix("file://")))
    gone = ended(promote, experiment="fares", reason="more")
    assert "version 1 of fares cannot be champion, since it cannot be loaded: " in str(
        gone.result(raise_on_failure=False)
    )
    assert aliases(client, "fares")["champion"] == "3"


def artifact_of(api, state):
    question = {"artifacts": {"flow_run_id": {"any_": [str(state.state_details.flow_run_id)]}}}
    (found,) = ask(f"{api}/artifacts/filter", question)
    return found["data"]


def events_of(api, state):
    question = {"filter": {"event": {"name": ["shardline.champion.changed"]}}}
    found = ask(f"{api}/events/filter", question)["events"]
    run = f"prefect.flow-run.{state.state_details.flow_run_id}"
    return [each for each in found if run in {related["prefect.resource.id"] for related in each["related"]}]
