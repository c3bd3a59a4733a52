"""Where a stream stands: which batch comes next, kept and restored as plain facts."""

from collections.abc import Mapping

import torch

from tasks.errors import ConfigurationError


class Position:
    """The batch that the last iteration reached in this process, and where the next iteration begins.

    Batches are counted as by one consumer of all: worker k of K begins k further on, and all worker processes of a
    DataLoader have the same `reached` when they have handed out as many.

    start: where iterations of epoch 0 begin; those of other epochs begin at 0
    batches: of a whole iteration; None: without end
    fingerprint: of all that decides which rows a batch holds
    has_epochs: whether `set_epoch` may be called

    The epoch lies in shared memory: worker processes that persist see what `set_epoch` says between two iterations.
    """

    def __init__(self, start: int, batches: int | None, fingerprint: str, *, has_epochs: bool) -> None:
        self.reached = start
        self._start, self._batches, self._fingerprint = start, batches, fingerprint
        self._epoch = _share_zero() if has_epochs else None
        self._resumed: tuple[int, int] | None = None  # an epoch and its next batch: once only

    @property
    def epoch(self) -> int:
        return 0 if self._epoch is None else int(self._epoch)

    @property
    def first(self) -> int:
        """The batch that the next iteration begins with."""
        if self._resumed is not None and self._resumed[0] == self.epoch:
            return self._resumed[1]
        return 0 if self.epoch else self._start

    def begin(self) -> int:
        """Begin an iteration, and return the number of its first batch."""
        self.reached, self._resumed = self.first, None
        return self.reached

    def set_epoch(self, epoch: int) -> None:
        """Let the next iteration go through this epoch. Raises ConfigurationError where there are no epochs to set."""
        if self._epoch is None:
            raise ConfigurationError(
                "set_epoch is for a stream that ends with each epoch: give epochs=1, or leave it to the stream, which "
                "takes a new order in each epoch by itself"
            )
        if epoch < 0:
            raise ConfigurationError(f"epoch is {epoch}; it must be at least 0")
        self._epoch.fill_(epoch)
        if self._resumed is None or self._resumed[0] != epoch:
            self._resumed = None
            self.reached = self.first

    def to_dict(self) -> dict[str, int | str]:
        """Return plain facts, from which `restore` goes on."""
        reached = self.reached if self._batches is None else min(self.reached, self._batches)
        facts: dict[str, int | str] = {"iteration": reached, "fingerprint": self._fingerprint}
        return facts if self._epoch is None else facts | {"epoch": self.epoch}

    def restore(self, facts: Mapping[str, int | str]) -> None:
        """Let the next iteration begin where `to_dict` stood. Raises ConfigurationError for the state of other data."""
        missing = {"iteration", "fingerprint"} - set(facts)
        if missing:
            raise ConfigurationError(
                f"the state has no {sorted(missing)[0]!r}: it is not a state of this kind of stream"
            )
        if facts["fingerprint"] != self._fingerprint:
            raise ConfigurationError(
                "the state is of another stream: its shards, columns, batch_size, shuffle, seed or on_bad_rows are "
                "others than here; open the stream as it was"
            )
        iteration, epoch = int(facts["iteration"]), int(facts.get("epoch", 0))
        if iteration < 0 or epoch < 0:
            raise ConfigurationError(
                f"the state's iteration is {iteration}, its epoch {epoch}; both must be at least 0"
            )
        if self._epoch is not None:
            self._epoch.fill_(epoch)
        self.reached = iteration
        self._resumed = self.epoch, iteration


def _share_zero() -> torch.Tensor:
    zero = torch.zeros(1, dtype=torch.int64)
    zero.share_memory_()  # type: ignore[no-untyped-call]
    return zero
