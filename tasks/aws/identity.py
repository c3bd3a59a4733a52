"""Who asks AWS, and whether it may read the buckets that a run needs: answered in seconds.

Credentials come from botocore's own chain (environment, profile, role) and stay in it. What a refusal means, and how it
is told, is in `tasks.aws.refusals`.
"""

import os
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import urlsplit

import botocore.session
from botocore import UNSIGNED
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    InvalidRegionError,
    NoCredentialsError,
    NoRegionError,
    PartialCredentialsError,
)

from tasks.aws.codes import DENIED, TRANSIENT
from tasks.aws.refusals import FOREIGN_ERRORS, Question, code_of, redact_error, translate_error
from tasks.errors import BucketError, ConfigurationError, CredentialsError

CONNECT_SECONDS = 3
READ_SECONDS = 10
BUSY_PAUSES = (0.3, 0.9)  # seconds before a second and a third attempt, where a service says that it is busy


@dataclass(frozen=True, kw_only=True)
class Identity:
    """Who a run is to AWS, and what is known of the buckets that it reads; nothing in it is secret.

    Attributes:
        account, arn, user_id: STS's answer; None where STS was not asked.
        region: the region that the buckets are in, or None where nobody says.
        buckets: the names of the buckets that could be listed.
        verified_by: what the rest rests on.
        note: the same in a sentence, with what was not verified.
    """

    account: str | None = None
    arn: str | None = None
    user_id: str | None = None
    region: str | None = None
    buckets: tuple[str, ...] = ()
    verified_by: Literal["sts", "listing", "anonymous", "nothing to verify"]
    note: str


@dataclass(frozen=True)
class Place:
    """Where a glob begins to match: what the next step lists, and so what must be allowed."""

    bucket: str
    prefix: str

    @property
    def uri(self) -> str:
        return f"s3://{self.bucket}/{self.prefix}"


def ask_identity(
    *, uris: Sequence[str], region: str | None, bucket_owner: str | None, verify_identity: bool, anonymous: bool
) -> Identity:
    """Ask STS who we are, and S3 whether the places that the URIs name can be listed, here, as that account's.

    `region` None is the active profile's; `bucket_owner` None is the caller's account. Without `verify_identity`
    nothing but a listing is asked for, `anonymous` asks for an unsigned one. No URI of S3: nothing is asked.

    Raises CredentialsError, BucketError or ConfigurationError, whose message says what to do. Nothing is tried again
    but what a service was too busy to answer; where nobody answers, it takes seconds.
    """
    places = list(dict.fromkeys(_find_place(uri) for uri in uris if uri.startswith(("s3://", "s3a://"))))
    if not places:
        return Identity(region=region, verified_by="nothing to verify", note="no shards in S3: nothing to verify")
    return _verify(Caller(region, anonymous), places, bucket_owner, verify_identity and not anonymous)


def _verify(caller: "Caller", places: Sequence[Place], bucket_owner: str | None, verify_identity: bool) -> Identity:
    who = caller.ask_identity() if verify_identity else {}
    owner = bucket_owner or who.get("Account")
    regions = {place.bucket: caller.list_place(place, owner, who.get("Arn")) for place in places}
    listed = ", ".join(place.uri for place in places)
    owned = f" as account {owner}'s" if owner else ", whoever owns it"
    if not verify_identity and not caller.anonymous:
        note = (
            f"verified by listing only (verify_identity is false): {listed}{owned}; identity and region not asked for"
        )
        return Identity(region=caller.region, buckets=tuple(regions), verified_by="listing", note=note)
    for bucket, found in regions.items():
        regions[bucket] = found or caller.ask_region(bucket)
        _compare_regions(bucket, caller.region, regions[bucket])
    known = next(filter(None, regions.values()), None)
    where = f" in {known}" if known else "; the store does not say in which region"
    return Identity(
        account=who.get("Account"),
        arn=who.get("Arn"),
        user_id=who.get("UserId"),
        region=known or caller.region,
        buckets=tuple(regions),
        verified_by="sts" if verify_identity else "anonymous",
        note=f"{'listed' if verify_identity else 'listed without credentials'}: {listed}{owned}{where}",
    )


