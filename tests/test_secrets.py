"""No secret key and no session token stands in anything that a run leaves: files, databases, logs, artifacts, pages."""

import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import quote

import pytest

from deployments.processes import Children
from deployments.servers import start_mlflow
from deployments.standin import Keys
from tasks.errors import TrackingError
from tasks.tracking import client as record

ROOT = Path(__file__).parents[1]
EVERYTHING = {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "*", "Resource": "*"}]}


@pytest.fixture(scope="module")
def session_keys(standin):
    """Temporary credentials of an assumed role: key id, secret key and session token."""
    operator = standin.create_user("operator", EVERYTHING)
    iam = standin.client("iam", operator)
    iam.create_role(RoleName="trainer", AssumeRolePolicyDocument=json.dumps(EVERYTHING))
    iam.put_role_policy(RoleName="trainer", PolicyName="all", PolicyDocument=json.dumps(EVERYTHING))
    assumed = standin.client("sts", operator).assume_role(
        RoleArn="arn:aws:iam::123456789012:role/trainer", RoleSessionName="nightly"
    )["Credentials"]
    return Keys(assumed["AccessKeyId"], assumed["SecretAccessKey"]), assumed["SessionToken"]


@pytest.fixture(scope="module")
def left(standin, session_keys, prefect_api, stored, tmp_path_factory, request):
    """Every byte that a run with temporary credentials and one that fails leave; with `--long` one with a wrong key."""
    keys, token = session_keys
    wrong = Keys(keys.access_key_id, keys.secret_access_key[:-1] + "#")
    printed = []
    runs = [(keys, []), (keys, ["--preset", "notebook", "--learning-rate", "1e9"]), (wrong, [])]
    for chosen, words in runs if request.config.getoption("--long") else runs[:2]:
        environment = {**os.environ, **standin.environment_of(chosen), "AWS_SESSION_TOKEN": token}
        environment |= {"PREFECT_API_URL": prefect_api, "PREFECT_LOGGING_LEVEL": "DEBUG", "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-m", "flows.training", "--batch-size", "500", "--gradient-norm", "0", *words]
        done = subprocess.run(command, cwd=stored, env=environment, capture_output=True, timeout=120)
        printed.append((done.returncode, done.stdout + done.stderr))
    servers = tmp_path_factory.getbasetemp().glob("prefect*/**/*")
    files = [path for path in [*stored.rglob("*"), *servers] if path.is_file()]
    return printed, {str(path): path.read_bytes() for path in files}


def test_the_runs_ended_as_they_were_meant_to(left, request):
    printed, files = left
    expected = [0, 1, 1] if request.config.getoption("--long") else [0, 1]
    assert [code for code, _ in printed] == expected, printed
    assert any(name.endswith("mlflow.db") for name in files)
    assert any(name.endswith("prefect.db") and b"flow_run" in data for name, data in files.items())


@pytest.mark.parametrize("kind", ["secret key", "session token"])
def test_no_secret_stands_in_anything_that_a_run_leaves(kind, left, session_keys):
    keys, token = session_keys
    secret = keys.secret_access_key if kind == "secret key" else token
    forms = {secret.encode(), quote(secret, safe="").encode(), json.dumps(secret)[1:-1].encode()}
    printed, files = left
    places = [name for name, data in files.items() if any(form in data for form in forms)]
    places += [f"output of run {number}" for number, (_, data) in enumerate(printed) if any(f in data for f in forms)]
    assert places == []


PARTS = ("zq1x7", "zq2y8", "zq3z9")  # of a password, between the characters that end one for a careless parser
RAW, ENCODED = "{}@{}/{}".format(*PARTS), "{}%40{}%2F{}".format(*PARTS)
NOWHERE = "127.0.0.1:1"


