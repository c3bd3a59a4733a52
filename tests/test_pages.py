"""`make train`, then `make ui`, then a look at both pages in a real browser; what it saw is kept in tests/output."""

import json
import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from selenium.common.exceptions import TimeoutException
from selenium.webdriver import Chrome
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

from deployments.processes import answers, wait_until
from deployments.servers import Pages, find_pages

ROOT = Path(__file__).parents[1]
OUTPUT = Path(__file__).parent / "output"
ITERATIONS = 12
TRAIN = ["-m", "flows.training", "--batch-size", "2048", "--iterations", str(ITERATIONS)]
ROWS = 10_000
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}


@dataclass(frozen=True)
class Site:
    """Both pages, the folder that they were started in, and the run of `make train` that they show."""

    folder: Path
    pages: Pages
    flow_run: dict[str, Any]
    mlflow_run: dict[str, Any]

    @property
    def prefect(self) -> str:
        return self.pages.prefect_api.removesuffix("/api")

    @property
    def mlflow_page(self) -> str:
        info = self.mlflow_run["info"]
        return f"{self.pages.mlflow}/#/experiments/{info['experiment_id']}/runs/{info['run_id']}"


def ask(url: str, question: dict[str, Any]) -> Any:
    headers = {"Content-Type": "application/json"}
    with urllib.request.urlopen(urllib.request.Request(url, json.dumps(question).encode(), headers)) as answer:
        return json.load(answer)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Train once with a Prefect server that comes and goes, then serve both pages until Ctrl-C."""
    folder = tmp_path_factory.mktemp("site")
    train = [sys.executable, "-m", "deployments.local", "--rows", str(ROWS), "--", sys.executable, *TRAIN]
    done = subprocess.run(train, cwd=folder, env=ENVIRONMENT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr

    command = [sys.executable, "-m", "deployments.pages"]
    with subprocess.Popen(command, cwd=folder, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True) as serving:
        try:
            assert wait_until(lambda: find_pages(folder / ".shardline") is not None or serving.poll() is not None, 120)
            pages = find_pages(folder / ".shardline")
            assert pages is not None
            (flow_run,) = ask(f"{pages.prefect_api}/flow_runs/filter", {})
            experiments = ask(f"{pages.mlflow}/api/2.0/mlflow/experiments/search", {"max_results": 10})["experiments"]
            ids = [each["experiment_id"] for each in experiments]
            (mlflow_run,) = ask(f"{pages.mlflow}/api/2.0/mlflow/runs/search", {"experiment_ids": ids})["runs"]
            yield Site(folder, pages, flow_run, mlflow_run)
        finally:
            serving.send_signal(signal.SIGINT)
        assert serving.wait(60) == 0
    assert not answers(f"{pages.prefect_api}/health")
    assert not answers(f"{pages.mlflow}/health")
    assert find_pages(folder / ".shardline") is None


def look(browser: Chrome, url: str, *texts: str, picture: str) -> str:
    """Open a page, wait until it shows all the texts, keep a picture of it; what it says."""
    browser.get("about:blank")  # a change behind the # alone would not load the page anew
    browser.get(url)

    def says() -> str:
        return browser.find_element(By.TAG_NAME, "body").text

    try:
        WebDriverWait(browser, 40).until(lambda _: all(text in says() for text in texts))
    except TimeoutException:
        pytest.fail(f"{url} does not show {[text for text in texts if text not in says()]}, but:\n{says()}")
    finally:
        OUTPUT.mkdir(exist_ok=True)
        (OUTPUT / ".gitignore").write_text("*\n")
        browser.save_screenshot(str(OUTPUT / f"{picture}.png"))
    return says()


def test_prefect_lists_the_run(browser, site):
    look(browser, f"{site.prefect}/runs", site.flow_run["name"], "Completed", picture="prefect-runs")


def test_prefect_shows_the_runs_tasks(browser, site):
    url = f"{site.prefect}/runs/flow-run/{site.flow_run['id']}?tab=Task Runs"
    steps = ("verify credentials", "locate training shards", "preview batch", "train", "evaluate", "report")
    look(browser, url, site.flow_run["name"], *steps, picture="prefect-run")


def test_prefect_shows_every_artifact_of_the_run(browser, site):
    artifacts = ask(f"{site.pages.prefect_api}/artifacts/filter", {})
    assert {"identity", "training-shards", "preview", "report"} <= {each["key"] for each in artifacts}
    keys = [each["key"] for each in artifacts]
    look(browser, f"{site.prefect}/artifacts", *keys, picture="prefect-artifacts")


@pytest.mark.parametrize(
    ("key", "texts"),
    [
        ("identity", ["arn:aws:iam::123456789012:user/shardline"]),
        ("training-shards", [f"{ROWS:,} rows", "part-00000"]),
        ("preview", ["fareamount_double", "hour_integer"]),
        ("report", ["MSE", "MLflow"]),
    ],
)
def test_prefect_shows_what_an_artifact_says(browser, site, key, texts):
    artifacts = ask(f"{site.pages.prefect_api}/artifacts/filter", {"artifacts": {"key": {"any_": [key]}}})
    look(browser, f"{site.prefect}/artifacts/artifact/{artifacts[0]['id']}", *texts, picture=f"prefect-{key}")


def test_mlflow_lists_the_run(browser, site):
    experiment = site.mlflow_run["info"]["experiment_id"]
    url = f"{site.pages.mlflow}/#/experiments/{experiment}/runs?workflowType=machine_learning"
    look(browser, url, site.mlflow_run["info"]["run_name"], picture="mlflow-runs")


def test_mlflow_shows_parameters_metrics_and_the_way_back(browser, site):
    texts = ("mse", "seconds_per_iteration", "batch_size", "2048", site.flow_run["id"])
    look(browser, f"{site.mlflow_page}?workflowType=machine_learning", *texts, picture="mlflow-run")


def test_mlflow_draws_metrics_by_iteration(browser, site):
    url = f"{site.mlflow_page}/model-metrics?workflowType=machine_learning"
    look(browser, url, "mse", "Step", picture="mlflow-metrics")
    question = f"run_id={site.mlflow_run['info']['run_id']}&metric_key=mse"
    with urllib.request.urlopen(f"{site.pages.mlflow}/api/2.0/mlflow/metrics/get-history?{question}") as answer:
        history = json.load(answer)["metrics"]
    assert [each.get("step", 0) for each in history] == list(range(ITERATIONS))


def test_mlflow_shows_the_artifacts(browser, site):
    url = f"{site.mlflow_page}/artifacts?workflowType=machine_learning"
    look(browser, url, "weights", "manifest", "report.md", picture="mlflow-artifacts")


def test_a_page_asks_nothing_but_loopback(browser, site):
    browser.get_log("performance")
    look(browser, site.prefect, "Flow Runs", picture="prefect-home")
    look(browser, f"{site.pages.mlflow}/#/experiments", "shardline", picture="mlflow-home")
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    urls = [each["params"]["request"]["url"] for each in messages if each["method"] == "Network.requestWillBeSent"]
    asked = {urlsplit(url).hostname for url in urls if url.startswith(("http", "ws"))}
    assert asked == {"127.0.0.1"}


def test_a_second_make_ui_names_the_same_addresses(site):
    command = [sys.executable, "-m", "deployments.pages"]
    done = subprocess.run(command, cwd=site.folder, env=ENVIRONMENT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0
    assert done.stderr.splitlines()[0] == "They are being served already:"
    assert site.prefect in done.stderr and site.pages.mlflow in done.stderr


def test_a_command_uses_the_server_of_make_ui_and_leaves_it_running(site):
    program = "import os; print(os.environ['PREFECT_API_URL'])"
    command = [sys.executable, "-m", "deployments.local", "--", sys.executable, "-c", program]
    given = {**ENVIRONMENT, "BUCKET_ID": "0" * 32}
    done = subprocess.run(command, cwd=site.folder, env=given, capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == site.pages.prefect_api
    assert done.stderr == f"Prefect: the server of `make ui`, {site.prefect}; let it run until the end.\n"
    assert answers(f"{site.pages.prefect_api}/health")


def test_servers_that_are_configured_are_named_and_not_started(tmp_path):
    given = {**ENVIRONMENT, "PREFECT_API_URL": "http://prefect:4200/api", "MLFLOW_TRACKING_URI": "http://mlflow:5000"}
    command = [sys.executable, "-m", "deployments.pages"]
    done = subprocess.run(command, cwd=tmp_path, env=given, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0
    assert "http://prefect:4200/runs\n" in done.stderr and "http://mlflow:5000/#/experiments" in done.stderr
    assert list(tmp_path.iterdir()) == []
