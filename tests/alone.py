"""A machine that has only what training and streaming need: whatever else is installed here is hidden from imports.

    HIDDEN="$(python -m tests.alone)" python -m pytest -p tests.alone …

Importing this module hides what the environment variable HIDDEN lists.
"""

import os
import sys
from collections.abc import Iterable
from importlib.machinery import ModuleSpec
from importlib.metadata import PackageNotFoundError, packages_distributions, requires
from pathlib import Path
from typing import Any
from unittest.mock import patch

NEEDED = ("torch", "numpy", "pyarrow", "safetensors", "psutil")


class Hiding:
    """A finder of modules that does not find those that are hidden, and is else as the one it stands for."""

    def __init__(self, finder: Any, hidden: frozenset[str]) -> None:
        self.finder, self.hidden = finder, hidden

    def find_spec(self, name: str, *arguments: Any) -> ModuleSpec | None:
        """Return None for a hidden module and what is in it."""
        return None if name.partition(".")[0] in self.hidden else self.finder.find_spec(name, *arguments)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.finder, name)


def hide(modules: Iterable[str]) -> None:
    """Hide top-level modules from all imports to come; raises AssertionError where one of them is there already."""
    hidden = frozenset(modules)
    present = hidden & set(sys.modules)
    assert not present, f"imported already: {sorted(present)}"
    sys.meta_path[:] = [Hiding(finder, hidden) for finder in sys.meta_path]


def find_others(*kept: str) -> set[str]:
    """Return the top-level modules of every installed distribution but those kept and what they require in turn."""
    needed, left = {"shardline"}, [_normalise(name) for name in kept]
    while left:
        name = left.pop()
        if name not in needed:
            needed.add(name)
            left += _find_required(name)
    own = [place for place in sys.path if Path(place).name != "_vendor"]  # of setuptools, whoever has imported it
    with patch.object(sys, "path", own):
        installed = packages_distributions()
    return {module for module, distributions in installed.items() if not needed & set(map(_normalise, distributions))}


def _find_required(name: str) -> list[str]:
    from packaging.requirements import Requirement

    try:
        parsed = map(Requirement, requires(name) or [])
    except PackageNotFoundError:  # required on other platforms only
        return []
    return [_normalise(each.name) for each in parsed if each.marker is None or each.marker.evaluate({"extra": ""})]


def _normalise(name: str) -> str:
    return name.lower().replace("_", "-").replace(".", "-")


if __name__ == "__main__":
    print(*sorted(find_others(*NEEDED)))
elif "HIDDEN" in os.environ:
    hide(os.environ["HIDDEN"].split())
