"""Runs that are stopped, and go on: the same MLflow run, the same curve to the last bit, one value an iteration."""

import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from mlflow import MlflowClient
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId

from deployments.generator import write_data
from flows.training import train
from tasks.errors import CheckpointError
from tasks.learning.checkpoints import Checkpoint, Checkpoints
from tasks.learning.features import Features
from tasks.learning.loop import Settings, Trainer
from tasks.learning.scaling import Scaling
from tasks.tracking.outbox import held
from tasks.tracking.processes import is_gone, this_process
from tests.flowruns import ended

ROOT = Path(__file__).parents[1]
ITERATIONS = 160


def state(iteration, value=1.0):
    return Checkpoint(iteration, {"w": torch.full((8, 1), value, dtype=torch.float64)}, {"shards": {"s3://b/x": "e"}})


@pytest.fixture
def checkpoints(tmp_path):
    return Checkpoints(str(tmp_path / "kept"), "run")


def test_the_newest_checkpoint_comes_back_to_the_last_bit(checkpoints):
    for iteration in (5, 10, 200):
        checkpoints.write(state(iteration, 1 / (3 + iteration)))
    latest = checkpoints.latest()
    assert (latest.iteration, latest.facts) == (200, {"shards": {"s3://b/x": "e"}})
    assert torch.equal(latest.tensors["w"], state(200, 1 / 203).tensors["w"])


def test_old_checkpoints_are_pruned(checkpoints, tmp_path):
    for iteration in range(1, 6):
        checkpoints.write(state(iteration))
    assert sorted(path.name for path in (tmp_path / "kept" / "run").iterdir()) == [
        f"checkpoint-00000000{i}.{kind}" for i in (4, 5) for kind in ("json", "safetensors")
    ]


@pytest.mark.parametrize("damage", ["flipped bit", "cut short", "JSON cut short", "no tensors"])
def test_a_damaged_checkpoint_gives_way_to_the_one_before_with_a_warning(damage, checkpoints, tmp_path, caplog):
    checkpoints.write(state(1))
    checkpoints.write(state(2))
    tensors = tmp_path / "kept" / "run" / "checkpoint-000000002.safetensors"
    facts = tensors.with_suffix(".json")
    data = tensors.read_bytes()
    match damage:
        case "flipped bit":
            tensors.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        case "cut short":
            tensors.write_bytes(data[:-5])
        case "JSON cut short":
            facts.write_bytes(facts.read_bytes()[:-9])
        case "no tensors":
            tensors.unlink()
    assert checkpoints.latest().iteration == 1
    assert f"The checkpoint {checkpoints.folder}/checkpoint-000000002 is damaged (" in caplog.text
    assert ("(its SHA-256 is not the one stated)" in caplog.text) == (damage in ("flipped bit", "cut short"))


def test_checkpoints_are_kept_on_any_fsspec_url():
    checkpoints = Checkpoints("memory://checkpoints", "run")
    checkpoints.write(state(3))
    assert (latest := checkpoints.latest()) and latest.iteration == 3
    checkpoints.delete()
    assert checkpoints.latest() is None


def test_a_store_that_does_not_answer_is_not_a_damaged_checkpoint(checkpoints, monkeypatch):
    checkpoints.write(state(1))

    def refuse(*_):
        raise ConnectionError("no route")

    monkeypatch.setattr(checkpoints._files, "cat_file", refuse)
    with pytest.raises(CheckpointError, match="cannot be read: no route"):
        checkpoints.latest()


