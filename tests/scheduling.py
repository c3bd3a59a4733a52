"""Which worker runs which tests: a file's go to one, and those of all files that use `site` to the same one.

Those of the stream's faults wait most of the time, so that each kind of server has its own group.
"""

import re
from functools import cache
from pathlib import Path

from xdist.scheduler import LoadScopeScheduling

ROOT = Path(__file__).parents[1]
SERVER = re.compile(r"test_stream_\w+\.py::\w+\[(moto|rclone|https?)-")


class ByFile(LoadScopeScheduling):  # type: ignore[misc]
    """Hand out whole files.

    By their names, for xdist 3.8 writes its groups where pytest 9 does not read them any more, and then has none.
    """

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        if uses_site(file):
            return "site"
        server = SERVER.search(nodeid)
        return f"{file}, {server[1]}" if server else file


@cache
def uses_site(file: str) -> bool:
    """Return whether a test of the file takes the fixture `site`."""
    return re.search(r"def test_\w+\([^)]*\bsite\b", (ROOT / file).read_text(encoding="utf-8")) is not None
