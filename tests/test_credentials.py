"""What `verify_credentials` asks and leaves behind when all is well, where it looks for keys, and that it keeps them.

The table of what AWS may refuse stands in test_refusals.py.
"""

import logging
import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prefect import flow, task
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import (
    ArtifactFilter,
    ArtifactFilterFlowRunId,
    FlowRunFilter,
    FlowRunFilterId,
    LogFilter,
    LogFilterFlowRunId,
)
from prefect.logging.handlers import APILogWorker
from prefect.serializers import JSONSerializer

from deployments.processes import Children, find_port, wait_until
from deployments.standin import StandIn
from tasks.aws.identity import Identity
from tasks.credentials import verify_credentials
from tests.awsproxy import (
    Answer,
    AwsProxy,
    Rule,
    always,
    caller_identity,
    in_turn,
    listing,
    owned_by,
    s3_error,
    sts_error,
)
from tests.verification import everything_said, refusal, verify

pytest_plugins = ["tests.verification"]

ACCOUNT, FOREIGN = "123456789012", "999988887777"
ARN = f"arn:aws:iam::{ACCOUNT}:user/shardline"
ROLE_ARN = f"arn:aws:sts::{ACCOUNT}:assumed-role/reader/i-0123"
KEY_ID, SECRET, TOKEN = "AKIAPLANTEDKEYID0000", "planted/Secret+Access0Key", "planted//Session+Token=="
STS, LIST = "POST GetCallerIdentity", "GET listing"


def test_identity_region_and_bucket_are_those_of_the_caller(aws: StandIn) -> None:
    identity = verify(f"s3://{aws.bucket}/csv/dev/part*.csv")
    assert identity == Identity(
        account=ACCOUNT,
        arn=ARN,
        user_id=identity.user_id,
        region="us-east-1",
        buckets=(aws.bucket,),
        verified_by="sts",
        note=f"listed: s3://{aws.bucket}/csv/dev/ as account {ACCOUNT}'s in us-east-1",
    )
    assert identity.user_id


def test_a_bucket_whose_listing_tells_its_region_takes_two_requests(aws: StandIn, proxy: AwsProxy) -> None:
    proxy.rules.append(always("s3", listing("us-east-1")))
    assert verify(f"s3://{aws.bucket}/csv/dev/part*.csv").region == "us-east-1"
    assert proxy.asked == [STS, LIST]


def test_each_place_is_listed_once_where_its_glob_begins(aws: StandIn, proxy: AwsProxy) -> None:
    base = f"s3://{aws.bucket}/csv"
    verify(f"{base}/dev/part*.csv", f"{base}/dev/more-?.csv", f"{base}/test/part-00000.csv", "file:///tmp/part*.csv")
    prefixes = [request.query["prefix"] for request in proxy.requests if str(request) == LIST]
    assert prefixes == [["csv/dev/"], ["csv/test/part-00000.csv"]]


def test_the_caller_is_expected_to_own_the_bucket(aws: StandIn, proxy: AwsProxy) -> None:
    verify(f"s3://{aws.bucket}/csv/dev/part*.csv")
    assert proxy.requests[1].headers["x-amz-expected-bucket-owner"] == ACCOUNT


def test_a_foreign_bucket_is_accepted_when_its_owner_is_named(aws: StandIn, proxy: AwsProxy) -> None:
    proxy.rules += [owned_by(FOREIGN), always("s3", listing())]
    assert verify(f"s3://{aws.bucket}/part*.csv", bucket_owner=FOREIGN).note == (
        f"listed: s3://{aws.bucket}/ as account {FOREIGN}'s in us-east-1"
    )


def test_a_service_that_is_busy_is_asked_again(aws: StandIn, proxy: AwsProxy) -> None:
    proxy.rules += [
        in_turn("sts", sts_error("Throttling", "Rate exceeded", 400)),
        in_turn("s3", *[s3_error("SlowDown", "Please reduce your request rate.", 503)] * 2),
        always("s3", listing()),
    ]
    assert verify(f"s3://{aws.bucket}/part*.csv").account == ACCOUNT
    assert proxy.asked == [STS] * 2 + [LIST] * 3


