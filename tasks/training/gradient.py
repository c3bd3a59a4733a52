"""The step that trains: the stream and the loop meet here, inside one task; what leaves it is small and plain.

Where the loop starts is in `tasks.training.start`; which run is gone on with, and whether, is decided in
`tasks.runs.history`. A retry of this step goes on by itself.
"""

from __future__ import annotations

import itertools
import sys
import time
from collections import deque
from collections.abc import Generator, Mapping
from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING

from prefect.logging import get_run_logger

from tasks.errors import CheckpointError, NonFiniteLossError, TrackingError
from tasks.facts import Fit, FitTimes, TrainingJob
from tasks.policy import STREAMING, step
from tasks.redaction import redact_all
from tasks.runs.checkpoints import checkpoint_folder
from tasks.training.following import follow_ranks
from tasks.training.outcome import ProgressArtifact, keep_ranks, keep_reading, keep_weights, make_fit
from tasks.training.start import Started, copy_state, follow_trainer, start_trainer
from tasks.training.stopping import Stop
from tasks.training.telling import TIMES, Telling

if TYPE_CHECKING:
    from tasks.learning.checkpoints import Checkpoint, Checkpoints
    from tasks.learning.loop import Iteration, Trainer
    from tasks.tracking.outbox import Outbox

STAGES = ("waiting", "copying", "computing")  # what took the times, in their order


@step("train", pauses=STREAMING)
def train_model(job: TrainingJob) -> Fit:
    """Train on the streamed shards and record every iteration.

    Goes on from the run's last whole checkpoint where it has one, and leaves one wherever it is stopped.
    """
    from tasks.learning.checkpoints import Checkpoints
    from tasks.tracking.client import connect
    from tasks.tracking.outbox import Outbox
    from tasks.tracking.sending import read_histories, sending_in_background
    from tasks.tracking.system import watching_system

    client = connect()
    outbox = Outbox(job.run_id)
    checkpoints = Checkpoints(checkpoint_folder(job.parameters.checkpoint_url), job.run_id)
    series = read_histories(client, outbox, ["mse", *TIMES])
    recorded = next(number for number in itertools.count() if number not in series["mse"])
    kept = checkpoints.latest(at_most=recorded)  # after a later one, the record would have a gap
    started = follow_trainer(job, kept) if job.parameters.ranks > 1 else start_trainer(job, kept)
    if kept:
        get_run_logger().info("Going on at iteration %d, from a checkpoint", kept.iteration)
    saver = Saver(checkpoints, job, started)
    total = started.trainer.settings.iterations
    telling = Telling(outbox, total, thin_mse=job.parameters.thin_mse, series=series)
    progress = ProgressArtifact(total)
    began = time.perf_counter()
    with (
        closing(start_loop(job, started, saver)) as iterations,
        sending_in_background(client, outbox),
        watching_system(client, job.run_id),
        saver,
    ):
        for iteration in iterations:
            telling.tell(iteration)
            saver.save(iteration.iteration)
            progress.show(iteration.iteration + 1)
    keep_model(outbox, started)
    return conclude(started, series, job.run_id, time.perf_counter() - began)


def start_loop(job: TrainingJob, started: Started, saver: Saver) -> Generator[Iteration, None, None]:
    """Return the iterations to come, computed here or by ranks; `saver` sees the trainer after each one's step."""
    from tasks.learning.loop import train

    if job.parameters.ranks > 1:
        return follow_ranks(job, started, saver.keep)
    return train(started.trainer, started.batches, saver.keep, saver.due)


def conclude(started: Started, series: Mapping[str, Mapping[int, float]], run_id: str, seconds: float) -> Fit:
    """Return the fitted model, with the curve and the times of the whole record.

    Raises TrackingError where an iteration is not in the record.
    """
    trainer = started.trainer
    curve = series["mse"]
    missing = sorted(set(range(trainer.settings.iterations)) - set(curve))
    if missing:
        raise TrackingError(f"record incomplete: iterations {missing[:5]} of run {run_id} have no mse")
    return make_fit(
        trainer.model(),
        started.dataset,
        learning_rate=trainer.learning_rate,
        device=str(trainer.device),
        curve=[curve[number] for number in sorted(curve)],
        rows=len(curve) * started.dataset.batch_size,
        times=FitTimes(
            seconds=seconds,
            stream=started.clock.total,
            stages={
                stage: tuple(series[name].get(number, 0.0) for number in sorted(curve))
                for stage, name in zip(STAGES, TIMES, strict=True)
            },
            **{name: sum(series[name].values()) for name in TIMES},
        ),
        condition=trainer.condition,
        moments=started.first_pass.sums() if started.first_pass else None,
        ranks=started.ranks,
    )


