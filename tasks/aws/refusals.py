"""What AWS, or a store that speaks like it, answers instead of what was asked, in words that say what to do.

Two tables and how to read them: `REFUSALS` by the error code of an answer, `FAULTS` by botocore's exception where there
was no answer. Which code means what is in `.codes`, who asks in `.identity`.
"""

import configparser
import re
import socket
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from botocore import exceptions as aws
from botocore.parsers import ResponseParserError

from tasks.aws import codes
from tasks.errors import BucketError, ConfigurationError, CredentialsError, ShardlineError

# KeyError: botocore's parser, for well-formed XML that answers another question.
FOREIGN_ERRORS = (aws.BotoCoreError, aws.ClientError, ResponseParserError, KeyError)

SHORTEST_SECRET = 8  # characters; striking out the "test" of a test's keys would only garble what is said

Reason = tuple[type[ShardlineError], str]


@dataclass(frozen=True, kw_only=True)
class Question:
    """What was asked, of whom: the words that the messages below are filled with."""

    service: str  # "STS", "S3", or "AWS" while the credentials are looked for
    endpoint: str = "its endpoint"
    region: str = "none"
    source: str = "none"
    uri: str = ""
    bucket: str = ""
    owner: str | None = None
    arn: str | None = None
    anonymous: bool = False


_CLOCK: Reason = (
    CredentialsError,
    "{service} refuses the time at which the request was signed ({code}): set this machine's clock (NTP) and run again",
)
_EXPIRED: Reason = (
    CredentialsError,
    "the AWS credentials (from {source}) have expired ({service} answers {code}): renew them, by `aws sso login`, a "
    "new session token or the role assumed again, and run again",
)
_UNKNOWN_KEY: Reason = (
    CredentialsError,
    "{service} does not know the access key id of the AWS credentials (from {source}; it answers {code}): it is "
    "mistyped, deleted, temporary without its AWS_SESSION_TOKEN, or not valid in region {region}; correct it and run "
    "again",
)
_WRONG_SECRET: Reason = (
    CredentialsError,
    "the secret access key of the AWS credentials (from {source}) does not fit their access key id ({service} answers "
    "{code}): copy it again, whole, and run again",
)
_WRONG_TOKEN: Reason = (
    CredentialsError,
    "the session token of the AWS credentials (from {source}) does not fit their access key id ({service} answers "
    "{code}): take key id, secret and token from one answer of STS, or unset AWS_SESSION_TOKEN, and run again",
)
_NO_BUCKET: Reason = (
    BucketError,
    "there is no bucket {bucket} ({service} answers {code}): correct it in {uri} (a dc-taxi bucket's name is made of "
    "bucket_id and region), or create it",
)
_ELSEWHERE: Reason = (
    BucketError,
    "bucket {bucket} is {home}, not in {region} ({service} at {endpoint} answers {code}): set region to the bucket's "
    "(--region or AWS_DEFAULT_REGION), and AWS_ENDPOINT_URL_S3, if it is set, to an endpoint there",
)
_NOT_A_BUCKET: Reason = (
    ConfigurationError,
    "{bucket!r} in {uri} cannot be a bucket's name: correct it to 3 to 63 lowercase letters, digits, dots and dashes",
)
_BAD_OWNER: Reason = (
    ConfigurationError,
    "bucket_owner {owner!r} is not an AWS account id ({service} answers {code}): give its twelve digits",
)

REFUSALS: dict[str, Reason] = {
    **dict.fromkeys(codes.EXPIRED, _EXPIRED),
    **dict.fromkeys(codes.CLOCK, _CLOCK),
    **dict.fromkeys(codes.UNKNOWN_KEY, _UNKNOWN_KEY),
    **dict.fromkeys(codes.WRONG_TOKEN, _WRONG_TOKEN),
    **dict.fromkeys(codes.WRONG_SECRET, _WRONG_SECRET),
    **dict.fromkeys(codes.ELSEWHERE, _ELSEWHERE),
    "NoSuchBucket": _NO_BUCKET,
    "InvalidBucketName": _NOT_A_BUCKET,
    "InvalidBucketOwnerAWSAccountID": _BAD_OWNER,
}

_CHECK = "check the network, its proxy (HTTPS_PROXY), the region ({region}) and AWS_ENDPOINT_URL"
_LOGIN: Reason = (
    CredentialsError,
    "the AWS login has ended or was never made ({code}): run `aws sso login`, or `aws login`, and run again",
)
_NO_SOURCE: Reason = (
    CredentialsError,
    "the AWS credentials cannot be had from where the profile says they are ({code}{detail}): see what "
    "`aws sts get-caller-identity` says with it, and correct it",
)

