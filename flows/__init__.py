"""What runs: one module a flow, each with its command line (`python -m flows.NAME`).

`QUIET` keeps Prefect and MLflow from phoning home. It is set here because Prefect reports its very import; whoever sets
one of these variables to something else is obeyed. While a flow's command line imports what it needs, which takes
seconds, Ctrl-C ends it in one sentence.
"""

import atexit
import gc
import os
import signal
import sys

QUIET = {
    "DO_NOT_TRACK": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
}

# what the libraries warn of belongs on the run's page
os.environ.setdefault("PREFECT_LOGGING_EXTRA_LOGGERS", "tasks")

for name, value in QUIET.items():
    os.environ.setdefault(name, value)

# else the interpreter, as it ends, looks through all that torch, MLflow and Prefect hold for cycles: two seconds
atexit.register(gc.freeze)

STOPPED_EARLY = "Stopped by Ctrl-C before anything had begun."


def stop_early(*_: object) -> None:
    """Say so and end this process, from a signal's handler, where nothing has been begun that would need an end."""
    os.write(2, f"{STOPPED_EARLY}\n".encode())
    os._exit(128 + signal.SIGINT)


# of these commands, nothing has begun until they set handlers of their own
starts = sys.orig_argv[1:2] == ["-m"] and sys.orig_argv[2].startswith(("flows.", "deployments.local"))
if starts and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, stop_early)
