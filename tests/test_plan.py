"""The plan of a run on the real engine: what it says, that it leaves nothing, and that a run then does as it said."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId

from flows.training import train
from tasks.tracking import client as record
from tests.counting import note_answers, serve_kinds
from tests.flowruns import ended
from tests.servers import BUCKET

COUNTS = (400, 400, 400, 300)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """The URL of a server with shards of each kind."""
    with serve_kinds(tmp_path_factory.mktemp("shards"), COUNTS) as url:
        yield url


@pytest.fixture
def sent(server, prefect_api, monkeypatch, tmp_path):
    """The bytes of each answer of the server, in an empty working directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with note_answers(server, monkeypatch) as sent:
        yield sent


GIVEN = {"shards": f"s3://{BUCKET}/csv/part*.csv", "verify_identity": False, "batch_size": 200, "iterations": 12}


def find_runs() -> list[Any]:
    client = MlflowClient(tracking_uri=record.tracking_uri())
    return list(client.search_runs([each.experiment_id for each in client.search_experiments()]))


def read_artifact(key: str, state: Any) -> str:
    """The text of an artifact that a flow run left."""
    with get_client(sync_client=True) as client:
        of_run = ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[state.state_details.flow_run_id]))
        return next(str(each.data) for each in client.read_artifacts(artifact_filter=of_run) if each.key == key)


def count_in(table: str, what: str) -> int:
    """The number that a table has in its line of that name."""
    found = re.search(rf"^\| {what} *\| ([\d,]+)", table, re.MULTILINE)
    assert found, table
    return int(found[1].replace(",", ""))


CASES = [
    {"cache": True},
    pytest.param({"cache": False, "resident_bytes": 0}, marks=pytest.mark.long),
    pytest.param({"on_bad_rows": "quarantine", "resident_bytes": 0}, marks=pytest.mark.long),
]


@pytest.mark.parametrize("more", CASES, ids=str)
def test_a_plan_leaves_nothing_in_mlflow_and_the_run_asks_for_what_it_said(more, sent, tmp_path):
    (tmp_path / "prices.yaml").write_text("currency: EUR\nper_1000_requests: 1000\n")
    given = GIVEN | more | {"prices": str(tmp_path / "prices.yaml")}
    planned = ended(train, **given, plan=True)
    assert planned.is_completed() and planned.name == "Planned"
    assert find_runs() == []
    table = planned.result()
    assert table == read_artifact("forecast", planned)
    asked = len(sent)
    done = ended(train, **given)
    assert done.is_completed(), done.message
    (run,) = find_runs()
    metrics = run.data.metrics
    verified = 1  # the listing by which the credentials are verified is not the stream's
    assert metrics["usage_requests"] == metrics["usage_requests_foreseen"] == len(sent) - asked - verified
    assert count_in(table, "all requests") == metrics["usage_requests"]
    assert metrics["usage_bytes"] == metrics["usage_bytes_foreseen"]
    assert metrics["usage_cost"] == metrics["usage_requests"]
    assert 0 < metrics["usage_peak_memory"] <= metrics["usage_memory_foreseen"] <= 1.5 * metrics["usage_peak_memory"]
    assert metrics["usage_cpu_seconds"] > 0 and metrics["usage_seconds"] > 0
    report = read_artifact("report", done)
    assert count_in(report, "requests") == metrics["usage_requests"]
    assert "EUR" in report
    kept = Path(MlflowClient(tracking_uri=record.tracking_uri()).download_artifacts(run.info.run_id, "usage.json"))
    assert json.loads(kept.read_text())["usage"]["attempts"] == 1
