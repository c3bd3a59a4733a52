"""The ranks of one job as a group of Ray Train, followed from the process that writes the record.

What a rank tells is in `.mailbox`. A rank that is killed takes the group with it, and Ray starts the group again: it
goes on from the state after all that was told, and Ray keeps none.
"""

from __future__ import annotations

import contextlib
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, Self

import psutil
from prefect.logging import get_run_logger

from tasks.errors import RankError
from tasks.facts import RankTimes, StreamTimes, TrainingJob
from tasks.learning.sums import MomentSums
from tasks.parameters import MOST_ROWS, Ranks, TrainingParameters
from tasks.ranks.cluster import Cluster
from tasks.ranks.mailbox import Mailbox, News, R
from tasks.ranks.member import Member, be_rank
from tasks.ranks.parts import StageClock
from tasks.ranks.passing import Passed, Reading, take_moments
from tasks.sources import open_dataset
from tasks.streaming.objects.traffic import count

if TYPE_CHECKING:
    from tasks.streaming import ObjectStorageDataset

GOES_ON = "another attempt, or the same command, goes on from the last checkpoint where there is one"
CONTROLLER = "TrainController"  # in the name of Ray Train's process that starts the ranks
POLL_SECONDS = 0.1
CONNECTING_SECONDS = 0.01  # so short, for that long SIGTERM may be Ray's, see `keep_handler`
STARTS_AGAIN = 3  # a group whose ranks are lost; where it may shrink, so often for each of them
RESIZING_SECONDS = 60.0  # after which a group that has fewer ranks than it may looks for room, and then begins again
ENDING_SECONDS = 5.0  # for Ray to see that all ranks have done their part; it tells of a process that was killed
STOPPING_SECONDS = 10
STARTING_SECONDS = 300  # that a group may take to start again, all its ranks being silent


def pass_ranks(job: TrainingJob, known: MomentSums | None = None, *, shuffle: bool = False) -> Passed:
    """Return the moments of all training rows, taken by ranks, see `pass_rank`; raises as `Group` does."""
    dataset = open_dataset(job.data.train, job.sources, job.parameters, epochs=1)
    clock = StageClock()
    with Group(job.parameters, partial(take_moments, job=job, known=known, shuffle=shuffle)) as group:
        news = group.await_end()
    sums = news.ended[0].moments
    assert sums is not None, "they were to be taken"
    return Passed(sums=sums, dataset=dataset, clock=clock, ranks=note_readings(news, dataset, clock))


def are_of_use(given: TrainingParameters, rows: int) -> bool:
    """Return whether ranks are asked for, and rows are more than one batch: less is read sooner than ranks start."""
    return given.ranks > 1 and rows > (given.batch_size or MOST_ROWS)


def note_readings(news: News[Reading], dataset: ObjectStorageDataset, clock: StageClock) -> list[RankTimes]:
    """Note what the ranks read, as if it had been read here; return where their time went."""
    readings = [news.ended[rank] for rank in sorted(news.ended)]
    clock.total = add_times(readings)
    for reading in readings:
        dataset.checks.update(reading.checks)
        dataset.damaged.extend(reading.damaged)
        count(requests=reading.traffic.requests, received=reading.traffic.bytes)
    return [news.times[rank] for rank in sorted(news.times)]


def add_times(readings: Sequence[Reading]) -> StreamTimes | None:
    """Return what the streams of all ranks took, None where nobody counted."""
    counted = [reading.stream for reading in readings if reading.stream]
    if not counted:
        return None
    return StreamTimes(
        fetch_seconds=math.fsum(times.fetch_seconds for times in counted),
        decode_seconds=math.fsum(times.decode_seconds for times in counted),
        assemble_seconds=math.fsum(times.assemble_seconds for times in counted),
    )


def describe_silence(news: News[Any], timeout: float) -> str:
    """Return which ranks are silent for longer than `timeout` seconds while others are heard; empty: none is.

    All are silent while Ray starts them again, which may take STARTING_SECONDS more.
    """
    silent = sorted(rank for rank, seconds in news.silent.items() if seconds > timeout)
    heard_last = min(news.silent.values(), default=0.0)
    if not silent or timeout / 2 < heard_last < timeout + STARTING_SECONDS:
        return ""
    named = ", ".join(
        f"rank {rank}" + (f" (process {at.process} on {at.host})" if (at := news.times.get(rank)) else "")
        for rank in silent
    )
    return f"nothing was heard of {named} for {news.silent[silent[0]]:.0f} s"


def keep_handler() -> None:
    """Let the process hear SIGTERM as before: below Python, Ray puts a handler there that ends the process at once."""
    before = signal.getsignal(signal.SIGTERM)
    if before is not None and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, before)


def kill_controller(process_id: int) -> None:
    """Kill the process that starts the ranks, unless it is gone and its number another's."""
    with contextlib.suppress(psutil.Error):
        process = psutil.Process(process_id)
        if CONTROLLER in process.cmdline()[0]:
            process.kill()


