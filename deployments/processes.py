"""Child processes that never outlive the one who started them: servers on loopback, and the command they serve.

Which servers there are, and how they are told their settings, stands in servers.py and standin.py.
"""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from flows import QUIET
from tasks.errors import ConfigurationError

if TYPE_CHECKING:
    import psutil

LOOPBACK = "127.0.0.1"
WATCHDOG = Path(__file__).with_name("watchdog.py")

# Prefect's V2 pages ask amplitude.com for settings whatever the analytics are set to, so the V1 pages come up first.
QUIET_ENVIRONMENT = {
    **QUIET,
    "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
    "PREFECT_SERVER_UI_V2_ENABLED": "false",
}


class Children:
    """The child processes of a `with` block: all are stopped at its end, the latest first.

    A watchdog stops them also where this process is killed and can't do it itself. Servers may be started from several
    threads; at the end of the block a start is refused.
    """

    def __init__(self) -> None:
        self._running: list[subprocess.Popen[bytes]] = []
        self._lock = threading.RLock()
        self._ended = False

    def __enter__(self) -> Self:
        self._watchdog = subprocess.Popen(
            [sys.executable, "-I", "-S", str(WATCHDOG)], stdin=subprocess.PIPE, start_new_session=True
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop_all()
        with contextlib.suppress(BrokenPipeError):
            assert self._watchdog.stdin is not None
            self._watchdog.stdin.close()
        self._watchdog.wait()

    def some_started(self) -> bool:
        """Whether anything that was started here has not been stopped here."""
        return bool(self._running)

    def some_ended(self) -> bool:
        """Whether a process that was started here, and not stopped here, has ended."""
        return any(process.poll() is not None for process in self._running)

    def stop_all(self) -> None:
        """Stop all processes, the latest first; none can be started any more."""
        with self._lock:
            self._ended = True
        for process in reversed(self._running.copy()):
            self.stop(process)

    @contextlib.contextmanager
    def stopped_on_failure(self) -> Iterator[None]:
        """Stop all where the block fails or is left by a signal, so that no thread waits for one to come up."""
        try:
            yield
        except BaseException:
            self.stop_all()
            raise

    def start_server(
        self, command: Sequence[str], environment: Mapping[str, str], log: Path
    ) -> subprocess.Popen[bytes]:
        """Start a server in a session of its own, where no Ctrl-C reaches it; its output goes to `log`."""
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("wb") as output:
            return self._start(
                command,
                environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def start_command(self, command: Sequence[str], environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
        """Start a command that shares this process's terminal, output and process group."""
        return self._start(command, environment)

    def stop(self, process: subprocess.Popen[bytes], grace_seconds: float = 10.0) -> int:
        """Stop a process by SIGTERM, and by SIGKILL where it has not ended in time; its return code.

        A server's own children are given the same time: one that still listens would keep its port from the next.
        """
        import psutil

        if process.poll() is None:
            deadline = time.monotonic() + grace_seconds
            kin = _kin(process)
            for each in filter(_is_apart, kin):  # the runs of a Prefect worker, which would kill them when it ends
                with contextlib.suppress(psutil.NoSuchProcess):
                    each.terminate()
            wait_until(lambda: not any(_lives(each) for each in kin if _is_apart(each)), grace_seconds)
            _send(process, signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(1.0, deadline - time.monotonic()))
            wait_until(lambda: not any(map(_lives, kin)), max(0.0, deadline - time.monotonic()))
            _send(process, signal.SIGKILL)
            for each in filter(_lives, kin):
                each.kill()
        code = process.wait()
        with self._lock:
            if process in self._running:
                self._running.remove(process)
                self._tell_watchdog(f"-{process.pid}\n")
        return code

    def _start(self, command: Sequence[str], environment: Mapping[str, str], **how: Any) -> subprocess.Popen[bytes]:
        with self._lock:
            if self._ended:
                raise InterruptedError(f"{command[0]} is not started any more: its servers are being stopped")
            process = subprocess.Popen(command, env=environment, **how)
            self._running.append(process)
            self._tell_watchdog(f"+{process.pid}\n")
        return process

    def _tell_watchdog(self, line: str) -> None:
        assert self._watchdog.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._watchdog.stdin.write(line.encode())
            self._watchdog.stdin.flush()


def quiet_environment(base: Mapping[str, str]) -> dict[str, str]:
    """`base` with nothing phoning home but what it says itself, and loopback never asked for through a proxy."""
    environment = {**QUIET_ENVIRONMENT, **base}
    hosts = [host for host in base.get("NO_PROXY", base.get("no_proxy", "")).split(",") if host]
    environment["NO_PROXY"] = environment["no_proxy"] = ",".join(dict.fromkeys([*hosts, LOOPBACK, "localhost"]))
    return environment


def find_port(preferred: int = 0) -> int:
    """A free port on loopback: the preferred one where it is free, else any.

    It is free now, not reserved: who starts a server on it checks that it came up, and asks for another where not.
    """
    for port in (preferred, 0):
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with contextlib.suppress(OSError):
                listener.bind((LOOPBACK, port))
                return int(listener.getsockname()[1])
    raise ConfigurationError(f"No free port on {LOOPBACK}: stop something that listens there.")


def answers(url: str, timeout_seconds: float = 2.0) -> bool:
    """Whether GET on the URL gives a 2xx now; no proxy is asked."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=timeout_seconds) as response:
            return bool(200 <= response.status < 300)
    except (OSError, urllib.error.URLError, ValueError):
        return False


def start_on_free_port(
    start: Callable[[int], subprocess.Popen[bytes]], health: str, log: Path, children: Children, preferred: int = 0
) -> int:
    """Start a server on a free port and wait until it answers there; its port.

    A port that was free can be lost to another process before the server listens on it, and then that one's answer is
    heard: only a port on which the server itself listens will do, else another is tried.
    `start` gets the port; `health` is the path that answers when the server is up. Raises ConfigurationError.
    """
    for last_attempt in (False, False, True):
        port = find_port(preferred)
        process = start(port)
        try:
            wait_for_server(process, f"http://{LOOPBACK}:{port}{health}", log)
            if listens(process.pid, port):
                return port
            raise ConfigurationError(f"Port {port} was taken by another process while the server for it started.")
        except ConfigurationError:
            children.stop(process)
            if last_attempt:
                raise
    raise AssertionError("the last attempt returns or raises")


def listens(pid: int, port: int) -> bool:
    """Whether a process, or one that descends from it, listens on this port."""
    import psutil

    with contextlib.suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        for each in (process, *process.children(recursive=True)):
            with contextlib.suppress(psutil.NoSuchProcess):
                sockets = each.net_connections("tcp")
                if any(one.status == psutil.CONN_LISTEN and one.laddr.port == port for one in sockets):
                    return True
    return False


def wait_for_server(process: subprocess.Popen[bytes], url: str, log: Path, timeout_seconds: float = 120.0) -> None:
    """Wait until a server answers on its health URL.

    Raises ConfigurationError, with the end of its log, where it ends or stays silent for `timeout_seconds`.
    """
    wait_until(lambda: process.poll() is not None or answers(url), timeout_seconds)
    if process.poll() is not None or not answers(url):
        code = process.poll()
        fate = "did not answer" if code is None else f"ended with exit code {code}"
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-15:])
        raise ConfigurationError(f"The server for {url} {fate}; the end of its log, {log}:\n{tail}")


def wait_until(condition: Callable[[], bool], timeout_seconds: float, pause_seconds: float = 0.05) -> bool:
    """Wait until the condition holds; whether it came to hold in time."""
    deadline = time.monotonic() + timeout_seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(pause_seconds)
    return True


def _send(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        if os.getpgid(process.pid) == process.pid:
            os.killpg(process.pid, number)
        else:
            process.send_signal(number)


def _kin(process: subprocess.Popen[bytes]) -> "list[psutil.Process]":
    """The processes that descend from a server; none of a command's, which are its own business."""
    import psutil

    with contextlib.suppress(ProcessLookupError, psutil.NoSuchProcess):
        if os.getpgid(process.pid) == process.pid:
            return list(psutil.Process(process.pid).children(recursive=True))
    return []


def _is_apart(process: "psutil.Process") -> bool:
    """Whether a process leads a group of its own, which the signal to its parent's group does not reach."""
    with contextlib.suppress(ProcessLookupError):
        return bool(os.getpgid(process.pid) == process.pid)
    return False


def _lives(process: "psutil.Process") -> bool:
    import psutil

    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