FAULTS: tuple[tuple[type[Exception], Reason], ...] = (  # the first that fits: subclasses before their bases
    (
        aws.ProfileNotFound,
        (ConfigurationError, "there is no AWS profile {profile!r}: correct AWS_PROFILE, or add it by `aws configure`"),
    ),
    (
        aws.ConfigParseError,
        (ConfigurationError, "the AWS configuration file {path}{line} cannot be parsed: correct it"),
    ),
    (
        aws.PartialCredentialsError,
        (
            CredentialsError,
            "the AWS credentials (from {provider}) are not complete: {cred_var} is missing; set key id and secret both",
        ),
    ),
    (
        aws.NoCredentialsError,
        (
            CredentialsError,
            "no AWS credentials were found: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, or run "
            "under a role; a public bucket needs none with anonymous (--anonymous)",
        ),
    ),
    (aws.SSOError, _LOGIN),
    (aws.LoginError, _LOGIN),
    (aws.TokenRetrievalError, _LOGIN),
    (aws.CredentialRetrievalError, _NO_SOURCE),
    (aws.MetadataRetrievalError, _NO_SOURCE),
    (aws.InvalidConfigError, _NO_SOURCE),
    (aws.RefreshWithMFAUnsupportedError, _NO_SOURCE),
    (
        aws.NoRegionError,
        (ConfigurationError, "no AWS region is set: give --region, or set AWS_DEFAULT_REGION (us-east-1, say)"),
    ),
    (
        aws.InvalidRegionError,
        (ConfigurationError, "region {region_name!r} is not an AWS region: correct it (us-east-1, say)"),
    ),
    (aws.ParamValidationError, _NOT_A_BUCKET),
    (aws.ConnectTimeoutError, (ConfigurationError, "{service} at {endpoint} does not answer a connection: " + _CHECK)),
    (aws.ReadTimeoutError, (ConfigurationError, "{service} at {endpoint} does not answer a request: " + _CHECK)),
    (
        aws.SSLError,
        (
            ConfigurationError,
            "{service} at {endpoint} does not prove by TLS who it is: name its authority's file in AWS_CA_BUNDLE, or "
            "correct AWS_ENDPOINT_URL",
        ),
    ),
    (
        aws.ProxyConnectionError,
        (ConfigurationError, "the proxy before {service} at {endpoint} does not answer: correct HTTPS_PROXY"),
    ),
    (aws.EndpointConnectionError, (ConfigurationError, "{service} at {endpoint} cannot be reached, {why}: " + _CHECK)),
    (aws.HTTPClientError, (ConfigurationError, "{service} at {endpoint} breaks the connection off: " + _CHECK)),
    (
        aws.BotoCoreError,
        (ConfigurationError, "the AWS configuration cannot be used ({code}: {told}): correct it"),
    ),
)

_DENIED_LISTING = (
    "listing {uri} is denied to {who} (S3 answers {code}{detail}): have s3:ListBucket on bucket {bucket} allowed to it"
)
_DENIED_OR_FOREIGN = (
    "listing {uri} is denied to {who}, with account {owner} named as the bucket's owner and without (S3 answers {code}"
    "{detail}): S3 says the same where the bucket is another account's and where s3:ListBucket is not allowed, so it "
    "cannot be told which; check the name of bucket {bucket}, and have s3:ListBucket on it allowed"
)
_DENIED_TO_ALL = (
    "bucket {bucket} is not public: listing {uri} without credentials is denied (S3 answers {code}): set anonymous to "
    "false (--no-anonymous) and provide credentials"
)
_DENIED_CALLER = (
    "{service} denies {operation} to the AWS credentials (from {source}; it answers {code}{detail}): have it allowed "
    "to them, or use others"
)
_TOO_BUSY = (
    "{service} at {endpoint} is too busy, or too broken, to answer ({code}, several times): wait a little and run "
    "again; if that lasts, check AWS_ENDPOINT_URL"
)
_NO_STS = (
    "{endpoint} does not answer as STS does ({code}): for a store without STS (MinIO, Ceph, R2) set verify_identity to "
    "false (--no-verify-identity); else name an STS in AWS_ENDPOINT_URL_STS"
)
_NO_S3 = "{endpoint} does not list {uri} as S3 does ({code}{detail}): correct the URI or AWS_ENDPOINT_URL_S3"


def translate_error(error: Exception, question: Question) -> ShardlineError:
    """Return the error to raise from a foreign one: what it means for whoever asked this question, and what to do."""
    words = {"who": question.arn or f"the AWS credentials from {question.source}", "code": code_of(error), "detail": ""}
    if isinstance(error, aws.ClientError):
        kind, template = _find_refusal(error, question)
        detail = _message_of(error)
        words |= {"operation": error.operation_name, "detail": detail and f": {detail}", "home": _home_of(error)}
    else:
        kind, template = next((reason for fault, reason in FAULTS if isinstance(error, fault)), _unknown(question))
        words |= _words_of(error)
    return kind(template.format_map(asdict(question) | words))


