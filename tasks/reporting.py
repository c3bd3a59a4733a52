"""The last step: one artifact that a person reads, the curve, and the files that make a run repeatable."""

from __future__ import annotations

import base64
import json
from typing import Any

from prefect.artifacts import create_markdown_artifact

from tasks.policy import step
from tasks.runs.lifecycle import Run
from tasks.splitting import ROWS_OF


@step("report")
def report_run(
    run: Run,
    facts: dict[str, Any],
    manifest: dict[str, Any],
    trained: dict[str, Any],
    evaluation: dict[str, Any],
) -> str:
    """Write the report into Prefect (markdown artifact) and MLflow (description, curve, manifest); the report."""
    from tasks.learning.figures import draw_curve
    from tasks.tracking.outbox import Outbox

    outbox = Outbox(run.run_id)
    curve = trained["curve"]
    reference = evaluation["train_mse"]
    draw_curve(curve, reference, outbox.file("figures/curve.png"))
    small = draw_curve(curve, reference, None, small=True)
    outbox.file("manifest.json").write_text(json.dumps(manifest, indent=1), encoding="utf-8")
    text = "\n\n".join(
        [
            f"**{evaluation['verdict']}**",
            evaluation["gate"]["verdict"],
            scores_table(evaluation),
            where_time_went(trained),
            *bad_rows(trained),
            "\n".join(f"- **{name}**: {value}" for name, value in facts.items()),
        ]
    )
    outbox.tag({"mlflow.note.content": text, "shardline.verdict": evaluation["verdict"]})
    outbox.tag({"shardline.gate": evaluation["gate"]["verdict"]})
    outbox.file("report.md").write_text(text, encoding="utf-8")
    picture = f"![MSE by iteration](data:image/png;base64,{base64.b64encode(small).decode()})"
    create_markdown_artifact(
        key="report",
        description="What was trained, what it is worth, and where the time went",
        markdown=f"{text}\n\n{picture}\n\n[This run in MLflow]({run.url})",
    )
    return text


def bad_rows(trained: dict[str, Any]) -> list[str]:
    """A sentence on the rows that were left out, where there are any."""
    if not trained["bad_rows"]:
        return []
    return [f"**{trained['bad_rows']:,} bad rows were left out**; `{trained['bad_rows_file']}` lists them."]


def scores_table(evaluation: dict[str, Any]) -> str:
    """The models beside each other on the same rows, as a markdown table."""
    names = {"trained": "trained", "exact": "exact least squares", "mean": "always the mean"}
    if "champion" in evaluation["all"]:
        names["champion"] = f"champion so far (version {evaluation['gate']['against']})"
    lines = [f"| model ({ROWS_OF[evaluation['rows_of']]} rows) | MSE | RMSE | MAE | R² |", "|---|---:|---:|---:|---:|"]
    for key, name in names.items():
        facts = evaluation["all"][key]
        r2 = "–" if facts["r2"] is None else f"{round(facts['r2'], 4) + 0.0:.4f}"
        lines.append(f"| {name} | {facts['mse']:.6g} | {facts['rmse']:.6g} | {facts['mae']:.6g} | {r2} |")
    return "\n".join(lines)


HELP = {
    "fetching": "a cache that holds all shards, a closer region, or fewer and larger shards would help",
    "decoding": "more cores, Parquet shards, or a cache that holds all shards would help",
    "waiting for data": "more DataLoader workers, or none (threads share one cache of decoded shards), may help",
    "copying": "data that stays on the device (resident_bytes) would help",
    "computing": "a GPU, float32 or fewer iterations would help; the data comes fast enough",
}


def where_time_went(trained: dict[str, Any]) -> str:
    """One paragraph: iterations, time, what share of it was waiting, copying and computing, and what would help."""
    parts = {"waiting for data": "wait_seconds", "copying": "copy_seconds", "computing": "compute_seconds"}
    total = sum(trained[key] for key in parts.values()) or 1.0
    shares = ", ".join(f"{name} {trained[key]:.2f} s ({trained[key] / total:.0%})" for name, key in parts.items())
    bound, stream = max(parts, key=lambda name: trained[parts[name]]), trained.get("stream")
    if bound == "waiting for data" and stream:
        bound = "fetching" if stream["fetch_seconds"] > stream["decode_seconds"] else "decoding"
        shares += f" (behind it: fetching {stream['fetch_seconds']:.2f} s, decoding {stream['decode_seconds']:.2f} s)"
    number = f"{trained['iterations']} iterations" if trained["learning_rate"] else "One pass"
    return (
        f"{number} over {trained['rows']:,} rows in {trained['seconds']:.1f} s on "
        f"{trained['device']}: {shares}. The run was bound by {bound}: {HELP[bound]}."
    )
