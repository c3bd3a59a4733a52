"""Files on a local disk that are there whole or not at all, whenever their writer is killed or the disk fails."""

import os
import shutil
from contextlib import suppress
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

UNFINISHED = ".unfinished"  # how the names of files end that are not whole yet


def write_whole(path: Path, content: str | bytes) -> None:
    """Put a file of this content at a path, in place of what stands there; raise OSError where it cannot be.

    It is written under another name, synchronised and renamed: at every moment the old file or the new one is there.
    """
    unfinished = path.with_name(f"{path.name}.{os.getpid()}{UNFINISHED}")
    try:
        with unfinished.open("wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
    except OSError:
        with suppress(OSError):
            unfinished.unlink()
        raise
    _synchronise(path.parent)


def move_whole(made: Path, folder: Path) -> None:
    """Rename a folder that was made beside its place into it; a folder there is removed. Raises OSError."""
    for path in (*made.rglob("*"), made):
        _synchronise(path)
    if folder.exists():
        shutil.rmtree(folder)
    made.rename(folder)
    _synchronise(folder.parent)


def remove_unfinished(folder: Path) -> None:
    """Remove what killed writers left in a folder and below; raise OSError where it cannot be."""
    for path in folder.rglob(f"*{UNFINISHED}"):
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def _synchronise(path: Path) -> None:
    """Wait until a file, or the names in a folder, outlast a power cut."""
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def find_built(stem: Path) -> Path | None:
    """Return the library that pip built from `stem`.c, beside it; None where there was no C compiler."""
    found = (stem.with_name(f"{stem.name}{suffix}") for suffix in EXTENSION_SUFFIXES)
    return next((path for path in found if path.exists()), None)