def test_a_checkpoint_that_is_not_whole_takes_nobodys_place(checkpoints, tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError("no room")

    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(CheckpointError, match=f"in {tmp_path}/kept/run cannot be written: no room"):
        checkpoints.write(state(1))
    assert list((tmp_path / "kept" / "run").iterdir()) == []


def test_a_folder_that_cannot_be_looked_into_is_named(checkpoints, monkeypatch):
    def refuse(*_):
        raise ConnectionError("no route")

    monkeypatch.setattr(checkpoints._files, "exists", refuse)
    with pytest.raises(CheckpointError, match=f"^the checkpoints in {checkpoints.folder} cannot be read: no route$"):
        checkpoints.latest()
    with pytest.raises(CheckpointError, match=f"^the checkpoints in {checkpoints.folder} cannot be deleted: no route$"):
        checkpoints.delete()


def test_where_checkpoints_cannot_be_kept_is_named():
    assert Checkpoints("memory://kept/", "run").folder == "memory://kept/run"
    with pytest.raises(CheckpointError, match=r"^checkpoints cannot be kept at 'nowhere://x': "):
        Checkpoints("nowhere://x", "run")


def test_checkpoints_of_later_iterations_can_be_left_out(checkpoints):
    checkpoints.write(state(3))
    checkpoints.write(state(9))
    assert checkpoints.latest(at_most=9).iteration == 9
    assert checkpoints.latest(at_most=8).iteration == 3
    assert checkpoints.latest(at_most=2) is None


def test_this_process_is_not_gone_and_one_that_ended_is():
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    host, boot, space, _, _ = this_process().rsplit(" ", 4)
    start = Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()[19]
    process = f"{host} {boot} {space} {child.pid} {start}"
    assert not is_gone(this_process())
    assert not is_gone(process)
    child.communicate(b"")
    assert is_gone(process)
    assert is_gone(this_process().replace(boot, "another-boot"))
    assert not is_gone(f"another-host {boot} {space} {child.pid} {start}")
    assert not is_gone(None)


def test_an_outbox_is_held_by_one_process_at_a_time(tmp_path):
    script = "import sys, pathlib\nfrom tasks.tracking.outbox import held\n"
    script += "with held(pathlib.Path(sys.argv[1])) as free: sys.exit(0 if free else 3)"
    command = [sys.executable, "-c", script, str(tmp_path)]
    with held(tmp_path) as free:
        assert free
        assert subprocess.run(command, cwd=ROOT).returncode == 3
    assert subprocess.run(command, cwd=ROOT).returncode == 0


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match=f"the checkpoints in {tmp_path}/file/run cannot be written"):
        Checkpoints(str(tmp_path / "file"), "run").write(state(1))


@pytest.mark.parametrize("optimizer", ["SGD", "Adam", "AdamW", "RMSprop", "Adagrad"])
def test_a_restored_trainer_goes_on_to_the_last_bit(optimizer, checkpoints):
    from tasks.learning.batches import Prepared

    features = Features.choose([f"c{i}" for i in range(4)])
    settings = Settings(iterations=20, learning_rate=0.01, gradient_norm=0, seed=0, optimizer=optimizer)
    rows = torch.randn(64, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    batch = Prepared(rows[:, 1:].clone(), rows[:, :1].clone())

    def trainer():
        return Trainer(features, Scaling.of(rows[:, 1:]), settings, torch.device("cpu"))

    undisturbed, first = trainer(), trainer()
    curve = [undisturbed.step(batch).item() for _ in range(20)]
    part = [first.step(batch).item() for _ in range(7)]
    checkpoints.write(first.state())
    second = trainer()
    second.restore(checkpoints.latest())
    assert part + [second.step(batch).item() for _ in range(13)] == curve
    assert torch.equal(second.w, undisturbed.w)


# What follows runs `python -m flows.training` in a process of its own, and stops it.


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards")
    write_data(folder, 20_000)
    return folder / "csv" / "dev"


@pytest.fixture(scope="module")
def job(prefect_api, shards, stored):
    """A function that starts the flow as a command, with a new experiment's name."""

    def start(experiment, *words, script="import runpy; runpy.run_module('flows.training', run_name='__main__')"):
        command = [sys.executable, "-c", script, "--shards", f"{shards}/part*.csv", "--iterations", str(ITERATIONS)]
        command += ["--batch-size", "3000", "--experiment", experiment, "--checkpoint-every", "10", *words]
        environment = {**os.environ, "PREFECT_API_URL": prefect_api, "PYTHONPATH": str(ROOT)}
        return subprocess.Popen(
            command, cwd=stored, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )

    return start


def stop_at(process, iteration, number):
    """Send a signal when an iteration's line appears; what was printed until the end."""
    printed = []
    for line in process.stdout:
        printed.append(line)
        if f"Iteration: {iteration:03d}" in line:
            process.send_signal(number)
            break
    printed.append(process.stdout.read())
    process.wait()
    return "".join(printed)


def finish(process):
    printed, _ = process.communicate(timeout=120)
    assert process.returncode == 0, printed
    return printed


def recorded(stored, experiment):
    """The only run of an experiment, its curve, the bytes of its weights and of its scores, the exact model's too."""
    client = MlflowClient(tracking_uri=f"sqlite:///{stored}/.shardline/mlflow.db")
    runs = client.search_runs([client.get_experiment_by_name(experiment).experiment_id])
    assert len(runs) == 1
    history = client.get_metric_history(runs[0].info.run_id, "mse")
    assert sorted(metric.step for metric in history) == list(range(ITERATIONS))
    weights = Path(client.download_artifacts(runs[0].info.run_id, "weights/weights.safetensors")).read_bytes()
    scores = Path(client.download_artifacts(runs[0].info.run_id, "evaluation/scores.json")).read_bytes()
    return runs[0], {metric.step: metric.value for metric in history}, weights, scores


@pytest.fixture(scope="module")
def undisturbed(prefect_api, shards, workplace):
    """What a run of this process, which is sooner there than a command, leaves."""
    given = {"batch_size": 3000, "checkpoint_every": "10"}
    done = ended(train, shards=f"{shards}/part*.csv", iterations=ITERATIONS, experiment="undisturbed", **given)
    assert done.is_completed(), done.message
    return recorded(workplace, "undisturbed")


def assert_went_on_as_undisturbed(stored, experiment, undisturbed):
    run, curve, weights, scores = recorded(stored, experiment)
    assert run.info.status == "FINISHED"
    assert curve == undisturbed[1]
    assert weights == undisturbed[2]
    assert scores == undisturbed[3]


def flow_state(printed):
    """The state in Prefect of the flow run whose id stands in a URL that the run printed or MLflow holds."""
    with get_client(sync_client=True) as client:
        return client.read_flow_runs(flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[printed])))[0].state


