"""Where credentials and settings are looked for, and what is said, word by word, of what is missing or wrong there.

What AWS itself refuses stands in test_refusals.py, what is verified when all is well in test_credentials.py.
"""

import json
import socket
from pathlib import Path

import pytest

from deployments.processes import find_port
from deployments.standin import StandIn
from tasks.aws import identity
from tasks.errors import ConfigurationError, CredentialsError, ShardlineError
from tests.awsproxy import Answer, AwsProxy, Request, always, caller_identity, listing, sts_error
from tests.verification import everything_said, refusal, verify

pytest_plugins = ["tests.verification"]

ACCOUNT = "123456789012"
ROLE_ARN = f"arn:aws:sts::{ACCOUNT}:assumed-role/reader/i-0123"
KEY_ID, SECRET, TOKEN = "AKIAPLANTEDKEYID0000", "planted/Secret+Access0Key", "planted//Session+Token=="
STS = ["POST GetCallerIdentity"]


@pytest.fixture
def home(tmp_path: Path, proxy: AwsProxy, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for AWS's two files, config and credentials, which are the only place to find keys in."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    return tmp_path


ENVIRONMENTS: dict[str, tuple[dict[str, str | None], type[ShardlineError], str, list[str]]] = {
    "nothing is set": (
        {"AWS_ACCESS_KEY_ID": None, "AWS_SECRET_ACCESS_KEY": None},
        CredentialsError,
        "no AWS credentials were found: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, or run under "
        "a role; a public bucket needs none with anonymous (--anonymous)",
        [],
    ),
    "no secret": (
        {"AWS_SECRET_ACCESS_KEY": None},
        CredentialsError,
        "the AWS credentials (from env) are not complete: AWS_SECRET_ACCESS_KEY is missing; set key id and secret both",
        [],
    ),
    "no key id": (
        {"AWS_ACCESS_KEY_ID": None},
        CredentialsError,
        "the AWS credentials (from env) are not complete: AWS_ACCESS_KEY_ID is missing; set key id and secret both",
        [],
    ),
    "a secret pasted with a line break": (
        {"AWS_SECRET_ACCESS_KEY": "abcd\n"},
        CredentialsError,
        "the secret access key of the AWS credentials (from env) has a space, a line break or a character that no key "
        "has: copy it again, and run again",
        [],
    ),
    "a token pasted with a line break": (
        {"AWS_SESSION_TOKEN": "abcd\n"},
        CredentialsError,
        "the session token of the AWS credentials (from env) has a space, a line break or a character that no key has: "
        "copy it again, and run again",
        [],
    ),
    "a wrong key id": (
        {"AWS_ACCESS_KEY_ID": "AKIAIOSFODNN7EXAMPLE"},
        CredentialsError,
        "STS does not know the access key id of the AWS credentials (from env; it answers InvalidClientTokenId): it is "
        "mistyped, deleted, temporary without its AWS_SESSION_TOKEN, or not valid in region us-east-1; correct it and "
        "run again",
        STS,
    ),
    "a wrong secret": (
        {"AWS_SECRET_ACCESS_KEY": "wrong"},
        CredentialsError,
        "the secret access key of the AWS credentials (from env) does not fit their access key id (STS answers "
        "SignatureDoesNotMatch): copy it again, whole, and run again",
        STS,
    ),
    "no such profile": (
        {"AWS_PROFILE": "nobody"},
        ConfigurationError,
        "there is no AWS profile 'nobody': correct AWS_PROFILE, or add it by `aws configure`",
        [],
    ),
    "an endpoint that is no URL": (
        {"AWS_ENDPOINT_URL": "localhost:9000"},
        ConfigurationError,
        "Invalid endpoint: localhost:9000: write AWS_ENDPOINT_URL or AWS_ENDPOINT_URL_STS as a URL, with http:// or "
        "https://",
        [],
    ),
    "an endpoint on a host that does not exist": (
        {"AWS_ENDPOINT_URL": "http://no-such-host.invalid"},
        ConfigurationError,
        "STS at http://no-such-host.invalid cannot be reached, no such host: check the network, its proxy "
        "(HTTPS_PROXY), the region (us-east-1) and AWS_ENDPOINT_URL",
        [],
    ),
}


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_what_the_environment_lacks_is_named(
    name: str, aws: StandIn, proxy: AwsProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes, kind, message, requests = ENVIRONMENTS[name]
    for variable, value in changes.items():
        monkeypatch.delenv(variable, raising=False) if value is None else monkeypatch.setenv(variable, value)
    error = refusal(f"s3://{aws.bucket}/part*.csv")
    assert (type(error), str(error), proxy.asked) == (kind, message, requests)


CHECK = "check the network, its proxy (HTTPS_PROXY), the region (us-east-1) and AWS_ENDPOINT_URL"


def test_a_host_that_takes_no_connection_is_given_up(aws: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(identity, "CONNECT_SECONDS", 0.3)
    with socket.socket() as full, socket.socket() as first, socket.socket() as second:
        full.bind(("127.0.0.1", 0))
        full.listen(0)  # room for one that waits; the kernel drops what more comes
        for waiting in (first, second):
            waiting.setblocking(False)
            waiting.connect_ex(full.getsockname())
        url = f"http://127.0.0.1:{full.getsockname()[1]}"
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        assert str(refusal(f"s3://{aws.bucket}/x")) == f"STS at {url} does not answer a connection: {CHECK}"


def test_a_server_without_tls_is_told(aws: StandIn, proxy: AwsProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    url = proxy.url.replace("http:", "https:")
    monkeypatch.setenv("AWS_ENDPOINT_URL", url)
    assert str(refusal(f"s3://{aws.bucket}/x")) == (
        f"STS at {url} does not prove by TLS who it is: name its authority's file in AWS_CA_BUNDLE, or correct "
        "AWS_ENDPOINT_URL"
    )


def test_a_proxy_that_is_not_there_is_told(aws: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "https://sts.invalid")
    monkeypatch.setenv("HTTPS_PROXY", f"http://user:password@127.0.0.1:{find_port()}")
    assert str(refusal(f"s3://{aws.bucket}/x")) == (
        "the proxy before STS at https://sts.invalid does not answer: correct HTTPS_PROXY"
    )


@pytest.mark.parametrize("service", ["STS", "S3"])
def test_each_service_may_have_its_own_endpoint(
    service: str, aws: StandIn, proxy: AwsProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", aws.endpoint)
    monkeypatch.setenv(f"AWS_ENDPOINT_URL_{service}", proxy.url)
    verify(f"s3://{aws.bucket}/x")
    assert {request.service for request in proxy.requests} == {service.lower()}


def metadata_service(request: Request) -> Answer | None:
    """What an EC2 instance with a role answers."""
    keys = {"AccessKeyId": KEY_ID, "SecretAccessKey": SECRET, "Token": TOKEN, "Expiration": "2099-01-01T00:00:00Z"}
    answers = {
        "/latest/api/token": "a token",
        "/latest/meta-data/iam/security-credentials/": "reader",
        "/latest/meta-data/iam/security-credentials/reader": json.dumps({"Code": "Success", **keys}),
    }
    return Answer(200, answers[request.path]) if request.path in answers else None


def test_the_role_of_an_instance_is_found(home: Path, proxy: AwsProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_EC2_METADATA_DISABLED")
    monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", proxy.url)
    proxy.rules += [metadata_service, always("sts", caller_identity(ACCOUNT, ROLE_ARN)), always("s3", listing())]
    assert verify("s3://taxi/part*.csv").arn == ROLE_ARN


def test_a_metadata_service_that_never_answers_is_asked_once(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_EC2_METADATA_DISABLED")
    with AwsProxy(lambda _: Answer(silent=True)) as silent:
        monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", silent.url)
        assert str(refusal("s3://taxi/part*.csv")).startswith("no AWS credentials were found: ")
        assert silent.asked == ["PUT /latest/api/token", "GET /latest/meta-data/iam/security-credentials/"]


BROKEN_FILES: dict[str, tuple[str, str]] = {
    "a line without a sign": (f"[default]\naws_access_key_id = {KEY_ID}\n{SECRET}\n", ", line 3,"),
    "no section": (f"aws_secret_access_key = {SECRET}\n", ", line 1,"),
    "a key given twice": (f"[default]\na = {SECRET}\na = {SECRET}\n", ", line 3,"),
    "not text": (f"[default]\nx = {SECRET}\udcff\n", ""),
}


@pytest.mark.parametrize("name", BROKEN_FILES)
def test_a_file_that_cannot_be_parsed_is_named_without_its_lines(name: str, home: Path) -> None:
    text, line = BROKEN_FILES[name]
    path = home / "credentials"
    path.write_bytes(text.encode(errors="surrogateescape"))
    error = refusal("s3://taxi/part*.csv")
    assert str(error) == f"the AWS configuration file {path}{line} cannot be parsed: correct it"
    assert SECRET not in everything_said(error)


PROFILES: dict[str, tuple[str, type[ShardlineError], str]] = {
    "half of the keys": (
        "aws_access_key_id = AKIA\n",
        CredentialsError,
        "the AWS credentials (from config-file) are not complete: aws_secret_access_key is missing; set key id and "
        "secret both",
    ),
    "a login that was never made": (
        "sso_start_url = https://x.invalid\nsso_region = us-east-1\nsso_account_id = 1\nsso_role_name = r\n",
        CredentialsError,
        "the AWS login has ended or was never made (SSOTokenLoadError): run `aws sso login`, or `aws login`, "
        "and run again",
    ),
    "a command that fails": (
        f"credential_process = sh -c 'echo {SECRET} >&2; exit 1'\n",
        CredentialsError,
        "the AWS credentials cannot be had from where the profile says they are (CredentialRetrievalError): see what "
        "`aws sts get-caller-identity` says with it, and correct it",
    ),
    "a role of nobody": (
        f"role_arn = arn:aws:iam::{ACCOUNT}:role/reader\nsource_profile = nobody\n",
        CredentialsError,
        "the AWS credentials cannot be had from where the profile says they are (InvalidConfigError): see what "
        "`aws sts get-caller-identity` says with it, and correct it",
    ),
    "a setting that botocore does not know": (
        "aws_access_key_id = AKIA\naws_secret_access_key = s\nsts_regional_endpoints = near\n",
        ConfigurationError,
        "the AWS configuration cannot be used (InvalidSTSRegionalEndpointsConfigError: STS regional endpoints option "
        'near is invalid. Valid options are: "legacy", "regional"): correct it',
    ),
}


@pytest.mark.parametrize("name", PROFILES)
def test_what_a_profile_lacks_is_told(name: str, home: Path, proxy: AwsProxy) -> None:
    text, kind, message = PROFILES[name]
    (home / "config").write_text(f"[default]\n{text}")
    error = refusal("s3://taxi/part*.csv")
    assert (type(error), str(error), proxy.asked) == (kind, message, [])
    assert SECRET not in everything_said(error)


def test_a_role_that_may_not_be_assumed_is_told_after_one_request(home: Path, proxy: AwsProxy) -> None:
    role = f"role_arn = arn:aws:iam::{ACCOUNT}:role/reader\nsource_profile = me\n"
    keys = f"aws_access_key_id = {KEY_ID}\naws_secret_access_key = {SECRET}\n"
    (home / "config").write_text(f"[default]\nregion = us-east-1\n{role}[profile me]\n{keys}")
    proxy.rules.append(always("sts", sts_error("AccessDenied", "not you")))
    error = refusal("s3://taxi/part*.csv")
    assert (type(error), str(error)) == (
        CredentialsError,
        "AWS denies AssumeRole to the AWS credentials (from profile default; it answers AccessDenied: not you): have "
        "it allowed to them, or use others",
    )
    assert len(proxy.requests) == 1


def test_the_region_of_the_profile_counts_where_none_is_given(
    aws: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AWS_DEFAULT_REGION")
    (tmp_path / "config").write_text("[default]\nregion = us-east-1\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    assert verify(f"s3://{aws.bucket}/part*.csv", region=None).region == "us-east-1"
