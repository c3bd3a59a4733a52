"""The last step: one artifact that a person reads, the pictures, and the files that make a run repeatable."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

from prefect.artifacts import create_markdown_artifact

from tasks.facts import Evaluation, Fit, Ridge, Searched, TrainingJob
from tasks.learning.drift import Drift
from tasks.naming import escape_markdown, write_code
from tasks.policy import step
from tasks.redaction import redact
from tasks.runs.lifecycle import Run
from tasks.usage.account import Account
from tasks.usage.wording import write_account, write_cost
from tasks.wording.worth import format_value, write_condition, write_scores, write_step, write_worst

if TYPE_CHECKING:
    from tasks.aws.identity import Identity
    from tasks.devices import Hardware
    from tasks.learning.figures import Draw
    from tasks.tracking.outbox import Outbox

MOST_STEPS = 500  # of a metric that follows from another one
IN_PREFECT = ("above_exact", "predicted")  # figures that the artifact shows


@step("report")
def report_run(
    run: Run,
    job: TrainingJob,
    fit: Fit,
    evaluation: Evaluation,
    identity: Identity,
    hardware: Hardware,
    account: Account,
    drift: Drift | None,
) -> str:
    """Write the report into Prefect (markdown artifact) and MLflow (description, figures, manifest); the report."""
    from tasks.learning.figures import TITLES, render, shrink
    from tasks.tracking.outbox import Outbox

    outbox = Outbox(run.run_id)
    drawings = draw_figures(job.features.target, fit, evaluation)
    figures = {name: render(draw, TITLES[name]) for name, draw in drawings}
    for name, figure in figures.items():
        outbox.keep(f"figures/{name}.png", figure)
    keep_excess(outbox, fit, evaluation)
    outbox.log(0, account.metrics)
    if cost := write_cost(account):
        outbox.tag({"shardline.cost": cost})
    outbox.keep("manifest.json", json.dumps(job.data.train.to_dict(), indent=1))
    text = "\n\n".join(
        [
            f"**{escape_markdown(evaluation.verdict)}**",
            escape_markdown(evaluation.promotion.verdict),
            write_scores(evaluation),
            *write_worst(evaluation),
            *([escape_markdown(drift.verdict)] if drift else []),
            *write_condition(job.parameters.dtype, fit, evaluation.train_mse),
            write_times(fit),
            *write_ranks(fit),
            *write_bad_rows(fit),
            *write_damage(fit),
            write_account(account),
            write_circumstances(job, fit, identity, hardware),
        ]
    )
    outbox.tag({"mlflow.note.content": text, "shardline.verdict": evaluation.verdict})
    outbox.tag({"shardline.gate": evaluation.promotion.verdict})
    outbox.keep("report.md", text)
    pictures = [
        f"![{TITLES[name]}](data:image/png;base64,{base64.b64encode(shrink(figures[name])).decode()})"
        for name in IN_PREFECT
        if name in figures
    ]
    create_markdown_artifact(
        key="report",
        description="What was trained, what it is worth, and where the time went",
        markdown="\n\n".join([text, *pictures, run.link]),
    )
    return text


@step("report search")
def report_search(run: Run, searched: Searched, trained: str, ridge: Ridge | None) -> str:
    """Write what a search found into Prefect (markdown artifact) and MLflow (description, metrics); the verdict.

    `trained` is the id of the run in which the best trial was trained alone.
    """
    from tasks.tracking.outbox import Outbox

    outbox = Outbox(run.run_id)
    verdict = write_find(searched)
    lines = [f"| {write_code(name)} | {write_code(format_value(value))} |" for name, value in searched.best.items()]
    again = f"python -m flows.training --like {trained}"
    text = "\n\n".join(
        [
            f"**{escape_markdown(verdict)}**",
            "\n".join(["| parameter | best trial |", "|---|---|", *lines]),
            f"It was trained alone, judged and registered as run {write_code(trained)}; "
            f"{write_code(again)} repeats it.",
            *write_ridge(ridge),
        ]
    )
    outbox.log(0, {"validation_mse": searched.mse, "batches_streamed": searched.streamed, "seconds": searched.seconds})
    outbox.tag({"mlflow.note.content": text, "shardline.verdict": verdict, "shardline.best_run": trained})
    outbox.tag({"shardline.best_trial": str(searched.number)})
    outbox.keep("report.md", text)
    create_markdown_artifact(
        key="search", description="What was tried, and what was best", markdown=f"{text}\n\n{run.link}"
    )
    return verdict


def write_find(searched: Searched) -> str:
    """Return one sentence that says which trial is the best, and what became of the others."""
    words = {"complete": "trained to their end", "pruned": "dropped on the way", "fail": "failed"}
    counts = ", ".join(f"{searched.counts[name]} {text}" for name, text in words.items() if searched.counts.get(name))
    return (
        f"Trial {searched.number} of {sum(searched.counts.values())} ({counts}) is the best: RMSE "
        f"{math.sqrt(searched.mse):.6g} on the {searched.validation_rows:,} validation rows."
    )


def write_ridge(ridge: Ridge | None) -> list[str]:
    """Return a sentence about the exact model with a penalty, where there were shards to cross-validate it on."""
    if ridge is None:
        return []
    if not ridge.l2:
        return [f"Cross-validated over {ridge.folds} folds of shards, the exact model is best without a penalty."]
    found = (
        f"RMSE {math.sqrt(ridge.mse):.6g} with l2 = {ridge.l2:g} and {math.sqrt(ridge.without):.6g} without a penalty"
    )
    words = f"python -m flows.training --solver exact --l2 {ridge.l2!r}"
    return [f"Cross-validated over {ridge.folds} folds of shards, the exact model has {found}: {write_code(words)}."]


def draw_figures(target: str, fit: Fit, evaluation: Evaluation) -> Iterator[tuple[str, Draw]]:
    """Yield what is to be drawn, by name; a model that was solved in one pass has no iterations to draw."""
    from tasks.learning import figures

    yield "curve", figures.draw_curve(fit.curve, evaluation.train_mse)
    if fit.iterations > 1:
        yield "above_exact", figures.draw_excess(above_exact(fit, evaluation))
        yield "times", figures.draw_stages(fit.times.stages)
    yield "predicted", figures.draw_density(evaluation.density, target)
    yield "residuals", figures.draw_residuals(evaluation.density, target)
    yield "slices", figures.draw_slices(evaluation.slices, target)
    if evaluation.standardised:
        yield "weights", figures.draw_weights(evaluation.standardised, target)


def above_exact(fit: Fit, evaluation: Evaluation) -> list[float]:
    """Return each iteration's mean squared error less the exact model's over all training rows."""
    return [mse - evaluation.train_mse["exact"] for mse in fit.curve]


def keep_excess(outbox: Outbox, fit: Fit, evaluation: Evaluation) -> None:
    """Put `mse_above_exact` into the record: of each iteration, or of some 500 where there are more.

    A retry of this step keeps none again: they are the same.
    """
    if fit.iterations < 2 or any(row.key == "mse_above_exact" for row in outbox.rows):
        return
    excess = above_exact(fit, evaluation)
    last, apart = len(excess) - 1, math.ceil(len(excess) / MOST_STEPS)
    for number in (*range(0, last, apart), last):
        outbox.log(number, {"mse_above_exact": excess[number]})


def write_circumstances(job: TrainingJob, fit: Fit, identity: Identity, hardware: Hardware) -> str:
    """Return a list of what was read, as whom, on what, and how the model was found."""
    manifest, given = job.data.train, job.parameters
    lines = {
        "Shards": f"{write_code(redact(job.sources.shards))}: {len(manifest.shards)}, {manifest.rows:,} rows, "
        f"fingerprint `{manifest.fingerprint[:12]}`",
        "Account": escape_markdown(identity.account or identity.note),
        "Batches": f"{[given.batch_size, len(manifest.columns)]} of {given.dtype}",
        "Hardware": f"{hardware.cpu.model}, {hardware.cpu.usable:g} cores"
        + "".join(f", {device.name}" for device in hardware.cuda),
        "Learning rate": write_step(fit),
        "Judged on": escape_markdown(job.data.judged_on),
    }
    return "\n".join(f"- **{name}**: {value}" for name, value in lines.items())


def write_ranks(fit: Fit) -> list[str]:
    """Return a sentence that names the slowest of several ranks, for which the others waited."""
    if not fit.ranks:
        return []
    slowest = max(fit.ranks, key=lambda times: times.busy_seconds)
    fastest = min(fit.ranks, key=lambda times: times.busy_seconds)
    computing = slowest.compute_seconds - slowest.gather_seconds
    return [
        f"{len(fit.ranks)} ranks trained. The slowest was rank {slowest.rank} on {escape_markdown(slowest.host)}, busy "
        f"for {slowest.busy_seconds:.2f} s (waiting for data {slowest.wait_seconds:.2f} s, computing {computing:.2f} "
        f"s) over {slowest.rows:,} rows; the fastest, rank {fastest.rank}, for {fastest.busy_seconds:.2f} s, and it "
        f"waited {fastest.gather_seconds:.2f} s for the others' sums. `ranks.json` has them all."
    ]


def write_bad_rows(fit: Fit) -> list[str]:
    """Return a sentence on the rows that were left out, where there are any."""
    if not fit.bad_rows:
        return []
    return [f"**Bad rows left out: {fit.bad_rows:,}**; {write_code(str(fit.bad_rows_file))} lists them."]


def write_damage(fit: Fit) -> list[str]:
    """Return a sentence on the shards whose files in the cache were damaged, where there are any."""
    if not fit.damaged:
        return []
    shards = "one shard was" if fit.damaged == 1 else f"{fit.damaged} shards were"
    return [
        f"**In the cache {shards} found damaged**, and fetched again; no damaged row was trained on: check the disk"
    ]


SHORT = 5.0  # seconds of a run, below which no part of them is worth an advice
HELP = {
    "fetching": "a cache that holds all shards, a closer region, or fewer and larger shards would help",
    "decoding": "more cores, Parquet shards, or a cache that holds all shards would help",
    "waiting for data": "more DataLoader workers, or none (threads share one cache of decoded shards), may help",
    "copying": "data that stays on the device (resident_bytes) would help",
    "recording": "fewer and larger batches, or a longer checkpoint_every, would help",
    "computing": "a GPU, float32 or fewer iterations would help; the data comes fast enough",
}


def write_times(fit: Fit) -> str:
    """Return one paragraph: iterations, time, what share of it was waiting, copying and computing, what would help.

    What is left of the time is recording: log lines, metrics and checkpoints. The parts sum to the total, as printed.
    """
    times, stream = fit.times, fit.times.stream
    parts = {
        "waiting for data": round(times.wait_seconds, 2),
        "copying": round(times.copy_seconds, 2),
        "computing": round(times.compute_seconds, 2),
    }
    parts["recording"] = max(0.0, round(times.seconds, 2) - sum(parts.values()))
    total = sum(parts.values()) or 1.0
    shares = ", ".join(f"{name} {seconds:.2f} s ({seconds / total:.0%})" for name, seconds in parts.items())
    bound = max(parts, key=lambda name: parts[name])
    if bound == "waiting for data" and stream:
        bound = "fetching" if stream.fetch_seconds > stream.decode_seconds else "decoding"
        shares += f" (behind it: fetching {stream.fetch_seconds:.2f} s, decoding {stream.decode_seconds:.2f} s)"
    number = f"{fit.iterations} iterations" if fit.learning_rate else "One pass"
    advice = f"The run was bound by {bound}: {HELP[bound]}." if total >= SHORT else "That is too short to advise."
    return f"{number} over {fit.rows:,} rows in {sum(parts.values()):.2f} s on {fit.device}: {shares}. {advice}"
