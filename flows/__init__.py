"""What runs: one module a flow, each with its command line (`python -m flows.NAME`).

`QUIET` keeps Prefect and MLflow from phoning home. It is set here because Prefect reports its very import; whoever sets
one of these variables to something else is obeyed.
"""

import os

QUIET = {
    "DO_NOT_TRACK": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
}

# what the libraries warn of belongs on the run's page
os.environ.setdefault("PREFECT_LOGGING_EXTRA_LOGGERS", "tasks")

for name, value in QUIET.items():
    os.environ.setdefault(name, value)
