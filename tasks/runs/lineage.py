"""What a run was made from, as tags that later runs are compared by: data, settings, code."""

from __future__ import annotations

import getpass
import hashlib
import json
import platform
import subprocess
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import JsonValue

from tasks.parameters import ADDRESSES, Rows, TrainingParameters
from tasks.redaction import identify, redact

if TYPE_CHECKING:
    from tasks.streaming.manifest import Manifest

KEY = "shardline.settings"
FINGERPRINT = "shardline.fingerprint"
TEST_FINGERPRINT = "shardline.test_fingerprint"
CODE = "shardline.code"
CONTRACT = "shardline.contract"
VERSIONS_OF = ("prefect", "torch", "mlflow", "s3fs", "boto3", "pyarrow", "numpy")


def digest_settings(recorded: Mapping[str, JsonValue]) -> str:
    """Return a digest of the recorded parameters that the loss curve depends on; of an address, what it names."""
    telling = {
        name: identify(value) if name in ADDRESSES and isinstance(value, str) else value
        for name, value in TrainingParameters.telling(recorded).items()
    }
    return hashlib.sha256(json.dumps(telling, sort_keys=True).encode()).hexdigest()


def tag_data(flow: str, account: str | None, shards: str, manifest: Manifest) -> dict[str, str]:
    """Return the tags that tell which flow a run is of, and on whose shards, what they hold, by which contract."""
    return {
        "aws.account": account or "none",
        "shardline.flow": flow,
        "shardline.shards": redact(shards),
        FINGERPRINT: manifest.fingerprint,
        **tag_contract(manifest),
    }


def tag_contract(manifest: Manifest) -> dict[str, str]:
    """Return the tag that tells which bounds the rows were held against; none where there are none."""
    digest = manifest.terms and manifest.terms.digest()
    return {CONTRACT: digest} if digest else {}


def settle_contract(given: Rows, manifest: Manifest) -> dict[str, JsonValue]:
    """Return the bounds' digest as a setting, where it decides which rows are left out.

    A stricter contract that rows only have to keep trains on the same rows: what was stopped by it may go on.
    """
    digest = tag_contract(manifest).get(CONTRACT)
    return {"contract_bounds": digest} if digest and given.on_bad_rows == "quarantine" else {}


def digest_code() -> str:
    """Return a digest of the modules of flows/ and tasks/, committed or not, and of the libraries' versions."""
    root = Path(__file__).parents[2]
    digest = hashlib.sha256(json.dumps({name: version(name) for name in VERSIONS_OF}).encode())
    for path in sorted(path for folder in ("flows", "tasks") for path in (root / folder).rglob("*.py")):
        digest.update(f"{path.relative_to(root)}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()


def tags_of_work(test_manifest: Manifest | None) -> dict[str, str]:
    """Return the tags that tell, beside those of settings and shards, whether a run repeats another."""
    return {CODE: digest_code(), TEST_FINGERPRINT: test_manifest.fingerprint if test_manifest else "none"}


def describe_commit() -> dict[str, str]:
    """Return the git commit of this code and whether it was changed since; nothing where it is not a checkout."""
    root = Path(__file__).parents[2]

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=root, capture_output=True, text=True, check=True).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no")
        return {"mlflow.source.git.commit": git("rev-parse", "HEAD"), "git.changed": str(bool(changed)).lower()}
    except (OSError, subprocess.CalledProcessError):
        return {}


def read_versions() -> dict[str, str]:
    """Return the versions of the libraries that a run depends on, and of Python, by name."""
    return {name: version(name) for name in VERSIONS_OF} | {"python": platform.python_version()}


def find_user() -> str | None:
    """Return the name of the user that this process runs as; None where it has none, as in some containers."""
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        return None
