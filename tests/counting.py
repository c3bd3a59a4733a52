"""What a server is asked for, counted: shards of each kind that it has, and the bytes of its answers."""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.faults import FaultProxy, Noting
from tests.servers import serve_moto, upload
from tests.shards import write_kinds


@contextlib.contextmanager
def serve_kinds(folder: Path, counts: Sequence[int]) -> Iterator[str]:
    """The URL of a server with shards of so many rows below `csv`, `gzip`, `parquet` and `bad`."""
    write_kinds(folder, counts)
    with serve_moto() as url:
        upload(url, folder)
        yield url


@contextlib.contextmanager
def note_answers(url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """The bytes of each answer of a server, which all that is opened meanwhile asks through a proxy."""
    for name, value in (("ACCESS_KEY_ID", "key"), ("SECRET_ACCESS_KEY", "secret"), ("DEFAULT_REGION", "us-east-1")):
        monkeypatch.setenv(f"AWS_{name}", value)
    noting = Noting()
    with FaultProxy(url, noting, key="") as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        yield noting.sent
