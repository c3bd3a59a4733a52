"""A look at the pages of `make up` in a real browser, kept in tests/output; then `make ui`, which serves them alone."""

import json
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from selenium.common.exceptions import TimeoutException
from selenium.webdriver import Chrome
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

from deployments.processes import answers, wait_until
from deployments.servers import find_pages
from tasks.naming import escape_markdown, write_code
from tests.sites import ENVIRONMENT, Site, ask

OUTPUT = Path(__file__).parent / "output"
ITERATIONS = 12  # of the run that `trained` is


@pytest.fixture(scope="module")
def mlflow_run(site: Site, trained: dict[str, Any]) -> dict[str, Any]:
    """The MLflow run of the first nightly training."""
    (run,) = site.in_mlflow(trained["id"])
    return run


@pytest.fixture(scope="module")
def mlflow_page(site: Site, mlflow_run: dict[str, Any]) -> str:
    """The address of its page."""
    info = mlflow_run["info"]
    return f"{site.pages.mlflow}/#/experiments/{info['experiment_id']}/runs/{info['run_id']}"


@pytest.fixture(scope="module", autouse=True)
def monitoring(site: Site, mlflow_run: dict[str, Any]) -> str:
    """The id of a run that watches what was trained on: it goes on while other pages are looked at.

    It names that training's model: where data drifted in tests before these, one of that data is champion.
    """
    version = version_of(site, mlflow_run)
    return site.start("monitoring/before-training", model=f"models:/shardline/{version['version']}")


def version_of(site: Site, mlflow_run: dict[str, Any]) -> dict[str, Any]:
    """The registered version of a run's model."""
    filtered = f"filter=run_id%3D'{mlflow_run['info']['run_id']}'"
    version: dict[str, Any]
    (version,) = ask(f"{site.pages.mlflow}/api/2.0/mlflow/model-versions/search?{filtered}")["model_versions"]
    return version


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


@pytest.mark.long
def test_prefect_lists_the_run(browser, site, trained):
    look(browser, f"{site.prefect}/runs", trained["name"], "Completed", picture="prefect-runs")


def test_prefect_shows_the_runs_tasks(browser, site, trained):
    url = f"{site.prefect}/runs/flow-run/{trained['id']}?tab=Task Runs"
    steps = ("verify credentials", "locate training shards", "preview batch", "train", "evaluate", "report")
    look(browser, url, trained["name"], *steps, picture="prefect-run")


@pytest.mark.long
def test_prefect_shows_every_artifact_of_the_run(browser, site, trained):
    keys = site.artifacts(trained["id"])
    assert {"identity", "training-shards", "preview", "report"} <= set(keys)
    look(browser, f"{site.prefect}/artifacts", *keys, picture="prefect-artifacts")


@pytest.mark.parametrize(
    ("key", "texts"),
    [
        pytest.param("identity", ["arn:aws:iam::123456789012:user/shardline"], marks=pytest.mark.long),
        pytest.param("training-shards", ["5,000 rows", "part-00000"], marks=pytest.mark.long),
        ("preview", ["fareamount_double", "hour_integer"]),
        ("report", ["MSE", "MLflow"]),
    ],
)
def test_prefect_shows_what_an_artifact_says(browser, site, trained, key, texts):
    artifact = site.artifacts(trained["id"])[key]["id"]
    look(browser, f"{site.prefect}/artifacts/artifact/{artifact}", *texts, picture=f"prefect-{key}")


@pytest.mark.long
def test_the_link_to_mlflow_is_an_artifact_of_the_run_and_opens_its_page(browser, site, trained, mlflow_run):
    artifact = site.artifacts(trained["id"])["mlflow"]
    found = re.search(r"\(http://127\.0\.0\.1:\d+(/[^)]*)\)", artifact["data"])  # the port it has is another tomorrow
    assert found and mlflow_run["info"]["run_id"] in found[1]
    look(browser, f"{site.prefect}/artifacts/artifact/{artifact['id']}", "MLflow run", picture="prefect-mlflow")
    look(
        browser, site.pages.mlflow + found[1], mlflow_run["info"]["run_name"], "test_r2", picture="mlflow-from-prefect"
    )


