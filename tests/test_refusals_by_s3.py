"""What S3 may answer instead of a listing, as `verify_credentials` tells it, and how many requests it takes.

moto refuses missing buckets and missing rights by itself; the rest comes from a proxy, in AWS's documented words.
"""

from typing import Any

import pytest

from deployments.standin import StandIn
from tasks.errors import BucketError, ConfigurationError, CredentialsError, ShardlineError
from tests.awsproxy import Answer, AwsProxy, Rule, access_denied, always, elsewhere, owned_by, s3_error, web_page
from tests.verification import refusal

pytest_plugins = ["tests.verification"]

FOREIGN = "999988887777"
STS = ["POST GetCallerIdentity"]
LIST = ["GET listing"]
EXPIRED = (
    "the AWS credentials (from env) have expired ({}): renew them, by `aws sso login`, a new session token or the role "
    "assumed again, and run again"
)
CLOCK = "{} refuses the time at which the request was signed ({}): set this machine's clock (NTP) and run again"
TOO_BUSY = (
    "{} at <endpoint> is too busy, or too broken, to answer ({}, several times): wait a little and run again; if that "
    "lasts, check AWS_ENDPOINT_URL"
)
ELSEWHERE = (
    "bucket <bucket> is {}, not in us-east-1 (S3 at <endpoint> answers {}): set region to the bucket's (--region or "
    "AWS_DEFAULT_REGION), and AWS_ENDPOINT_URL_S3, if it is set, to an endpoint there"
)
DENIED_OR_FOREIGN = (
    "listing s3://<bucket>/csv/dev/ is denied to arn:aws:iam::123456789012:user/shardline, with account {} named as "
    "the bucket's owner and without (S3 answers AccessDenied: Access Denied): S3 says the same where the bucket is "
    "another account's and where s3:ListBucket is not allowed, so it cannot be told which; check the name of bucket "
    "<bucket>, and have s3:ListBucket on it allowed"
)
DENIED_LISTING = (
    "listing s3://<bucket>/csv/dev/ is denied to the AWS credentials from env (S3 answers AccessDenied: Access "
    "Denied): have s3:ListBucket on bucket <bucket> allowed to it"
)


def from_s3(code: str, message: str = "", status: int = 403, extra: str = "") -> Rule:
    return always("s3", s3_error(code, message, status, extra))


