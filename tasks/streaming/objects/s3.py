"""Objects in S3, or in a server that speaks its protocol, by botocore's own credential chain and endpoint settings.

Every attempt is one request: botocore's retries are off, `retrying.py` has the loop. A GET carries If-Match, so that an
object that was replaced since it was listed answers 412; Content-Range and Content-Length are compared with what was
asked for.
"""

import os
import re
import threading
from collections.abc import Mapping
from functools import cache
from typing import Any
from urllib.parse import urlsplit

from tasks.aws.codes import CREDENTIALS, ELSEWHERE, TRANSIENT
from tasks.errors import BucketError, ConfigurationError, CredentialsError, ShardChangedError, ShardlineError
from tasks.streaming.objects.digests import choose_digest, to_hexadecimal
from tasks.streaming.objects.retrying import RetryPolicy, TransientError
from tasks.streaming.objects.store import Body, Listed
from tasks.streaming.objects.traffic import count

MAGIC = re.compile(r"[*?\[]")
MD5 = re.compile(r"[0-9a-f]{32}")
CRCS = ("CRC64NVME", "CRC32C", "CRC32")
SAME_NAME = {"endpoint_url", "use_ssl", "verify", "region_name"}


class S3Store:
    """See `store.Store`. The client is made when first needed, in the process that needs it."""

    by_ranges = True

    def __init__(self, storage_options: Mapping[str, Any] | None, retry: RetryPolicy) -> None:
        self._options = dict(storage_options or {})
        self._retry = retry
        self._extra: dict[str, Any] = dict(self._options.pop("s3_additional_kwargs", {}))
        if self._options.pop("requester_pays", False):
            self._extra["RequestPayer"] = "requester"
        self._clients: dict[int, Any] = {}  # by process: a client must not cross a fork
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_clients": {}, "_lock": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=threading.Lock())

    def list(self, pattern: str) -> list[Listed]:
        scheme, bucket, key = _split(pattern)
        prefix = MAGIC.split(key)[0]
        found = []
        token: dict[str, str] = {}
        while True:
            page = self._ask("list_objects_v2", pattern, {"Bucket": bucket, "Prefix": prefix, **token})
            for entry in page.get("Contents", ()):
                uri = f"{scheme}://{bucket}/{entry['Key']}"
                if self.matches(pattern, uri):
                    found.append(Listed(uri, int(entry["Size"]), entry.get("ETag", "").strip('"') or None))
            if not page.get("IsTruncated"):
                return found
            if "NextContinuationToken" not in page:
                raise TransientError("the listing ended between two pages")
            token = {"ContinuationToken": page["NextContinuationToken"]}

    def matches(self, pattern: str, uri: str) -> bool:
        return pattern == uri or bool(MAGIC.search(pattern) and _compile(pattern).match(uri))

    def open(self, uri: str, *, offset: int, stop: int, size: int, etag: str | None) -> Body:
        _, bucket, key = _split(uri)
        asked: dict[str, Any] = {"Bucket": bucket, "Key": key}
        if etag is not None:
            asked["IfMatch"] = f'"{etag}"'
        if (offset, stop) != (0, size):
            asked["Range"] = f"bytes={offset}-{stop - 1}"
        else:  # of a range S3 states no digest, or that of a part
            asked["ChecksumMode"] = "ENABLED"
        response = self._ask("get_object", uri, asked)
        body = _S3Body(response, etag)
        try:
            if etag is not None and response.get("ETag", etag).strip('"') != etag:  # not every server knows If-Match
                raise ShardChangedError(
                    f"{uri} was replaced since it was listed: its ETag was {etag}, is {response['ETag']}; "
                    "locate the shards again"
                )
            _check_range(uri, response, offset, stop, size)
        except BaseException:
            body.close()
            raise
        return body

    def _ask(self, operation: str, uri: str, asked: Mapping[str, Any], *, renewed: bool = False) -> Any:
        """Make one request. Expired credentials are renewed once; all other errors are translated."""
        import botocore.exceptions as failures

        client = None
        try:
            client = self._clients.get(os.getpid()) or self._make_client()
            count(requests=1)
            return getattr(client, operation)(**asked, **self._extra)
        except failures.ClientError as error:
            if _code(error).startswith("ExpiredToken") and not renewed:
                self._drop_client(client)
                return self._ask(operation, uri, asked, renewed=True)
            raise _translate(error, uri) from error
        except (failures.HTTPClientError, failures.ConnectionError, OSError) as error:
            raise TransientError(str(error)) from error
        except (
            failures.NoCredentialsError,
            failures.PartialCredentialsError,
            failures.CredentialRetrievalError,
            failures.SSOError,
            failures.TokenRetrievalError,
        ) as error:
            raise CredentialsError(
                f"No usable AWS credentials for {uri}: {error}; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, a "
                "profile or a role; for a public bucket ask anonymously (storage_options={'anon': True})"
            ) from error
        except (failures.BotoCoreError, ValueError, TypeError) as error:
            raise ConfigurationError(f"S3 cannot be asked for {uri}: {error}; correct the settings of AWS") from error

    def _drop_client(self, client: Any) -> None:
        with self._lock:
            if self._clients.get(os.getpid()) is client:
                self._clients = {}

    def _make_client(self) -> Any:
        with self._lock:
            if os.getpid() not in self._clients:
                self._clients = {os.getpid(): _make_client(self._options, self._retry)}
            return self._clients[os.getpid()]


