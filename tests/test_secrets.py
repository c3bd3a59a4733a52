"""No secret key and no session token stands in anything that a run leaves: files, databases, logs, artifacts, pages."""

import json
import os
import subprocess
import sys
from pathlib import Path
from urllib.parse import quote

import pytest

from deployments.standin import Keys

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
def left(standin, session_keys, prefect_api, tmp_path_factory):
    """Every byte that a run with temporary credentials, one with a damaged secret and one that fails leave."""
    keys, token = session_keys
    place = tmp_path_factory.mktemp("secretive")
    wrong = Keys(keys.access_key_id, keys.secret_access_key[:-1] + "#")
    printed = []
    for chosen, words in ((keys, []), (wrong, []), (keys, ["--preset", "notebook", "--learning-rate", "1e9"])):
        environment = {**os.environ, **standin.environment_of(chosen), "AWS_SESSION_TOKEN": token}
        environment |= {"PREFECT_API_URL": prefect_api, "PREFECT_LOGGING_LEVEL": "DEBUG", "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-m", "flows.training", "--batch-size", "500", "--gradient-norm", "0", *words]
        done = subprocess.run(command, cwd=place, env=environment, capture_output=True, timeout=120)
        printed.append((done.returncode, done.stdout + done.stderr))
    servers = tmp_path_factory.getbasetemp().glob("prefect*/**/*")
    files = [path for path in [*place.rglob("*"), *servers] if path.is_file()]
    return printed, {str(path): path.read_bytes() for path in files}


def test_the_runs_ended_as_they_were_meant_to(left):
    printed, files = left
    assert [code for code, _ in printed] == [0, 1, 1], printed
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
