"""Where people find a run: its page in MLflow, and its flow run's in Prefect."""

from __future__ import annotations

from urllib.parse import urlsplit

from prefect.runtime import flow_run

from tasks.tracking.client import redact

LOCAL_MLFLOW_PAGES = "http://127.0.0.1:5000"  # where `make ui` serves a store that has no server of its own


def page_of(uri: str, experiment_id: str, run_id: str) -> str:
    """Return the address of a run's page: on the tracking server, else where `make ui` serves the local store."""
    base = redact(uri).rstrip("/") if urlsplit(uri).scheme in ("http", "https") else LOCAL_MLFLOW_PAGES
    # without the workflow type MLflow opens its pages for language models, which are empty for such a run
    return f"{base}/#/experiments/{experiment_id}/runs/{run_id}?workflowType=machine_learning"


def page_in_prefect() -> str:
    """Return the address of this flow run's page; empty where its server is temporary and ends with it."""
    from prefect.settings import PREFECT_UI_URL
    from prefect.utilities.urls import url_for

    return str(url_for("flow-run", obj_id=flow_run.id) or "") if PREFECT_UI_URL.value() and flow_run.id else ""
