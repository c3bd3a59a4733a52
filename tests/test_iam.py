"""The least-privilege policies: a run works with them, and with nothing less; they allow nothing more."""

import json
import os
import string
from pathlib import Path

import pytest
from botocore.exceptions import ClientError
from s3fs import S3FileSystem

from flows.predicting import predict
from flows.training import train
from tasks.aws.block import credentials_of
from tasks.credentials import verify_credentials
from tasks.errors import BucketError, ConfigurationError, CredentialsError
from tests.flowruns import ended

FOLDER = Path(__file__).parents[1] / "deployments" / "iam"
SMALL = {"batch_size": 500, "iterations": 2, "cache": False}


def policy(standin, *names):
    """The statements of some of the files, for the stand-in's bucket."""
    values = {"BUCKET_ID": standin.bucket_id, "AWS_DEFAULT_REGION": standin.region, "MLFLOW_BUCKET": standin.bucket}
    texts = [string.Template((FOLDER / f"{name}.json").read_text()).substitute(values) for name in names]
    statements = [statement for text in texts for statement in json.loads(text)["Statement"]]
    return {"Version": "2012-10-17", "Statement": statements}


@pytest.fixture(scope="module")
def trainer(standin):
    """Keys of a user with the policy for training alone."""
    return standin.create_user("trainer", policy(standin, "training"))


def become(standin, monkeypatch, keys):
    S3FileSystem.clear_instance_cache()  # a process of its own would have none
    for name, value in standin.environment_of(keys).items():
        monkeypatch.setenv(name, value)


def test_training_and_predicting_work_with_their_policies_alone(prefect_api, standin, trainer, place, monkeypatch):
    become(standin, monkeypatch, trainer)
    assert ended(train, **SMALL).is_completed()
    refused = ended(predict)
    assert refused.is_failed()
    become(standin, monkeypatch, standin.create_user("predictor", policy(standin, "training", "predicting")))
    assert ended(predict).is_completed()


@pytest.mark.parametrize("dropped", ["ListTheShards", pytest.param("ReadTheShards", marks=pytest.mark.long)])
def test_nothing_in_the_training_policy_can_be_left_out(prefect_api, standin, place, monkeypatch, dropped):
    whole = policy(standin, "training")
    less = [statement for statement in whole["Statement"] if statement["Sid"] != dropped]
    become(standin, monkeypatch, standin.create_user(f"less-{dropped}", whole | {"Statement": less}))
    failure = ended(train, **SMALL).result(raise_on_failure=False)
    assert isinstance(failure, (BucketError, CredentialsError))


@pytest.mark.parametrize(
    ("operation", "given"),
    [
        ("put_object", {"Bucket": "{bucket}", "Key": "csv/dev/part-00000.csv", "Body": b""}),
        ("delete_object", {"Bucket": "{bucket}", "Key": "csv/dev/part-00000.csv"}),
        ("put_object", {"Bucket": "{bucket}", "Key": "csv/dev/predictions/part-00000.csv", "Body": b""}),
        ("get_object", {"Bucket": "{bucket}", "Key": "private/key"}),
        ("list_objects_v2", {"Bucket": "somebody-elses"}),
        ("get_object", {"Bucket": "somebody-elses", "Key": "csv/key"}),
        ("get_bucket_policy", {"Bucket": "{bucket}"}),
        ("list_buckets", {}),
        ("create_bucket", {"Bucket": "a-new-one"}),
    ],
)
def test_the_training_policy_allows_nothing_more(standin, trainer, operation, given):
    s3 = standin.client("s3", trainer)
    named = {name: value.format(bucket=standin.bucket) if name == "Bucket" else value for name, value in given.items()}
    with pytest.raises(ClientError, match=r"AccessDenied|Forbidden"):
        getattr(s3, operation)(**named)


def test_no_policy_allows_all_actions_or_all_buckets():
    for path in FOLDER.glob("*.json"):
        for statement in json.loads(path.read_text())["Statement"]:
            actions = [statement["Action"]] if isinstance(statement["Action"], str) else statement["Action"]
            assert not [action for action in actions if "*" in action]
            assert statement["Resource"] != "*" or actions == ["sts:GetCallerIdentity"]


def test_a_block_gives_credentials_and_leaves_none_behind(standin, trainer, prefect_api, monkeypatch):
    from prefect_aws import AwsCredentials

    become(standin, monkeypatch, trainer)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    keys = {"aws_access_key_id": trainer.access_key_id, "aws_secret_access_key": trainer.secret_access_key}
    AwsCredentials(**keys).save("trainer", overwrite=True)
    before = dict(os.environ)
    question = {"region": standin.region, "bucket_owner": None, "verify_identity": True, "anonymous": False}
    with credentials_of("trainer"):
        identity = verify_credentials(uris=[f"s3://{standin.bucket}/csv/dev/part*.csv"], **question)
    assert identity.arn == "arn:aws:iam::123456789012:user/trainer"
    assert dict(os.environ) == before


def test_a_flow_asks_its_block_for_credentials(prefect_api, place):
    failure = ended(train, shards="s3://anywhere/part*.csv", aws_block="nobody").result(raise_on_failure=False)
    assert isinstance(failure, ConfigurationError) and "aws-credentials/nobody" in str(failure)


def test_a_block_that_is_not_there_is_named(prefect_api):
    with (
        pytest.raises(ConfigurationError, match=r"Prefect has no block 'aws-credentials/nobody'"),
        credentials_of("nobody"),
    ):
        pass


def test_a_block_without_keys_is_told_of(prefect_api, monkeypatch):
    from prefect_aws import AwsCredentials

    AwsCredentials().save("empty", overwrite=True)
    with (
        pytest.raises(ConfigurationError, match=r"aws_block 'empty' has neither keys nor a profile"),
        credentials_of("empty"),
    ):
        pass