@pytest.mark.parametrize(
    "iteration",
    [17, *(pytest.param(i, marks=pytest.mark.long) for i in random.Random(4).sample(range(ITERATIONS - 40), 20))],
)
def test_a_killed_run_goes_on_as_if_nothing_had_been(iteration, job, stored, undisturbed):
    name = f"killed at {iteration}"
    stop_at(job(name), iteration, signal.SIGKILL)
    printed = finish(job(name))
    assert "Going on with run" in printed
    assert ", which was KILLED" in printed  # by the run that found it left RUNNING
    assert_went_on_as_undisturbed(stored, name, undisturbed)


DIES_AT_THE_END = """
import os, runpy, signal
from unittest import mock
mock.patch('tasks.reporting.write_times', lambda fit: os.kill(os.getpid(), signal.SIGKILL)).start()
runpy.run_module('flows.training', run_name='__main__')
"""


@pytest.mark.long
def test_a_run_killed_after_its_last_iteration_ends_as_if_nothing_had_been(job, stored, undisturbed):
    first = job("killed at the end", script=DIES_AT_THE_END)
    first.communicate()
    assert first.returncode == -signal.SIGKILL
    assert f"Going on at iteration {ITERATIONS}" in finish(job("killed at the end"))
    assert_went_on_as_undisturbed(stored, "killed at the end", undisturbed)


DIES_WRITING = """
import os, runpy, signal
from tasks.learning.checkpoints import Checkpoints
whole = Checkpoints._put
def put(self, path, data):
    if path.endswith("checkpoint-000000050.{kind}"):
        self._files.pipe_file(path{part}, data[: len(data) // 2])
        os.kill(os.getpid(), signal.SIGKILL)
    whole(self, path, data)
Checkpoints._put = put
runpy.run_module('flows.training', run_name='__main__')
"""


@pytest.mark.long
@pytest.mark.parametrize(("kind", "part"), [("safetensors", ""), ("json", ""), ("json", " + '.part'")])
def test_a_run_killed_while_it_writes_a_checkpoint_goes_on(kind, part, job, stored, undisturbed):
    name = f"killed writing {kind}{len(part)}"
    job(name, script=DIES_WRITING.format(kind=kind, part=part)).communicate()
    assert "Going on at iteration 40" in finish(job(name))
    assert_went_on_as_undisturbed(stored, name, undisturbed)


@pytest.mark.long
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_run_is_killed_in_mlflow_and_goes_on(number, job, stored, undisturbed):
    name = f"stopped by {number.name}"
    process = job(name)
    stop_at(process, 60, number)
    assert process.returncode != 0
    client = MlflowClient(tracking_uri=f"sqlite:///{stored}/.shardline/mlflow.db")
    (run,) = client.search_runs([client.get_experiment_by_name(name).experiment_id])
    assert run.info.status == "KILLED"
    assert flow_state(run.data.tags["prefect.flow_run_id"]).is_crashed()
    finish(job(name))
    assert_went_on_as_undisturbed(stored, name, undisturbed)


@pytest.mark.long
def test_data_that_changed_is_refused_by_name_and_resume_never_starts_anew(job, stored, shards):
    name = "changed"
    stop_at(job(name), 60, signal.SIGTERM)
    client = MlflowClient(tracking_uri=f"sqlite:///{stored}/.shardline/mlflow.db")
    (run,) = client.search_runs([client.get_experiment_by_name(name).experiment_id])
    first = min(path for path in shards.glob("part*.csv") if path.stat().st_size)
    kept = first.read_bytes()
    head, _, rest = kept.partition(b"\n")
    try:
        first.write_bytes(head + b"\n9" + rest)  # the first fare begins with another digit
        process = job(name, "--resume", run.info.run_id)
        printed, _ = process.communicate()
    finally:
        first.write_bytes(kept)
    assert process.returncode == 1
    assert f"the data of run {run.info.run_id} has changed since: file://{first} was replaced" in printed
    finish(job(name, "--resume", "never", "--iterations", "5"))
