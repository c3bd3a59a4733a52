"""The step that tells people whether data has drifted: a table of the columns, a picture, the model's error."""

from __future__ import annotations

import base64
import re
from typing import TYPE_CHECKING

from prefect.artifacts import create_markdown_artifact

from tasks.facts import Observed, Reference
from tasks.learning.drift import Drift
from tasks.naming import escape_markdown, write_code
from tasks.policy import step
from tasks.runs.lifecycle import Run

if TYPE_CHECKING:
    from tasks.learning.profiles import DataProfile

MOST_COLUMNS = 100  # in a table
LEGEND = (
    "PSI is the population stability index: below 0.1 no shift, from 0.25 on a large one. KS is the Kolmogorov–Smirnov "
    "distance. In brackets: what rows that have not drifted stay below but once in a thousand comparisons."
)


@step("report drift")
def report_drift(run: Run, reference: Reference, observed: Observed, drift: Drift) -> str:
    """Say what has drifted, and how far off the model is: markdown artifact, MLflow's metrics, description and tags."""
    from tasks.learning.driftpicture import render_drift
    from tasks.learning.figures import shrink
    from tasks.tracking.outbox import Outbox

    outbox, verdict = Outbox(run.run_id), drift.verdict
    sentences = [*write_error(reference, observed), *write_bad_rows(observed)]
    table = write_table(drift, reference.profile, observed.profile)
    text = "\n\n".join([f"**{escape_markdown(verdict)}**", *map(escape_markdown, sentences), table, LEGEND])
    outbox.log(0, measure(drift, observed))
    outbox.tag({"mlflow.note.content": text, "shardline.verdict": verdict, "shardline.model": reference.model})
    outbox.tag({"shardline.drifted": ", ".join(drift.drifted)})
    outbox.keep("report.md", text)
    picture = base64.b64encode(shrink(render_drift(drift, reference.profile, observed.profile))).decode()
    create_markdown_artifact(
        key="drift",
        description="Whether data has drifted from what the model was trained on",
        markdown="\n\n".join([text, f"![The columns that moved most](data:image/png;base64,{picture})", run.link]),
    )
    return " ".join([verdict, *sentences])


def measure(drift: Drift, observed: Observed) -> dict[str, float]:
    """Return the metrics: the distances of each column, how many have drifted, and the model's error where known."""
    distances = {
        f"{kind}/{name_metric(each.name)}": value
        for each in drift.columns
        for kind, value in (("psi", each.psi), ("ks", each.ks))
    }
    counts = {"drifted_columns": len(drift.drifted), "rows": drift.rows, "bad_rows": observed.bad_rows}
    return distances | counts | ({"rmse": observed.score.rmse} if observed.score else {})


def name_metric(column: str) -> str:
    """Return a column's name as MLflow takes it in the key of a metric: without the signs that it refuses."""
    return re.sub(r"[^\w \-.:]", "_", column)[:200].strip(".") or "_"


def write_error(reference: Reference, observed: Observed) -> list[str]:
    """Return a sentence on the model's error on these rows beside that when it was judged, where both are known."""
    if observed.score is None:
        return []
    before = "" if reference.rmse is None else f"; {reference.rmse:.6g} when it was judged, on {reference.judged_on}"
    return [f"Its RMSE on these {observed.score.rows:,} rows is {observed.score.rmse:.6g}{before}."]


def write_bad_rows(observed: Observed) -> list[str]:
    """Return a sentence on the rows that were left out, where there are any."""
    if not observed.bad_rows:
        return []
    return [f"Bad rows left out: {observed.bad_rows:,}, listed in {observed.bad_rows_file}."]


def write_table(drift: Drift, reference: DataProfile, found: DataProfile) -> str:
    """Return the columns that moved most as a markdown table, with their means then and now."""
    before, now = ({each.name: each for each in profile.columns} for profile in (reference, found))
    lines = ["| column | drifted | PSI | KS | mean in training | mean now |", "|---|---|---:|---:|---:|---:|"]
    lines += [
        f"| {write_code(each.name)} | {'yes' if each.drifted else 'no'} | {each.psi:.3g} ({each.by_chance_psi:.2g}) | "
        f"{each.ks:.3g} ({each.by_chance_ks:.2g}) | {before[each.name].mean:.6g} | {now[each.name].mean:.6g} |"
        for each in drift.columns[:MOST_COLUMNS]
    ]
    left_out = len(drift.columns) - MOST_COLUMNS
    return "\n".join([*lines, *([f"\n{left_out} columns that moved less are left out."] if left_out > 0 else [])])
