"""The data sets that a run reads, as MLflow's dataset inputs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from tasks.redaction import redact
from tasks.tracking.outbox import INPUTS, Outbox, read_part, write_part

if TYPE_CHECKING:
    from tasks.tracking.client import Client

MOST_DATASET_NAME = 500  # characters: MLflow's own limits
MOST_DATASET_DIGEST = 36


@dataclass(frozen=True, kw_only=True)
class DatasetFacts:
    """A data set: the glob that names its shards, their fingerprint, their columns, and how much they hold."""

    uri: str
    fingerprint: str
    columns: tuple[str, ...]
    rows: int
    shards: int
    size: int  # bytes


def keep_inputs(run_id: str, data: Mapping[str, DatasetFacts]) -> None:
    """Put a run's data sets, by context (train, test, predict), into its outbox."""
    entries = [{"context": context, "dataset": describe_dataset(facts)} for context, facts in data.items()]
    write_part(Outbox(run_id).path, INPUTS, json.dumps(entries))


def describe_dataset(facts: DatasetFacts) -> dict[str, str]:
    """Return a data set in the words of MLflow's Dataset; the digest is cut to what MLflow keeps of it."""
    scheme = urlsplit(facts.uri).scheme
    kind = {"": "local", "file": "local", "https": "http", "s3a": "s3"}.get(scheme, scheme)
    columns = [{"type": "double", "name": name, "required": True} for name in facts.columns]
    profile = {
        "num_rows": facts.rows,
        "num_shards": facts.shards,
        "bytes": facts.size,
        "fingerprint": facts.fingerprint,
    }
    return {
        "name": redact(facts.uri)[:MOST_DATASET_NAME],
        "digest": facts.fingerprint[:MOST_DATASET_DIGEST],
        "source_type": kind,
        "source": json.dumps({"url" if kind == "http" else "uri": redact(facts.uri)}),
        "schema": json.dumps({"mlflow_colspec": columns}),
        "profile": json.dumps(profile),
    }


def log_inputs(client: Client, run_id: str, outbox: Path) -> None:
    """Log a run's data sets: a list of {context, dataset}, the latter with the fields of mlflow.entities.Dataset."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    entries = read_part(outbox, INPUTS, list) or []
    inputs = [
        DatasetInput(Dataset(**entry["dataset"]), [InputTag("mlflow.data.context", entry["context"])])
        for entry in entries
    ]
    if inputs:
        client.log_inputs(run_id, inputs)
