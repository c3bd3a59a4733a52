"""The stand-in for AWS checks keys as AWS does, lets no AWS setting of its user reach it, and ends with its parent."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from botocore.exceptions import ClientError

from deployments.processes import answers, wait_until
from deployments.standin import ACCOUNT, Keys, StandIn

WRONG = "wrong" * 8


def ask(standin: StandIn, service: str, keys: Keys | None = None):
    client = standin.client(service, keys)
    return client.get_caller_identity() if service == "sts" else client.list_objects_v2(Bucket=standin.bucket)


def test_the_user_is_told_who_it_is(standin):
    identity = ask(standin, "sts")
    assert identity["Account"] == ACCOUNT
    assert identity["Arn"] == f"arn:aws:iam::{ACCOUNT}:user/shardline"
    assert identity["UserId"]


@pytest.mark.parametrize("service", ["sts", "s3"])
def test_a_wrong_secret_is_refused(standin, service):
    with pytest.raises(ClientError) as refusal:
        ask(standin, service, Keys(standin.keys.access_key_id, WRONG))
    assert refusal.value.response["Error"]["Code"] == "SignatureDoesNotMatch"


@pytest.mark.parametrize(("service", "code"), [("sts", "InvalidClientTokenId"), ("s3", "InvalidAccessKeyId")])
def test_an_unknown_key_is_refused(standin, service, code):
    with pytest.raises(ClientError) as refusal:
        ask(standin, service, Keys("AKIAUNKNOWN", WRONG))
    assert refusal.value.response["Error"]["Code"] == code


def test_a_user_can_do_no_more_than_its_policy_says(standin):
    allowed = {"Effect": "Allow", "Action": "s3:GetObject", "Resource": "*"}
    keys = standin.create_user("writer-of-nothing", {"Version": "2012-10-17", "Statement": [allowed]})
    reader = standin.client("s3", keys)
    assert reader.get_object(Bucket=standin.bucket, Key="csv/dev/_SUCCESS")["ContentLength"] == 0
    with pytest.raises(ClientError, match="AccessDenied"):
        reader.list_objects_v2(Bucket=standin.bucket)


def test_settings_of_the_machine_do_not_reach_it(tmp_path, monkeypatch):
    (tmp_path / "config").write_text("[profile mine]\nendpoint_url = http://127.0.0.1:1\nregion = mars-1\n")
    for name, value in {
        "AWS_CONFIG_FILE": str(tmp_path / "config"),
        "AWS_PROFILE": "mine",
        "AWS_ENDPOINT_URL": "http://127.0.0.1:1",
        "AWS_USE_FIPS_ENDPOINT": "true",
        "HTTP_PROXY": "http://127.0.0.1:1",
        "MOTO_PORT": "1",
    }.items():
        monkeypatch.setenv(name, value)
    with StandIn(tmp_path / "log", region="eu-west-1") as standin:
        assert ask(standin, "sts")["Account"] == ACCOUNT
        assert standin.bucket == f"dc-taxi-{standin.bucket_id}-eu-west-1"
        location = standin.client("s3").get_bucket_location(Bucket=standin.bucket)
    assert location["LocationConstraint"] == "eu-west-1"


def test_its_environment_leads_another_process_to_it_alone(aws):
    program = "import boto3, json; print(json.dumps(boto3.client('sts').get_caller_identity()['Account']))"
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True, env=os.environ)
    assert json.loads(answer.stdout) == ACCOUNT


def test_no_secret_stands_in_its_representation(standin):
    assert standin.keys.secret_access_key not in repr(standin.keys) + repr(standin)


def test_it_is_gone_after_the_block(tmp_path):
    with StandIn(tmp_path / "log") as standin:
        address = f"{standin.endpoint}/moto-api/data.json"
        assert answers(address)
    assert not answers(address)


def test_it_is_gone_when_its_parent_is_killed(tmp_path):
    program = (
        "import sys, time; from pathlib import Path; from deployments.standin import StandIn\n"
        "with StandIn(Path(sys.argv[1])) as standin: print(standin.endpoint, flush=True); time.sleep(600)"
    )
    root = Path(__file__).parents[1]
    command = [sys.executable, "-c", program, str(tmp_path / "log")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=root) as parent:
        assert parent.stdout is not None
        address = f"{parent.stdout.readline().strip()}/moto-api/data.json"
        assert answers(address)
        parent.send_signal(signal.SIGKILL)
        assert wait_until(lambda: not answers(address), 20)