class _S3Body:
    def __init__(self, response: Mapping[str, Any], etag: str | None) -> None:
        self._body = response["Body"]
        self._stream = self._body.__enter__()  # urllib3's own response: botocore's wrapper has no read1
        self.content_digest = choose_digest(_find_digests(response, etag))

    def read(self, most: int) -> bytes:
        from urllib3.exceptions import HTTPError

        try:
            return bytes(self._stream.read1(most))
        except (HTTPError, OSError, ValueError) as error:
            raise TransientError(f"the connection broke: {error}") from error

    def limit(self, seconds: float) -> None:
        self._body.set_socket_timeout(seconds)

    def close(self) -> None:
        self._stream.close()


def _find_digests(response: Mapping[str, Any], etag: str | None) -> dict[str, str]:
    """Return the digests, by kind, that S3 states of the whole content: not those that are made of its parts' digests.

    CRC64NVME is always of the whole; of the others a multipart object's is where S3 says so.
    """
    found: dict[str, str] = {}
    plain = response.get("ServerSideEncryption", "AES256") == "AES256" and not response.get("SSECustomerAlgorithm")
    if plain and etag is not None and MD5.fullmatch(etag):
        found["MD5"] = etag
    kind_of = response.get("ChecksumType") or ("COMPOSITE" if etag is None or "-" in etag else "FULL_OBJECT")
    for kind in CRCS:
        stated = to_hexadecimal(kind, response.get(f"Checksum{kind}", ""))
        if stated and (kind_of == "FULL_OBJECT" or kind == "CRC64NVME"):
            found[kind] = stated
    return found


def _check_range(uri: str, response: Mapping[str, Any], offset: int, stop: int, size: int) -> None:
    """Raise where what the server says that it sends is not what was asked for."""
    described = response.get("ContentRange")
    if described is not None:
        if described != f"bytes {offset}-{stop - 1}/{size}":
            raise ShardChangedError(
                f"{uri}: asked for bytes {offset}-{stop - 1} of {size}, was sent '{described}'; "
                "the object is not the one that was listed: locate the shards again"
            )
    elif offset:
        raise TransientError("the server ignored the range that was asked for")
    elif response.get("ContentLength", 0) > size:  # a shorter answer is asked for the rest; here there is too much
        raise ShardChangedError(
            f"{uri}: listed with {size} bytes, now has {response['ContentLength']}; locate the shards again"
        )


