"""Which part of each batch a process takes: its rank, of how many."""

import os
from dataclasses import dataclass

from tasks.errors import ConfigurationError


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Rank and world size, or neither: then they are found where the process runs.

    slice_rows: batches are cut between ranks at multiples of so many rows only; the parts then differ by as many

    Raises ConfigurationError where only one is given, the rank is not in [0, world_size), or slice_rows is below 1.
    """

    rank: int | None = None
    world_size: int | None = None
    slice_rows: int = 1

    def __post_init__(self) -> None:
        if (self.rank is None) != (self.world_size is None):
            raise ConfigurationError(f"rank is {self.rank} and world_size {self.world_size}: give both, or neither")
        if self.slice_rows < 1:
            raise ConfigurationError(f"slice_rows is {self.slice_rows}; it must be at least 1")
        if self.rank is not None and self.world_size is not None and not 0 <= self.rank < self.world_size:
            raise ConfigurationError(
                f"rank is {self.rank}, world_size {self.world_size}; it must be 0 <= rank < world_size"
            )

    def resolve(self) -> tuple[int, int]:
        """Return rank and world size as given, else of torch.distributed, else of RANK and WORLD_SIZE, else 0 of 1."""
        if self.rank is not None and self.world_size is not None:
            return self.rank, self.world_size
        import torch.distributed

        if torch.distributed.is_available() and torch.distributed.is_initialized():
            return torch.distributed.get_rank(), torch.distributed.get_world_size()
        try:
            rank, world_size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
        except ValueError as error:
            raise ConfigurationError(f"RANK and WORLD_SIZE must be whole numbers: {error}") from error
        return Placement(rank=rank, world_size=world_size).resolve()
