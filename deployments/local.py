"""Runs a command with whatever it lacks on this machine: `python -m deployments.local -- COMMAND…`."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from deployments.generator import list_files
from deployments.standin import StandIn

UPLOADS_AT_ONCE = 4


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
