"""The step that tries many models at once: a batch is streamed once, and every trial learns from it.

Optuna chooses the trials of a generation together, by what earlier ones have shown; those that fall behind on the
validation rows are dropped on the way. What is tried stands in .space, what Optuna remembers in .study.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from prefect.logging import get_run_logger
from pydantic import JsonValue, ValidationError

from tasks.errors import ConfigurationError, NonFiniteLossError
from tasks.facts import Searched, SearchJob
from tasks.policy import STREAMING, step
from tasks.training.matrices import SearchData
from tasks.training.outcome import ProgressArtifact, keep_ranks
from tasks.training.space import choose_parameters, make_trial
from tasks.training.study import FAULT, draw_study, find_told, open_study, translated

if TYPE_CHECKING:
    from optuna.study import Study
    from optuna.trial import Trial as Asked
    from torch import Tensor

    from tasks.learning.trials import Trial
    from tasks.tracking.nested import NestedRun

FACTOR = 3  # of a generation's trials, one of so many goes on
RUNGS = (9, 3)  # after such parts of the iterations
MOST_TOLD = 100  # iterations of a trial, in MLflow
CHOSEN = "chosen"  # a trial's attribute: its parameters, where they are not the search's own


@dataclass(kw_only=True)
class Outcome:
    """What became of a trial: its error on the validation rows, None where it failed, and its curve."""

    asked: Asked
    parameters: Mapping[str, JsonValue]
    state: Literal["complete", "pruned", "failed"] = "failed"
    value: float | None = None
    fault: str = ""
    lost: float = 1.0
    seen: dict[int, float] = field(default_factory=dict)
    curve: dict[int, float] = field(default_factory=dict)


@step("search", pauses=STREAMING)
def search_models(job: SearchJob) -> Searched:
    """Try as many models as asked for, and return the best one's parameters.

    Goes on with the study of an earlier attempt, or of a process that was killed.
    """
    from tasks.tracking.client import connect
    from tasks.tracking.nested import end_unknown, record_nested

    given, client = job.parameters, connect()
    study = open_study(f"{given.experiment} {job.run_id}", given.sampler, given.seed)
    end_unknown(client, job.run_id, [trial.number for trial in find_told(study)])
    progress = ProgressArtifact(given.trials)
    began = time.perf_counter()
    with closing(SearchData.open(job)) as data:
        while left := given.trials - len(find_told(study)):
            outcomes = try_generation(study, data, job, min(left, given.generation))
            record_nested(client, job.run_id, [name_outcome(number, each) for number, each in outcomes.items()])
            tell(study, outcomes)
            progress.show(len(find_told(study)))
            best = min((each.value for each in outcomes.values() if each.value is not None), default=math.nan)
            get_run_logger().info("%d trials of %d; best of these: MSE %.6g", len(find_told(study)), given.trials, best)
    return conclude(study, data, job, time.perf_counter() - began)


def try_generation(study: Study, data: SearchData, job: SearchJob, count: int) -> dict[int, Outcome]:
    """Ask for so many trials, train them together, and return by number what became of them."""
    given = job.parameters
    outcomes: dict[int, Outcome] = {}
    trials: dict[int, Trial] = {}
    with translated():
        for _ in range(count):
            asked = study.ask()
            chosen = choose_parameters(asked, given, job.features)
            outcomes[asked.number] = outcome = Outcome(asked=asked, parameters=chosen)
            try:
                training = given.training(chosen)
                multiple = given.multiple_of(training.batch_size)
                trials[asked.number] = make_trial(training, job.features, data.begun.scaling(multiple), multiple)
            except (ValidationError, ConfigurationError) as error:
                outcome.fault = str(error)
    if trials:
        Generation(trials, outcomes, data, halving=given.halving).run()
    return outcomes


class Generation:
    """Trials that are trained together, by their numbers in the study; what becomes of them is put into `outcomes`."""

    def __init__(
        self, trials: Mapping[int, Trial], outcomes: Mapping[int, Outcome], data: SearchData, *, halving: bool
    ) -> None:
        from tasks.learning.trials import Trials

        self.numbers, self.outcomes, self.data = list(trials), outcomes, data
        self.running = Trials(list(trials.values()), data.grams.units)
        self.ends = {trial.settings.iterations for trial in trials.values()}
        most = max(self.ends)
        self.rungs = {math.ceil(most / part) for part in RUNGS} - {most} if halving else set()
        self.every = math.ceil(most / MOST_TOLD)

    def run(self) -> None:
        """Train until each trial has ended, was dropped, or has a loss that is not finite."""
        running = self.running
        # the largest batches first: of them the others find the matrices at hand
        streams = {multiple: self.data.grams.by(multiple) for multiple in running.multiples}
        while running.alive:
            mse = running.step({multiple: next(streams[multiple]) for multiple in running.multiples})
            at = running.iteration - 1
            if at % self.every == 0 or running.iteration in self.ends:
                for outcome, value in zip(self._alive(), mse.tolist(), strict=True):
                    outcome.curve[at] = value
            if not mse.isfinite().all():
                self._fail(~mse.isfinite(), f"its loss at iteration {at} is not finite")
            if running.alive and running.iteration in self.rungs | self.ends:
                self._judge()

    def _alive(self) -> list[Outcome]:
        return [self.outcomes[self.numbers[at]] for at in self.running.alive]

    def _fail(self, which: Tensor, fault: str) -> None:
        for outcome, fails in zip(self._alive(), which.tolist(), strict=True):
            if fails:
                outcome.state, outcome.fault = "failed", fault
        self._keep([at for at, fails in zip(self.running.alive, which.tolist(), strict=True) if not fails])

    def _judge(self) -> None:
        """End the trials that have taken all their iterations; at a rung, drop those that fall behind."""
        running, at = self.running, self.running.iteration
        values = running.measure(self.data.validation)
        if not values.isfinite().all():
            self._fail(~values.isfinite(), f"its weights after iteration {at - 1} are not finite")
            values = values[values.isfinite()]
        left: list[int] = []
        for number, outcome, value in zip(running.alive, self._alive(), values.tolist(), strict=True):
            outcome.value = outcome.seen[at] = value
            outcome.lost = float(running.lost[number])
            ends = running.trials[number].settings.iterations == at
            outcome.state = "complete" if ends else "pruned"
            left += [] if ends else [number]
        if at in self.rungs:
            left = self._best(left)
        self._keep(left)

    def _best(self, numbers: Sequence[int]) -> list[int]:
        found = {number: self.outcomes[self.numbers[number]].value or 0.0 for number in numbers}
        best = sorted(numbers, key=lambda number: found[number])[: math.ceil(len(numbers) / FACTOR)]
        return [number for number in numbers if number in best]

    def _keep(self, numbers: list[int]) -> None:
        self.running.drop(numbers)


def tell(study: Study, outcomes: Mapping[int, Outcome]) -> None:
    """Tell the study what became of trials; of those that failed, why."""
    from optuna.trial import TrialState

    states = {"complete": TrialState.COMPLETE, "pruned": TrialState.PRUNED, "failed": TrialState.FAIL}
    with translated():
        for outcome in outcomes.values():
            if outcome.state == "failed":
                outcome.asked.set_user_attr(FAULT, outcome.fault)
            for iteration, value in outcome.seen.items():
                outcome.asked.report(value, iteration)
            outcome.asked.set_user_attr(CHOSEN, dict(outcome.parameters))
            final = outcome.value if outcome.state == "complete" else None
            study.tell(outcome.asked, final, state=states[outcome.state])


def name_outcome(number: int, outcome: Outcome) -> NestedRun:
    """Return what MLflow is told of a trial."""
    from tasks.learning.trials import MOST_LOST
    from tasks.tracking.nested import NestedRun

    curve = {at: mse for at, mse in outcome.curve.items() if math.isfinite(mse)}
    tags = {"shardline.state": outcome.state} | ({"shardline.error": outcome.fault} if outcome.fault else {})
    if outcome.lost > MOST_LOST:
        tags["shardline.cancellation"] = f"{outcome.lost:.1e}"
        get_run_logger().warning(
            "Trial %d: its loss is what is left of terms %.1e times as large, so that a run of its own may differ from "
            "it by more than 1e-12",
            number,
            outcome.lost,
        )
    return NestedRun(
        number=number,
        status="FAILED" if outcome.state == "failed" else "FINISHED",
        parameters=outcome.parameters,
        series={"mse": list(curve.items()), "validation_mse": list(outcome.seen.items())},
        tags=tags,
    )


def conclude(study: Study, data: SearchData, job: SearchJob, seconds: float) -> Searched:
    """Return what was found, and put Optuna's pictures of it into the record.

    Raises NonFiniteLossError where no trial came to its end.
    """
    from tasks.tracking.outbox import Outbox

    trials = find_told(study)
    counts = Counter(trial.state.name.lower() for trial in trials)
    if not counts["complete"]:
        faults = Counter(str(trial.user_attrs.get(FAULT)) for trial in trials).most_common(1)
        raise NonFiniteLossError(
            f"none of {len(trials)} trials came to its end ({faults[0][0]}): search smaller step sizes, as "
            "--search learning_rate=1e-6..0.01"
        )
    best = study.best_trial
    outbox = Outbox(job.run_id)
    for name, picture in draw_study(study).items():
        outbox.keep(f"figures/{name}.png", picture)
    keep_ranks(outbox, data.ranks)
    return Searched(
        number=best.number,
        best=best.user_attrs[CHOSEN],
        mse=study.best_value,
        counts=dict(counts),
        validation_rows=data.validation.rows,
        streamed=data.grams.streamed,
        seconds=seconds,
    )
