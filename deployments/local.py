"""Runs a command with what this machine lacks for it: `python -m deployments.local -- COMMAND…`.

With no BUCKET_ID, no AWS credentials and no shards named, it starts a stand-in for AWS, filled with generated shards
(standin.py, generator.py). Where no Prefect server is configured it uses the one of `make ui` or `make up`, and its
MLflow pages (pages.py), or starts both (servers.py) and stops them when everything is recorded (recording.py). The
command's exit code is passed on, signals reach it, and everything started here ends with it.
"""

import argparse
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType

from deployments.commands import check, find_region, needs_standin, wants_help
from deployments.generator import ROWS, list_files, provide_data
from deployments.pages import start_pages
from deployments.processes import Children, quiet_environment
from deployments.progress import Progress, say
from deployments.recording import wait_until_recorded
from deployments.servers import Pages, configured_prefect, find_pages
from deployments.standin import REGION, StandIn
from flows import STOPPED_EARLY
from tasks.errors import ShardlineError, TrackingError
from tasks.runs.links import MLFLOW_PAGES, PAGES_END
from tasks.state import STATE

COMMAND, UP = "make train", "make up"
UPLOADS_AT_ONCE = 4
FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Runner:
    """Runs one command and passes on to it the signals that this process gets; without one they end this process."""

    def __init__(self) -> None:
        self._command: subprocess.Popen[bytes] | None = None
        self.interrupts = 0
        self.began = False
        for number in FORWARDED:
            signal.signal(number, self._receive)

    def run(self, children: Children, command: Sequence[str], environment: Mapping[str, str]) -> int:
        """Run the command to its end; its exit code, or 128 + N where signal N killed it."""
        self.began = True
        self._command = children.start_command(command, environment)
        code = self._command.wait()
        children.stop(self._command)
        self._command = None
        return code if code >= 0 else 128 - code

    def _receive(self, number: int, _: FrameType | None) -> None:
        self.interrupts += number == signal.SIGINT
        if self._command is None:
            raise SystemExit(128 + number)
        if number != signal.SIGINT or not _has_terminal():  # the terminal sends Ctrl-C to the command too
            self._command.send_signal(number)


def _has_terminal() -> bool:
    """Whether this process is in the foreground of a terminal, and so shares its Ctrl-C with the command."""
    try:
        with open("/dev/tty") as terminal:  # noqa: PTH123
            return os.tcgetpgrp(terminal.fileno()) == os.getpgrp()
    except OSError:
        return False


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the command's exit code, or 2 with one line where nothing could be run."""
    options = _parse(argv)
    runner = Runner()
    try:
        with Children() as children, ExitStack() as stack:
            return _run(options, runner, children, stack)
    except ShardlineError as error:
        print(f"deployments.local: {error}", file=sys.stderr)
        return 2
    except SystemExit:
        if runner.interrupts and not runner.began:
            say(STOPPED_EARLY)
        raise


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m deployments.local",
        usage="%(prog)s [--rows N] [--seed N] [--no-standin] -- COMMAND…",
        description="Run a command with the stand-in for AWS and the Prefect server that it may need.",
    )
    parser.add_argument("--rows", type=int, default=ROWS, help="rows to generate for the stand-in [%(default)s]")
    parser.add_argument("--seed", type=int, default=0, help="seed of the generated rows [%(default)s]")
    parser.add_argument("--no-standin", dest="standin", action="store_false", help="no stand-in for AWS")
    parser.add_argument("command", nargs=argparse.REMAINDER, help="what to run, after --")
    options = parser.parse_args(argv)
    options.command = options.command[1:] if options.command[:1] == ["--"] else options.command
    if not options.command:
        parser.error("no command: give it after --")
    if shutil.which(options.command[0]) is None:
        parser.error(f"no such command: {options.command[0]!r}")
    return options


