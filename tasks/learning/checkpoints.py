"""Checkpoints of a training loop, on any fsspec URL: safetensors for tensors, JSON beside them for all else, no pickle.

`checkpoint-000000012.safetensors` is written first, `checkpoint-000000012.json` (with the SHA-256 of the first) last: a
checkpoint without its JSON, or whose bytes do not match it, is not whole, and the one before it is taken.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from tasks.errors import CheckpointError
from tasks.files import write_whole

KEPT = 2
DAMAGE = (FileNotFoundError, ValueError, KeyError, SafetensorError)  # of one checkpoint, not of the store

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Checkpoint:
    """Where a loop stands: the next iteration, its tensors by name, and plain facts (settings, data, scaling)."""

    iteration: int
    tensors: Mapping[str, Tensor]
    facts: Mapping[str, Any]


class Checkpoints:
    """The checkpoints of one run, in the folder `<url>/<run id>` of a local path or any fsspec URL."""

    def __init__(self, url: str, run_id: str, storage_options: Mapping[str, Any] | None = None) -> None:
        self.folder = f"{url.rstrip('/')}/{run_id}"
        try:
            self._files, self._path = fsspec.core.url_to_fs(self.folder, **(storage_options or {}))
        except (ValueError, ImportError) as error:
            raise CheckpointError(f"checkpoints cannot be kept at {url!r}: {error}") from error

    def write(self, checkpoint: Checkpoint) -> None:
        """Write a checkpoint whole or not at all, then delete all but the last two; else CheckpointError."""
        data = save({name: tensor.contiguous() for name, tensor in checkpoint.tensors.items()})
        facts = {
            "iteration": checkpoint.iteration,
            "sha256": hashlib.sha256(data).hexdigest(),
            "facts": dict(checkpoint.facts),
        }
        name = f"{self._path}/checkpoint-{checkpoint.iteration:09d}"
        with self._translated("written"):
            self._files.makedirs(self._path, exist_ok=True)
            self._put(f"{name}.safetensors", data)
            self._put(f"{name}.json", json.dumps(facts).encode())
            for old in self._names()[:-KEPT]:
                self._files.rm_file(f"{self._path}/{old}.json")
                self._files.rm_file(f"{self._path}/{old}.safetensors")

    @contextmanager
    def _translated(self, done: str, but: tuple[type[Exception], ...] = ()) -> Iterator[None]:
        """Raise what fsspec and the library behind it raise, `but` for some, as CheckpointError."""
        try:
            yield
        except but:
            raise
        except Exception as error:
            raise CheckpointError(f"the checkpoints in {self.folder} cannot be {done}: {error}") from error

    def _put(self, path: str, data: bytes) -> None:
        """Replace one object at once: object stores do that themselves, a local file is renamed into its place."""
        if "file" not in self._files.protocol:
            self._files.pipe_file(path, data)
            return
        write_whole(Path(path), data)

    def _names(self) -> list[str]:
        """Return the names of checkpoints with a JSON, oldest first."""
        if not self._files.exists(self._path):
            return []
        found = (str(path).rsplit("/", 1)[-1] for path in self._files.ls(self._path, detail=False, refresh=True))
        return sorted(name.removesuffix(".json") for name in found if name.endswith(".json"))

    def latest(self, at_most: int | None = None) -> Checkpoint | None:
        """Return the newest checkpoint that is whole, with a warning for each newer one that is not; None without one.

        `at_most` leaves out those of later iterations. Raises CheckpointError where the folder cannot be read.
        """
        with self._translated("read"):
            names = self._names()
        for name in reversed(names):
            if at_most is not None and int(name.removeprefix("checkpoint-")) > at_most:
                continue
            try:
                with self._translated("read", but=DAMAGE):
                    return self._read(name)
            except DAMAGE as error:
                logger.warning("The checkpoint %s/%s is damaged (%s): taking the one before", self.folder, name, error)
        return None

    def _read(self, name: str) -> Checkpoint:
        stated = json.loads(self._files.cat_file(f"{self._path}/{name}.json"))
        data = self._files.cat_file(f"{self._path}/{name}.safetensors")
        if hashlib.sha256(data).hexdigest() != stated["sha256"]:
            raise ValueError("its SHA-256 is not the one stated")
        return Checkpoint(int(stated["iteration"]), load(data), stated["facts"])

    def delete(self) -> None:
        """Delete all of them: the run has ended, and its weights stand in its record."""
        with self._translated("deleted"):
            if self._files.exists(self._path):
                self._files.rm(self._path, recursive=True)
