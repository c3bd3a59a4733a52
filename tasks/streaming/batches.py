"""What a consumer gets: a batch, and how long it took to come."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tasks.errors import ConfigurationError

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Times:
    """Seconds spent on one batch.

    wait_seconds: that the consumer waited for it; the others passed in the background, added up over threads:
    fetch_seconds: reading, and hashing what was read, of the shards that this batch was the first to need
    decode_seconds: decoding them, or opening and checking them in the cache
    assemble_seconds: putting its rows together
    """

    wait_seconds: float
    fetch_seconds: float
    decode_seconds: float
    assemble_seconds: float


@dataclass(frozen=True)
class Batch:
    """Rows of one iteration: `tensor` of shape [rows, columns], with the `times` that it took."""

    tensor: "torch.Tensor"
    iteration: int
    times: Times

    @property
    def wait_seconds(self) -> float:
        return self.times.wait_seconds


def share(tensor: "torch.Tensor") -> "torch.Tensor":
    """Return a worker process's batch in shared memory; ConfigurationError where that has no room for it.

    torch would put it there later, in a thread whose failure nobody hears of: the trainer would wait for ever.
    """
    try:
        tensor.share_memory_()  # type: ignore[no-untyped-call]
    except RuntimeError as error:
        raise ConfigurationError(
            f"a batch of {tensor.nbytes} bytes cannot be handed over by a DataLoader's worker: {error}; give /dev/shm "
            "more room (docker run --shm-size), or take smaller batches, or no workers: threads need no such room"
        ) from error
    return tensor