def code_of(error: Exception) -> str:
    """Return AWS's code for an error; the HTTP status where the answer had none; else the exception's name."""
    if not isinstance(error, aws.ClientError):
        return type(error).__name__
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    return str(error.response.get("Error", {}).get("Code") or status or "no code")


def redact_error(error: BaseException, secrets: Iterable[str]) -> None:
    """Replace secrets in the text of an error and of its causes, where AWS or a parser repeats them.

    S3 returns an expired session token in its answer; STS may return the signed request, which holds the token;
    http.client shows a header that it refuses; configparser shows the line that it does not understand; a command's
    stderr may hold anything.
    """
    known = [secret for secret in secrets if len(secret) >= SHORTEST_SECRET]
    link: BaseException | None = error
    while link is not None:
        link.args = tuple(_mask(part, known) if isinstance(part, str) else part for part in link.args)
        if isinstance(link, aws.ClientError):
            told = link.response.get("Error", {})
            link.response["Error"] = {
                key: _mask(str(told[key]), known) for key in ("Code", "Message", "Region") if key in told
            }
        if isinstance(link, aws.HTTPClientError):  # the request that was sent, with its signature and token
            link.request = None
        if isinstance(link, aws.BotoCoreError):
            link.kwargs = {
                key: _mask(part, known) if isinstance(part, str) else part for key, part in link.kwargs.items()
            }
        if isinstance(link, aws.CredentialRetrievalError):  # what a credential_process printed, whatever that was
            link.args = (f"Error when retrieving credentials from {link.kwargs.get('provider')}",)
            link.kwargs.pop("error_msg", None)
        if isinstance(link, aws.ConfigParseError):
            link.kwargs["line"] = _line_of(link.kwargs.get("error"))
            link.kwargs.pop("error", None)
            link.__cause__ = link.__context__ = None
        link = link.__cause__ or link.__context__


def _mask(text: str, secrets: Iterable[str]) -> str:
    for secret in secrets:
        text = text.replace(secret, "***")
    return text


def _line_of(error: object) -> str:
    if isinstance(error, configparser.MissingSectionHeaderError | configparser.DuplicateOptionError):
        return f", line {error.lineno},"
    if isinstance(error, configparser.ParsingError) and error.errors:
        return f", line {error.errors[0][0]},"
    return ""


def _find_refusal(error: aws.ClientError, question: Question) -> Reason:
    code, message = code_of(error), _message_of(error)
    if code in codes.DENIED and question.service != "S3":
        return CredentialsError, _DENIED_CALLER
    if code in codes.DENIED:
        denied = _DENIED_TO_ALL if question.anonymous else _DENIED_OR_FOREIGN if question.owner else _DENIED_LISTING
        return BucketError, denied
    if code in codes.TRANSIENT:
        return BucketError if question.service == "S3" else CredentialsError, _TOO_BUSY
    if message.startswith(("Signature expired", "Signature not yet current")):  # STS's code is that of a wrong secret
        return _CLOCK
    return REFUSALS.get(code) or _unknown(question)


def _unknown(question: Question) -> Reason:
    unknown: dict[str, Reason] = {"STS": (CredentialsError, _NO_STS), "S3": (BucketError, _NO_S3)}
    return unknown.get(question.service, _NO_SOURCE)


def _message_of(error: aws.ClientError) -> str:
    return " ".join(str(error.response.get("Error", {}).get("Message") or "").split())


def _home_of(error: aws.ClientError) -> str:
    """Return where the bucket is, as an answer from the wrong region says it."""
    headers = error.response.get("ResponseMetadata", {}).get("HTTPHeaders", {})
    region = headers.get("x-amz-bucket-region") or error.response.get("Error", {}).get("Region")
    return f"in region {region}" if region else "in another region"


def _words_of(error: Exception) -> dict[str, Any]:
    """Return what botocore's exception was filled with, and for a connection that could not be made, why."""
    words = dict(getattr(error, "kwargs", {}))
    words.setdefault("line", "")
    words.pop("endpoint_url", None)
    fault = words.get("error")
    cause = getattr(fault, "__context__", None) or fault
    words["told"] = str(error)
    words["why"] = "no such host" if isinstance(cause, socket.gaierror) else _reason_of(cause)
    return words


def _reason_of(cause: object) -> str:
    return (getattr(cause, "strerror", None) or re.sub(r"^.*\] ", "", str(cause))).lower()
