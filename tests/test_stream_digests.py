"""What S3 states of an object's content is compared, whichever kind it is; what is of its parts only is not."""

import base64
import zlib

import numpy as np
import pytest
from torch.utils.data import DataLoader

from tasks.errors import ShardChangedError
from tasks.streaming import ObjectStorageDataset, locate
from tasks.streaming.objects import digests
from tests.faults import AddHeaders, BreakOff, Fault, FaultProxy, FlipBit, Sequence
from tests.servers import BUCKET, serve_rclone
from tests.shards import draw_rows, hash_rows, write_shards

COUNTS = (500, 20_000, 500)
KEY = "part-00001.csv"
POLYNOMIAL = 0x9A6C9329AC4BC9B5  # CRC-64/NVME, reflected: https://reveng.sourceforge.io/crc-catalogue/17plus.htm


def crc64nvme(data):
    """By its definition, a byte at a time: slow, and nobody else's."""
    table = []
    for byte in range(256):
        for _ in range(8):
            byte = byte >> 1 ^ (POLYNOMIAL if byte & 1 else 0)
        table.append(byte)
    value = 2**64 - 1
    for byte in data:
        value = table[(value ^ byte) & 255] ^ value >> 8
    return value ^ (2**64 - 1)


def test_the_definition_gives_the_catalogues_check_value():
    assert crc64nvme(b"123456789") == 0xAE8B14860A799888


def encode(value, length):
    return base64.b64encode(value.to_bytes(length, "big")).decode()


class Headers(Fault):
    """Headers added to every answer, of each of these faults too."""

    def __init__(self, headers, fault=Fault()):  # noqa: B008
        self.added, self.fault = AddHeaders(headers), fault

    def prepare(self, headers):
        self.fault.prepare(headers)

    def change(self, answer):
        return self.fault.change(self.added.change(answer))


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """A server's URL, the manifest listed there, and the second shard's content."""
    folder = tmp_path_factory.mktemp("s3")
    write_shards(folder / BUCKET, COUNTS, metadata=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", "key")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        with serve_rclone(folder) as url:
            manifest = locate(f"s3://{BUCKET}/part*.csv", storage_options={"endpoint_url": url})
            yield url, manifest, (folder / BUCKET / KEY).read_bytes()


@pytest.fixture(params=["awscrt", "without"])
def functions(request, monkeypatch):
    """Digests by awscrt, or without it."""
    if request.param == "awscrt":
        pytest.importorskip("awscrt.checksums", reason="awscrt is not installed")
    else:
        monkeypatch.setattr(digests, "_find_functions", lambda: {"CRC32": zlib.crc32})
    return request.param


def read(served, fault):
    """Which digest the shard was checked by."""
    url, manifest, _ = served
    with FaultProxy(url, fault, key=KEY) as proxy:
        stream = ObjectStorageDataset.from_manifest(
            manifest, batch_size=1000, epochs=1, storage_options={"endpoint_url": proxy.url}
        )
        rows = np.concatenate([batch.numpy() for batch in stream])
    assert np.array_equal(rows, draw_rows(sum(COUNTS)))
    return stream.checks[f"s3://{BUCKET}/{KEY}"]


KMS = {"x-amz-server-side-encryption": "aws:kms"}
WHOLE = {"x-amz-checksum-type": "FULL_OBJECT"}
PARTS = {"x-amz-checksum-type": "COMPOSITE"}


def stated(data, crc64=None, crc32=None):
    return {
        **({"x-amz-checksum-crc64nvme": encode(crc64nvme(data) ^ crc64, 8)} if crc64 is not None else {}),
        **({"x-amz-checksum-crc32": encode(zlib.crc32(data) ^ crc32, 4)} if crc32 is not None else {}),
    }


@pytest.mark.parametrize(
    ("crcs", "headers", "expected"),
    [
        ({}, {}, {"awscrt": "MD5", "without": "MD5"}),
        ({"crc64": 0}, WHOLE, {"awscrt": "CRC64NVME", "without": "MD5"}),
        ({"crc64": 0}, WHOLE | KMS, {"awscrt": "CRC64NVME", "without": "size and ETag"}),
        ({"crc32": 0}, WHOLE, {"awscrt": "CRC32", "without": "MD5"}),
        ({"crc32": 0}, WHOLE | KMS, {"awscrt": "CRC32", "without": "CRC32"}),
        ({"crc32": 1}, PARTS, {"awscrt": "MD5", "without": "MD5"}),  # of its parts: nothing to compare with
        ({"crc32": 1}, PARTS | KMS, {"awscrt": "size and ETag", "without": "size and ETag"}),
        ({"crc64": 0, "crc32": 1}, PARTS | KMS, {"awscrt": "CRC64NVME", "without": "size and ETag"}),
    ],
)
def test_the_best_digest_that_is_stated_of_the_whole_is_compared(served, functions, crcs, headers, expected):
    assert read(served, AddHeaders(stated(served[2], **crcs) | headers)) == expected[functions]


@pytest.mark.parametrize("crcs", [{"crc64": 1}, {"crc64": 2**63, "crc32": 0}, {"crc32": 1}])
def test_a_digest_that_does_not_fit_is_an_error_with_both_values(served, crcs):
    pytest.importorskip("awscrt.checksums", reason="awscrt is not installed")
    with pytest.raises(ShardChangedError, match=rf"{KEY}: the content's CRC(64NVME|32) is [0-9a-f]+, the one that is"):
        read(served, AddHeaders(stated(served[2], **crcs) | WHOLE))


def test_a_flipped_bit_of_an_object_under_kms_is_found(served, functions):
    headers = stated(served[2], crc64=0, crc32=0) | WHOLE | KMS
    with pytest.raises(ShardChangedError, match=r"the content's CRC(64NVME|32) is .*: the bytes were damaged"):
        read(served, Headers(headers, FlipBit(300_000)))


def test_a_digest_goes_on_through_broken_connections(served, functions):
    """Of the answers to ranges that follow, none is asked for a digest, nor would one count."""
    data = served[2]
    wrong = AddHeaders(stated(data, crc64=1, crc32=1))
    right = stated(data, crc64=0) | WHOLE
    sent = (Headers(right, BreakOff(100_000)), Headers(wrong.headers, BreakOff(50_000)), wrong)
    assert read(served, Sequence(sent)) == {"awscrt": "CRC64NVME", "without": "MD5"}[functions]


def test_what_was_in_the_cache_is_said_to_be(served, tmp_path):
    from tasks.streaming import CacheSettings

    url, manifest, _ = served
    found = []
    for _ in range(2):
        stream = ObjectStorageDataset.from_manifest(
            manifest, epochs=1, storage_options={"endpoint_url": url}, cache=CacheSettings(folder=tmp_path)
        )
        hash_rows(stream)
        found.append(set(stream.checks.values()))
    assert found == [{"MD5"}, {"cache"}]


def test_workers_that_are_forked_after_use_read_s3_too(served):
    """awscrt signs where it is installed: it must do so on both sides of a fork."""
    url, manifest, _ = served
    stream = ObjectStorageDataset.from_manifest(
        manifest, batch_size=1000, epochs=1, storage_options={"endpoint_url": url}
    )
    expected = hash_rows(stream)
    assert hash_rows(DataLoader(stream, batch_size=None, num_workers=2, multiprocessing_context="fork")) == expected