ODD = ["bmi `kg/m2`", "pressure|mean", "s1 <b>tc</b>", "*hdl*", "s4 [tch](x)", "_ldl_", "# a ~~b~~ \\ & !c"]


@pytest.fixture(scope="module")
def odd_names() -> str:
    """Markdown of a sentence and of a table with names that are full of marks."""
    rows = (f"| {escape_markdown(name)} | {write_code(name)} |" for name in ODD)
    sentence = f"**{escape_markdown('the columns ' + ' and '.join(ODD))}**"
    return "\n".join([sentence, "", "| column | code |", "|---|---|", *rows])


@pytest.mark.long
def test_prefect_shows_odd_names_letter_by_letter(browser, site, odd_names):
    artifact = ask(f"{site.api}/artifacts/", {"key": "odd", "type": "markdown", "data": odd_names})
    said = look(browser, f"{site.prefect}/artifacts/artifact/{artifact['id']}", *ODD, picture="prefect-odd-names")
    assert said.count(ODD[0]) == 3


@pytest.mark.long
def test_mlflow_shows_odd_names_letter_by_letter(browser, site, mlflow_run, odd_names):
    experiment = mlflow_run["info"]["experiment_id"]
    tags = [{"key": "mlflow.note.content", "value": odd_names}]
    made = ask(f"{site.pages.mlflow}/api/2.0/mlflow/runs/create", {"experiment_id": experiment, "tags": tags})
    run = made["run"]["info"]["run_id"]
    page = f"{site.pages.mlflow}/#/experiments/{experiment}/runs/{run}?workflowType=machine_learning"
    said = look(browser, page, *ODD, picture="mlflow-odd-names")
    assert said.count(ODD[0]) == 3
    ask(f"{site.pages.mlflow}/api/2.0/mlflow/runs/delete", {"run_id": run})


@pytest.mark.long
def test_prefect_lists_the_deployments(browser, site):
    look(browser, f"{site.prefect}/deployments", "nightly", "notebook", "weekly", picture="prefect-deployments")


def test_prefects_form_groups_describes_and_bounds_the_parameters(browser, site):
    deployment = ask(f"{site.api}/deployments/name/training/nightly")
    texts = ("Access · bucket_id", "Shards · test_shards", "Model · iterations", "Rows in a batch, over all ranks")
    said = look(
        browser, f"{site.prefect}/deployments/deployment/{deployment['id']}/run", *texts, picture="prefect-form"
    )
    assert "int\nempty" in said and "int\nNone" not in said
    assert deployment["parameter_openapi_schema"]["properties"]["prefetch"]["maximum"] == 64


@pytest.mark.long
def test_mlflow_has_a_view_of_the_runs_scores(browser, site, mlflow_run):
    experiment = mlflow_run["info"]["experiment_id"]
    url = f"{site.pages.mlflow}/#/experiments/{experiment}/runs?workflowType=machine_learning&viewStateShareKey=scores"
    look(browser, url, "Scores", "Metrics", "test_r2", mlflow_run["info"]["run_name"], picture="mlflow-scores")


@pytest.mark.long
def test_mlflows_view_draws_single_values_apart_from_curves(browser, site, mlflow_run):
    experiment = mlflow_run["info"]["experiment_id"]
    runs = f"{site.pages.mlflow}/#/experiments/{experiment}/runs?workflowType=machine_learning"
    url = f"{runs}&viewStateShareKey=scores&compareRunsMode=CHART"
    said = look(browser, url, "What models are worth", "Sort: test_r2", picture="mlflow-view")
    assert "Curves" not in said.partition("What models are worth")[0]
    look(browser, runs, "All runs by what their models are worth", picture="mlflow-described")