class Caller:
    """One botocore session with short timeouts; every error that leaves it is one of ours, without secrets.

    The instance metadata service is asked last, by botocore's own defaults: once, for a second.
    """

    def __init__(self, region: str | None, anonymous: bool) -> None:
        self.anonymous = anonymous
        self._secrets: list[str] = []
        self._source = f"profile {os.environ.get('AWS_PROFILE', 'default')}"
        self._clients: dict[str, Any] = {}
        self._session = botocore.session.Session()
        # The session's default, so that a role assumed along the chain is asked for with the same haste.
        self._session.set_default_client_config(
            Config(
                connect_timeout=CONNECT_SECONDS,
                read_timeout=READ_SECONDS,
                retries={"total_max_attempts": 1, "mode": "standard"},
            )
        )
        with self._explained("AWS"):
            self.region: str | None = region or self._session.get_config_variable("region")
            if not anonymous:
                self._load_credentials()

    def ask_identity(self) -> dict[str, str]:
        """Return STS's Account, Arn and UserId."""
        with self._explained("STS"):
            if not self.region:
                raise NoRegionError
            answer = self._send("sts", "get_caller_identity")
            return {name: answer[name] for name in ("Account", "Arn", "UserId")}

    def list_place(self, place: Place, owner: str | None, arn: str | None) -> str | None:
        """List one object, as this owner's where one is named; return the bucket's region where the answer has it.

        A GET, because the answer to a HEAD has no body and so no reason. AWS sends the region with every listing.
        """
        listing = {"Bucket": place.bucket, "Prefix": place.prefix, "MaxKeys": 1}
        with self._explained("S3", uri=place.uri, bucket=place.bucket, owner=owner, arn=arn):
            try:
                answer = self._send(
                    "s3", "list_objects_v2", **listing, **({"ExpectedBucketOwner": owner} if owner else {})
                )
            except ClientError as denied:
                if owner is None or code_of(denied) not in DENIED:
                    raise
                self._send("s3", "list_objects_v2", **listing)
                redact_error(denied, self._secrets)
                raise BucketError(
                    f"bucket {place.bucket} is not account {owner}'s: listing {place.uri} is denied with that account "
                    "named as its owner, and allowed without; set bucket_owner to the account that it should belong "
                    "to, or correct the bucket's name"
                ) from denied
        region: str | None = answer["ResponseMetadata"]["HTTPHeaders"].get("x-amz-bucket-region")
        return region

    def ask_region(self, bucket: str) -> str | None:
        """Return the bucket's region as HeadBucket has it; None where the store does not say."""
        with self._explained("S3", bucket=bucket):
            try:
                region: str | None = self._send("s3", "head_bucket", Bucket=bucket).get("BucketRegion")
            except ClientError:
                return None
        return region

    def _load_credentials(self) -> None:
        found = self._session.get_credentials()
        if found is None:
            raise _missing()
        keys = found.get_frozen_credentials()
        named = {"access key id": keys.access_key, "secret access key": keys.secret_key, "session token": keys.token}
        self._source = found.method
        self._secrets = [value for value in named.values() if value]
        for name, value in named.items():
            if value and re.search(r"[^!-~]", value):
                raise CredentialsError(
                    f"the {name} of the AWS credentials (from {self._source}) has a space, a line break or a character "
                    "that no key has: copy it again, and run again"
                )

    def _send(self, service: str, operation: str, **parameters: Any) -> dict[str, Any]:
        """Send one request; up to three where the service says that it is busy."""
        client = self._client(service)
        for pause in (*BUSY_PAUSES, None):
            try:
                answer: dict[str, Any] = getattr(client, operation)(**parameters)
            except FOREIGN_ERRORS as error:
                if pause is None or code_of(error) not in TRANSIENT:
                    raise
                time.sleep(pause)
            else:
                return answer
        raise AssertionError("unreachable")

    def _client(self, service: str) -> Any:
        if service not in self._clients:
            config = Config(signature_version=UNSIGNED) if self.anonymous else None
            try:
                client = self._session.create_client(service, region_name=self.region, config=config)
            except InvalidRegionError:
                raise
            except ValueError as error:  # botocore's for an endpoint that is not a URL
                raise ConfigurationError(
                    f"{_without_login(str(error))}: write AWS_ENDPOINT_URL or AWS_ENDPOINT_URL_{service.upper()} as a "
                    "URL, with http:// or https://"
                ) from None
            self._secrets += filter(None, [urlsplit(client.meta.endpoint_url).password])
            self._clients[service] = client
        return self._clients[service]

    @contextmanager
    def _explained(self, service: str, **asked: Any) -> Iterator[None]:
        try:
            yield
        except FOREIGN_ERRORS as error:
            redact_error(error, self._secrets)
            raise translate_error(error, self._question(service, **asked)) from error

    def _question(self, service: str, **asked: Any) -> Question:
        client = self._clients.get(service.lower())
        endpoint = _without_login(client.meta.endpoint_url) if client else "its endpoint"
        return Question(
            service=service,
            endpoint=endpoint,
            region=self.region or "none",
            source=self._source,
            anonymous=self.anonymous,
            **asked,
        )


def _find_place(uri: str) -> Place:
    """Return where the listing for a glob begins: the last folder before its first wildcard."""
    bucket, _, key = uri.partition("://")[2].partition("/")
    if "@" in bucket or (":" in bucket and not bucket.startswith("arn:")):
        raise ConfigurationError(
            "a URI of the shards has credentials before the bucket's name: take them out, and set AWS_ACCESS_KEY_ID "
            "and AWS_SECRET_ACCESS_KEY, or a profile, in their place"
        )
    head, *rest = re.split(r"[*?\[{]", key, maxsplit=1)
    return Place(bucket, head[: head.rfind("/") + 1] if rest else head)


def _missing() -> BotoCoreError:
    """No credentials at all, or half of them: botocore overlooks a secret without its key id."""
    if os.environ.get("AWS_SECRET_ACCESS_KEY"):
        return PartialCredentialsError(provider="env", cred_var="AWS_ACCESS_KEY_ID")
    return NoCredentialsError()


def _compare_regions(bucket: str, wanted: str | None, found: str | None) -> None:
    if wanted and found and wanted != found:
        raise BucketError(
            f"bucket {bucket} is in region {found}, not in {wanted}: set region to {found} (--region {found}, or "
            f"AWS_DEFAULT_REGION)"
        )


def _without_login(url: str) -> str:
    return re.sub(r"[^/\s]*@", "", url)
