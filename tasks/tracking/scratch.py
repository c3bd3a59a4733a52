"""Folders for temporary files of which nothing is left: what a process that was killed leaves, the next one removes."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import IO

LOCK = "owner.lock"  # held for as long as the folder's process lives


class ScratchFolder(tempfile.TemporaryDirectory[str]):
    """A temporary folder, gone when it is closed or nobody refers to it. Those of processes that are gone go first."""

    def __init__(self, prefix: str) -> None:
        remove_abandoned(prefix)
        super().__init__(prefix=prefix, ignore_cleanup_errors=True)
        unheld = Path(self.name) / f".{LOCK}"
        self._lock = unheld.open("w")
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        unheld.rename(Path(self.name) / LOCK)  # what others find under this name is held

    def cleanup(self) -> None:
        """Remove the folder and all that is in it."""
        super().cleanup()
        self._lock.close()


def remove_abandoned(prefix: str) -> None:
    """Remove this user's folders of such a name whose processes are gone: nobody holds their locks."""
    for path in Path(tempfile.gettempdir()).glob(f"{prefix}*/{LOCK}"):
        with suppress(OSError):
            if path.parent.lstat().st_uid == os.geteuid() and not path.parent.is_symlink():
                with path.open("rb") as file:
                    if _is_free(file):
                        shutil.rmtree(path.parent, ignore_errors=True)


def _is_free(file: IO[bytes]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
