"""Shards on a web server behind the faults of a network: the identical stream, or an error by its name, in time."""

import itertools
import socket
import time

import pytest
import torch

from tasks.errors import BucketError, ConfigurationError, ShardChangedError, ShardsNotFoundError, TransferError
from tasks.streaming import ObjectStorageDataset, RetryPolicy, locate
from tests.faults import BreakOff, Fault, FaultProxy, Refuse, Sequence, Shorten
from tests.servers import BUCKET, serve_moto, upload
from tests.shards import draw_rows, hash_rows, write_shards

COUNTS = (2000, 30_000, 2000)
KEY = "part-00001.csv"
DEADLINE, SLACK = 3.0, 2.5  # seconds


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """The URL of a web server with three shards; moto's S3, which answers anyone."""
    folder = tmp_path_factory.mktemp("web")
    write_shards(folder, COUNTS)
    with pytest.MonkeyPatch.context() as patch:
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.setenv(name, "key")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        with serve_moto() as url:
            upload(url, folder)
            yield url


def addresses(proxy):
    return [f"{proxy.url}/{BUCKET}/part-{number:05d}.csv" for number in range(3)]


RETRY = RetryPolicy(deadline_seconds=DEADLINE)
UNAVAILABLE = Refuse(503, "ServiceUnavailable")
PASSING = {
    "nothing": (Fault(), 0),
    "503 three times": (UNAVAILABLE, 3),
    "429 twice": (Refuse(429, "TooManyRequests"), 2),
    "reset amid the body": (BreakOff(345_678, "reset"), 1),
    "end amid the body": (BreakOff(234_567), 1),
    "stall amid the body": (BreakOff(123_456, "stall"), 1),
}


@pytest.mark.parametrize("case", PASSING)
def test_what_passes_leaves_the_stream_identical(case, server):
    fault, times = PASSING[case]
    with FaultProxy(server, Fault(), key=KEY) as proxy:
        manifest = locate(addresses(proxy), retry=RETRY)
        proxy.fault, proxy.times = fault, times
        proxy._count = itertools.count()
        dataset = ObjectStorageDataset.from_manifest(manifest, batch_size=2000, epochs=1, retry=RETRY)
        assert hash_rows(dataset) == hash_rows([torch.from_numpy(draw_rows(sum(COUNTS)))])


LASTING = {
    "503 for ever": (UNAVAILABLE, TransferError, "gave up after .*answered 503"),
    "reset for ever": (BreakOff(0, "reset"), TransferError, "gave up after"),
    "stall for ever": (BreakOff(0, "stall"), TransferError, "gave up after"),
    "denied": (Refuse(403, "AccessDenied"), BucketError, r"denied access to http.*part-00001.csv \(403\)"),
    "deleted": (Refuse(404, "NoSuchKey"), ShardChangedError, "part-00001.csv is gone: it was listed"),
    "shorter": (Shorten(400_000), ShardChangedError, "part-00001.csv: .* states no size of it any more"),
}


@pytest.mark.parametrize("case", LASTING)
def test_what_lasts_is_named_in_time_and_no_row_of_the_shard_was_used(case, server):
    fault, error, message = LASTING[case]
    used: list[torch.Tensor] = []
    with FaultProxy(server, Fault(), key=KEY) as proxy:
        manifest = locate(addresses(proxy), retry=RETRY)
        proxy.fault = fault
        dataset = ObjectStorageDataset.from_manifest(manifest, batch_size=2000, epochs=1, retry=RETRY)
        began = time.monotonic()
        with pytest.raises(error, match=message):
            used.extend(dataset)
        assert time.monotonic() - began < DEADLINE + SLACK
    assert hash_rows(used) == hash_rows([torch.from_numpy(draw_rows(sum(COUNTS))[:2000])])


LISTINGS = {
    "403": (Refuse(403, "AccessDenied"), BucketError, r"denied access to http.*part-00001.csv \(403\)"),
    "401": (Refuse(401, "Unauthorized"), BucketError, r"\(401\)"),
    "400": (Refuse(400, "BadRequest"), ConfigurationError, "answered 400 when asked for"),
    "404": (Refuse(404, "NoSuchKey"), ShardsNotFoundError, "matches nothing"),
    "503 for ever": (UNAVAILABLE, TransferError, "listing http.*gave up after .*answered 503"),
}


@pytest.mark.parametrize("case", LISTINGS)
def test_a_listing_that_fails_is_named(case, server):
    fault, error, message = LISTINGS[case]
    with FaultProxy(server, fault, key=KEY) as proxy, pytest.raises(error, match=message):
        locate(f"{proxy.url}/{BUCKET}/{KEY}", retry=RETRY)


@pytest.mark.parametrize("fault", [UNAVAILABLE, Sequence((UNAVAILABLE,) * 4)])
def test_a_listing_that_fails_for_a_moment_is_repeated(fault, server):
    with FaultProxy(server, fault, key=KEY, times=4) as proxy:
        assert locate(f"{proxy.url}/{BUCKET}/{KEY}", retry=RETRY).counts == (COUNTS[1],)


@pytest.mark.parametrize("pattern", ["part-00001.csv", "part*.csv"])
def test_a_server_that_is_not_there_is_named(pattern, monkeypatch):
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        refused = f"http://127.0.0.1:{held.getsockname()[1]}/{pattern}"
        with pytest.raises(TransferError, match=r"gave up after .*127.0.0.1"):
            locate(refused, retry=RETRY)

    def find_no_host(*_, **__):
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", find_no_host)
    with pytest.raises(ConfigurationError, match=r"there is no host nowhere.invalid \(asked for"):
        locate(f"http://nowhere.invalid/{pattern}", retry=RETRY)
