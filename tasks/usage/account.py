"""What a run was to take beside what it has taken, over all attempts at it, as its record keeps it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING

from tasks.facts import TrainingJob
from tasks.usage.forecast import Forecast
from tasks.usage.measuring import Meter, Meters, Usage
from tasks.usage.prices import Prices, read_prices

if TYPE_CHECKING:
    from tasks.tracking.client import Client
    from tasks.tracking.outbox import Outbox

FILE = "usage.json"


@dataclass(frozen=True, kw_only=True)
class Account:
    """What a run was to take when it was begun first, and what it has taken since, with prices or without."""

    forecast: Forecast
    usage: Usage
    prices: Prices | None = None

    @property
    def cost(self) -> float | None:
        """What was taken costs, in the currency of the prices."""
        if self.prices is None:
            return None
        used = self.usage
        amounts = {"cpu_seconds": used.cpu_seconds, "gpu_seconds": used.gpu_seconds}
        return self.prices.cost(requests=used.requests, bytes=used.bytes, **amounts)

    @property
    def metrics(self) -> dict[str, float]:
        """Metrics for the record, by name; MLflow draws metrics in the order of their names, the loss before these."""
        used = {f"usage_{name}": float(value) for name, value in asdict(self.usage).items()}
        expected = {
            "usage_requests_foreseen": float(self.forecast.requests),
            "usage_bytes_foreseen": float(self.forecast.bytes),
            "usage_memory_foreseen": float(self.forecast.memory.bytes),
        }
        if self.forecast.seconds is not None:
            expected["usage_seconds_foreseen"] = self.forecast.seconds
        return used | expected | ({} if self.cost is None else {"usage_cost": self.cost})


class Ledger:
    """Keeps an account in the outbox of a run that may have been begun before; MLflow has what was kept then."""

    def __init__(self, client: Client, outbox: Outbox, forecast: Forecast, prices: Prices | None) -> None:
        self._outbox = outbox
        self._earlier = read_account(client, outbox) or Account(forecast=forecast, usage=Usage())
        self._prices = prices

    def add(self, usage: Usage) -> Account:
        """Return the account with what this attempt has taken."""
        return replace(self._earlier, usage=self._earlier.usage + usage, prices=self._prices)

    def keep(self, usage: Usage) -> None:
        """Put it into the outbox."""
        account = self.add(usage)
        self._outbox.keep(FILE, json.dumps(asdict(replace(account, prices=None)), indent=1))


def read_account(client: Client, outbox: Outbox) -> Account | None:
    """Return what earlier attempts at a run have left, None where this is the first, or it cannot be read."""
    from tasks.tracking.recorded import read_artifact

    kept, text = outbox.path / "artifacts" / FILE, None
    if kept.exists():
        text = kept.read_text(encoding="utf-8")
    elif any(each.path == FILE for each in client.list_artifacts(outbox.run_id)):
        text = read_artifact(client, outbox.run_id, FILE)
    try:
        plain = json.loads(text or "")
        return Account(forecast=Forecast.from_dict(plain["forecast"]), usage=Usage.from_dict(plain["usage"]))
    except (ValueError, KeyError, TypeError):
        return None


@contextmanager
def metered(job: TrainingJob, forecast: Forecast, begun: Meters) -> Iterator[Callable[[], Account]]:
    """Measure what this attempt at a run takes while the block runs; what it took is kept however the block ends.

    The block is given a function that returns the account of the moment.
    """
    from tasks.tracking.client import connect
    from tasks.tracking.outbox import Outbox

    given = job.parameters
    prices = read_prices(given.prices) if given.prices else None
    ledger = Ledger(connect(), Outbox(job.run_id), forecast, prices)
    others = given.ranks > 1 or given.num_workers > 0
    with Meter(begun, ledger.keep, gpus=forecast.gpus, others=others) as meter:
        yield lambda: ledger.add(meter.read())
