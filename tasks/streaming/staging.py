"""Where the decoded rows of a shard lie until its last batch is assembled: row-major, in memory or in a file.

Small shards are held in anonymous memory; larger ones in a temporary file that is mapped, and gone when it is let go, so
that memory does not grow with the shard.
"""

import tempfile
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from numpy.typing import NDArray


class Staging:
    """Room for exactly `rows` × `width` numbers, filled from the top. folder: None holds them in memory."""

    def __init__(self, rows: int, width: int, dtype: str, *, folder: str | None) -> None:
        import numpy as np

        self.filled = 0
        if folder is None:
            self.array: NDArray[Any] = np.empty((rows, width), dtype=dtype)
        else:
            with tempfile.TemporaryFile(prefix="shardline-", dir=folder) as file:
                file.truncate(max(1, rows * width * np.dtype(dtype).itemsize))
                self.array = np.memmap(file, dtype=dtype, mode="r+", shape=(rows, width))

    def append(self, columns: "list[NDArray[Any]]") -> int:
        """Writes the columns below what is there, as far as there is room; the number of rows that did not fit."""
        count = len(columns[0])
        room = min(count, len(self.array) - self.filled)
        target = self.array[self.filled : self.filled + room]
        for index, column in enumerate(columns):
            target[:, index] = column[:room]
        self.filled += room
        return count - room
