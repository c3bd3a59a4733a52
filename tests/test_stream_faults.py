"""What networks and stores do to a stream, in front of two S3 servers: the identical stream, or the error by its name.

Every fault befalls the second of three shards. Whatever happens, rows of a shard that is not whole and as listed never
reach a batch, and requests stay few: one layer only tries again.
"""

import time
from dataclasses import dataclass

import pytest
import torch

from tasks.errors import (
    BucketError,
    CredentialsError,
    RowCountError,
    RowError,
    ShardChangedError,
    ShardError,
    ShardsNotFoundError,
    TransferError,
)
from tasks.streaming import Manifest, ObjectStorageDataset, RetryPolicy, locate
from tests.faults import (
    FOREVER,
    AddHeaders,
    BreakOff,
    Edit,
    Fault,
    FaultProxy,
    FlipBit,
    IgnoreRange,
    Refuse,
    Sequence,
    ShiftRange,
    Shorten,
)
from tests.servers import BUCKET, make_client, serve_moto, serve_rclone, upload
from tests.shards import draw_rows, hash_rows, to_csv, write_shards

COUNTS = (2000, 30_000, 2000)
KEY = "part-00001.csv"
PATIENT = 8.0  # seconds; a connection that brings too little is given up after a quarter of it, on a busy machine too
DEADLINE = 5.0  # seconds, where it is to pass; other shards, too, have to come in it
AT_ONCE = 2.0  # seconds, for what waits for no deadline
SLACK = 2.5  # seconds beyond the deadline, on a busy machine, and less than it once more


@dataclass
class Served:
    """A server with the shards, what was listed there, and all rows."""

    name: str
    url: str
    manifest: Manifest
    rows: torch.Tensor


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("s3")
    write_shards(folder / BUCKET, COUNTS, metadata=True)
    return folder


@pytest.fixture(scope="module", params=["moto", "rclone"])
def served(request, folder):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", "key")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        with serve_moto() if request.param == "moto" else serve_rclone(folder) as url:
            if request.param == "moto":
                upload(url, folder / BUCKET)
            manifest = locate(f"s3://{BUCKET}/part*.csv", storage_options={"endpoint_url": url})
            yield Served(request.param, url, manifest, torch.from_numpy(draw_rows(sum(COUNTS))))


def stream(proxy, manifest, deadline=PATIENT, **options):
    """One pass in batches of the first shard's size."""
    return ObjectStorageDataset.from_manifest(
        manifest,
        batch_size=COUNTS[0],
        epochs=1,
        storage_options={"endpoint_url": proxy.url},
        retry=RetryPolicy(deadline_seconds=deadline),
        **options,
    )