S3_ANSWERS: dict[str, tuple[Rule, dict[str, Any], type[ShardlineError], str, list[str]]] = {
    "an expired token": (
        from_s3("ExpiredToken", "The provided token has expired.", 400, extra="<Token-0>token</Token-0>"),
        {},
        CredentialsError,
        EXPIRED.format("S3 answers ExpiredToken"),
        STS + LIST,
    ),
    "a clock that is wrong": (
        from_s3("RequestTimeTooSkewed", "The difference between the request time and the current time is too large."),
        {},
        CredentialsError,
        CLOCK.format("S3", "RequestTimeTooSkewed"),
        STS + LIST,
    ),
    "a token of other keys": (
        from_s3("InvalidToken", "The provided token is malformed or otherwise invalid.", 400),
        {},
        CredentialsError,
        "the session token of the AWS credentials (from env) does not fit their access key id (S3 answers "
        "InvalidToken): take key id, secret and token from one answer of STS, or unset AWS_SESSION_TOKEN, and run "
        "again",
        STS + LIST,
    ),
    "another region, found by the redirect": (
        elsewhere("eu-west-1"),
        {},
        BucketError,
        "bucket <bucket> is in region eu-west-1, not in us-east-1: set region to eu-west-1 (--region eu-west-1, or "
        "AWS_DEFAULT_REGION)",
        STS + LIST * 2,
    ),
    "another region, for an endpoint that stays": (
        elsewhere("eu-west-1", follows=False),
        {},
        BucketError,
        ELSEWHERE.format("in region eu-west-1", "PermanentRedirect"),
        STS + LIST * 2,
    ),
    "a header signed for another region": (
        from_s3(
            "AuthorizationHeaderMalformed",
            "The authorization header is malformed; the region 'us-east-1' is wrong; expecting 'eu-west-1'",
            400,
            extra="<Region>eu-west-1</Region>",
        ),
        {},
        BucketError,
        ELSEWHERE.format("in region eu-west-1", "AuthorizationHeaderMalformed"),
        STS + LIST * 2,
    ),
    "a region that must be opted into": (
        from_s3("IllegalLocationConstraintException", "The me-south-1 location constraint is incompatible.", 400),
        {},
        BucketError,
        ELSEWHERE.format("in another region", "IllegalLocationConstraintException"),
        STS + LIST + ["HEAD /<bucket>"],
    ),
    "a bucket of another account": (
        owned_by(FOREIGN),
        {},
        BucketError,
        "bucket <bucket> is not account 123456789012's: listing s3://<bucket>/csv/dev/ is denied with that account "
        "named as its owner, and allowed without; set bucket_owner to the account that it should belong to, or "
        "correct the bucket's name",
        STS + LIST * 2,
    ),
    "a bucket of another account than the one given": (
        owned_by("123456789012"),
        {"bucket_owner": FOREIGN},
        BucketError,
        f"bucket <bucket> is not account {FOREIGN}'s: listing s3://<bucket>/csv/dev/ is denied with that account named "
        "as its owner, and allowed without; set bucket_owner to the account that it should belong to, or "
        "correct the bucket's name",
        STS + LIST * 2,
    ),
    "a denial, whoever owns it": (
        access_denied(),
        {},
        BucketError,
        DENIED_OR_FOREIGN.format("123456789012"),
        STS + LIST * 2,
    ),
    "a denial where no owner is known": (
        access_denied(),
        {"verify_identity": False},
        BucketError,
        DENIED_LISTING,
        LIST,
    ),
    "a denial to everybody": (
        access_denied(),
        {"anonymous": True},
        BucketError,
        "bucket <bucket> is not public: listing s3://<bucket>/csv/dev/ without credentials is denied (S3 answers "
        "AccessDenied): set anonymous to false (--no-anonymous) and provide credentials",
        LIST,
    ),
    "a denial without a word": (
        always("s3", Answer(403)),
        {"verify_identity": False},
        BucketError,
        DENIED_LISTING.replace("AccessDenied: Access Denied", "403: Forbidden"),
        LIST,
    ),
    "a key id that STS knows": (
        from_s3("InvalidAccessKeyId", "The AWS Access Key Id you provided does not exist in our records."),
        {},
        CredentialsError,
        "S3 does not know the access key id of the AWS credentials (from env; it answers InvalidAccessKeyId): it is "
        "mistyped, deleted, temporary without its AWS_SESSION_TOKEN, or not valid in region us-east-1; correct it and "
        "run again",
        STS + LIST,
    ),
    "an owner that is no account": (
        from_s3("InvalidBucketOwnerAWSAccountID", "The value of the expected bucket owner is not an account.", 400),
        {"bucket_owner": "me"},
        ConfigurationError,
        "bucket_owner 'me' is not an AWS account id (S3 answers InvalidBucketOwnerAWSAccountID): give its twelve "
        "digits",
        STS + LIST,
    ),
    "throttling for ever": (
        from_s3("SlowDown", "Please reduce your request rate.", 503),
        {},
        BucketError,
        TOO_BUSY.format("S3", "SlowDown"),
        STS + LIST * 3,
    ),
    "an answer that nobody expects": (
        from_s3("AccountProblem", "There is a problem with your AWS account."),
        {},
        BucketError,
        "<endpoint> does not list s3://<bucket>/csv/dev/ as S3 does (AccountProblem: There is a problem with your AWS "
        "account.): correct the URI or AWS_ENDPOINT_URL_S3",
        STS + LIST,
    ),
    "a web page, which botocore takes for a listing cut short": (
        always("s3", web_page(200)),
        {},
        BucketError,
        TOO_BUSY.format("S3", "500"),
        STS + LIST * 3,
    ),
}


@pytest.mark.parametrize("name", S3_ANSWERS)
def test_what_s3_answers_is_told(name: str, aws: StandIn, proxy: AwsProxy) -> None:
    rule, changes, kind, message, requests = S3_ANSWERS[name]
    proxy.rules.append(rule)
    error = refusal(f"s3://{aws.bucket}/csv/dev/part*.csv", **changes)
    expected = message.replace("<endpoint>", proxy.url).replace("<bucket>", aws.bucket)
    assert (type(error), str(error)) == (kind, expected)
    assert proxy.asked == [request.replace("<bucket>", aws.bucket) for request in requests]


