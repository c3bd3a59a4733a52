"""Where people find a run: its page in MLflow, and its flow run's in Prefect."""

from __future__ import annotations

import os
from urllib.parse import urlsplit

from prefect.runtime import flow_run

from tasks.tracking.client import show_uri

MLFLOW_PAGES = "SHARDLINE_MLFLOW_PAGES"  # set for a run by what serves the local store beside it (`deployments.local`)
PAGES_END = "SHARDLINE_PAGES_END"  # set where these pages, and Prefect's, are served for as long as the run lasts


def page_of(uri: str, experiment_id: str, run_id: str) -> str:
    """Return the address of a run's page: on the tracking server, else on the one that serves the local store now.

    Empty where none does: `make ui` will.
    """
    base = show_uri(uri).rstrip("/") if urlsplit(uri).scheme in ("http", "https") else os.environ.get(MLFLOW_PAGES)
    # without the workflow type MLflow opens its pages for language models, which are empty for such a run
    place = f"#/experiments/{experiment_id}/runs/{run_id}?workflowType=machine_learning"
    return f"{base}/{place}" if base else ""


def page_in_prefect() -> str:
    """Return the address of this flow run's page; empty where its server is temporary and ends with it."""
    from prefect.settings import PREFECT_UI_URL
    from prefect.utilities.urls import url_for

    return str(url_for("flow-run", obj_id=flow_run.id) or "") if PREFECT_UI_URL.value() and flow_run.id else ""
