"""The step that says what the model is worth: beside the mean-only and the exact model, on the same rows."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from typing import TYPE_CHECKING

from prefect.artifacts import create_table_artifact
from prefect.logging import get_run_logger

from tasks.errors import RowError, ShardsNotFoundError
from tasks.facts import ROWS_OF, Evaluation, Fit, RowsOf, TrainingJob
from tasks.learning.scores import AT_BOTH_ENDS, Score, Scores, Slice
from tasks.policy import READING, step
from tasks.ranks.group import Group, are_of_use, pass_ranks
from tasks.ranks.judging import Judged, judge_as_rank
from tasks.runs.profiles import show_profiles
from tasks.runs.promotion import Champion, find_champion, judge
from tasks.sources import open_dataset
from tasks.streaming.manifest import Manifest
from tasks.tracking.carrying import carry
from tasks.tracking.registry import ColumnModel
from tasks.wording.worth import MODELS, tabulate_slices

if TYPE_CHECKING:
    from tasks.learning.linear import LinearModel
    from tasks.learning.profiled import Profiler
    from tasks.learning.sums import MomentSums
    from tasks.tracking.outbox import Outbox

SLICES = "evaluation/slices.json"


@step("evaluate", pauses=READING)
def evaluate_model(job: TrainingJob, fit: Fit) -> Evaluation:
    """Score the fitted, the exact least-squares, the mean-only and the champion's model on the same rows.

    They are those of the test shards or those held out, else the training rows. A table artifact shows the slices.
    """
    from tasks.learning.linear import LinearModel
    from tasks.learning.profiled import Profiler
    from tasks.learning.scoring import Moments
    from tasks.tracking.outbox import Outbox

    data, given, outbox = job.data, job.parameters, Outbox(job.run_id)
    sums, moments = complete_sums(job, fit), Moments(job.features)
    moments.restore(sums)
    train_profile = sums.profile.profile() if sums.profile else None
    models = {
        "trained": LinearModel.of(job.features, fit.weights, fit.bias),
        "exact": moments.exact(),
        "mean": moments.mean_model(),
    }
    champion = find_champion(given.experiment, job.features.target, data.judged.known)
    edges = train_profile.edges if train_profile else job.edges
    # what the training rows hold is known
    profiler = None if data.rows_of == "train" else Profiler(data.judged.columns, edges)
    scores, champion = score_beside(champion, models, job, profiler)
    judged = profiler.sums() if profiler else None
    test_profile = judged.profile() if judged else None
    promotion = judge(scores.overall, data.rows_of, champion)
    keep_scores(outbox, scores, "train" if data.rows_of == "train" else "test")
    show_profiles(outbox, {"train": train_profile, "test": test_profile}, job.features.target)
    create_table_artifact(
        key="slices",
        table=tabulate_slices(scores.slices),
        description=describe_slices(scores.slices, ROWS_OF[data.rows_of]),
    )
    verdict = write_verdict(scores.overall, data.rows_of)
    get_run_logger().info("%s", verdict)
    get_run_logger().info("%s", promotion.verdict)
    return Evaluation(
        rows_of=data.rows_of,
        scores=scores.overall,
        slices=scores.slices,
        density=scores.density,
        standardised=moments.standardise(models["trained"]),
        verdict=verdict,
        promotion=promotion,
        train_mse={name: moments.mse(model) for name, model in models.items()},
        train_profile=train_profile,
        test_profile=test_profile,
    )


def complete_sums(job: TrainingJob, fit: Fit) -> MomentSums:
    """Return the sums over all training rows: what fitting took in on its way, and the rest, which is streamed now."""
    from tasks.learning.first_pass import FirstPass

    known, given = fit.moments, job.parameters
    if known and known.is_complete:
        return known
    if are_of_use(given, job.data.train.rows - (known.rows if known else 0)):
        return pass_ranks(job, known, shuffle=given.shuffle).sums
    first = known.batches if known else 0
    dataset = open_dataset(
        job.data.train, job.sources, given, epochs=1, start=first, shuffle=given.shuffle, seed=given.seed
    )
    rest = FirstPass(job.features, dataset.manifest.rows, dataset.batch_size, edges=job.edges)
    if known:
        rest.restore(known)
    for batch in dataset:
        rest.take(batch)
    sums = rest.sums()
    assert sums is not None, "no data set is without rows"
    return sums


def score_beside(
    champion: Champion,
    models: Mapping[str, LinearModel],
    job: TrainingJob,
    profiler: Profiler | None = None,
) -> tuple[Scores, Champion]:
    """Score models and the champion on the rows that are judged, reading the columns that it needs besides.

    `profiler` takes the rows in; what the champion needs besides stands behind the columns that are read in any case.
    Where those cannot be read on all of these rows, the champion that is returned has that for its fault.
    """
    judged, open_judged = job.data.judged, partial(open_dataset, sources=job.sources, given=job.parameters, epochs=1)
    if champion.model is None or job.data.rows_of == "train":
        return score_on(judged, models, None, job, profiler), champion
    columns = (*judged.columns, *(name for name in champion.model.inputs if name not in judged.columns))
    wider = {name: replace(model, features=replace(model.features, columns=columns)) for name, model in models.items()}
    try:
        chosen = judged.choose(columns)
        if columns != judged.columns and (found := open_judged(chosen)).bad_rows > open_judged(judged).bad_rows:
            raise RowError(f"some rows are bad only in the columns that it needs besides; see {found.bad_rows_file}")
        return score_on(chosen, wider, champion.model.on(columns), job, profiler), champion
    except (RowError, ShardsNotFoundError) as error:
        if columns == judged.columns:
            raise
        unread = replace(champion, model=None, fault=f"what it needs besides cannot be read: {error}")
    return score_on(judged, models, None, job, profiler), unread


def score_on(
    manifest: Manifest,
    models: Mapping[str, LinearModel],
    champion: ColumnModel | None,
    job: TrainingJob,
    profiler: Profiler | None,
) -> Scores:
    """Score models and the champion on all rows of a manifest, here or over ranks: to the same bits."""
    from tasks.learning.scoring import score

    given = job.parameters
    if not are_of_use(given, manifest.rows):
        dataset = open_dataset(manifest, job.sources, given, epochs=1)
        others = {"champion": champion} if champion else None
        return score(profiler.watch(dataset) if profiler else dataset, models, others)
    judged = Judged.of(
        models,
        carry(champion) if champion else None,
        manifest=manifest,
        sources=job.sources,
        given=given,
        profiled=profiler.columns if profiler else (),
        edges=profiler.edges if profiler else {},
    )
    with Group(given, partial(judge_as_rank, judged=judged)) as group:
        found = group.await_end().ended[0]
    if profiler and found.profile:
        profiler.restore(found.profile)
    return found.scores


def keep_scores(outbox: Outbox, scores: Scores, prefix: str) -> None:
    """Put the scores into the run's record: metrics, all of it as JSON, and the slices as a table that MLflow shows.

    The metrics' step is 0: of a later one MLflow would draw a curve with one point.
    """
    plain = scores.to_dict()
    outbox.log(
        0,
        {
            f"{prefix}_{key}" if name == "trained" else f"{prefix}_{key}_{name}_model": value
            for name, facts in scores.overall.items()
            for key, value in asdict(facts).items()
            if key != "rows" and value is not None and math.isfinite(value)
        },
    )
    outbox.keep("evaluation/scores.json", json.dumps(plain, indent=1))
    slices = plain["slices"]
    columns = [name for name in slices[0] if any(each[name] is not None for each in slices)]
    table = {"columns": columns, "data": [[each[name] for name in columns] for each in slices]}
    outbox.keep(SLICES, json.dumps(table))
    outbox.tag({"mlflow.loggedArtifacts": json.dumps([{"path": SLICES, "type": "table"}])})


def describe_slices(slices: Sequence[Slice], rows: str) -> str:
    """Say what a table of slices holds, and what to mind where rows were chosen by the target itself."""
    text = f"The trained model by slice of the {rows} rows, beside the exact model and the mean"
    if any(each.by_target for each in slices):
        text += f"; {AT_BOTH_ENDS}"
    if not all(each.by_target for each in slices):
        text += ". R² is left out where rows were chosen by the target itself: it varies too little among them for "
        text += "any model to explain much of it"
    return text


def write_verdict(scores: Mapping[str, Score], rows_of: RowsOf) -> str:
    """Return one sentence that says what the trained model is worth."""
    trained, exact, mean = (scores[name] for name in MODELS)
    rows = f"the {trained.rows:,} {ROWS_OF[rows_of]} rows"
    if trained.r2 is None:
        return (
            f"The target is constant on {rows}, so no model can be told from guessing its mean: "
            f"RMSE {trained.rmse:.6g}, always guessing the mean {mean.rmse:.6g}."
        )
    if trained.mse >= mean.mse:
        return (
            f"This model is worse than always guessing the mean on {rows}: RMSE {trained.rmse:.6g} against "
            f"{mean.rmse:.6g}; the best linear model reaches {exact.rmse:.6g}."
        )
    if trained.r2 < 0:
        spread = math.sqrt(trained.mse / (1 - trained.r2))
        return (
            f"This model is better than always guessing the training rows' mean on {rows}: RMSE {trained.rmse:.6g} "
            f"against {mean.rmse:.6g}; the best linear model reaches {exact.rmse:.6g}. These rows lie on another "
            f"level than the training rows: their own mean would be nearer (RMSE {spread:.6g})."
        )
    return (
        f"This model explains {trained.r2:.1%} of the variance on {rows} (RMSE {trained.rmse:.6g}; "
        f"always guessing the mean {mean.rmse:.6g}; the best linear model {exact.rmse:.6g})."
    )
