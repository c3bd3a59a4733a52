"""A training over ranks as a command, on a real Ray of this machine: equal bits, whatever is killed or stopped."""

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import psutil
import pytest
from mlflow import MlflowClient

from deployments.generator import write_data
from deployments.processes import wait_until
from tasks.ranks.cluster import OWN
from tasks.tracking.nested import NUMBER
from tests.rays import ROOT, finish, kill_kin, kill_tree, name, ranks_of, read_until, start_cluster, stop
from tests.shards import write_shards

ITERATIONS, BATCH = 30, 2**20  # some seconds, so that there is time to kill in; rows enough for few megabytes
WORDS = ("--iterations", str(ITERATIONS), "--batch-size", str(BATCH), "--checkpoint-every", "3")

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards")
    write_data(folder, 20_000)
    return f"{folder}/csv/dev/part*.csv"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("place")


@pytest.fixture(scope="module")
def command(prefect_api, place):
    """A function that starts a flow as a command."""

    def command(flow, *words, **variables):
        return subprocess.Popen(
            [sys.executable, "-m", flow, *words],
            cwd=place,
            env={**os.environ, "PREFECT_API_URL": prefect_api, "PYTHONPATH": str(ROOT), **variables},
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    return command


@pytest.fixture(scope="module")
def start(command, shards):
    """A function that starts the training, with a new experiment's name."""
    training = ("flows.training", "--shards", shards, *WORDS)
    return lambda experiment, *words, **variables: command(*training, "--experiment", experiment, *words, **variables)


@pytest.fixture(scope="module")
def alone(start, place):
    """The curve, the weights and the scores of `--ranks 1`."""
    finish(start("alone", "--ranks", "1"))
    return read_record(*in_mlflow(place, "alone"))


def in_mlflow(place, experiment):
    client = MlflowClient(tracking_uri=f"sqlite:///{place}/.shardline/mlflow.db")
    (run,) = client.search_runs([client.get_experiment_by_name(experiment).experiment_id])
    return client, run


def read_record(client, run, iterations=ITERATIONS):
    """Every iteration's loss, each told once, and the bytes of weights and scores."""
    history = client.get_metric_history(run.info.run_id, "mse")
    assert sorted(metric.step for metric in history) == list(range(iterations))
    kept = ("weights/weights.safetensors", "evaluation/scores.json")
    files = [Path(client.download_artifacts(run.info.run_id, name)).read_bytes() for name in kept]
    return {metric.step: metric.value for metric in history}, *files


def assert_is_as_alone(place, experiment, alone):
    client, run = in_mlflow(place, experiment)
    assert run.info.status == "FINISHED"
    assert read_record(client, run) == alone
    return client, run


@pytest.mark.long
def test_ranks_of_which_one_is_killed_leave_the_record_of_one_process(start, place, alone):
    process = start("killed rank", "--ranks", "2")
    printed = read_until(process, "Iteration: 001")
    kin = psutil.Process(process.pid).children(recursive=True)
    ranks_of(process)[1].kill()
    printed += finish(process)
    assert "2 ranks have started\n" in printed
    assert "2 ranks have started, attempt 2\n" in printed
    client, run = assert_is_as_alone(place, "killed rank", alone)
    ranks = json.loads(Path(client.download_artifacts(run.info.run_id, "ranks.json")).read_text())
    assert [each["rank"] for each in ranks] == [0, 1]
    assert all(0 < each["rows"] < ITERATIONS * BATCH for each in ranks)
    assert "slowest" in run.data.tags["mlflow.note.content"]
    _, left = psutil.wait_procs(kin, timeout=5)
    assert not [name(each) for each in left]


@pytest.mark.long
def test_a_run_that_is_stopped_leaves_no_process_and_goes_on_with_another_number_of_ranks(start, place, alone):
    process = start("stopped", "--ranks", "2")
    read_until(process, "Iteration: 001")
    seconds, left = stop(process, signal.SIGTERM)
    assert process.returncode
    assert seconds < 10
    assert left == []
    assert in_mlflow(place, "stopped")[1].info.status == "KILLED"
    printed = finish(start("stopped", "--ranks", "3"))
    assert "Going on with run" in printed and "3 ranks have started\n" in printed
    assert_is_as_alone(place, "stopped", alone)


def below(process, word):
    return [each for each in psutil.Process(process.pid).children(recursive=True) if word in name(each)]


@pytest.mark.long
@pytest.mark.parametrize("there", ["gcs_server", "raylet", "ray::Mailbox", "TrainController", "RayTrainWorker"])
def test_a_run_that_is_stopped_while_its_ranks_start_is_killed_in_the_record(there, start, place):
    process = start(f"stopped at {there}", "--ranks", "2")
    assert wait_until(lambda: bool(below(process, there)), 120, 0.02)
    seconds, left = stop(process, signal.SIGTERM)
    assert seconds < 10
    assert left == []
    assert in_mlflow(place, f"stopped at {there}")[1].info.status == "KILLED"


@pytest.mark.long
def test_a_run_that_waits_for_a_mailbox_hears_that_it_is_stopped(start, place):
    process = start("stopped mailbox", "--ranks", "2")
    read_until(process, "Iteration: 001")
    (mailbox,) = below(process, "ray::Mailbox")
    mailbox.suspend()
    seconds, left = stop(process, signal.SIGTERM)
    assert seconds < 10
    assert left == []
    assert in_mlflow(place, "stopped mailbox")[1].info.status == "KILLED"


@pytest.mark.long
def test_a_driver_that_is_killed_goes_on_without_ranks(start, place, alone):
    process = start("killed driver", "--ranks", "2")
    read_until(process, "Iteration: 004")
    kin = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.communicate(timeout=60)
    _, left = psutil.wait_procs(kin, timeout=60)
    assert [name(each) for each in left] == []
    assert "Going on at iteration" in finish(start("killed driver", "--ranks", "1"))
    assert_is_as_alone(place, "killed driver", alone)


@pytest.mark.long
def test_a_rank_that_hangs_is_named_and_the_next_attempt_goes_on(start, place, alone):
    process = start("hanging", "--ranks", "2", "--rank-timeout", "5")
    read_until(process, "Iteration: 001")
    ranks = ranks_of(process)
    ranks[1].suspend()
    printed = finish(process)
    assert re.search(rf"nothing was heard of rank \d \(process {ranks[1].pid} on .*\) for [5-9] s; ", printed)
    assert "Going on at iteration" in printed
    assert not ranks[1].is_running()
    assert_is_as_alone(place, "hanging", alone)


@pytest.mark.long
def test_the_trials_of_a_search_over_ranks_are_those_of_one_process(command, shards, place):
    words = ("--trials", "4", "--generation", "2", "--iterations", "20", "--batch-size", "3000")
    records = []
    for ranks in ("1", "2"):
        given = ("--shards", shards, "--experiment", f"searched {ranks}", "--ranks", ranks)
        finish(command("flows.searching", *given, *words, "--search", "batch_size,learning_rate,features"))
        client = MlflowClient(tracking_uri=f"sqlite:///{place}/.shardline/mlflow.db")
        runs = client.search_runs([client.get_experiment_by_name(f"searched {ranks}-searches").experiment_id])
        trials = {int(run.data.tags[NUMBER]): run for run in runs if NUMBER in run.data.tags}
        (parent,) = [run for run in runs if NUMBER not in run.data.tags]
        keys = ("mse", "validation_mse")
        curves = [client.get_metric_history(trials[at].info.run_id, key) for at in sorted(trials) for key in keys]
        ridge = Path(client.download_artifacts(parent.info.run_id, "ridge.json")).read_text()
        records.append(([[(metric.step, metric.value) for metric in curve] for curve in curves], ridge))
    ranks = json.loads(Path(client.download_artifacts(parent.info.run_id, "ranks.json")).read_text())
    assert [each["rank"] for each in ranks] == [0, 1]
    assert len(records[0][0]) == 8 and all(records[0][0])
    assert records[0] == records[1]


@pytest.mark.long
def test_the_exact_model_of_ranks_is_that_of_one_process(start, place):
    records = []
    for ranks in ("1", "2"):
        finish(start(f"exact {ranks}", "--solver", "exact", "--ranks", ranks, "--batch-size", "3000"))
        client, run = in_mlflow(place, f"exact {ranks}")
        records.append(read_record(client, run, 1))
    assert records[0] == records[1]


@pytest.mark.long
def test_the_scores_of_ranks_and_of_the_champion_beside_are_those_of_one_process(start, place):
    """The rows held out are several batches; the first model becomes champion. The rest of the pass is taken later."""
    records = []
    for ranks in ("1", "2"):
        for iterations in ("1", "2"):
            words = ("--ranks", ranks, "--batch-size", "1000", "--iterations", iterations)
            printed = finish(start(f"judged {ranks}", *words, "--resume", "never"))
            assert "(raylet)" not in printed  # Ray has nothing to tell of a run that ends well
        assert printed.count("2 ranks have started\n") == (3 if ranks == "2" else 0)  # trained, the rest, judged
        client = MlflowClient(tracking_uri=f"sqlite:///{place}/.shardline/mlflow.db")
        experiment = client.get_experiment_by_name(f"judged {ranks}").experiment_id
        latest, _ = client.search_runs([experiment], order_by=["attributes.start_time DESC"])
        records.append(Path(client.download_artifacts(latest.info.run_id, "evaluation/scores.json")).read_text())
    assert "champion" in json.loads(records[0])["all"]
    assert records[0] == records[1]


@pytest.mark.long
def test_predictions_of_ranks_of_which_one_is_killed_are_those_of_one_process(command, tmp_path):
    """Each shard once, `_SUCCESS` last, and nothing that is half written."""
    write_shards(tmp_path, [10] * 1500, metadata=True)  # so many that there is time to kill in
    given = ("--shards", f"{tmp_path}/part*.csv", "--experiment", "predicted")
    finish(command("flows.training", *given, "--solver", "exact"))
    predicting = ("flows.predicting", *given, "--model", "models:/predicted@challenger")  # no better than the mean
    folders = [tmp_path / "alone", tmp_path / "ranks"]
    finish(command(*predicting, "--output", str(folders[0])))
    process = command(*predicting, "--output", str(folders[1]), "--ranks", "2")
    assert wait_until(lambda: len(list(folders[1].glob("part*"))) > 3, 120)
    assert not (folders[1] / "_SUCCESS").exists()
    ranks_of(process)[1].kill()
    assert "2 ranks have started, attempt 2\n" in finish(process)
    alone, ranks = ({path.name: path.read_bytes() for path in folder.iterdir()} for folder in folders)
    facts = [json.loads(files.pop("_SUCCESS")) | {"run_id": ""} for files in (alone, ranks)]
    assert facts[0] == facts[1] and len(facts[0]["shards"]) == 1500
    assert alone == ranks


@pytest.mark.long
def test_a_node_of_a_cluster_that_is_lost_is_done_without(start, place, alone):
    with start_cluster(0, 1, 1, 1) as (nodes, variables):
        process = start("lost node", "--ranks", "2", **variables)
        printed = read_until(process, "Iteration: 001")
        node = ranks_of(nodes)[1].parent()
        assert "raylet" in name(node)
        kill_tree(node)
        printed += finish(process)
    assert "2 ranks have started, attempt 2\n" in printed
    assert_is_as_alone(place, "lost node", alone)


@pytest.mark.long
def test_a_run_that_is_stopped_leaves_no_rank_on_any_node(start, place):
    with start_cluster(0, 1, 1) as (nodes, variables):
        process = start("stopped on a cluster", "--ranks", "2", **variables)
        read_until(process, "Iteration: 001")
        assert len(ranks_of(nodes)) == 2
        seconds, left = stop(process, signal.SIGTERM)
        assert seconds < 10
        assert left == []
        assert wait_until(lambda: ranks_of(nodes) == [], 10)
    assert in_mlflow(place, "stopped on a cluster")[1].info.status == "KILLED"


@pytest.mark.long
def test_a_cluster_that_is_lost_is_named_and_the_same_command_goes_on_without_it(start, place, alone):
    with start_cluster(0, 1, 1) as (nodes, variables):
        process = start("lost cluster", "--ranks", "2", "--rank-timeout", "10", **variables)
        printed = read_until(process, "Iteration: 004")
        kill_kin(nodes)
        printed += process.communicate(timeout=300)[0]
        assert process.returncode == 1, printed
    assert "the Ray cluster is lost" in printed, printed
    assert "Going on at iteration" in finish(start("lost cluster", "--ranks", "1"))
    assert_is_as_alone(place, "lost cluster", alone)


JOIN = """
import sys, ray
ray.init(address=sys.argv[1], log_to_driver=False)
print("joined", flush=True)
"""


def can_join(address, **variables):
    """Whether a process of its own gets into a cluster."""
    others = {name: value for name, value in OWN.items() if name != "RAY_AUTH_MODE"}
    environment = {**os.environ, **others, "RAY_gcs_server_port_wait_time_s": "2", **variables}
    command = [sys.executable, "-c", JOIN, address]
    process = subprocess.Popen(command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    try:
        return "joined" in process.communicate(timeout=60)[0]
    except subprocess.TimeoutExpired:
        return False
    finally:
        process.kill()


@pytest.mark.long
def test_a_cluster_of_our_own_is_on_loopback_asks_for_a_token_and_is_told_no_secret(command, standin):
    secret = standin.environment["AWS_SECRET_ACCESS_KEY"].encode()
    with tempfile.TemporaryDirectory() as folder:  # Ray's sockets want a short one
        words = ("--experiment", "safe", "--ranks", "2", "--batch-size", "4000", "--iterations", "100000")
        process = command("flows.training", *words, **standin.environment, TMPDIR=folder)
        try:
            read_until(process, "Iteration: 000")
            kin = psutil.Process(process.pid).children(recursive=True)
            listening = [
                (at.laddr.ip, name(each))
                for each in kin
                for at in each.net_connections("inet")
                if at.status == psutil.CONN_LISTEN
            ]
            arguments = [name(each) for each in kin]
            address = next(found[1] for text in arguments if (found := re.search(r"--gcs-address=(\S+)", text)))
            (token,) = Path(folder).glob("shardline-ray-*/token")
            joined = can_join(address), can_join(address, RAY_AUTH_MODE="token", RAY_AUTH_TOKEN_PATH=str(token))
            files = {path: path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}
        finally:
            stop(process, signal.SIGTERM)
    elsewhere = [each for at, each in listening if at not in ("127.0.0.1", "::ffff:127.0.0.1")]
    assert len(listening) > 5 and any("RayTrainWorker" in each for _, each in listening)
    assert elsewhere == []
    assert joined == (False, True)
    assert any("raylet" in each for each in arguments) and any("shardline-ray" in str(path) for path in files)
    assert [each for each in arguments if secret.decode() in each] == []
    assert [path for path, content in files.items() if secret in content] == []
