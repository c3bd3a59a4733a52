"""Where the data is, and how a dataset over it is opened.

What no parameter says, the environment does: which bucket, which region, which shards. `resolve_sources` is called
before anything is started and again inside the flow, where it runs. Credentials are no business of this module:
boto3's own chain finds them.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from tasks.errors import ConfigurationError
from tasks.learning.features import Features
from tasks.parameters import (
    MOST_ROWS,
    Checked,
    Listing,
    MonitoringParameters,
    PredictionParameters,
    Reading,
    Rows,
    Shards,
    Source,
)
from tasks.redaction import is_well_formed, is_withheld, redact, reveal, without_user_info
from tasks.state import STATE

if TYPE_CHECKING:
    from tasks.streaming import Manifest, ObjectStorageDataset, StreamOptions, Terms

FIRST_ROWS = 1000
BUCKET_ID_FILE = "BUCKET_ID"
S3 = ("s3://", "s3a://")
BUCKET_ID_PATTERN = re.compile("[0-9a-f]{32}")


@dataclass(frozen=True, kw_only=True)
class Sources:
    """The shards that a run reads: two globs, the contract that they must keep, their region, how to open them, and the
    account that must own them.
    """

    shards: str
    test_shards: str | None
    region: str | None
    anonymous: bool
    owner: str | None = None
    contract: str | None = None

    @property
    def uris(self) -> list[str]:
        """The globs that are set."""
        return [uri for uri in (self.shards, self.test_shards) if uri]

    def storage_options(self, uri: str) -> dict[str, Any]:
        """Return what fsspec is to open this URI's filesystem with, in s3fs's words; credentials are not among it."""
        if not uri.startswith(S3):
            return {}
        options: dict[str, Any] = {"anon": True} if self.anonymous else {}
        if self.region:
            options["client_kwargs"] = {"region_name": self.region}
        if self.owner:
            options["s3_additional_kwargs"] = {"ExpectedBucketOwner": self.owner}
        return options


def resolve_sources(given: Source) -> Sources:
    """Find the shards and their region, from parameters, else the environment, else the file BUCKET_ID.

    Raises ConfigurationError where nothing says which shards to read, a BUCKET_ID is not 32 hexadecimal digits, or the
    AWS configuration cannot be read.
    """
    addresses = (given.shards, given.test_shards, given.contract)
    asks_aws = not given.shards or any(uri.startswith(S3) for uri in addresses if uri)
    region = given.region or (configured_region() if asks_aws else None)
    if given.shards:
        return Sources(
            shards=_absolute(given.shards),
            test_shards=given.test_shards and _absolute(given.test_shards),
            region=region,
            anonymous=given.anonymous,
            contract=given.contract and _absolute(given.contract),
        )
    bucket_id = given.bucket_id or configured_bucket_id()
    if not bucket_id:
        raise ConfigurationError(
            "no shards to read: give --shards 's3://bucket/path/part*.csv', or --bucket-id (or BUCKET_ID in the "
            f"environment, or a file {BUCKET_ID_FILE} in {Path.cwd()}); `make train` runs on generated shards "
            "with nothing configured"
        )
    if not region:
        raise ConfigurationError(
            f"no region for the bucket dc-taxi-{bucket_id}-…: give --region, or set AWS_DEFAULT_REGION"
        )
    base = f"s3://dc-taxi-{bucket_id}-{region}/csv"
    return Sources(
        shards=f"{base}/dev/part*.csv",
        test_shards=(given.test_shards and _absolute(given.test_shards)) or f"{base}/test/part*.csv",
        region=region,
        anonymous=given.anonymous,
        contract=given.contract and _absolute(given.contract),
    )


def resolve_shards(given: PredictionParameters | MonitoringParameters) -> Sources:
    """Find the shards of a flow that reads one glob alone; raises as `resolve_sources` does."""
    shared = {*Listing.model_fields, *Checked.model_fields}
    return replace(resolve_sources(Source(**given.model_dump(include=shared))), test_shards=None)


def configured_bucket_id() -> str | None:
    """Return BUCKET_ID of the environment, else of the file in the working directory, else None."""
    text, origin = os.environ.get("BUCKET_ID", "").strip(), "the environment variable BUCKET_ID"
    path = Path.cwd() / BUCKET_ID_FILE
    if not text and path.is_file():
        text, origin = path.read_text(encoding="utf-8", errors="replace").strip(), str(path)
    if text and not BUCKET_ID_PATTERN.fullmatch(text):
        raise ConfigurationError(f"{origin} says {text[:40]!r}: a BUCKET_ID is 32 hexadecimal digits (0-9, a-f)")
    return text or None


def configured_region() -> str | None:
    """Return the region of AWS_DEFAULT_REGION, AWS_REGION or the active AWS profile, else None."""
    region = os.environ.get("AWS_DEFAULT_REGION") or os.environ.get("AWS_REGION")
    if region:
        return region
    import boto3
    from botocore.exceptions import BotoCoreError

    from tasks.aws.refusals import Question, redact_error, translate_error

    try:
        return str(boto3.Session().region_name or "") or None
    except BotoCoreError as error:
        redact_error(error, [])
        raise translate_error(error, Question(service="AWS")) from error


def read_contract(sources: Sources) -> Terms | None:
    """Return what the contract states; None where there is none.

    Raises ConfigurationError, with the line, where it cannot be read, or states what cannot be.
    """
    from tasks.streaming import read_terms

    uri = sources.contract
    return read_terms(uri, sources.storage_options(uri)) if uri else None


def check_contract(sources: Sources) -> None:
    """Read the contract where it is a local file, before anything is started; raises as `read_contract` does."""
    if sources.contract and "://" not in sources.contract:
        read_contract(sources)


def open_dataset(
    manifest: Manifest, sources: Sources, given: Reading, **options: Unpack[StreamOptions]
) -> ObjectStorageDataset:
    """Return the dataset over a manifest's shards, as the stream's parameters say; `options` win over them."""
    from tasks.streaming import CacheSettings, ObjectStorageDataset

    chosen: StreamOptions = {
        "batch_size": given.batch_size or MOST_ROWS,
        "on_bad_rows": given.on_bad_rows,
        "prefetch": given.prefetch,
        "cache": CacheSettings(enabled=given.cache, folder=cache_folder(given), limit_bytes=given.cache_bytes),
        "storage_options": sources.storage_options(manifest.shards[0].uri),
    }
    return ObjectStorageDataset.from_manifest(manifest, **(chosen | options))


def open_beginning(manifest: Manifest, sources: Sources, given: Reading) -> ObjectStorageDataset:
    """Return a dataset of one batch, of the first rows: only the shards that hold it are fetched.

    Where bad rows are set aside, all shards are gone through at the first opening: it is for all of them at once.
    """
    if given.on_bad_rows == "error":
        manifest = manifest.begin(FIRST_ROWS)
    return open_dataset(manifest, sources, given, batch_size=min(FIRST_ROWS, manifest.rows), epochs=1, stop=1)


def open_shards(manifest: Manifest, sources: Sources, given: Rows) -> ObjectStorageDataset:
    """Return the dataset over a manifest's shards whose rows are read as they stand there, see `originals`."""
    from tasks.streaming import CacheSettings, ObjectStorageDataset

    return ObjectStorageDataset.from_manifest(
        manifest,
        on_bad_rows=given.on_bad_rows,
        cache=CacheSettings(enabled=False, folder=cache_folder(given)),
        storage_options=sources.storage_options(manifest.shards[0].uri),
    )


