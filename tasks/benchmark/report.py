"""The last step of a benchmark: its figures, tables, plots and report in MLflow and Prefect.

What is measured stands in .hardware, how it is drawn in tasks.devices.plots, what it means in words in
tasks.devices.wording.
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from prefect.artifacts import create_markdown_artifact, create_table_artifact

from tasks.devices.benchmark import FILE, Benchmark
from tasks.devices.comparison import Ratio, compare_runs
from tasks.devices.measurement import Figure
from tasks.devices.wording import write_name, write_report, write_spread, write_unit, write_verdict
from tasks.errors import ConfigurationError
from tasks.policy import step
from tasks.runs.lifecycle import Run

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing

    from tasks.tracking.outbox import Outbox

SMALL = 0.55  # of a plot's width, where a Prefect page carries it as text

Row = dict[str, object]  # of a table


def load_benchmark(run_id: str) -> Benchmark:
    """Return the benchmark of an earlier run.

    Raises ConfigurationError where the run is unknown or no benchmark, TrackingError where MLflow does not answer.
    """
    from tasks.tracking.client import connect
    from tasks.tracking.recorded import read_artifact

    text = read_artifact(connect(), run_id, FILE)
    try:
        return Benchmark.from_json(text or "")
    except ValueError as error:
        raise ConfigurationError(
            f"against is {run_id}, and MLflow has no {FILE} of such a run: give the run id of a finished benchmark"
        ) from error


@step("report benchmark")
def report_benchmark(run: Run, benchmark: Benchmark, against: Benchmark | None = None) -> str:
    """Put figures, tables, plots and the report into MLflow's outbox and Prefect's artifacts; return the verdict."""
    from tasks.devices.plots import render, shrink
    from tasks.tracking.outbox import Outbox

    outbox = Outbox(run.run_id)
    changes = compare_runs(benchmark.figures, against.figures) if against else []
    plots = {name: render(drawing) for name, drawing in draw_all(benchmark, changes)}
    for name, image in plots.items():
        outbox.keep(f"plots/{name}.png", image)
    for size, metrics in collect_metrics(benchmark):
        outbox.log(size, metrics)
    tables = {
        "figures": tabulate(benchmark.figures),
        "ratios": [ratio.to_row() for ratio in benchmark.ratios],
        "changes": [change.to_row() for change in changes],
    }
    verdict = write_verdict(benchmark)
    text = write_report(benchmark, changes, against)
    outbox.keep(FILE, benchmark.to_json())
    outbox.keep("report.md", text)
    shown = [keep_table(outbox, name, rows) for name, rows in tables.items() if rows]
    outbox.tag({"mlflow.note.content": text, "shardline.verdict": verdict, "mlflow.loggedArtifacts": json.dumps(shown)})
    pictures = [embed(name, shrink(image, SMALL)) for name, image in plots.items()]
    create_markdown_artifact(
        key="benchmark",
        description="What the hardware is, how fast, and what that means for training",
        markdown="\n\n".join([text, *pictures, run.link]),
    )
    create_table_artifact(key="figures", table=tables["figures"], description="Every figure with its spread")
    if changes:
        create_table_artifact(key="changes", table=tables["changes"], description="Above 1: faster than the other run")
    return verdict


def draw_all(benchmark: Benchmark, changes: Sequence[Ratio]) -> Iterator[tuple[str, Drawing]]:
    """Yield the plots for which there is anything to draw, by name."""
    from tasks.devices.plots import draw_bandwidths, draw_predictions, draw_products, draw_ratios, draw_times

    title = "\n".join(f"{device}: {name}" for device, name in benchmark.names.items())
    present = {figure.name for figure in benchmark.figures}
    if any(ratio.name == "add" for ratio in benchmark.ratios):
        yield "ratios", draw_ratios(benchmark.ratios, title, "CPU time ÷ device time of a + b", mark_wins=True)
    if any(change.name == "add" for change in changes):
        yield "changes", draw_ratios(changes, title, "other run's time ÷ this run's, of a + b")
    if "add" in present:
        yield "times", draw_times(benchmark.figures, title)
        yield "bandwidths", draw_bandwidths(benchmark.figures, title)
    if "matmul" in present:
        yield "products", draw_products(benchmark.figures, title)
    if benchmark.predictions:
        yield "iterations", draw_predictions(benchmark.predictions, title)


def embed(name: str, image: bytes) -> str:
    """Return markdown that holds a PNG itself."""
    return f"![{name}](data:image/png;base64,{base64.b64encode(image).decode()})"


def collect_metrics(benchmark: Benchmark) -> Iterator[tuple[int, dict[str, float]]]:
    """Yield metrics as MLflow shows them: the step is the size's base-2 logarithm, rounded; of iterations, 0."""
    for figure in benchmark.figures:
        path = f"{figure.name}/{figure.device.replace(':', '')}/{figure.dtype}"
        values = {"seconds": figure.seconds, "rate": figure.rate, "spread": figure.spread}
        yield round(math.log2(figure.size)), {f"{path}/{name}": value for name, value in values.items()}
    for ratio in benchmark.ratios:
        path = f"{ratio.name}/{ratio.device.replace(':', '')}/{ratio.dtype}/ratio_to_cpu"
        yield round(math.log2(ratio.size)), {path: ratio.ratio}
    for each in benchmark.predictions:
        path = f"iteration/{each.data}/{each.device.replace(':', '')}"
        yield 0, {f"{path}/predicted_seconds": each.seconds}
        if each.measured is not None:
            yield 0, {f"{path}/measured_seconds": each.measured}


def keep_table(outbox: Outbox, name: str, rows: Sequence[Row]) -> dict[str, str]:
    """Write rows in the form that MLflow's page shows as a table, and return the entry of the tag that says so."""
    table = {"columns": list(rows[0]), "data": [list(row.values()) for row in rows]}
    outbox.keep(f"{name}.json", json.dumps(table))
    return {"path": f"{name}.json", "type": "table"}


def tabulate(figures: Sequence[Figure]) -> list[Row]:
    """Return the figures as rows for people: units written out, the noisy ones marked."""
    return [
        {
            "what": write_name(figure.name, figure.device),
            "device": figure.device,
            "dtype": figure.dtype,
            "size": figure.size,
            "time": write_unit(figure.seconds, "s"),
            "spread": write_spread(figure),
            "usable": "TOO NOISY" if figure.noisy else "yes",
            "samples": f"{figure.samples} × {figure.calls}",
            "rate": write_unit(figure.rate, figure.unit),
            "of limit": f"{figure.rate / figure.limit:.0%}" if figure.limit else "",
        }
        for figure in figures
    ]