def _run(options: argparse.Namespace, runner: Runner, children: Children, stack: ExitStack) -> int:
    """Start what is missing, run the command, stop what was started; the command's exit code."""
    began = time.monotonic()
    environment = quiet_environment(os.environ)
    if wants_help(options.command):
        return runner.run(children, options.command, environment)
    standin = options.standin and needs_standin(options.command)
    check(options.command, standin=standin)
    with ThreadPoolExecutor(1) as pool, children.stopped_on_failure():
        pages = _find_pages()
        starting = None if pages else pool.submit(start_pages, children, COMMAND)
        if standin:
            region = find_region(options.command) or REGION
            standin_environment = start_standin(stack, options.rows, options.seed, region).environment
            environment = without_aws(environment) | standin_environment
        if starting:
            pages = starting.result()
    assert pages is not None
    environment |= pages_environment(pages, environment) | ({PAGES_END: "true"} if starting else {})
    ready, started = time.monotonic(), datetime.now(UTC)
    code = runner.run(children, options.command, environment)
    ended = time.monotonic()
    if starting and runner.interrupts < 2:
        await_record(pages.prefect_api, started)
    stack.close()
    children.stop_all()
    if starting and not runner.interrupts:
        after = time.monotonic() - ended
        say(f"Servers: {ready - began:.1f} s to start, {after:.1f} s to record everything and stop.")
    return code


def await_record(api: str, started: datetime) -> None:
    """Wait for Prefect's record of the command; what it lacks is said, and the command's exit code stays what it is."""
    try:
        if not wait_until_recorded(api, started):
            say("Prefect: a run had not ended when its process did; its page says that it is running.")
    except TrackingError as error:
        say(str(error))


def _find_pages() -> Pages | None:
    """The server that is configured, else what `make ui` or `make up` serves, else None."""
    if api := configured_prefect():
        return Pages(api, "")
    if pages := find_pages(STATE):
        page = pages.prefect_api.removesuffix("/api")
        say(f"Prefect: the server of `{pages.command}`, {page}; let it run until the end.")
    return pages


def pages_environment(pages: Pages, given: Mapping[str, str]) -> dict[str, str]:
    """What the command is told of the servers: Prefect's API, and where its run in MLflow is to be seen.

    It writes to the store itself, unless that is the one of `make up`, which may be anywhere.
    """
    told = {"PREFECT_API_URL": pages.prefect_api}
    if pages.command == UP and not given.get("MLFLOW_TRACKING_URI"):
        return told | {"MLFLOW_TRACKING_URI": pages.mlflow}
    return told | ({MLFLOW_PAGES: pages.mlflow} if pages.mlflow else {})


def without_aws(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment without any setting of AWS."""
    return {name: value for name, value in environment.items() if not name.startswith("AWS_")}


def start_standin(stack: ExitStack, rows: int, seed: int, region: str = REGION) -> StandIn:
    """The stand-in, filled, until the stack ends; says that it is one."""
    say("No BUCKET_ID, no AWS credentials, no shards: this runs on a stand-in for AWS, with generated taxi trips.")
    began = time.monotonic()
    with Progress("Generating rows") as progress:
        folder, made = provide_data(STATE / "generated", rows, seed, progress)
    generated = time.monotonic()
    standin = stack.enter_context(StandIn(STATE / "logs" / "standin.log", region=region))
    with Progress("Uploading bytes") as progress:
        fill(standin, folder, progress)
    origin = f"generated in {generated - began:.1f} s" if made else "generated earlier"
    say(
        f"Stand-in: {rows:,} rows, {origin}, uploaded to s3://{standin.bucket} in {time.monotonic() - generated:.1f} s."
    )
    return standin


def fill(standin: StandIn, folder: Path, progress: Callable[[int, int], None] | None = None) -> None:
    """Upload a generated set into the stand-in's bucket; `progress` is called with bytes done and bytes in all.

    Each file goes in one part, so that its ETag is the MD5 of its bytes, the same every time.
    """
    s3 = standin.client("s3")
    files = list(list_files(folder))
    total, done = sum(path.stat().st_size for _, path in files), 0

    def upload(key: str, path: Path) -> int:
        with path.open("rb") as body:
            s3.put_object(Bucket=standin.bucket, Key=key, Body=body)
        return path.stat().st_size

    with ThreadPoolExecutor(UPLOADS_AT_ONCE) as pool:
        for size in pool.map(lambda file: upload(*file), files):
            done += size
            if progress:
                progress(done, total)


if __name__ == "__main__":
    sys.exit(main())
