"""Shards whose rows say what they are (shard, line, version), and passes over them that are held against a manifest.

`test_stream_machine.py` interleaves them with whatever may befall store, cache and process.
"""

import resource
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from tasks.streaming import CacheSettings, Manifest, ObjectStorageDataset, Placement, RetryPolicy, dataset
from tasks.streaming.arithmetic import shard_order, window_permutation
from tests.servers import BUCKET, make_client

HEADER = b"shard,line,version\n"
NAMES = [f"part-{number:05d}.csv" for number in range(4)]
SPOILING = b"0123456789,\nx\0"
RETRY = RetryPolicy(deadline_seconds=20.0)
NOWHERE = (np.nan, np.nan, np.nan)  # stands where no row may be handed out: equal to nothing


def compose(number: int, rows: int, version: int) -> bytes:
    """A shard of so many rows; of as many bytes as any other version of it."""
    return HEADER + b"".join(b"%d,%d,%d\n" % (number, line, version) for line in range(rows))


def parse(data: bytes) -> list[tuple[float, ...] | None] | None:
    """The rows of a shard, None for a line that is none; None for a shard without its header line."""
    if not data.startswith(HEADER):
        return None if data else []
    cells = [line.split(b",") for line in data.removeprefix(HEADER).split(b"\n") if line]
    return [tuple(map(float, row)) if len(row) == 3 and all(map(bytes.isdigit, row)) else None for row in cells]


class Folder:
    """Shards in a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.url = f"{path}"
        self.options: dict[str, str] | None = None
        path.mkdir(exist_ok=True)

    def put(self, name: str, data: bytes) -> None:
        (self.path / name).write_bytes(data)

    def remove(self, name: str) -> None:
        (self.path / name).unlink()

    def clear(self) -> None:
        for path in self.path.glob("*.csv"):
            path.unlink()


class Bucket(Folder):
    """Shards in a bucket of a real S3 server."""

    def __init__(self, endpoint: str) -> None:
        self.client = make_client(endpoint)
        self.url, self.options = f"s3://{BUCKET}", {"endpoint_url": endpoint}

    def put(self, name, data):
        self.client.put_object(Bucket=BUCKET, Key=name, Body=data)

    def remove(self, name):
        self.client.delete_object(Bucket=BUCKET, Key=name)

    def clear(self):
        for entry in self.client.list_objects_v2(Bucket=BUCKET).get("Contents", []):
            self.remove(entry["Key"])


@dataclass
class Listing:
    """A manifest, the bytes of every shard when it was listed, and how far a run over it came."""

    manifest: Manifest
    data: dict[str, bytes]
    revision: int  # of the store; -1 where its metadata did not fit it
    reached: int = 0

    def rows(self, manifest: Manifest, quarantine: bool) -> np.ndarray:
        """[rows, 3]: what may be handed out, by its place; NOWHERE where nothing may."""
        found: list[tuple[float, ...]] = []
        for shard in manifest.shards:
            lines = parse(self.data[shard.uri.rsplit("/", 1)[1]]) or []
            rows = [row or NOWHERE for row in lines if row or not quarantine]
            found += rows if len(rows) == shard.rows else [NOWHERE] * shard.rows
        return np.array(found)

    def may_fail(self, quarantine: bool) -> bool:
        """Whether something that was listed breaks the contract."""
        shards = [parse(data) for data in self.data.values()]
        good = [row is not None for lines in shards for row in lines or []]
        return None in shards or (not any(good) if quarantine else not all(good))


@dataclass(frozen=True)
class How:
    """How a pass is made."""

    batch_size: int
    epochs: int
    world_size: int
    shuffle: bool
    quarantine: bool
    cached: bool
    limit: int | None
    in_memory: int


def order_rows(manifest: Manifest, shuffle: bool, epoch: int) -> np.ndarray:
    """The places of an epoch's rows in the manifest, in the order in which they are handed out."""
    if not shuffle:
        return np.arange(manifest.rows)
    first = np.cumsum([0, *manifest.counts])
    order = shard_order(len(manifest.shards), 0, epoch)
    shards = np.concatenate([np.arange(first[index], first[index + 1]) for index in order])
    return shards[window_permutation(manifest.rows, 0, epoch, 0)]


class Pass:
    """A stream, and what each of its batches must hold."""

    def __init__(self, store: Folder, cache: Path, listing: Listing, how: How, rank: int) -> None:
        self.how, self.rank, self.iteration = how, rank, listing.reached
        self.dataset = ObjectStorageDataset.from_manifest(
            listing.manifest,
            batch_size=how.batch_size,
            epochs=how.epochs,
            shuffle=how.shuffle,
            start=listing.reached,
            placement=Placement(rank=rank, world_size=how.world_size),
            on_bad_rows="quarantine" if how.quarantine else "error",
            cache=CacheSettings(enabled=how.cached, folder=cache, limit_bytes=how.limit),
            storage_options=store.options,
            retry=RETRY,
        )
        self.left = len(self.dataset)
        self.rows = listing.rows(self.dataset.manifest, how.quarantine)
        self.batches: Iterator[torch.Tensor] = iter(self.dataset)

    def through_workers(self) -> None:
        """Take the batches from two forked processes of a DataLoader."""
        loader = DataLoader(self.dataset, batch_size=None, num_workers=2, multiprocessing_context="fork")
        self.batches = iter(loader)

    def check(self, found: np.ndarray) -> None:
        """Compare the next batch, to the last cell, with what the manifest has at its place."""
        length, size = len(self.rows), self.how.batch_size
        first = self.iteration * size
        last = min(first + size, self.how.epochs * length)
        low, high = ((self.rank + step) * (last - first) // self.how.world_size for step in (0, 1))
        places = [
            order_rows(self.dataset.manifest, self.how.shuffle, place // length)[place % length]
            for place in range(first + low, first + high)
        ]
        expected = self.rows[places].reshape(-1, 3)
        same = len(found) == len(expected) and (not len(found) or (found == expected).all())  # no rows: of any columns
        assert same, f"iteration {self.iteration}: {found} handed out, not {expected}"
        self.iteration += 1
        self.left -= 1

    def take(self, most: int) -> None:
        """Take so many batches, or those that are left, and hold each against the manifest."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(dataset, "IN_MEMORY", self.how.in_memory)
            for _ in range(most):
                batch = next(self.batches, None)
                if batch is None:
                    assert self.left == 0, f"the pass ended {self.left} batches early"
                    return
                self.check(batch.numpy())

    def close(self) -> None:
        """End the pass midway: its threads and processes are gone afterwards."""
        if hasattr(self.batches, "close"):
            self.batches.close()
        else:  # of a DataLoader, which ends its workers when nobody holds it: the frames of an error may
            self.batches._shutdown_workers()  # type: ignore[attr-defined]
        del self.batches


def run_in_child(passed: Pass, pipe, file_size: int | None) -> None:
    """Hand the batches of a pass to the parent; no file may grow beyond `file_size`, as on a full disk."""
    if file_size is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_size, file_size))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    dataset.IN_MEMORY = passed.how.in_memory
    try:
        for batch in passed.batches:
            pipe.send(batch.numpy())
        pipe.send(None)
    except Exception as error:
        pipe.send(error)