def run_training(place, environment, *words):
    command = [sys.executable, "-m", "flows.training", *words]
    environment = {**os.environ, "PREFECT_LOGGING_LEVEL": "DEBUG", "PYTHONPATH": str(ROOT), **environment}
    return subprocess.Popen(
        command, cwd=place, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


SIGNATURE, SIGNER = "zq4w5c0ffee", "AKIAZQ5V%2F20261124"


@pytest.fixture(scope="module")
def signed(generated):
    """A presigned address of a shard, on a server that gives it to nobody who has no signature or another password."""
    shard = max((generated / "csv/dev").glob("part*.csv"), key=lambda path: path.stat().st_size)
    data = shard.read_bytes()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            if f"X-Amz-Signature={SIGNATURE}" not in self.path:
                self.send_error(403)
                return
            first, _, last = self.headers.get("Range", "bytes=0-").partition("=")[2].partition("-")
            part = data[int(first) : int(last or len(data)) + 1]
            self.send_response(206 if "Range" in self.headers else 200)
            self.send_header("Content-Length", str(len(part)))
            self.send_header("Content-Range", f"bytes {first}-{int(first) + len(part) - 1}/{len(data)}")
            self.send_header("Accept-Ranges", "bytes")
            self.send_header("ETag", '"e7a9"')
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(part)

        do_HEAD = do_GET  # noqa: N815

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    query = f"X-Amz-Credential={SIGNER}&X-Amz-Signature={SIGNATURE}"
    yield f"http://reader:{ENCODED}@127.0.0.1:{server.server_port}/data/{shard.name}?{query}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(scope="module")
def addressed(standin, signed, prefect_api, tmp_path_factory):
    """Every byte that runs leave whose shards are presigned, and whose tracking URI has a hostile password."""
    place = tmp_path_factory.mktemp("addressed")
    environment = {**standin.environment, "PREFECT_API_URL": prefect_api}
    words = ["--shards", signed, "--batch-size", "100", "--iterations", "5"]
    with Children() as children:
        server = start_mlflow(children, place, f"sqlite:///{place}/server.db").removeprefix("http://")
        uris = [
            f"http://user:{ENCODED}@{server}",
            f"http://user:{ENCODED}@{NOWHERE}",
            f"http://user:{RAW}@{NOWHERE}",
            f"postgresql://user:{ENCODED}@{NOWHERE}/db",
            f"postgresql://user:{RAW}@{NOWHERE}/db",
        ]
        runs = [run_training(place, environment | {"MLFLOW_TRACKING_URI": uri}, *words) for uri in uris]
        printed = [run.communicate(timeout=240)[0] for run in runs]
        again = run_training(
            place, environment | {"MLFLOW_TRACKING_URI": uris[0]}, "--like", _run_id(printed[0]), "--iterations", "3"
        )
        printed.append(again.communicate(timeout=120)[0])
    servers = tmp_path_factory.getbasetemp().glob("prefect*/**/*")
    files = {str(path): path.read_bytes() for path in [*place.rglob("*"), *servers] if path.is_file()}
    return [run.returncode for run in (*runs, again)], printed, files


def _run_id(printed):
    return re.findall("/runs/([0-9a-f]{32})", printed)[0]


@pytest.mark.long
def test_what_a_presigned_run_cannot_do_later_is_said(addressed):
    codes, printed, _ = addressed
    assert codes == [0, 1, 1, 1, 1, 1], printed
    assert "needs the whole address again, signed anew" in printed[0]
    assert "whose shards are recorded without user, password or signature, as http" in printed[5]
    assert "give --shards too" in printed[5]


@pytest.mark.long
def test_no_password_of_a_tracking_uri_and_no_signature_stands_in_anything_that_a_run_leaves(addressed):
    _, printed, files = addressed
    assert any(name.endswith("manifest.json") for name in files)
    secrets = [*PARTS, SIGNATURE, SIGNER, SIGNER.partition("%")[0]]
    found = {(secret, name) for name, data in files.items() for secret in secrets if secret.encode() in data}
    found |= {
        (secret, f"output of run {at}") for at, text in enumerate(printed) for secret in secrets if secret in text
    }
    assert found == set()


@pytest.mark.long
def test_a_tracking_uri_whose_password_would_be_cut_is_refused_and_one_that_does_not_answer_is_ours(addressed):
    _, printed, _ = addressed
    assert f"no MLflow server at http://{NOWHERE} (" in printed[1]
    assert f"MLFLOW_TRACKING_URI (http://{NOWHERE}) cannot be read: in its user and password, write @ as" in printed[2]
    assert f"no database at postgresql://{NOWHERE}/db (" in printed[3]
    assert f"MLFLOW_TRACKING_URI (postgresql://{NOWHERE}/db) cannot be read: in its user and" in printed[4]


@pytest.fixture
def silent():
    """The port of a host that takes connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield listening.getsockname()[1]


@pytest.mark.long
@pytest.mark.parametrize("scheme", ["postgresql", "http"])
def test_a_store_that_takes_connections_and_says_nothing_is_told_within_half_a_minute(scheme, silent, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"{scheme}://user:{ENCODED}@127.0.0.1:{silent}/db")
    began = time.monotonic()
    with pytest.raises(TrackingError, match=f"at {scheme}://127.0.0.1:{silent}") as raised:
        record.connect()
    assert time.monotonic() - began < 30
    assert not [part for part in PARTS if part in str(raised.value)]


@pytest.mark.long
def test_a_server_that_falls_silent_later_is_told_within_half_a_minute(monkeypatch):
    """It answers its health, and nothing else."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            if self.path == "/health":
                self.send_response(200)
                self.end_headers()
            else:
                time.sleep(60)

        do_POST = do_GET  # noqa: N815

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads, server.block_on_close = True, False
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://user:{ENCODED}@127.0.0.1:{server.server_port}")
    began = time.monotonic()
    try:
        with pytest.raises(TrackingError, match="does not answer: ") as raised:
            record.connect()
    finally:
        server.shutdown()
        server.server_close()
    assert time.monotonic() - began < 30
    assert not [part for part in PARTS if part in str(raised.value)]
