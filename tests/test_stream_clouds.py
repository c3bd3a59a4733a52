"""What Google's and Azure's refusals become, raised as gcsfs 2026.10.1 and adlfs 2026.8.0 raise them."""

import importlib

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from tasks.errors import BucketError, ConfigurationError, ShardsNotFoundError, TransferError
from tasks.streaming import ObjectStorageDataset, RetryPolicy, locate

RETRY = RetryPolicy(deadline_seconds=2.0)


class HttpError(Exception):
    """gcsfs's: it states `code`, sometimes as text."""

    def __init__(self, code):
        super().__init__(f"as asked, {code}")
        self.code = code


class HttpResponseError(Exception):
    """Azure's: it states `status_code`."""

    def __init__(self, status_code):
        super().__init__("as asked")
        self.status_code = status_code


class ServiceResponseError(Exception):
    """Azure's, of a connection that broke."""


ServiceResponseError.__module__ = "azure.core.exceptions"


class Cloud(MemoryFileSystem):  # type: ignore[misc]
    """Objects that are there, until `error` is raised in place of an answer; so many times, or for ever."""

    store: dict[str, object] = {}  # noqa: RUF012
    pseudo_dirs = [""]  # noqa: RUF012
    error: Exception | None = None
    times = 10**9

    @classmethod
    def _strip_protocol(cls, path):
        return "/" + str(path).removeprefix(f"{cls.protocol}://").strip("/")

    def unstrip_protocol(self, name):
        return f"{self.protocol}://{name.lstrip('/')}"

    @classmethod
    def answer(cls):
        cls.times -= 1
        if cls.error is not None and cls.times >= 0:
            raise cls.error

    def glob(self, path, **options):
        self.answer()
        return super().glob(path, **options)

    def _open(self, *given, **options):
        self.answer()
        return super()._open(*given, **options)


@pytest.fixture(params=["gs", "abfs"])
def cloud(request, monkeypatch):
    """The address of a shard, and the filesystem that has it."""
    found = type("Found", (Cloud,), {"protocol": request.param, "store": {}, "pseudo_dirs": [""]})
    monkeypatch.setitem(importlib.import_module("fsspec.registry")._registry, request.param, found)
    with found().open("/bucket/x.csv", "wb") as file:
        file.write(b"a,b\n1,2\n3,4\n")
    return f"{request.param}://bucket/x.csv", found


LASTING = {
    "401": (HttpError(401), BucketError, r"access to .*://bucket/x.csv is denied \(401\)"),
    "403 of Google": (OSError("Forbidden: b/bucket/o\nas asked"), BucketError, r"is denied \(403\)"),
    "403 of Azure": (HttpResponseError(403), BucketError, r"is denied \(403\)"),
    "400": (HttpError("400"), ConfigurationError, "x.csv answered 400: as asked, 400; check the address and storage"),
    "404": (FileNotFoundError("b/bucket/o"), ShardsNotFoundError, "matches nothing"),
    "503": (HttpError(503), TransferError, "gave up after .*its store answered 503"),
    "503 of Azure": (HttpResponseError(503), TransferError, "gave up after .*its store answered 503"),
    "broken": (ServiceResponseError("cut off"), TransferError, "gave up after .*cut off"),
}


@pytest.mark.parametrize("case", LASTING)
def test_a_refusal_is_named(case, cloud):
    uri, filesystem = cloud
    filesystem.error, error, message = LASTING[case]
    with pytest.raises(error, match=message):
        locate(uri, retry=RETRY)


@pytest.mark.parametrize("error", [HttpError(503), HttpResponseError(429), ServiceResponseError("cut off")])
def test_what_passes_is_tried_again(error, cloud):
    uri, filesystem = cloud
    filesystem.error, filesystem.times = error, 1
    manifest = locate(uri, retry=RETRY)
    filesystem.times = 1
    batches = list(ObjectStorageDataset.from_manifest(manifest, epochs=1, retry=RETRY))
    assert [batch.tolist() for batch in batches] == [[[1.0, 2.0], [3.0, 4.0]]]


def test_an_object_that_may_not_be_read_any_more_is_named(cloud):
    uri, filesystem = cloud
    manifest = locate(uri, retry=RETRY)
    filesystem.error = HttpError(403)
    with pytest.raises(BucketError, match=r"is denied \(403\)"):
        list(ObjectStorageDataset.from_manifest(manifest, epochs=1, retry=RETRY))