def cache_folder(given: Rows) -> Path:
    """Return the folder of decoded shards, and of the lists of bad rows."""
    return Path(given.cache_dir or STATE / "cache").expanduser()


def read_only_used(manifest: Manifest, given: Shards, derive: Sequence[str]) -> Manifest:
    """Return the manifest of target, features and what those that are derived are made of, where features are named.

    Else all columns are read. Raises ConfigurationError for a column that is not there.
    """
    if not given.features:
        return manifest
    features = Features.choose(
        manifest.columns, target=given.target, features=given.features, derive=derive, skip_missing=True
    )
    used = {features.target, *features.inputs}
    return manifest.choose([name for name in manifest.columns if name in used])


def _absolute(given: str) -> str:
    """Return a local path as an absolute one, so that it means the same wherever the flow runs; a URL as it is.

    Raises ConfigurationError for a user or password that would not be parsed as such, and so be shown.
    """
    uri = reveal(given)
    if without_user_info(uri) != uri and not is_well_formed(uri):
        raise ConfigurationError(
            f"the address {redact(uri)} cannot be read: in its user and password, write @ as %40, / as %2F, ? as %3F, "
            "# as %23, : as %3A and what is no letter or digit likewise"
        )
    if is_withheld(uri):
        raise ConfigurationError(
            f"the address {uri} was kept without its user, password or signature: give the whole of it again, signed "
            "anew where the signature has expired"
        )
    scheme, sign, rest = uri.partition("://")
    return f"{scheme.lower()}{sign}{rest}" if sign and scheme else str(Path(uri).expanduser().absolute())
