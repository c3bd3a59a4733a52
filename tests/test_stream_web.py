"""Shards on a web server behind the faults of a network: the identical stream, or an error by its name, in time."""

import itertools
import os
import socket
import time

import pytest
import torch

from tasks.errors import BucketError, ConfigurationError, ShardChangedError, ShardsNotFoundError, TransferError
from tasks.streaming import ObjectStorageDataset, RetryPolicy, locate
from tests.faults import AddHeaders, BreakOff, Fault, FaultProxy, Refuse, Sequence, ShiftRange, Shorten
from tests.servers import BUCKET, serve_moto, upload
from tests.shards import draw_rows, hash_rows, write_shards

COUNTS = (2000, 30_000, 2000)
KEY = "part-00001.csv"
PATIENT, DEADLINE, SLACK = 8.0, 5.0, 2.5  # seconds: where all is to end well, where the deadline is to pass


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


@pytest.fixture(scope="module")
def authorities():
    """One that is trusted here, and one that is not."""
    pytest.importorskip("cryptography")
    from tests.certificates import make_authority

    return make_authority(), make_authority()


@pytest.fixture(scope="module")
def authority(authorities):
    return authorities[0]


@pytest.fixture(scope="module", params=["http", pytest.param("https", marks=pytest.mark.long)])
def speaking(request, tmp_path_factory):
    """What a proxy serves with, and the options of a client that trusts it."""
    if request.param == "http":
        return {}, {"retry": RETRY}
    authority = request.getfixturevalue("authority")
    serving = authority.serving(tmp_path_factory.mktemp("tls"))
    return {"tls": serving}, {"retry": RETRY, "storage_options": {"ssl": authority.trusting()}}


RETRY, SHORT = RetryPolicy(deadline_seconds=PATIENT), RetryPolicy(deadline_seconds=DEADLINE)
UNAVAILABLE = Refuse(503, "ServiceUnavailable")
PASSING = {
    "nothing": (Fault(), 0),
    "503 three times": (UNAVAILABLE, 3),
    "500 twice": (Refuse(500, "InternalError"), 2),
    "429 twice": (Refuse(429, "TooManyRequests"), 2),
    "reset at the first byte": (BreakOff(0, "reset"), 1),
    "reset three times, further on each time": (BreakOff(200_001, "reset"), 3),
    "end before the last byte": (BreakOff(-1), 1),
    "trickle": (BreakOff(123_456, "trickle"), 1),
    "broken in four different ways": (
        Sequence((BreakOff(100_000, "reset"), UNAVAILABLE, BreakOff(100_000), BreakOff(9, "stall"))),
        4,
    ),
    "reset amid the body": (BreakOff(345_678, "reset"), 1),
    "end amid the body": (BreakOff(234_567), 1),
    "stall amid the body": (BreakOff(123_456, "stall"), 1),
}


@pytest.mark.parametrize("case", PASSING)
def test_what_passes_leaves_the_stream_identical(case, speaking, server):
    fault, times = PASSING[case]
    served, asked = speaking
    with FaultProxy(server, Fault(), key=KEY, **served) as proxy:
        manifest = locate(addresses(proxy), **asked)
        proxy.fault, proxy.times = fault, times
        proxy._count = itertools.count()
        dataset = ObjectStorageDataset.from_manifest(manifest, batch_size=2000, epochs=1, **asked)
        assert hash_rows(dataset) == hash_rows([torch.from_numpy(draw_rows(sum(COUNTS)))])


LASTING = {
    "503 for ever": (UNAVAILABLE, TransferError, "gave up after .*answered 503"),
    "reset for ever": (BreakOff(0, "reset"), TransferError, "gave up after"),
    "stall for ever": (BreakOff(0, "stall"), TransferError, "gave up after"),
    "trickle for ever": (BreakOff(100, "trickle"), TransferError, "gave up after"),
    "500 for ever": (Refuse(500, "InternalError"), TransferError, "gave up after .*answered 500"),
    "no byte more": (Shorten(0), ShardChangedError, "part-00001.csv"),
    "range not satisfiable": (Refuse(416, "InvalidRange"), ShardChangedError, "shorter than it was when listed"),
    "replaced": (AddHeaders({"ETag": '"other"'}), ShardChangedError, "was replaced since it was listed"),
    "bucket gone": (Refuse(404, "NoSuchBucket"), ShardChangedError, "is gone: it was listed"),
    "denied": (Refuse(403, "AccessDenied"), BucketError, r"denied access to http.*part-00001.csv \(403\)"),
    "deleted": (Refuse(404, "NoSuchKey"), ShardChangedError, "part-00001.csv is gone: it was listed"),
    "shorter": (Shorten(400_000), ShardChangedError, "part-00001.csv: .* states no size of it any more"),
}


@pytest.mark.parametrize("case", LASTING)
def test_what_lasts_is_named_in_time_and_no_row_of_the_shard_was_used(case, speaking, server):
    fault, error, message = LASTING[case]
    served, asked = speaking
    used: list[torch.Tensor] = []
    with FaultProxy(server, Fault(), key=KEY, **served) as proxy:
        manifest = locate(addresses(proxy), **asked)
        proxy.fault = fault
        asked = asked | {"retry": SHORT if error is TransferError else RETRY}
        dataset = ObjectStorageDataset.from_manifest(manifest, batch_size=2000, epochs=1, **asked)
        began = time.monotonic()
        with pytest.raises(error, match=message):
            used.extend(dataset)
        assert time.monotonic() - began < DEADLINE + SLACK
    assert hash_rows(used) == hash_rows([torch.from_numpy(draw_rows(sum(COUNTS))[:2000])])


