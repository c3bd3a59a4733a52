"""The last step: one artifact that a person reads, the curve, and the files that make a run repeatable."""

from __future__ import annotations

import base64
import json
from typing import TYPE_CHECKING

from prefect.artifacts import create_markdown_artifact

from tasks.facts import ROWS_OF, Evaluation, Fit, TrainingJob
from tasks.naming import escape_markdown, write_code
from tasks.policy import step
from tasks.runs.lifecycle import Run

if TYPE_CHECKING:
    from tasks.aws.identity import Identity
    from tasks.devices import Hardware


@step("report")
def report_run(
    run: Run, job: TrainingJob, fit: Fit, evaluation: Evaluation, identity: Identity, hardware: Hardware
) -> str:
    """Write the report into Prefect (markdown artifact) and MLflow (description, curve, manifest); the report."""
    from tasks.learning.figures import draw_curve
    from tasks.tracking.outbox import Outbox

    outbox = Outbox(run.run_id)
    outbox.keep("figures/curve.png", draw_curve(fit.curve, evaluation.train_mse))
    small = draw_curve(fit.curve, evaluation.train_mse, small=True)
    outbox.keep("manifest.json", json.dumps(job.data.train.to_dict(), indent=1))
    text = "\n\n".join(
        [
            f"**{escape_markdown(evaluation.verdict)}**",
            escape_markdown(evaluation.promotion.verdict),
            write_scores(evaluation),
            write_times(fit),
            *write_bad_rows(fit),
            *write_damage(fit),
            write_circumstances(job, fit, identity, hardware),
        ]
    )
    outbox.tag({"mlflow.note.content": text, "shardline.verdict": evaluation.verdict})
    outbox.tag({"shardline.gate": evaluation.promotion.verdict})
    outbox.keep("report.md", text)
    picture = f"![MSE by iteration](data:image/png;base64,{base64.b64encode(small).decode()})"
    create_markdown_artifact(
        key="report",
        description="What was trained, what it is worth, and where the time went",
        markdown=f"{text}\n\n{picture}\n\n[This run in MLflow]({run.url})",
    )
    return text


def write_circumstances(job: TrainingJob, fit: Fit, identity: Identity, hardware: Hardware) -> str:
    """Return a list of what was read, as whom, on what, and how the model was found."""
    manifest, given = job.data.train, job.parameters
    lines = {
        "Shards": f"{write_code(job.sources.shards)}: {len(manifest.shards)}, {manifest.rows:,} rows, "
        f"fingerprint `{manifest.fingerprint[:12]}`",
        "Account": escape_markdown(identity.account or identity.note),
        "Batches": f"{[given.batch_size, len(manifest.columns)]} of {given.dtype}",
        "Hardware": f"{hardware.cpu.model}, {hardware.cpu.usable:g} cores"
        + "".join(f", {device.name}" for device in hardware.cuda),
        "Learning rate": f"{fit.learning_rate:.6g}" if fit.learning_rate else "none: solved exactly",
        "Judged on": escape_markdown(job.data.judged_on),
    }
    return "\n".join(f"- **{name}**: {value}" for name, value in lines.items())


def write_bad_rows(fit: Fit) -> list[str]:
    """Return a sentence on the rows that were left out, where there are any."""
    if not fit.bad_rows:
        return []
    return [f"**{fit.bad_rows:,} bad rows were left out**; {write_code(str(fit.bad_rows_file))} lists them."]


def write_damage(fit: Fit) -> list[str]:
    """Return a sentence on the shards whose files in the cache were damaged, where there are any."""
    if not fit.damaged:
        return []
    shards = "one shard was" if fit.damaged == 1 else f"{fit.damaged} shards were"
    return [
        f"**In the cache {shards} found damaged**, and fetched again; no damaged row was trained on: check the disk"
    ]


def write_scores(evaluation: Evaluation) -> str:
    """Return the models beside each other on the same rows, as a markdown table."""
    names = {"trained": "trained", "exact": "exact least squares", "mean": "always the mean"}
    if "champion" in evaluation.scores:
        names["champion"] = f"champion so far (version {evaluation.promotion.against})"
    lines = [f"| model ({ROWS_OF[evaluation.rows_of]} rows) | MSE | RMSE | MAE | R² |", "|---|---:|---:|---:|---:|"]
    for key, name in names.items():
        score = evaluation.scores[key]
        r2 = "–" if score.r2 is None else f"{round(score.r2, 4) + 0.0:.4f}"
        lines.append(f"| {name} | {score.mse:.6g} | {score.rmse:.6g} | {score.mae:.6g} | {r2} |")
    return "\n".join(lines)


HELP = {
    "fetching": "a cache that holds all shards, a closer region, or fewer and larger shards would help",
    "decoding": "more cores, Parquet shards, or a cache that holds all shards would help",
    "waiting for data": "more DataLoader workers, or none (threads share one cache of decoded shards), may help",
    "copying": "data that stays on the device (resident_bytes) would help",
    "computing": "a GPU, float32 or fewer iterations would help; the data comes fast enough",
}


def write_times(fit: Fit) -> str:
    """Return one paragraph: iterations, time, what share of it was waiting, copying and computing, what would help."""
    times, stream = fit.times, fit.times.stream
    parts = {
        "waiting for data": times.wait_seconds,
        "copying": times.copy_seconds,
        "computing": times.compute_seconds,
    }
    total = sum(parts.values()) or 1.0
    shares = ", ".join(f"{name} {seconds:.2f} s ({seconds / total:.0%})" for name, seconds in parts.items())
    bound = max(parts, key=lambda name: parts[name])
    if bound == "waiting for data" and stream:
        bound = "fetching" if stream.fetch_seconds > stream.decode_seconds else "decoding"
        shares += f" (behind it: fetching {stream.fetch_seconds:.2f} s, decoding {stream.decode_seconds:.2f} s)"
    number = f"{fit.iterations} iterations" if fit.learning_rate else "One pass"
    return (
        f"{number} over {fit.rows:,} rows in {times.seconds:.1f} s on "
        f"{fit.device}: {shares}. The run was bound by {bound}: {HELP[bound]}."
    )
