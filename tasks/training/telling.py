"""What is told of each iteration: a log line and metrics, and of a long run only so many of them."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

from prefect.logging import get_run_logger

if TYPE_CHECKING:
    from tasks.learning.loop import Iteration
    from tasks.tracking.outbox import Outbox

TIMES = ("wait_seconds", "copy_seconds", "compute_seconds")
MOST_TOLD = 500  # iterations, each with a log line and all its metrics in MLflow; of a longer run, about as many
LOG_EVERY_SECONDS = 10.0  # in a longer run


class Telling:
    """Tells of a run's iterations: in the log, and to its outbox.

    All that is known of each iteration stays in the record. Beyond MOST_TOLD iterations, MLflow gets the times of every
    n-th and of the last one by themselves, and the `mse` of all, or with `thin_mse` of those alone; the rest is in the
    file that `tasks.tracking.sending.keep_whole` makes. The log then has the first, the last and one every ten seconds.

    series: the `mse` and the TIMES by iteration, those of the record first, and what is told
    """

    def __init__(
        self, outbox: Outbox, iterations: int, *, thin_mse: bool, series: Mapping[str, dict[int, float]]
    ) -> None:
        self.outbox, self.iterations, self.thin_mse, self.series = outbox, iterations, thin_mse, series
        self.every = math.ceil(iterations / MOST_TOLD)
        self.logged = -math.inf

    def tell(self, iteration: Iteration) -> None:
        """Log an iteration and keep its metrics, where the record does not have them already."""
        number, metrics = iteration.iteration, name_metrics(iteration)
        is_last = number == self.iterations - 1
        if self.every == 1 or is_last or time.monotonic() - self.logged >= LOG_EVERY_SECONDS:
            self.logged = time.monotonic()
            get_run_logger().info("%s", iteration)
        if number in self.series["mse"]:
            return
        if number % self.every == 0 or is_last:
            self.outbox.log(number, metrics, metrics if self.every > 1 else None)
        else:
            self.outbox.log(number, {} if self.thin_mse else {"mse": iteration.mse}, metrics)
        for name, values in self.series.items():
            values[number] = metrics[name]


def name_metrics(iteration: Iteration) -> dict[str, float]:
    """Return an iteration's facts under the names that MLflow shows."""
    total = iteration.wait_seconds + iteration.seconds
    return {
        "mse": iteration.mse,
        "seconds_per_iteration": iteration.seconds,
        **{name: getattr(iteration, name) for name in TIMES},
        "rows_per_second": iteration.rows / total if total else 0.0,
    }