class Group(Generic[R]):
    """Ranks that work while the `with` block is not left; at its end none is left, and no process of a cluster.

    given: how many ranks there are
    work: what each of them does; it must be there to be imported where they run
    state: where they begin
    on_gpus: whether each takes a GPU

    Raises what a rank raises, and RankError for ranks that are lost again and again, or not heard of. Ray is started
    and waited for in a thread: in the main thread it would take the signals that end a flow run.
    """

    def __init__(
        self, given: Ranks, work: Callable[[Member], R], *, state: object = None, on_gpus: bool = False
    ) -> None:
        self._given, self._work, self._state, self._on_gpus = given, work, state, on_gpus
        self._error: BaseException | None = None
        self._mailbox: Any = None
        self._controller: int | None = None
        self._fitted, self._leaving = threading.Event(), threading.Event()
        self._attempt = 0
        self._thread = threading.Thread(target=self._run, name="ranks", daemon=True)

    def __enter__(self) -> Self:
        given = self._given
        self._cluster = Cluster(given.ranks, gpus=given.ranks if self._on_gpus else 0, shrinks=bool(given.fewest_ranks))
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._leaving.set()
        with contextlib.ExitStack() as ending:  # to its end, though a signal comes amid it
            ending.callback(self._cluster.close)
            ending.callback(self._stop)
            if kind is None:
                self._fitted.wait(ENDING_SECONDS)

    def _stop(self) -> None:
        """End the ranks, and the wait for them: if the connection ended first, it would take a core, or the process.

        Ray's own ways of ending an actor need its head, which may be what was lost.
        """
        deadline = time.monotonic() + STOPPING_SECONDS
        while not self._fitted.wait(POLL_SECONDS) and time.monotonic() < deadline:
            if self._controller is None and self._mailbox is not None:
                with contextlib.suppress(RankError):
                    self._ask(timeout=STOPPING_SECONDS / 2)
            if self._controller is not None:
                kill_controller(self._controller)

    def take(self) -> News[R]:
        """Return what the ranks told since, after a moment where it is nothing; raises why they cannot go on."""
        has_ended = self._fitted.is_set()
        news = self._ask(timeout=self._given.rank_timeout)
        if news is None or not news.told:
            self._raise_end(news, has_ended)
            self._fitted.wait(POLL_SECONDS if news else CONNECTING_SECONDS)
        return news or News(told=(), attempt=0, size=0, silent={}, times={}, ended={}, error=None)

    def await_end(self) -> News[R]:
        """Return what is known when every rank has ended."""
        while not (news := self.take()).is_over:
            pass
        return news

    def _ask(self, *, timeout: float) -> News[R] | None:
        import ray

        keep_handler()
        if self._mailbox is None:
            return None
        try:
            # not by ray.get: it hears a signal at its end only, and makes a SystemError of what the handler raises
            news: News[R] = self._mailbox.take.remote().future().result(timeout)
        except (ray.exceptions.RayError, TimeoutError) as error:
            reason = _first_line(error) if str(error) else f"no answer within {timeout:g} s"
            raise RankError(f"the Ray cluster is lost ({reason}); {GOES_ON}") from error
        self._controller = news.controller
        if news.attempt > self._attempt:
            self._attempt = news.attempt
            get_run_logger().info(
                "%s started%s",
                "1 rank has" if news.size == 1 else f"{news.size} ranks have",
                "" if news.attempt == 1 else f", attempt {news.attempt}",
            )
        return news

    def _raise_end(self, news: News[R] | None, has_ended: bool) -> None:
        """Raise why no more will be told, if that is so.

        has_ended: whether all was over when the ranks were asked
        """
        if news and news.error:
            raise news.error
        if news and (silence := describe_silence(news, self._given.rank_timeout)):
            raise RankError(f"{silence}; {GOES_ON}")
        if has_ended and not (news and news.is_over):
            raise RankError(f"the ranks were lost: {_first_line(self._error)}; {GOES_ON}") from self._error

    def _run(self) -> None:
        try:
            self._cluster.connect()
            if not self._leaving.is_set():
                self._fit()
        except BaseException as error:
            self._error = error
        self._fitted.set()

    def _fit(self) -> None:
        import ray
        from ray.train import FailureConfig, RunConfig, ScalingConfig
        from ray.train.torch import TorchTrainer
        from ray.train.v2._internal.execution.callback import ControllerCallback
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        from tasks.ranks.meeting import MeetingConfig

        given = self._given
        fewest = given.fewest_ranks or given.ranks
        again = STARTS_AGAIN if fewest == given.ranks else STARTS_AGAIN * given.ranks
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        actor = ray.remote(num_cpus=0, scheduling_strategy=here)(Mailbox)
        self._mailbox = mailbox = actor.remote(self._state)

        class Introduction(ControllerCallback):  # type: ignore[misc]
            def after_controller_start(self, _: object) -> None:
                ray.get(mailbox.know.remote(os.getpid()))

        TorchTrainer(
            be_rank,
            train_loop_config={"mailbox": self._mailbox, "work": self._work},
            torch_config=MeetingConfig(
                backend="cpu:gloo,cuda:nccl" if self._on_gpus else "gloo",
                timeout_s=2 * given.rank_timeout + STARTING_SECONDS,
            ),
            scaling_config=ScalingConfig(
                num_workers=given.ranks if fewest == given.ranks else (fewest, given.ranks),
                elastic_resize_monitor_interval_s=RESIZING_SECONDS,
                use_gpu=self._on_gpus,
                resources_per_worker={"CPU": 1, **({"GPU": 1} if self._on_gpus else {})},
                placement_strategy="SPREAD",
            ),
            run_config=RunConfig(
                name="ranks",
                storage_path=self._cluster.storage,
                callbacks=[Introduction()],
                failure_config=FailureConfig(max_failures=again, controller_failure_limit=again),
            ),
        ).fit()


def _first_line(error: BaseException | None) -> str:
    text = str(error).strip() if error else "they ended early"
    return text.splitlines()[0] if text else type(error).__name__