BUCKETS: dict[str, tuple[str, str | None, type[ShardlineError], str, list[str]]] = {
    "a bucket that is not there": (
        "s3://nobodys-bucket/csv/part*.csv",
        "us-east-1",
        BucketError,
        "there is no bucket nobodys-bucket (S3 answers NoSuchBucket): correct it in s3://nobodys-bucket/csv/ (a "
        "dc-taxi bucket's name is made of bucket_id and region), or create it",
        STS + LIST,
    ),
    "a bucket of another region": (
        "s3://<bucket>/csv/part*.csv",
        "eu-west-1",
        BucketError,
        "bucket <bucket> is in region us-east-1, not in eu-west-1: set region to us-east-1 (--region us-east-1, or "
        "AWS_DEFAULT_REGION)",
        [*STS, *LIST, "HEAD /<bucket>"],
    ),
    "no bucket": (
        "s3:///csv/part*.csv",
        "us-east-1",
        ConfigurationError,
        "'' in s3:///csv/ cannot be a bucket's name: correct it to 3 to 63 lowercase letters, digits, dots and dashes",
        STS,
    ),
    "a bucket with a space": (
        "s3://my bucket/part*.csv",
        "us-east-1",
        ConfigurationError,
        "'my bucket' in s3://my bucket/ cannot be a bucket's name: correct it to 3 to 63 lowercase letters, digits, "
        "dots and dashes",
        STS,
    ),
    "a bucket with a wildcard": (
        "s3://taxi-*/part*.csv",
        "us-east-1",
        ConfigurationError,
        "'taxi-*' in s3://taxi-*/ cannot be a bucket's name: correct it to 3 to 63 lowercase letters, digits, dots and "
        "dashes",
        STS,
    ),
    "a region that cannot be one": (
        "s3://<bucket>/part*.csv",
        "us east 1",
        ConfigurationError,
        "region 'us east 1' is not an AWS region: correct it (us-east-1, say)",
        [],
    ),
    "no region": (
        "s3://<bucket>/part*.csv",
        None,
        ConfigurationError,
        "no AWS region is set: give --region, or set AWS_DEFAULT_REGION (us-east-1, say)",
        [],
    ),
}


@pytest.mark.parametrize("name", BUCKETS)
def test_what_is_wrong_with_bucket_or_region_is_told(
    name: str, aws: StandIn, proxy: AwsProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AWS_DEFAULT_REGION")
    uri, region, kind, message, requests = BUCKETS[name]
    error = refusal(uri.replace("<bucket>", aws.bucket), region=region)
    assert (type(error), str(error)) == (kind, message.replace("<bucket>", aws.bucket))
    assert proxy.asked == [request.replace("<bucket>", aws.bucket) for request in requests]


def test_a_user_without_the_right_to_list_is_named(
    aws: StandIn, proxy: AwsProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    allowed = {"Effect": "Allow", "Action": "s3:GetObject", "Resource": "*"}
    keys = aws.create_user("reader", {"Version": "2012-10-17", "Statement": [allowed]})
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", keys.access_key_id)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", keys.secret_access_key)
    expected = DENIED_OR_FOREIGN.format("123456789012").replace("user/shardline", "user/reader")
    assert str(refusal(f"s3://{aws.bucket}/csv/dev/part*.csv")) == expected.replace("<bucket>", aws.bucket)
    assert proxy.asked == STS + LIST * 2


def test_a_name_that_only_s3_knows_to_be_invalid_is_told(aws: StandIn, proxy: AwsProxy) -> None:
    proxy.rules.append(from_s3("InvalidBucketName", "The specified bucket is not valid.", 400))
    assert str(refusal("s3://Taxi_Data/part*.csv")) == (
        "'Taxi_Data' in s3://Taxi_Data/ cannot be a bucket's name: correct it to 3 to 63 lowercase letters, digits, "
        "dots and dashes"
    )