@pytest.mark.long
def test_mlflow_shows_a_figure(browser, mlflow_page):
    url = f"{mlflow_page}/artifacts/figures/above_exact.png?workflowType=machine_learning"
    look(browser, url, "above_exact.png", "predicted.png", picture="mlflow-figure")


def test_mlflow_shows_the_model_its_scores_and_its_version(browser, site, mlflow_run):
    """Other runs on this site may have registered theirs before it or since."""
    experiment, run_id = mlflow_run["info"]["experiment_id"], mlflow_run["info"]["run_id"]
    api, kind = f"{site.pages.mlflow}/api/2.0/mlflow", "workflowType=machine_learning"
    found = ask(f"{api}/logged-models/search", {"experiment_ids": [experiment]})["models"]
    (model_id,) = (each["info"]["model_id"] for each in found if each["info"]["source_run_id"] == run_id)
    registered = ask(f"{api}/registered-models/get?name=shardline")["registered_model"]
    aliases = {each["alias"]: each["version"] for each in registered["aliases"]}
    number = version_of(site, mlflow_run)["version"]
    page = f"{site.pages.mlflow}/#/experiments/{experiment}/models/{model_id}?{kind}"
    look(browser, page, "test_r2", "Ready", "This model explains", f"v{number}", picture="mlflow-model")
    page = f"{site.pages.mlflow}/#/models/shardline/versions/{number}?{kind}"
    look(browser, page, "Inputs (8)", "This model explains", picture="mlflow-version")
    page = f"{site.pages.mlflow}/#/models/shardline/versions/{aliases['challenger']}?{kind}"
    look(browser, page, "challenger", "Inputs (8)", picture="mlflow-challenger")


@pytest.mark.long
def test_mlflow_shows_the_models_card_where_its_description_leads(browser, site, mlflow_run):
    version = version_of(site, mlflow_run)["version"]
    page = f"{site.pages.mlflow}/#/models/shardline/versions/{version}?workflowType=machine_learning"
    look(browser, page, "The model's card", picture="mlflow-description")
    place = browser.find_element(By.LINK_TEXT, "its files").get_attribute("href")
    look(browser, place, "README.md", picture="mlflow-files")
    browser.find_element(By.XPATH, "//*[text()='README.md']").click()
    sections = ("What it predicts", "On which data", "How good it is", "Where it is bad", "How it was made")
    page = browser.find_element(By.TAG_NAME, "body")
    WebDriverWait(browser, 40).until(lambda _: all(title in page.text for title in sections))
    browser.save_screenshot(str(OUTPUT / "mlflow-card.png"))
    assert "## " not in page.text


@pytest.mark.long
def test_mlflow_lists_the_run(browser, site, mlflow_run):
    experiment = mlflow_run["info"]["experiment_id"]
    url = f"{site.pages.mlflow}/#/experiments/{experiment}/runs?workflowType=machine_learning"
    look(browser, url, mlflow_run["info"]["run_name"], picture="mlflow-runs")


@pytest.mark.long
def test_mlflow_shows_parameters_metrics_and_the_way_back(browser, trained, mlflow_page):
    texts = ("mse", "seconds_per_iteration", "batch_size", "2048", trained["id"])
    look(browser, f"{mlflow_page}?workflowType=machine_learning", *texts, picture="mlflow-run")


def test_mlflow_draws_metrics_by_iteration(browser, site, mlflow_run, mlflow_page):
    url = f"{mlflow_page}/model-metrics?workflowType=machine_learning"
    look(browser, url, "mse", "Step", picture="mlflow-metrics")
    question = f"run_id={mlflow_run['info']['run_id']}&metric_key=mse"
    history = ask(f"{site.pages.mlflow}/api/2.0/mlflow/metrics/get-history?{question}")["metrics"]
    assert [each.get("step", 0) for each in history] == list(range(ITERATIONS))


