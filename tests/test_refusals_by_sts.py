"""What STS may answer instead of who we are, as `verify_credentials` tells it, and how many requests it takes.

moto's STS refuses wrong keys only (test_credentials_sources.py); the rest comes from a proxy, in AWS's own words.
"""

import pytest

from deployments.standin import StandIn
from tasks.aws import identity
from tasks.errors import ConfigurationError, CredentialsError, ShardlineError
from tests.awsproxy import Answer, AwsProxy, Rule, always, listing, s3_error, sts_error, web_page
from tests.verification import refusal

pytest_plugins = ["tests.verification"]

STS = ["POST GetCallerIdentity"]
SLOW_CLOCK = "Signature expired: 20261123T001427Z is now earlier than 20261123T014428Z (20261123T015928Z - 15 min.)"
FAST_CLOCK = "Signature not yet current: 20261123T194419Z is still later than 20261123T072625Z"
CHECK = "check the network, its proxy (HTTPS_PROXY), the region (us-east-1) and AWS_ENDPOINT_URL"
EXPIRED = (
    "the AWS credentials (from env) have expired ({}): renew them, by `aws sso login`, a new session token or the role "
    "assumed again, and run again"
)
CLOCK = "{} refuses the time at which the request was signed ({}): set this machine's clock (NTP) and run again"
NOT_STS = (
    "<endpoint> does not answer as STS does ({}): for a store without STS (MinIO, Ceph, R2) set verify_identity to "
    "false (--no-verify-identity); else name an STS in AWS_ENDPOINT_URL_STS"
)
TOO_BUSY = (
    "{} at <endpoint> is too busy, or too broken, to answer ({}, several times): wait a little and run again; if that "
    "lasts, check AWS_ENDPOINT_URL"
)


def from_sts(code: str, message: str = "", status: int = 403) -> Rule:
    return always("sts", sts_error(code, message, status))


STS_ANSWERS: dict[str, tuple[Rule, type[ShardlineError], str, list[str]]] = {
    "an expired token": (
        from_sts("ExpiredToken", "The security token included in the request is expired"),
        CredentialsError,
        EXPIRED.format("STS answers ExpiredToken"),
        STS,
    ),
    "an expired token, by its other name": (
        from_sts("ExpiredTokenException", "The security token included in the request is expired"),
        CredentialsError,
        EXPIRED.format("STS answers ExpiredTokenException"),
        STS,
    ),
    "an expired request": (
        from_sts("RequestExpired", "Request has expired.", 400),
        CredentialsError,
        CLOCK.format("STS", "RequestExpired"),
        STS,
    ),
    "a clock that is slow": (
        from_sts("SignatureDoesNotMatch", SLOW_CLOCK),
        CredentialsError,
        CLOCK.format("STS", "SignatureDoesNotMatch"),
        STS,
    ),
    "a clock that is fast": (
        from_sts("SignatureDoesNotMatch", FAST_CLOCK),
        CredentialsError,
        CLOCK.format("STS", "SignatureDoesNotMatch"),
        STS,
    ),
    "a denial": (
        from_sts("AccessDenied", "not by this VPC endpoint"),
        CredentialsError,
        "STS denies GetCallerIdentity to the AWS credentials (from env; it answers AccessDenied: not by this VPC "
        "endpoint): have it allowed to them, or use others",
        STS,
    ),
    "throttling for ever": (
        from_sts("Throttling", "Rate exceeded", 400),
        CredentialsError,
        TOO_BUSY.format("STS", "Throttling"),
        STS * 3,
    ),
    "a store that knows no such action": (
        from_sts("InvalidParameterValue", "Unsupported action GetCallerIdentity", 400),
        CredentialsError,
        NOT_STS.format("InvalidParameterValue"),
        STS,
    ),
    "a store that takes no POST": (
        always("sts", s3_error("MethodNotAllowed", "The specified method is not allowed.", 405)),
        CredentialsError,
        NOT_STS.format("405"),
        STS,
    ),
    "a web page": (always("sts", web_page(200)), CredentialsError, NOT_STS.format("ResponseParserError"), STS),
    "a web page that is not found": (
        always("sts", web_page(404)),
        CredentialsError,
        NOT_STS.format("ResponseParserError"),
        STS,
    ),
    "an answer to something else": (always("sts", listing()), CredentialsError, NOT_STS.format("KeyError"), STS),
    "silence": (
        always("sts", Answer(silent=True)),
        ConfigurationError,
        f"STS at <endpoint> does not answer a request: {CHECK}",
        STS,
    ),
    "a broken connection": (
        always("sts", Answer(broken=True)),
        ConfigurationError,
        f"STS at <endpoint> breaks the connection off: {CHECK}",
        STS,
    ),
}


@pytest.mark.parametrize("name", STS_ANSWERS)
def test_what_sts_answers_is_told(name: str, aws: StandIn, proxy: AwsProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(identity, "READ_SECONDS", 0.3)
    rule, kind, message, requests = STS_ANSWERS[name]
    proxy.rules.append(rule)
    error = refusal(f"s3://{aws.bucket}/part*.csv")
    assert (type(error), str(error), proxy.asked) == (kind, message.replace("<endpoint>", proxy.url), requests)
