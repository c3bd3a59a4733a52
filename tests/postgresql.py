"""A real PostgreSQL on loopback, as Debian's package has it, with a database each for Prefect and MLflow."""

import contextlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from deployments.processes import find_port, wait_until

PASSWORD = "c0rrect-horse"
MISSING = "no PostgreSQL here: Debian's package postgresql has it"


def find_initdb() -> str | None:
    """Where initdb is, else None."""
    return shutil.which("initdb") or max(map(str, Path("/usr/lib/postgresql").glob("*/bin/initdb")), default=None)


@contextlib.contextmanager
def serve_postgresql(initdb: str) -> Iterator[dict[str, str]]:
    """The settings that lead Prefect's and MLflow's servers to it, while the block runs."""
    # it refuses to run as root, whose temporary folders others may not enter
    owner: dict[str, Any] = {"user": "postgres", "group": "postgres", "extra_groups": []} if os.getuid() == 0 else {}
    with tempfile.TemporaryDirectory(prefix="shardline-postgresql-") as home:
        folder = Path(home)
        (folder / "password").write_text(PASSWORD)
        for path in (folder, folder / "password"):
            path.chmod(0o755)
            if owner:
                shutil.chown(path, "postgres")
        how = ["--auth=scram-sha-256", "--username=admin", f"--pwfile={folder}/password", "--no-sync"]
        subprocess.run([initdb, "-D", f"{folder}/data", *how], check=True, capture_output=True, cwd=home, **owner)
        port = find_port()
        command = [str(Path(initdb).with_name("postgres")), "-D", f"{folder}/data", "-p", str(port), "-k", ""]
        with (folder / "log").open("w") as log:
            command += ["-c", "listen_addresses=127.0.0.1", "-c", "fsync=off"]
            server = subprocess.Popen(command, cwd=home, stderr=log, start_new_session=True, **owner)
        try:
            create_databases(port)
            where = f"admin:{PASSWORD}@127.0.0.1:{port}"
            yield {
                "PREFECT_SERVER_DATABASE_CONNECTION_URL": f"postgresql+asyncpg://{where}/prefect",
                "MLFLOW_BACKEND_STORE_URI": f"postgresql://{where}/mlflow",
            }
        finally:
            server.terminate()
            server.wait(60)


def create_databases(port: int) -> None:
    """Wait until it answers, and create both."""
    import psycopg2  # type: ignore[import-untyped]

    login = {"host": "127.0.0.1", "port": port, "user": "admin", "password": PASSWORD, "dbname": "postgres"}

    def answers() -> bool:
        with contextlib.suppress(psycopg2.OperationalError):
            psycopg2.connect(**login).close()
            return True
        return False

    assert wait_until(answers, 60)
    with contextlib.closing(psycopg2.connect(**login)) as admin:
        admin.autocommit = True
        for name in ("prefect", "mlflow"):
            admin.cursor().execute(f"CREATE DATABASE {name}")