@pytest.mark.long
def test_mlflow_shows_the_artifacts(browser, mlflow_page):
    url = f"{mlflow_page}/artifacts?workflowType=machine_learning"
    look(browser, url, "weights", "manifest", "report.md", picture="mlflow-artifacts")


@pytest.mark.long
def test_both_pages_show_that_nothing_has_drifted(browser, site, monitoring):
    run = site.wait(monitoring)
    assert run["state_name"] == "Completed"
    said = "None of 9 columns has drifted from what models:/shardline/"
    artifact = site.artifacts(run["id"])["drift"]
    page = f"{site.prefect}/artifacts/artifact/{artifact['id']}"
    look(browser, page, said, "hour_integer", "mean in training", picture="prefect-drift")
    info = site.in_mlflow(run["id"])[0]["info"]
    page = f"{site.pages.mlflow}/#/experiments/{info['experiment_id']}/runs/{info['run_id']}"
    look(browser, f"{page}?workflowType=machine_learning", said, "ks/hour_integer", picture="mlflow-drift")
    look(browser, f"{page}/artifacts/figures/drift.png?workflowType=machine_learning", "drift.png", picture="drift")


def test_a_page_asks_nothing_but_loopback(browser, site):
    browser.get_log("performance")
    look(browser, site.prefect, "Flow Runs", picture="prefect-home")
    look(browser, f"{site.pages.mlflow}/#/experiments", "shardline", picture="mlflow-home")
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    urls = [each["params"]["request"]["url"] for each in messages if each["method"] == "Network.requestWillBeSent"]
    asked = {urlsplit(url).hostname for url in urls if url.startswith(("http", "ws"))}
    assert asked == {"127.0.0.1"}


def make_ui(folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "deployments.pages"]
    given = {**ENVIRONMENT, **environment}
    return subprocess.run(command, cwd=folder, env=given, capture_output=True, text=True, timeout=60)


def test_make_ui_beside_make_up_names_the_same_addresses(site):
    done = make_ui(site.folder)
    assert done.returncode == 0
    assert done.stderr.splitlines()[0] == "They are being served already:"
    assert site.prefect in done.stderr and site.pages.mlflow in done.stderr


def test_a_command_uses_the_server_of_make_up_and_leaves_it_running(site):
    program = "import os; print(os.environ['PREFECT_API_URL'])"
    command = [sys.executable, "-m", "deployments.local", "--", sys.executable, "-c", program]
    given = {**ENVIRONMENT, "BUCKET_ID": "0" * 32}
    done = subprocess.run(command, cwd=site.folder, env=given, capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == site.pages.prefect_api
    assert done.stderr == f"Prefect: the server of `make up`, {site.prefect}; let it run until the end.\n"
    assert answers(f"{site.pages.prefect_api}/health")


@pytest.mark.long
def test_make_ui_serves_both_pages_until_ctrl_c(tmp_path):
    command = [sys.executable, "-m", "deployments.pages"]
    with subprocess.Popen(command, cwd=tmp_path, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True) as serving:
        wait_until(lambda: find_pages(tmp_path / ".shardline") is not None or serving.poll() is not None, 120)
        pages = find_pages(tmp_path / ".shardline")
        serving.send_signal(signal.SIGINT)
        assert serving.wait(60) == 0
    assert pages is not None and pages.command == "make ui"
    assert not answers(f"{pages.prefect_api}/health") and not answers(f"{pages.mlflow}/health")


def test_servers_that_are_configured_are_named_and_not_started(tmp_path):
    done = make_ui(tmp_path, PREFECT_API_URL="http://prefect:4200/api", MLFLOW_TRACKING_URI="http://mlflow:5000")
    assert done.returncode == 0
    assert "http://prefect:4200/runs\n" in done.stderr and "http://mlflow:5000/#/experiments" in done.stderr
    assert list(tmp_path.iterdir()) == []