@pytest.mark.parametrize("uris", [["file:///data/part*.csv"], ["/data/part*.csv"], ["memory://part*.csv"], []])
def test_without_shards_in_s3_there_is_nothing_to_verify(uris: list[str], proxy: AwsProxy) -> None:
    identity = verify(*uris)
    assert (identity.verified_by, identity.note) == ("nothing to verify", "no shards in S3: nothing to verify")
    assert (identity.account, proxy.asked) == (None, [])


def test_without_sts_a_listing_must_do_and_says_so(aws: StandIn, proxy: AwsProxy) -> None:
    identity = verify(f"s3://{aws.bucket}/csv/dev/part*.csv", verify_identity=False, region=None)
    assert (identity.verified_by, identity.account, identity.buckets) == ("listing", None, (aws.bucket,))
    assert identity.note == (
        f"verified by listing only (verify_identity is false): s3://{aws.bucket}/csv/dev/, whoever owns it; identity "
        "and region not asked for"
    )
    assert proxy.asked == [LIST]


def test_a_public_bucket_is_listed_unsigned(aws: StandIn, proxy: AwsProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_DEFAULT_REGION")
    proxy.rules.append(always("s3", listing("eu-west-1")))
    identity = verify("s3://public/part*.csv", anonymous=True, region=None)
    assert (identity.verified_by, identity.region, identity.account) == ("anonymous", "eu-west-1", None)
    assert identity.note == "listed without credentials: s3://public/, whoever owns it in eu-west-1"
    assert [request.headers.get("authorization") for request in proxy.requests] == [None]


@pytest.fixture
def rclone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, aws: StandIn) -> Iterator[str]:
    """rclone's S3 server, a store without STS, with a bucket `taxi`; this test's environment leads to it."""
    (tmp_path / "root" / "taxi").mkdir(parents=True)
    port = find_port()
    command = [str(Path(sys.executable).with_name("rclone")), "serve", "s3", "--config", os.devnull]
    command += ["--addr", f"127.0.0.1:{port}", "--auth-key", f"{KEY_ID},{SECRET}", str(tmp_path / "root")]
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY_ID)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    with Children() as children:
        children.start_server(command, os.environ, tmp_path / "rclone.log")
        assert wait_until(lambda: listens(port), 30), (tmp_path / "rclone.log").read_text()
        yield f"http://127.0.0.1:{port}"


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def test_a_real_store_without_sts_is_told_apart(rclone: str) -> None:
    assert str(refusal("s3://taxi/part*.csv")) == (
        f"{rclone} does not answer as STS does (400): for a store without STS (MinIO, Ceph, R2) set "
        "verify_identity to false (--no-verify-identity); else name an STS in AWS_ENDPOINT_URL_STS"
    )


def test_a_real_store_without_sts_is_listed(rclone: str) -> None:
    assert verify("s3://taxi/part*.csv", verify_identity=False).buckets == ("taxi",)


def test_identity_survives_prefects_json(aws: StandIn) -> None:
    identity = verify(f"s3://{aws.bucket}/csv/dev/part*.csv")
    assert JSONSerializer().loads(JSONSerializer().dumps(identity)) == identity


def test_a_run_keeps_an_artifact_with_account_and_arn(aws: StandIn, prefect_api: str) -> None:
    @flow
    def verifying() -> Identity:
        return task(verify_credentials)(
            uris=[f"s3://{aws.bucket}/csv/dev/part*.csv"],
            region="us-east-1",
            bucket_owner=None,
            verify_identity=True,
            anonymous=False,
        )

    state = verifying(return_state=True)
    identity, run_id = state.result(), state.state_details.flow_run_id
    with get_client(sync_client=True) as client:
        this_run = ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[run_id]))
        [artifact] = client.read_artifacts(artifact_filter=this_run)
    assert f"| Account | {ACCOUNT} |" in str(artifact.data) and f"| ARN | {identity.arn} |" in str(artifact.data)
    assert not any(secret in str(artifact) for secret in (aws.keys.access_key_id, aws.keys.secret_access_key))


