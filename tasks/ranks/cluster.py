"""The Ray cluster that ranks run on: that of RAY_ADDRESS, or one of this machine's own, for as long as it is needed.

A cluster of our own listens on loopback only, asks for a token, reports nothing to anybody and has no pages.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import secrets
import socket
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

from tasks.errors import ConfigurationError, RankError
from tasks.ranks.watching import COMPLAINTS

PATIENT = {  # of both kinds of cluster
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # or ranks would look for the cache, and for relative paths, elsewhere
    "RAY_TRAIN_ENABLE_CONTROLLER_STRUCTURED_LOGGING": "0",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_TRAIN_ENABLE_STATE_ACTOR_RECONCILIATION": "0",
    "RAY_TRAIN_ENABLE_WORKER_STRUCTURED_LOGGING": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "300",
    "RAY_USAGE_STATS_ENABLED": "0",
}
SHRINKING = {  # where fewer ranks are enough: those for whom there is no more room are not waited for as long
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "60",
}
OWN = {  # of our own
    "RAY_AUTH_MODE": "token",
    "RAY_worker_niceness": "0",  # of 15 ranks would wait for whatever else this machine does
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # or 127.0.0.1 is replaced by the address that others reach
    "RAY_prestart_worker_first_driver": "0",  # the first driver is the head, which needs none
}
INTERFACES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")  # that ranks pass sums over
HEAD_SECONDS = 10  # that a cluster's head may take to answer; Ray itself tries for minutes
HEAD, WATCHDOG = (Path(__file__).with_name(name) for name in ("head.py", "watching.py"))


def check_ranks(ranks: int) -> None:
    """Raise ConfigurationError where more than one rank is asked for and Ray is not installed, or cannot be joined."""
    if ranks == 1:
        return
    if importlib.util.find_spec("ray") is None:
        raise ConfigurationError(
            f"ranks is {ranks}, and Ray is not installed here: pip install 'shardline[ranks]', or leave ranks at 1"
        )
    address = os.environ.get("RAY_ADDRESS", "")
    if "://" in address:
        raise ConfigurationError(
            f"RAY_ADDRESS is {address!r}: a run over ranks is started on a machine of the cluster, with "
            "RAY_ADDRESS=auto or host:port"
        )


class Cluster:
    """A connection to the cluster of RAY_ADDRESS, else to one of this machine's own that has room for so many ranks."""

    def __init__(self, ranks: int, *, gpus: int, shrinks: bool = False) -> None:
        self._address = os.environ.get("RAY_ADDRESS")
        self._folder = Path(tempfile.mkdtemp(prefix="shardline-ray-"))  # short: Ray puts sockets into it
        self.storage = str(self._folder / "train")
        self._before = dict(os.environ)
        for name, value in (PATIENT | (SHRINKING if shrinks else {})).items():
            os.environ.setdefault(name, value)
        if not self._address:
            token = self._folder / "token"
            token.touch(mode=0o600)
            token.write_text(own_token(), encoding="ascii")
            os.environ |= OWN | {"RAY_AUTH_TOKEN_PATH": str(token)} | dict.fromkeys(INTERFACES, _loopback())
        head = [] if self._address else [sys.executable, "-I", str(HEAD), str(self._folder), str(ranks), str(gpus)]
        self._watchdog = subprocess.Popen(
            [sys.executable, "-I", str(WATCHDOG), str(self._folder), *head],
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )

    def connect(self) -> None:
        """Join the cluster.

        In a thread: in the main thread Ray would put its own handler in the place of that which ends a flow run.

        Raises RankError where there is none.
        """
        import ray

        logging.getLogger("ray").setLevel(logging.ERROR)  # that it sets no handlers outside the main thread is wanted
        if self._address:
            require_head(self._address)
        ray.init(address=self._address or self._await_head(), log_to_driver=False, configure_logging=False)

    def _await_head(self) -> str:
        """Return the address of the cluster of our own, once it is there."""
        assert self._watchdog.stdout is not None
        if address := self._watchdog.stdout.readline().strip():
            return address
        complaints = (self._folder / COMPLAINTS).read_text(encoding="utf-8", errors="replace").strip()
        raise RankError(f"Ray did not start here: {complaints.splitlines()[-1] if complaints else 'it was killed'}")

    def close(self) -> None:
        """Leave the cluster; of our own, no process is left, and no file."""
        import ray

        try:
            ray.shutdown()
        finally:
            with self._watchdog as watchdog:
                assert watchdog.stdin is not None
                watchdog.stdin.close()
            for name in (*PATIENT, *OWN, *INTERFACES, "RAY_AUTH_TOKEN_PATH"):
                os.environ.pop(name, None)
                if name in self._before:
                    os.environ[name] = self._before[name]


def require_head(address: str) -> None:
    """Raise RankError where nobody answers at host:port; what `auto` leads to is Ray's to find, or to refuse."""
    host, _, port = address.rpartition(":")
    if not port.isdigit():
        return
    try:
        socket.create_connection((host, int(port)), HEAD_SECONDS).close()
    except OSError as error:
        raise RankError(
            f"no Ray cluster answers at {address} ({error.strerror or error}): start it, or correct RAY_ADDRESS"
        ) from error


@cache
def own_token() -> str:
    """Return the token of this process's clusters: Ray reads it once a process."""
    return secrets.token_hex(32)


def _loopback() -> str:
    return next(name for _, name in socket.if_nameindex() if name in ("lo", "lo0"))
