"""Where the data is, which of it is read, and how rows become batches."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from tasks.naming import join_names
from tasks.parameters.marks import CURVE, LATER, OWN, PLACE, SPEED, Formerly, Parameters, Searchable
from tasks.state import STATE

MOST_ROWS = 2**20  # in a batch whose size nobody chose
ADDRESSES = (
    "shards",
    "test_shards",
    "meta_shards",
    "contract",
)  # which may hold a password or a signature: `tasks.redaction`


class Access(Parameters):
    """Where the data is, and who asks for it."""

    group: ClassVar[str] = "Access"

    bucket_id: Annotated[str | None, PLACE, OWN] = Field(
        None,
        pattern="^[0-9a-f]{32}$",
        description="32 hexadecimal digits that name the bucket dc-taxi-{bucket_id}-{region}; "
        "empty: the environment's BUCKET_ID, else the file BUCKET_ID in the working directory.",
    )
    region: Annotated[str | None, CURVE] = Field(
        None,
        pattern="^[a-z0-9-]+$",
        description="AWS region of the bucket; empty: AWS_DEFAULT_REGION, AWS_REGION or the profile's.",
    )
    bucket_owner: Annotated[str | None, PLACE] = Field(
        None,
        pattern="^[0-9]{12}$",
        description="AWS account that must own the bucket; empty: the account of the caller.",
    )
    verify_identity: Annotated[bool, PLACE] = Field(
        True, description="Ask STS who the caller is; false for stores without STS (MinIO, Ceph, R2)."
    )
    anonymous: Annotated[bool, PLACE] = Field(False, description="Read a public bucket without credentials.")
    aws_block: Annotated[str | None, PLACE, OWN] = Field(
        None,
        min_length=1,
        description="Name of a Prefect AWS Credentials block to use; empty: boto3's own chain (environment, profile, "
        "role).",
    )


class Listing(Access):
    """Which shards are read, and how they name their columns."""

    group: ClassVar[str] = "Shards"

    shards: Annotated[str | None, CURVE] = Field(
        None,
        min_length=1,
        description="Glob of the shards to read (s3://bucket/path/part*.csv, file://, https://, a local path); "
        "empty: csv/dev/part*.csv in the bucket of bucket_id.",
    )
    meta_shards: Annotated[str | None, PLACE] = Field(
        None,
        min_length=1,
        description="Glob of the CSV with each shard's row count (id,count); empty: .meta/shards beside the shards, "
        "else the rows are counted.",
    )
    header: Annotated[Literal["infer", "first", "none"], CURVE] = Field(
        "infer",
        description="Whether each shard begins with a header line (first) or with data (none); infer: with data where "
        "all of the first line is numbers, and columns does not name them.",
    )
    columns: Annotated[list[str] | None, CURVE] = Field(
        None,
        min_length=1,
        description="The columns to read, by name, in this order; without a header, the names of all columns; "
        "empty: those of the first shard's header.",
    )
    max_shards: Annotated[int | None, CURVE] = Field(
        None, ge=1, description="Read the first so many shards only; empty: all."
    )

    @model_validator(mode="after")
    def _listing_agrees(self) -> Self:
        if self.shards and self.bucket_id:
            raise ValueError("shards and bucket_id both say where the data is: leave one out")
        if self.columns and len(set(self.columns)) < len(self.columns):
            raise ValueError(f"columns names a column twice: {join_names(self.columns, ',')}")
        if self.header == "none" and not self.columns:
            raise ValueError("header is none, so nothing names the columns: list them in columns")
        return self


class Shards(Listing):
    """Which columns are learned from, and which one is learned."""

    target: Annotated[str | None, CURVE] = Field(
        None, min_length=1, description="Column to predict; empty: the first one."
    )
    features: Annotated[list[str] | None, CURVE, Searchable(subsets=True)] = Field(
        None, min_length=1, description="Columns to predict it from; empty: all others."
    )

    @model_validator(mode="after")
    def _columns_agree(self) -> Self:
        if self.features and len(set(self.features)) < len(self.features):
            raise ValueError(f"features names a column twice: {join_names(self.features, ',')}")
        if self.target and self.features and self.target in self.features:
            raise ValueError(f"target {self.target!r} is among the features: leave it out of one of them")
        for used in [self.target, *(self.features or [])]:
            if used and self.columns and used not in self.columns:
                raise ValueError(f"column {used!r} is used as target or feature and is not among columns: add it there")
        return self


class Checked(Parameters):
    """What the rows are held against."""

    group: ClassVar[str] = "Shards"

    contract: Annotated[str | None, PLACE] = Field(
        None,
        min_length=1,
        description="Contract of the data, a YAML file with columns, their bounds, and the share of rows that may be "
        "bad (s3://bucket/path/contract.yaml, any fsspec URL, a local path); empty: none.",
    )


class Source(Checked, Shards):
    """The shards to train on, and those to be judged on."""

    test_shards: Annotated[str | None, CURVE] = Field(
        None,
        min_length=1,
        description="Glob of the shards that the model is judged on; empty: csv/test/part*.csv with a bucket_id, "
        "else none.",
    )
    validation_shards: Annotated[int, CURVE, LATER] = Field(
        0,
        ge=0,
        description="So many of the last shards to train on are left out, for a search to compare its trials on; "
        "0: none (a search: as many as hold a tenth of the rows).",
    )


class Rows(Parameters):
    """Which rows are read, and how many at once."""

    group: ClassVar[str] = "Stream"

    batch_size: Annotated[int | None, CURVE, Formerly(MOST_ROWS), Searchable(multiples=(1, 2, 4, 8))] = Field(
        None,
        ge=1,
        description="Rows in a batch, over all ranks together; empty: all rows, at most 2^20 (the notebook's preset: "
        "2^20, beginning again where the rows end).",
    )
    on_bad_rows: Annotated[Literal["error", "quarantine"], CURVE] = Field(
        "error",
        description="A row that cannot be read, or breaks the contract: error stops the run and names it; quarantine "
        "leaves it out, counts it and lists it in a side file.",
    )
    cache_dir: Annotated[str | None, SPEED] = Field(
        None,
        min_length=1,
        description=f"Folder of decoded shards and of lists of bad rows, shared by runs; empty: {STATE}/cache.",
    )


class Reading(Rows):
    """How rows are read ahead, and kept."""

    group: ClassVar[str] = "Stream"

    prefetch: Annotated[int, SPEED] = Field(2, ge=1, le=64, description="Batches made ready ahead of the one in use.")
    cache: Annotated[bool, SPEED] = Field(
        True, description="Keep decoded shards on local disk, so that they are fetched once."
    )
    cache_bytes: Annotated[int | None, SPEED] = Field(
        None, ge=0, description="Most bytes that the cache may hold; empty: four fifths of what the disk has free."
    )


class Stream(Reading):
    """How rows become the batches of a training."""

    seed: Annotated[int, CURVE, Searchable(high=2**31)] = Field(
        0, ge=0, lt=2**63, description="Seed of the initial weights and of the shuffling."
    )
    shuffle: Annotated[bool, CURVE] = Field(
        False, description="New order in each epoch: shards permuted, rows shuffled in windows; false: as stored."
    )
    num_workers: Annotated[int, SPEED] = Field(
        0, ge=0, le=64, description="DataLoader worker processes that read and decode; 0: threads of the trainer."
    )