@cache
def _compile(pattern: str) -> re.Pattern[str]:
    from fsspec.utils import glob_translate

    return re.compile(glob_translate(pattern))


def _split(uri: str) -> tuple[str, str, str]:
    scheme, _, rest = uri.partition("://")
    bucket, _, key = rest.partition("/")
    if not bucket or not key:
        raise ConfigurationError(f"{uri!r} does not name objects in a bucket: write s3://bucket/path/part*.csv")
    return scheme, bucket, key


def _make_client(options: Mapping[str, Any], retry: RetryPolicy) -> Any:
    import botocore.session
    from botocore import UNSIGNED
    from botocore.config import Config

    left = dict(options)
    settings = {
        "retries": {"total_max_attempts": 1, "mode": "standard"},
        "connect_timeout": min(5.0, retry.stall_seconds),
        "read_timeout": retry.stall_seconds,
        "max_pool_connections": 64,
        "request_checksum_calculation": "when_required",
        "response_checksum_validation": "when_required",  # a whole object's checksum says nothing about a range of it
    }
    if left.pop("anon", False):
        settings["signature_version"] = UNSIGNED
    settings |= left.pop("config_kwargs", {})
    session = botocore.session.Session(profile=left.pop("profile", None))
    session.register_component("data_loader", _load_models())
    names = ("key", "secret", "token")
    if any(name in left for name in names):
        session.set_credentials(*(left.pop(name, None) for name in names))
    arguments = {name: left.pop(name) for name in SAME_NAME if name in left} | left.pop("client_kwargs", {})
    if left:
        raise ConfigurationError(
            f"storage_options for s3 have no {', '.join(sorted(left))}; they have anon, key, secret, token, profile, "
            "endpoint_url, region_name, use_ssl, verify, requester_pays, client_kwargs, config_kwargs, "
            "s3_additional_kwargs"
        )
    return session.create_client("s3", config=Config(**settings), **arguments)


@cache
def _load_models() -> Any:
    """Read botocore's descriptions of services once, not for each client: 10 ms rather than 60."""
    from botocore.loaders import create_loader

    return create_loader()


def _code(error: Any) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))


def _translate(error: Any, uri: str) -> Exception:
    """Return the error of tasks/errors.py that a refusal by S3 means, or TransientError."""
    code = _code(error)
    status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    if code in CREDENTIALS:
        return CredentialsError(
            f"S3 refused the credentials for {uri}: {code}; renew or correct them, and check the clock"
        )
    if code in TRANSIENT or status >= 500 or status == 429:
        return TransientError(f"S3 answered {status} {code}")
    return _translate_refusal(code, status, uri) or ShardChangedError(
        f"{uri}: S3 answered {status} {code}: {error.response.get('Error', {}).get('Message', '')}"
    )


def _translate_refusal(code: str, status: int, uri: str) -> ShardlineError | None:
    bucket = urlsplit(uri).netloc
    if code == "NoSuchBucket":
        return BucketError(f"There is no bucket {bucket} (asked for {uri}): check its name and the account")
    if code in ELSEWHERE or status in (301, 307):
        return BucketError(
            f"Bucket {bucket} lies in another region than the one asked: set AWS_DEFAULT_REGION to its own"
        )
    if status == 403:
        return BucketError(
            f"S3 denied access to {uri} ({code}): allow s3:GetObject on it and s3:ListBucket on the bucket"
        )
    if status == 404:
        return ShardChangedError(f"{uri} is gone: it was listed, but now S3 answers {code}; locate the shards again")
    if status == 412:
        return ShardChangedError(
            f"{uri} was replaced since it was listed (its ETag is another): locate the shards again"
        )
    if status == 416:
        return ShardChangedError(f"{uri} is shorter than it was when listed: locate the shards again")
    return None