class ShiftLaterRange(ShiftRange):
    def prepare(self, headers):
        if not headers.get("Range", "bytes=0-").startswith("bytes=0-"):
            super().prepare(headers)


def test_other_bytes_than_were_asked_for_are_not_used(speaking, server):
    served, asked = speaking
    asked = asked | {"retry": RetryPolicy(deadline_seconds=DEADLINE, minimum_throughput=2**18)}  # in several pieces
    with FaultProxy(server, Fault(), key=KEY, **served) as proxy:
        manifest = locate(addresses(proxy), **asked)
        proxy.fault = ShiftLaterRange()
        dataset = ObjectStorageDataset.from_manifest(manifest, batch_size=2000, epochs=1, **asked)
        with pytest.raises(ShardChangedError, match=r"asked for bytes=\d+-\d+, was sent 'bytes \d+-"):
            list(dataset)


LISTINGS = {
    "403": (Refuse(403, "AccessDenied"), BucketError, r"denied access to http.*part-00001.csv \(403\)"),
    "401": (Refuse(401, "Unauthorized"), BucketError, r"\(401\)"),
    "400": (Refuse(400, "BadRequest"), ConfigurationError, "answered 400 when asked for"),
    "404": (Refuse(404, "NoSuchKey"), ShardsNotFoundError, "matches nothing"),
    "503 for ever": (UNAVAILABLE, TransferError, "listing http.*gave up after .*answered 503"),
}


@pytest.mark.parametrize("case", LISTINGS)
def test_a_listing_that_fails_is_named(case, speaking, server):
    fault, error, message = LISTINGS[case]
    served, asked = speaking
    asked = asked | {"retry": SHORT if error is TransferError else RETRY}
    with FaultProxy(server, fault, key=KEY, **served) as proxy, pytest.raises(error, match=message):
        locate(f"{proxy.url}/{BUCKET}/{KEY}", **asked)


@pytest.mark.parametrize("fault", [UNAVAILABLE, Sequence((UNAVAILABLE,) * 4)])
def test_a_listing_that_fails_for_a_moment_is_repeated(fault, speaking, server):
    served, asked = speaking
    with FaultProxy(server, fault, key=KEY, times=4, **served) as proxy:
        assert locate(f"{proxy.url}/{BUCKET}/{KEY}", **asked).counts == (COUNTS[1],)


@pytest.mark.parametrize("pattern", ["part-00001.csv", "part*.csv"])
def test_a_server_that_is_not_there_is_named(pattern, monkeypatch):
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        refused = f"http://127.0.0.1:{held.getsockname()[1]}/{pattern}"
        with pytest.raises(TransferError, match=r"gave up after .*127.0.0.1"):
            locate(refused, retry=SHORT)

    def find_no_host(*_, **__):
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", find_no_host)
    with pytest.raises(ConfigurationError, match=r"there is no host nowhere.invalid \(asked for"):
        locate(f"http://nowhere.invalid/{pattern}", retry=RETRY)


@pytest.mark.parametrize(
    ("certificate", "reason"),
    [
        (None, "certificate signature failure|unable to get local issuer certificate"),
        ({"address": "127.0.0.2"}, "IP address mismatch, certificate is not valid for '127.0.0.1'"),
        ({"days": -1}, "certificate has expired"),
    ],
    ids=["of an unknown authority", "for another address", "expired"],
)
def test_a_server_whose_certificate_is_wrong_is_refused_at_once_and_why(certificate, reason, authorities, tmp_path):
    authority, foreign = authorities
    said = (
        rf"^127\.0\.0\.1:\d+ cannot be trusted \(asked for https://.*{KEY}\): .*({reason}).*; check its address and "
        "certificate, or name a file with the authority that signed it in SSL_CERT_FILE$"
    )
    options = {"ssl": authority.trusting()}
    serving = foreign.serving(tmp_path) if certificate is None else authority.serving(tmp_path, **certificate)
    with FaultProxy("http://127.0.0.1:1", Fault(), key=KEY, tls=serving) as proxy:
        with pytest.raises(ConfigurationError, match=said):
            locate(f"{proxy.url}/{BUCKET}/{KEY}", retry=RETRY, storage_options=options)
        assert proxy.gets == 0


def test_a_server_that_speaks_no_tls_is_named(server):
    address = server.replace("http:", "https:")
    with pytest.raises(ConfigurationError, match=r"speaks no TLS that is understood .*or try http://"):
        locate(f"{address}/{BUCKET}/{KEY}", retry=RETRY)


def test_a_handshake_that_is_cut_off_is_tried_again(authority, server, tmp_path, monkeypatch):
    """The first two connections end before the server says a word."""
    with FaultProxy(server, Fault(), key=KEY, tls=authority.serving(tmp_path)) as proxy:
        wrap, cut = proxy._server.get_request, itertools.count()

        def get_request():
            connection, address = wrap()
            if next(cut) < 2:
                socket.socket(fileno=os.dup(connection.fileno())).shutdown(socket.SHUT_RDWR)
            return connection, address

        monkeypatch.setattr(proxy._server, "get_request", get_request)
        options = {"ssl": authority.trusting()}
        found = locate(f"{proxy.url}/{BUCKET}/{KEY}", retry=RETRY, storage_options=options)
    assert found.counts == (COUNTS[1],)
    assert next(cut) > 2
