"""Fixtures that several test modules share: real servers on loopback, in an environment that is the tests' alone.

`standin` and `aws` are the stand-in for AWS, `prefect_api` a Prefect server, `site` all that `make up` starts, `dctaxi`
298 rows, generated and real, `workplace` a working directory for a module, `place` one for a test. Servers are started
when a test first asks for them, once a session, and imported no sooner: tests that need none run where there is none.
"""

import contextlib
import fcntl
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from deployments.processes import Children, quiet_environment
from tasks.state import STATE

if TYPE_CHECKING:
    from selenium.webdriver import Chrome

    from deployments.standin import StandIn
    from tests.sites import Receiver, Site

ROWS = 5_000  # of the development set in the stand-in; the test set has a tenth
DECODING = ("test_stream_contract", "test_stream_decoding", "test_stream_quarantine")
LONGEST = (  # by the seconds that they take; begun last, they would keep one worker while the others have ended
    *("deployments", "ranks_on_ray", "resuming", "ranks_followed", "serving", "ranks", "terminal", "predicting"),
    *("faultydisk", "local", "training", "record", "secrets", "own_csv", "benchmarking", "searching"),
)
FOREIGN_PREFIXES = ("AWS_", "PREFECT_", "MLFLOW_", "BUCKET_ID", "RANK", "WORLD_SIZE")

BROWSER_SWITCHES = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
    "--no-proxy-server",
)

# Before anything imports Prefect: no profile, server, credential or proxy of whoever runs the tests may reach them.
for name in [name for name in os.environ if name.startswith(FOREIGN_PREFIXES)]:
    del os.environ[name]
_home = tempfile.TemporaryDirectory(prefix="shardline-tests-", ignore_cleanup_errors=True)
os.environ.update(quiet_environment(os.environ))
os.environ.update(
    PREFECT_HOME=_home.name,
    PREFECT_SERVER_ALLOW_EPHEMERAL_MODE="false",  # a flow called without the fixture fails at once, and says why
    AWS_CONFIG_FILE=os.devnull,
    AWS_SHARED_CREDENTIALS_FILE=os.devnull,
    AWS_EC2_METADATA_DISABLED="true",
)
if not Path("/dev/nvidiactl").exists():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # before Triton is imported: its own functions are interpreted too


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add `--long`, which `make test-all` gives."""
    parser.addoption("--long", action="store_true", help="run the tests marked as long too")


@pytest.hookimpl(optionalhook=True)  # of xdist, which need not be there
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> object:
    """Let xdist's workers take whole files."""
    from tests.scheduling import ByFile

    return ByFile(config, log)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Put the longest files first; skip what is marked long without `--long`, and what is for CUDA without a device."""
    items.sort(key=lambda item: (*LONGEST, name_file(item)).index(name_file(item)))
    reasons = {} if config.getoption("--long") else {"long": "long: run by `make test-all`, or with --long"}
    if any(item.get_closest_marker("cuda") for item in items):
        import torch

        if not torch.cuda.is_available():
            reasons["cuda"] = "no CUDA device is here: `make gpu` runs it where there is one"
    for item in items:
        for mark, reason in reasons.items():
            if item.get_closest_marker(mark):
                item.add_marker(pytest.mark.skip(reason=reason))


def name_file(item: pytest.Item) -> str:
    """Return what a test's file is of."""
    return item.path.stem.removeprefix("test_")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run the tests of the stream with both decoders: those of decoding always, all others with `--long`."""
    module = metafunc.module.__name__.rpartition(".")[2]
    others = module.startswith("test_stream_") and module != "test_stream_kernel"
    if module in DECODING or (others and metafunc.config.getoption("--long")):
        metafunc.fixturenames.insert(0, "decoder")
        metafunc.parametrize("decoder", ["native", "pyarrow"], indirect=True, scope="module")


@pytest.fixture(scope="module")
def decoder(request: pytest.FixtureRequest) -> Iterator[str]:
    """The decoder that this process, and those that it forks, read CSV with: native or pyarrow."""
    from tasks.streaming.formats.native import find_kernel

    with pytest.MonkeyPatch.context() as patch:
        if request.param == "pyarrow":
            for module in ("diagnosing", "ranges"):
                patch.setattr(f"tasks.streaming.formats.{module}.find_kernel", lambda: None)
        elif find_kernel() is None:
            pytest.skip("no kernel was built at installation: all tests are of the plain decoder")
        yield request.param


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
def device(request: pytest.FixtureRequest) -> str:
    """Each device that there is to train on."""
    return str(request.param)


@pytest.fixture(scope="session")
def generated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small generated set: csv/dev and csv/test under this folder."""
    from deployments.generator import provide_data

    return provide_data(tmp_path_factory.mktemp("generated"), ROWS)[0]


@pytest.fixture(scope="session")
def standin(tmp_path_factory: pytest.TempPathFactory, generated: Path) -> "Iterator[StandIn]":
    """A running stand-in for AWS, with the small generated set in its bucket."""
    from deployments.local import fill
    from deployments.standin import StandIn

    with StandIn(tmp_path_factory.mktemp("standin") / "moto.log") as running:
        fill(running, generated)
        yield running