CANONICAL = (
    "The request signature we calculated does not match the signature you provided. The Canonical String for this "
    f"request should have been 'POST\n/\n\nx-amz-security-token:{TOKEN}\n'"
)
TELLTALES: dict[str, Rule] = {
    "S3 returns the expired token": always(
        "s3",
        s3_error("ExpiredToken", "The provided token has expired.", 400, extra=f"<Token-0>{TOKEN}</Token-0>"),
    ),
    "S3 returns the key id": always(
        "s3",
        s3_error(
            "InvalidAccessKeyId", f"{KEY_ID} is unknown.", 403, extra=f"<AWSAccessKeyId>{KEY_ID}</AWSAccessKeyId>"
        ),
    ),
    "STS returns the signed request": always("sts", sts_error("SignatureDoesNotMatch", CANONICAL)),
    "S3 denies, and says to whom": always("s3", s3_error("AccessDenied", f"not to {KEY_ID} with {SECRET}", 403)),
    "S3 breaks off": always("s3", Answer(broken=True)),
    "S3 returns anything": always("s3", s3_error("Odd", f"{KEY_ID} {SECRET} {TOKEN}", 400)),
}


@pytest.fixture
def planted(monkeypatch: pytest.MonkeyPatch) -> Iterator[AwsProxy]:
    """A proxy that knows the caller, with known keys in the environment that leads to it."""
    with AwsProxy() as running:
        monkeypatch.setenv("AWS_ENDPOINT_URL", running.url)
        for name, value in {"ACCESS_KEY_ID": KEY_ID, "SECRET_ACCESS_KEY": SECRET, "SESSION_TOKEN": TOKEN}.items():
            monkeypatch.setenv(f"AWS_{name}", value)
        yield running


@pytest.mark.parametrize("name", TELLTALES)
def test_no_key_is_in_an_error_or_its_causes(name: str, planted: AwsProxy, caplog: pytest.LogCaptureFixture) -> None:
    planted.rules += [TELLTALES[name], always("sts", caller_identity(ACCOUNT, ARN))]
    with caplog.at_level(logging.INFO):
        said = everything_said(refusal("s3://taxi/part*.csv")) + caplog.text
    assert [secret for secret in (KEY_ID, SECRET, TOKEN) if secret in said] == []


def test_the_cause_is_kept(planted: AwsProxy) -> None:
    planted.rules.append(TELLTALES["STS returns the signed request"])
    assert type(refusal("s3://taxi/part*.csv").__cause__).__name__ == "ClientError"


def test_no_key_is_in_the_identity_or_the_log(planted: AwsProxy, caplog: pytest.LogCaptureFixture) -> None:
    planted.rules += [always("sts", caller_identity(ACCOUNT, ARN)), always("s3", listing())]
    with caplog.at_level(logging.INFO):
        said = repr(verify("s3://taxi/part*.csv")) + caplog.text
    assert "listed: s3://taxi/" in caplog.text
    assert [secret for secret in (KEY_ID, SECRET, TOKEN) if secret in said] == []


def test_no_key_of_an_endpoint_is_shown(planted: AwsProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://user:planted-password@127.0.0.1:{find_port()}")
    said = everything_said(refusal("s3://taxi/part*.csv"))
    assert "cannot be reached, connection refused" in said and "planted-password" not in said


@pytest.mark.parametrize("uri", [f"s3://{KEY_ID}:{SECRET}@taxi/part*.csv", f"s3://{KEY_ID}@taxi/part*.csv"])
def test_a_uri_with_keys_is_refused_unshown(uri: str, planted: AwsProxy) -> None:
    error = refusal(uri)
    assert str(error) == (
        "a URI of the shards has credentials before the bucket's name: take them out, and set AWS_ACCESS_KEY_ID and "
        "AWS_SECRET_ACCESS_KEY, or a profile, in their place"
    )
    assert planted.asked == []


def test_no_key_is_in_what_prefect_keeps_of_a_failed_run(planted: AwsProxy, prefect_api: str) -> None:
    planted.rules += [TELLTALES["S3 returns anything"], always("sts", caller_identity(ACCOUNT, ARN))]
    state: Any = flow(verify)("s3://taxi/part*.csv", return_state=True)
    APILogWorker.instance().drain()
    with get_client(sync_client=True) as client:
        any_of = [state.state_details.flow_run_id]
        logs = client.read_logs(LogFilter(flow_run_id=LogFilterFlowRunId(any_=any_of)))
        runs = client.read_flow_runs(flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=any_of)))
        this_run = ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=any_of))
        kept = str(logs) + str(runs) + str(client.read_artifacts(artifact_filter=this_run))
    assert state.is_failed() and "does not list s3://taxi/" in kept
    assert [secret for secret in (KEY_ID, SECRET, TOKEN) if secret in kept] == []