SLOW_DOWN = Refuse(503, "SlowDown")
PASSING = {
    "nothing": (Fault(), 0, 1),
    "503 three times": (SLOW_DOWN, 3, 4),
    "500 twice": (Refuse(500, "InternalError"), 2, 3),
    "429 once": (Refuse(429, "TooManyRequests"), 1, 2),
    "reset at the first byte": (BreakOff(0, "reset"), 1, 2),
    "reset amid the body": (BreakOff(345_678, "reset"), 1, 2),
    "reset three times, further on each time": (BreakOff(200_001, "reset"), 3, 4),
    "end amid the body": (BreakOff(234_567), 1, 2),
    "end before the last byte": (BreakOff(-1), 1, 2),
    "stall amid the body": (BreakOff(123_456, "stall"), 1, 2),
    "trickle": (BreakOff(123_456, "trickle"), 1, 2),
    "short body that says so": (Shorten(400_000), 1, 2),
    "ignored range": (Sequence((BreakOff(300_000), IgnoreRange())), 2, 3),
    "broken in four different ways": (
        Sequence((BreakOff(100_000, "reset"), SLOW_DOWN, BreakOff(100_000), BreakOff(9, "stall"))), 4, 5,
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", PASSING)
def test_what_passes_leaves_the_stream_identical(case, served):
    fault, times, requests = PASSING[case]
    with FaultProxy(served.url, fault, key=KEY, times=times) as proxy:
        assert hash_rows(stream(proxy, served.manifest)) == hash_rows([served.rows])
    assert proxy.gets == requests


LASTING = {
    "503 for ever": (SLOW_DOWN, TransferError, "gave up after .*503 SlowDown", 8),
    "500 for ever": (Refuse(500, "InternalError"), TransferError, "500 InternalError", 8),
    "reset for ever": (BreakOff(0, "reset"), TransferError, "gave up after", 8),
    "stall for ever": (BreakOff(0, "stall"), TransferError, "gave up after", 6),
    "trickle for ever": (
        BreakOff(100, "trickle"), TransferError, "(bytes a second came|the deadline passed|Read time(out|d out))", 6,
    ),
    "no byte more": (Shorten(0), TransferError, "early", 8),
    "flipped bit": (FlipBit(654_321), ShardChangedError, "the content's MD5 is .*, its ETag", 1),
    "another range": (
        Sequence((BreakOff(300_000), ShiftRange())),
        ShardChangedError, "asked for bytes 300000-.* was sent 'bytes 299999-", 2,
    ),
    "deleted": (Refuse(404, "NoSuchKey"), ShardChangedError, "is gone: it was listed", 1),
    "replaced": (Refuse(412, "PreconditionFailed"), ShardChangedError, "was replaced since it was listed", 1),
    "range not satisfiable": (
        Sequence((BreakOff(300_000), Refuse(416, "InvalidRange"))),
        ShardChangedError, "shorter than it was when listed", 2,
    ),
    "expired token": (Refuse(400, "ExpiredToken"), CredentialsError, "refused the credentials .*ExpiredToken", 2),
    "wrong signature": (Refuse(403, "SignatureDoesNotMatch"), CredentialsError, "SignatureDoesNotMatch", 1),
    "denied": (Refuse(403, "AccessDenied"), BucketError, r"denied access to s3://shards/part-00001.csv", 1),
    "bucket gone": (Refuse(404, "NoSuchBucket"), BucketError, "There is no bucket shards", 1),
    "another region": (
        Refuse(301, "PermanentRedirect", {"x-amz-bucket-region": "eu-west-1"}), BucketError, "another region", 4,
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", LASTING)
def test_what_lasts_is_named_in_time_and_no_row_of_the_shard_was_used(case, served):
    fault, error, message, requests = LASTING[case]
    deadline = DEADLINE if "for ever" in case else PATIENT
    used = []
    began = time.monotonic()
    with FaultProxy(served.url, fault, key=KEY, times=FOREVER) as proxy, pytest.raises(error, match=message) as caught:
        used.extend(stream(proxy, served.manifest, deadline))
    assert time.monotonic() - began < (deadline if error is TransferError else AT_ONCE) + SLACK
    assert "part-00001.csv" in str(caught.value) or error is BucketError
    assert 1 <= proxy.gets <= requests
    assert hash_rows(used) == hash_rows([served.rows[: COUNTS[0]]])


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda data: to_csv(draw_rows(COUNTS[1], seed=8)), ShardError),
        (lambda data: data[:-300], ShardError),
        (lambda data: data + b"1,2,3\n", ShardError),
        (lambda data: data.replace(b".25,", b".75,", 1), ShardError),
        (lambda data: None, ShardChangedError),
    ],
    ids=["other rows", "fewer rows", "more rows", "one other digit", "deleted"],
)
def test_an_object_that_changes_after_it_was_listed_is_never_used(change, error, served):
    client = make_client(served.url)
    data = client.get_object(Bucket=BUCKET, Key=KEY)["Body"].read()
    changed = change(data)
    used = []
    try:
        if changed is None:
            client.delete_object(Bucket=BUCKET, Key=KEY)
        else:
            client.put_object(Bucket=BUCKET, Key=KEY, Body=changed)
        with FaultProxy(served.url, Fault(), key=KEY) as proxy, pytest.raises(error, match=KEY):
            used.extend(stream(proxy, served.manifest))
    finally:
        client.put_object(Bucket=BUCKET, Key=KEY, Body=data)
    assert hash_rows(used) == hash_rows([served.rows[: COUNTS[0]]])


def test_an_object_that_is_replaced_amid_reading_is_never_used(served):
    """The first part is of the listed object, the rest of another one of the same size."""
    client = make_client(served.url)
    data = client.get_object(Bucket=BUCKET, Key=KEY)["Body"].read()
    other = data.replace(b".25,", b".75,")

    @dataclass(frozen=True)
    class Replace(Fault):
        def change(self, answer):
            client.put_object(Bucket=BUCKET, Key=KEY, Body=other)
            return BreakOff(300_000).change(answer)

    try:
        with FaultProxy(served.url, Replace(), key=KEY, times=1) as proxy, pytest.raises(ShardChangedError):
            list(stream(proxy, served.manifest))
    finally:
        client.put_object(Bucket=BUCKET, Key=KEY, Body=data)


KMS = {"x-amz-server-side-encryption": "aws:kms"}
CUSTOMER_KEY = {"x-amz-server-side-encryption-customer-algorithm": "AES256"}


@pytest.mark.parametrize("headers", [KMS, CUSTOMER_KEY], ids=["KMS", "customer key"])
def test_an_etag_that_only_looks_like_an_md5_is_not_compared(headers, served):
    """With SSE-KMS and SSE-C the ETag is 32 hexadecimal digits too, but not the content's MD5."""
    facts = served.manifest.to_dict()
    facts["shards"][1]["etag"] = etag = "0123456789abcdef" * 2
    del facts["fingerprint"]
    manifest = Manifest.from_dict(facts)

    @dataclass(frozen=True)
    class Encrypted(AddHeaders):
        def prepare(self, asked):
            asked.pop("If-Match", None)

    with FaultProxy(served.url, Encrypted(headers | {"ETag": f'"{etag}"'}), key=KEY) as proxy:
        assert hash_rows(stream(proxy, manifest)) == hash_rows([served.rows])


def test_an_etag_of_an_object_encrypted_by_s3_is_its_md5(served):
    answer = AddHeaders({"x-amz-server-side-encryption": "AES256"})
    with FaultProxy(served.url, Sequence((answer, FlipBit(5000))), key=KEY) as proxy:
        assert hash_rows(stream(proxy, served.manifest)) == hash_rows([served.rows])
        with pytest.raises(ShardChangedError, match="MD5"):
            list(stream(proxy, served.manifest))


def test_an_expired_token_is_renewed_once_where_the_chain_has_another(served):
    with FaultProxy(served.url, Refuse(400, "ExpiredToken"), key=KEY, times=1) as proxy:
        assert hash_rows(stream(proxy, served.manifest)) == hash_rows([served.rows])
    assert proxy.gets == 2


def find(proxy, deadline=PATIENT, **options):
    options |= {"storage_options": {"endpoint_url": proxy.url}, "retry": RetryPolicy(deadline_seconds=deadline)}
    return locate(f"s3://{BUCKET}/part*.csv", **options)


LISTINGS = {
    "empty": (Edit(rb"<Contents>.*</Contents>", b""), ShardsNotFoundError, "matches nothing"),
    "partial": (
        Edit(rb"<Contents>((?!</Contents>).)*part-00001.csv.*?</Contents>", b""),
        RowCountError,
        "no such shard was listed",
    ),
    "503 for ever": (SLOW_DOWN, TransferError, "listing s3://shards/.*gave up after"),
    "expired token": (Refuse(400, "ExpiredToken"), CredentialsError, "ExpiredToken"),
    "no bucket": (Refuse(404, "NoSuchBucket"), BucketError, "There is no bucket shards"),
    "denied": (Refuse(403, "AccessDenied"), BucketError, "denied access"),
    "301": (Refuse(301, "PermanentRedirect"), BucketError, "another region"),
}


@pytest.mark.parametrize("case", LISTINGS)
def test_a_listing_that_fails_is_named(case, served):
    fault, error, message = LISTINGS[case]
    deadline = DEADLINE if "for ever" in case else PATIENT
    began = time.monotonic()
    with FaultProxy(served.url, fault, key=None) as proxy, pytest.raises(error, match=message):
        find(proxy, deadline)
    assert time.monotonic() - began < (deadline if error is TransferError else AT_ONCE) + SLACK
    assert proxy.gets <= 8


@pytest.mark.parametrize("fault", [SLOW_DOWN, BreakOff(50, "reset"), BreakOff(50, "stall")])
def test_a_listing_that_fails_for_a_moment_is_repeated(fault, served):
    with FaultProxy(served.url, fault, key=None, times=1) as proxy:
        assert find(proxy) == served.manifest


def test_counting_resumes_as_reading_does(served):
    client = make_client(served.url)
    key = ".meta/shards/part-00000.csv"
    data = client.get_object(Bucket=BUCKET, Key=key)["Body"].read()
    client.delete_object(Bucket=BUCKET, Key=key)
    try:
        with FaultProxy(served.url, BreakOff(300_000, "reset"), key=KEY, times=1) as proxy:
            assert find(proxy).counts == COUNTS
    finally:
        client.put_object(Bucket=BUCKET, Key=key, Body=data)


def test_a_bad_cell_in_s3_is_named_with_its_uri(served):
    client = make_client(served.url)
    client.put_object(Bucket=BUCKET, Key="bad/part-0.csv", Body=b"a,b\n1,2\n1,x\n")
    with pytest.raises(RowError, match=r"s3://shards/bad/part-0.csv, line 3: column 'b' is 'x'"):
        list(ObjectStorageDataset(f"s3://{BUCKET}/bad/*.csv", epochs=1, storage_options={"endpoint_url": served.url}))


@pytest.mark.parametrize("name", ["S3://{}/folder", "s3://{}/folder/", "s3a://{}/folder/x[1].csv"])
def test_a_folder_a_scheme_in_capitals_and_brackets_in_a_name_are_understood(name, served):
    make_client(served.url).put_object(Bucket=BUCKET, Key="folder/x[1].csv", Body=b"a,b\n1,2\n")
    manifest = locate(name.format(BUCKET), storage_options={"endpoint_url": served.url})
    assert (manifest.counts, manifest.shards[0].uri.rpartition("/")[2]) == ((1,), "x[1].csv")


def test_parquet_in_s3_is_read_and_resumed(served, tmp_path):
    import pyarrow
    from pyarrow import parquet

    rows = draw_rows(50_000)
    parquet.write_table(pyarrow.table({"a": rows[:, 0], "b": rows[:, 1]}), tmp_path / "part-0.parquet")
    data = (tmp_path / "part-0.parquet").read_bytes()
    make_client(served.url).put_object(Bucket=BUCKET, Key="parquet/part-0.parquet", Body=data)
    with FaultProxy(served.url, BreakOff(1000, "reset"), key="part-0.parquet", times=2) as proxy:
        options = {"endpoint_url": proxy.url}
        dataset = ObjectStorageDataset(f"s3://{BUCKET}/parquet/*.parquet", epochs=1, storage_options=options)
        assert torch.cat(list(dataset)).tolist() == rows[:, :2].tolist()


def test_anonymous_requests_are_not_signed(served):
    options = {"anon": True, "endpoint_url": served.url}
    dataset = ObjectStorageDataset(f"s3://{BUCKET}/part*.csv", batch_size=5000, epochs=1, storage_options=options)
    assert hash_rows(dataset) == hash_rows([served.rows])