@pytest.fixture
def aws(standin: "StandIn", monkeypatch: pytest.MonkeyPatch) -> "StandIn":
    """The environment of this test leads to the stand-in, with a user's keys and BUCKET_ID."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in standin.environment.items():
        monkeypatch.setenv(name, value)
    return standin


def make_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """A file for tests to copy, made by the first of xdist's workers that asks for it."""
    folder = factory.getbasetemp()
    folder = folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder
    with (folder / f"{name}.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / name).exists():
            make(folder / f"{name}.part")
            (folder / f"{name}.part").rename(folder / name)
    return folder / name


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow store without runs: a new one goes through all of MLflow's migrations, which takes seconds."""
    from mlflow import MlflowClient

    def make(path: Path) -> object:
        return MlflowClient(f"sqlite:///{path}").search_experiments(max_results=1)

    return make_once(tmp_path_factory, "mlflow.db", make)


@pytest.fixture(scope="session")
def empty_api(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The database of a Prefect server without runs, for the same reason."""

    def make(path: Path) -> object:
        database = {"PREFECT_SERVER_DATABASE_CONNECTION_URL": f"sqlite+aiosqlite:///{path}"}
        command = [sys.executable, "-m", "prefect", "server", "database", "upgrade", "--yes"]
        return subprocess.run(command, env=os.environ | database, check=True, capture_output=True)

    return make_once(tmp_path_factory, "prefect.db", make)


@contextlib.contextmanager
def working_in(folder: Path) -> Iterator[None]:
    """Work in a folder, with the MLflow store that is the default one there."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        yield


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory, empty_store: Path) -> Path:
    """A folder for a module's commands to run in, with a default MLflow store."""
    return add_store(tmp_path_factory.mktemp("stored"), empty_store)


def add_store(folder: Path, store: Path) -> Path:
    """Copy a store into a folder, as the default one there; the folder."""
    (folder / STATE).mkdir()
    shutil.copy(store, folder / STATE / "mlflow.db")
    return folder


@pytest.fixture(scope="module")
def workplace(stored: Path) -> Iterator[Path]:
    """That folder as the working directory of this process too."""
    with working_in(stored):
        yield stored


@pytest.fixture
def place(tmp_path: Path, empty_store: Path) -> Iterator[Path]:
    """A working directory of the test's own, with a default MLflow store."""
    with working_in(add_store(tmp_path, empty_store)):
        yield tmp_path


@pytest.fixture(scope="session", params=["generated", "real"])
def dctaxi(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with 298 rows in train.csv, valid.csv, test.csv: the real ones, or generated; with `--long` both."""
    from tests.shards import DCTAXI, write_small_set

    if request.param == "generated":
        if DCTAXI.is_dir() and not request.config.getoption("--long"):
            pytest.skip("the 298 real rows are at hand; with --long the generator's too")
        return write_small_set(tmp_path_factory.mktemp("dctaxi"))
    if not DCTAXI.is_dir():
        pytest.skip("the 298 real rows (../shared/data/dctaxi) are not at hand; the generator's stand in for them")
    return DCTAXI


@pytest.fixture
def browser(chromium: "Chrome") -> "Iterator[Chrome]":
    """The browser, which is left with an empty page: others go on drawing, a third of a core all the time."""
    yield chromium
    chromium.get("about:blank")


@pytest.fixture(scope="session")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> "Iterator[Chrome]":
    """A headless Chromium at laptop size, with a fresh profile, that finds loopback and nothing else."""
    program, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not (program and driver):
        pytest.skip("no Chromium here: the packages chromium and chromium-driver have it")
    from selenium.webdriver import Chrome, ChromeOptions
    from selenium.webdriver.chrome.service import Service

    options = ChromeOptions()
    options.binary_location = program
    for switch in BROWSER_SWITCHES:
        options.add_argument(switch)
    options.add_argument(f"--user-data-dir={tmp_path_factory.mktemp('chromium')}")
    options.set_capability("goog:loggingPrefs", {"performance": "ALL"})  # every request, for tests to look at
    with Chrome(options=options, service=Service(driver)) as running:
        running.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {"width": 1366, "height": 768, "deviceScaleFactor": 1, "mobile": False},
        )
        yield running


@pytest.fixture(scope="session")
def prefect_api(tmp_path_factory: pytest.TempPathFactory, empty_api: Path) -> Iterator[str]:
    """The API's URL of a real Prefect server on a database of its own, which flows called in tests use."""
    from prefect.events.worker import EventsWorker
    from prefect.logging.handlers import APILogWorker
    from prefect.settings import PREFECT_API_URL, PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings

    from deployments.servers import start_prefect

    home = tmp_path_factory.mktemp("prefect")
    shutil.copy(empty_api, home / "prefect.db")
    with Children() as children:
        url = start_prefect(children, home)
        # Without heartbeats: at each flow's end the thread that sends them is waited for, up to a second.
        settings = {PREFECT_API_URL: url, PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}
        with temporary_settings(settings), pytest.MonkeyPatch.context() as patch:
            patch.setenv("PREFECT_API_URL", url)
            yield url
            APILogWorker.instance().drain()  # what is sent after the server's end would be an error on the screen
            EventsWorker.drain_all()


@pytest.fixture(scope="session")
def receiver() -> "Iterator[Receiver]":
    """Where the automations of `site` send what they have to tell."""
    from tests.sites import Receiver

    with Receiver() as running:
        yield running


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory, receiver: "Receiver") -> "Iterator[Site]":
    """`make up`, with generated shards in its stand-in, a webhook, and PostgreSQL where it is installed."""
    from tests.postgresql import find_initdb, serve_postgresql
    from tests.sites import serve

    initdb = find_initdb()
    databases: AbstractContextManager[dict[str, str]]
    databases = serve_postgresql(initdb) if initdb else contextlib.nullcontext({})
    with (
        databases as settings,
        serve(tmp_path_factory.mktemp("site"), ROWS, SHARDLINE_WEBHOOK_URL=receiver.url, **settings) as running,
    ):
        yield running


@pytest.fixture(scope="session")
def trained(site: "Site") -> dict[str, Any]:
    """The first run of the nightly training there, with other parameters than the deployment's."""
    return site.wait(site.start("training/nightly", iterations=12, batch_size=2048))