def keep_model(outbox: Outbox, started: Started) -> None:
    """Put weights, scaling and what was found out while training into the outbox."""
    import json

    trainer, model = started.trainer, started.trainer.model()
    if not (model.w.isfinite().all() and model.b.isfinite().all()):
        raise NonFiniteLossError("the last step's weights are not finite: try a smaller learning_rate")
    keep_weights(outbox, model)
    keep_reading(outbox, started.dataset)
    scaling = {
        name: {"mean": mean, "scale": scale, "from": started.scaled_by.get(name, "the first batch")}
        for name, mean, scale in zip(
            trainer.features.names, trainer.scaling.mean.tolist(), trainer.scaling.scale.tolist(), strict=True
        )
    }
    outbox.keep("weights/scaling.json", json.dumps(scaling, indent=1))
    outbox.tag({"device": str(trainer.device), "learning_rate": f"{trainer.learning_rate!r}"})
    keep_ranks(outbox, started.ranks)
    if trainer.condition:
        outbox.tag({"condition": f"{trainer.condition:.3g}"})


class Saver:
    """Writes checkpoints as a loop goes, and the last state when it is stopped by anything but a loss that is lost.

    Where it is stopped between an iteration's step and its record, the one written before is the last. A checkpoint
    that cannot be written is warned of once, and does not stop the training.
    """

    def __init__(self, checkpoints: Checkpoints, job: TrainingJob, started: Started) -> None:
        self.checkpoints = checkpoints
        self.again = (
            f"--resume {job.run_id} goes on from there."
            if job.parameters.resume == "never"
            else "The same command goes on from there."
        )
        every = job.parameters.checkpoint_every
        self.every, self.in_seconds = int(every.removesuffix("s")), every.endswith("s")
        self.started, self.trainer = started, started.trainer
        self.began = started.trainer.iteration
        self.told: int | None = None
        self.kept: deque[Checkpoint] = deque()  # of iterations that are not in the record yet
        self.kept_at = 0.0
        self.warned = False
        self.written = 0
        self.stop = Stop(self.has_recorded_all)
        self.facts = {
            "shards": job.data.train.etags,
            "fingerprint": job.data.train.fingerprint,
            "seed": job.parameters.seed,
            "settings": redact_all(job.parameters.model_dump(mode="json")),
        }

    def __enter__(self) -> Saver:
        self.stop.__enter__()
        return self

    def has_recorded_all(self) -> bool:
        """Return whether the trainer's state is that after the last recorded iteration, or nothing is trained yet."""
        return self.trainer.is_whole and self.trainer.iteration == (self.told or self.began)

    def keep(self, trainer: Trainer) -> None:
        """Copy the state after a step where it is time to: after the first one, always."""
        since = time.monotonic() - self.kept_at
        is_time = since >= self.every if self.in_seconds else trainer.iteration % self.every == 0
        if not self.kept_at or self.stop.asked or is_time:
            self.kept.append(copy_state(self.started))
            self.kept_at = time.monotonic()

    def due(self, iteration: int) -> int:
        """Return after how many more iterations `keep` is to see the state, where it does not go by the clock."""
        return sys.maxsize if self.in_seconds else self.every - iteration % self.every

    def save(self, iteration: int) -> None:
        """Write the last state that was kept up to an iteration, if any; the iteration is in the record now."""
        self.told = iteration + 1
        state = None
        while self.kept and self.kept[0].iteration <= self.told:
            state = self.kept.popleft()
        if state:
            self._write(state)
        if self.stop.asked and (self.has_recorded_all() or self.written == self.told or self.warned):
            self.stop.obey()

    def _write(self, state: Checkpoint) -> None:
        try:
            self.checkpoints.write(replace(state, facts={**state.facts, **self.facts}))
            self.written = state.iteration
        except CheckpointError as error:
            if not self.warned:
                get_run_logger().warning("%s; the training goes on without", error)
            self.warned = True

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        self.stop.__exit__()
        if error is not None and self.told and self.has_recorded_all() and not isinstance(error, NonFiniteLossError):
            self._write_last()
        if isinstance(error, KeyboardInterrupt) and self.told:
            raise KeyboardInterrupt(self.describe_stop(self.told - 1)) from None

    def _write_last(self) -> None:
        """Write the state of this moment; where a GPU no longer gives it, what stopped the training is what is told."""
        try:
            self._write(copy_state(self.started))
        except RuntimeError as fault:  # torch.AcceleratorError among them: every call after a fault raises it again
            text = str(fault).partition("\n")[0]
            get_run_logger().warning("The last state cannot be read from %s: %s", self.trainer.device, text)

    def describe_stop(self, last: int) -> str:
        """Return two lines for whoever pressed Ctrl-C after that iteration: what is kept, and how it goes on."""
        if not self.written:
            return f"Stopped after iteration {last}; no checkpoint could be written.\nThe same command starts anew."
        whose = "its checkpoint" if self.written == last + 1 else f"the checkpoint of iteration {self.written - 1}"
        return f"Stopped after iteration {last}; {whose} is kept.\n{self.again}"
