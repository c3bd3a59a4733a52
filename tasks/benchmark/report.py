"""The last step of a benchmark: what it means in words, and its figures, tables and plots in MLflow and Prefect.

What is measured stands in tasks.benchmark.hardware, how it is drawn in tasks.devices.plots.
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from prefect import task
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.cache_policies import NO_CACHE

from tasks.benchmark.hardware import write_description
from tasks.errors import ConfigurationError
from tasks.runs.lifecycle import Run

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing

    from tasks.devices import Figure, Ratio

FILE = "benchmark.json"  # all of a benchmark, as another one reads it to compare itself
SMALL = 0.55  # of a plot's width, where a Prefect page carries it as text


def load_benchmark(run_id: str) -> dict[str, Any]:
    """Return what `measure_hardware` gave in an earlier run.

    Raises ConfigurationError where the run is unknown or no benchmark, TrackingError where MLflow does not answer.
    """
    from mlflow.exceptions import MlflowException

    from tasks.tracking import client as record

    client = record.connect()
    try:
        with open(client.download_artifacts(run_id, FILE), encoding="utf-8") as file:  # noqa: PTH123
            return dict(json.load(file))
    except (MlflowException, OSError) as error:
        raise ConfigurationError(
            f"against is {run_id}, and MLflow has no {FILE} of such a run: give the run id of a finished benchmark"
        ) from error


@task(name="report benchmark", cache_policy=NO_CACHE)
def report_benchmark(run: Run, measured: dict[str, Any], against: dict[str, Any] | None = None) -> str:
    """Put figures, tables, plots and the report into MLflow's outbox and Prefect's artifacts; return the verdict."""
    from tasks.devices import Figure, Ratio, compare_runs
    from tasks.devices.plots import render, shrink
    from tasks.tracking.outbox import Outbox

    outbox = Outbox(run.run_id)
    figures = [Figure.from_row(row) for row in measured["figures"]]
    ratios = [Ratio(**row) for row in measured["ratios"]]
    changes = compare_runs(figures, [Figure.from_row(row) for row in against["figures"]]) if against else []
    plots = {name: render(drawing) for name, drawing in draw_all(measured, figures, ratios, changes)}
    for name, image in plots.items():
        outbox.file(f"plots/{name}.png").write_bytes(image)
    for step, metrics in collect_metrics(measured, figures, ratios):
        outbox.log(step, metrics)
    tables = {
        "figures": tabulate(figures),
        "ratios": measured["ratios"],
        "changes": [each.to_row() for each in changes],
    }
    verdict, text = judge(measured), write_report(measured, figures, changes, against)
    outbox.file(FILE).write_text(json.dumps(measured, indent=1), encoding="utf-8")
    outbox.file("report.md").write_text(text, encoding="utf-8")
    shown = [keep_table(outbox, name, rows) for name, rows in tables.items() if rows]
    outbox.tag({"mlflow.note.content": text, "shardline.verdict": verdict, "mlflow.loggedArtifacts": json.dumps(shown)})
    pictures = [embed(name, shrink(image, SMALL)) for name, image in plots.items()]
    create_markdown_artifact(
        key="benchmark",
        description="What the hardware is, how fast, and what that means for training",
        markdown="\n\n".join([text, *pictures, f"[This run in MLflow]({run.url})"]),
    )
    create_table_artifact(key="figures", table=tables["figures"], description="Every figure with its spread")
    if changes:
        create_table_artifact(key="changes", table=tables["changes"], description="Above 1: faster than the other run")
    return verdict


def draw_all(
    measured: dict[str, Any], figures: list[Figure], ratios: list[Ratio], changes: list[Ratio]
) -> Iterator[tuple[str, Drawing]]:
    """Yield the plots for which there is anything to draw, by name."""
    from tasks.devices import Prediction
    from tasks.devices.plots import draw_bandwidths, draw_predictions, draw_products, draw_ratios, draw_times
    from tasks.devices.prediction import Stage

    title = "\n".join(f"{device}: {name}" for device, name in measured["names"].items())
    predictions = [
        Prediction(**{**each, "stages": tuple(Stage(**stage) for stage in each["stages"])})
        for each in measured["predictions"]
    ]
    present = {figure.name for figure in figures}
    if any(ratio.name == "add" for ratio in ratios):
        yield "ratios", draw_ratios(ratios, title, "CPU time ÷ device time of a + b", mark_wins=True)
    if any(change.name == "add" for change in changes):
        yield "changes", draw_ratios(changes, title, "other run's time ÷ this run's, of a + b")
    if "add" in present:
        yield "times", draw_times(figures, title)
        yield "bandwidths", draw_bandwidths(figures, title)
    if "matmul" in present:
        yield "products", draw_products(figures, title)
    if predictions:
        yield "iterations", draw_predictions(predictions, title)


def embed(name: str, image: bytes) -> str:
    """Return markdown that holds a PNG itself."""
    return f"![{name}](data:image/png;base64,{base64.b64encode(image).decode()})"


def collect_metrics(
    measured: dict[str, Any], figures: list[Figure], ratios: list[Ratio]
) -> Iterator[tuple[int, dict[str, float]]]:
    """Yield metrics as MLflow shows them: the step is the size's base-2 logarithm, rounded; of iterations, 0."""
    for figure in figures:
        path = f"{figure.name}/{figure.device.replace(':', '')}/{figure.dtype}"
        values = {"seconds": figure.seconds, "rate": figure.rate, "spread": figure.spread}
        yield round(math.log2(figure.size)), {f"{path}/{name}": value for name, value in values.items()}
    for ratio in ratios:
        path = f"{ratio.name}/{ratio.device.replace(':', '')}/{ratio.dtype}/ratio_to_cpu"
        yield round(math.log2(ratio.size)), {path: ratio.ratio}
    for each in measured["predictions"]:
        path = f"iteration/{each['data']}/{each['device'].replace(':', '')}"
        yield 0, {f"{path}/predicted_seconds": each["seconds"]}
        if each["measured"] is not None:
            yield 0, {f"{path}/measured_seconds": each["measured"]}


def keep_table(outbox: Any, name: str, rows: list[dict[str, Any]]) -> dict[str, str]:
    """Write rows in the form that MLflow's page shows as a table, and return the entry of the tag that says so."""
    table = {"columns": list(rows[0]), "data": [list(row.values()) for row in rows]}
    outbox.file(f"{name}.json").write_text(json.dumps(table), encoding="utf-8")
    return {"path": f"{name}.json", "type": "table"}


def tabulate(figures: list[Figure]) -> list[dict[str, Any]]:
    """Return the figures as rows for people: units written out, the noisy ones marked."""
    return [
        {
            "what": figure.name,
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


def judge(measured: dict[str, Any]) -> str:
    """Return the one sentence by which someone decides whether a GPU is worth its price for this job."""
    by_place = {(each["data"], each["device"]): each for each in measured["predictions"]}
    devices = [device for device in measured["names"] if device != "cpu"]
    if ("resident", "cpu") not in by_place:
        return "The training step could not be measured within the time budget: raise it."
    if not devices:
        return _judge_cpu(by_place["resident", "cpu"], by_place.get(("streamed", "cpu")))
    parts = []
    for device in devices:
        gains = [
            f"{by_place[data, 'cpu']['seconds'] / by_place[data, device]['seconds']:.3g} times as fast as on the CPU "
            f"{'from streamed shards' if data == 'streamed' else 'with the data kept on the device'}"
            for data in ("streamed", "resident")
            if (data, device) in by_place and (data, "cpu") in by_place
        ]
        parts.append(f"On {measured['names'][device]} a training iteration should be " + " and ".join(gains) + ".")
    return " ".join(parts)


def _judge_cpu(resident: dict[str, Any], streamed: dict[str, Any] | None) -> str:
    from tasks.devices import Prediction, limit_speedup
    from tasks.devices.prediction import Stage

    step = f"A training step takes {write_unit(resident['seconds'], 's')} on this CPU, and there is no GPU to compare."
    if streamed is None:
        return step
    stages = tuple(Stage(**stage) for stage in streamed["stages"])
    most = limit_speedup(Prediction(**{**streamed, "stages": stages}))
    return (
        f"{step} From streamed shards an iteration takes {write_unit(streamed['measured'], 's')}, bound by "
        f"{streamed['bottleneck']}: a GPU that took no time at all would make that {most:.3g} times as fast at most."
    )


def write_report(
    measured: dict[str, Any], figures: list[Figure], changes: list[Ratio], against: dict[str, Any] | None
) -> str:
    """Return the report as markdown."""
    lines = [
        "| iteration | device | predicted | measured | bottleneck |",
        "|---|---|---:|---:|---|",
        *(_write_prediction(each) for each in measured["predictions"]),
    ]
    noisy = sum(figure.noisy for figure in figures)
    left_out = "\n".join(f"- {sentence}" for sentence in [*measured["notes"], *measured["left_out"]])
    parts = [
        f"**{judge(measured)}**",
        "\n".join(lines),
        "\n".join(_write_stages(each) for each in measured["predictions"] if len(each["stages"]) > 1),
        *write_wins(measured),
        *write_changes(changes, against),
        write_figures([figure for figure in figures if figure.name != "add"]),
        f"{len(figures)} figures in {measured['seconds']:.0f} s ({measured['mode']} mode), {noisy} of them too noisy "
        "to use: quartiles more than 10 % apart, fewer than 4 samples, or other processes that took the processor. "
        "a + b by size is in the table and the plots.",
        f"**Left out**\n\n{left_out}" if left_out else "",
        f"**Hardware**\n\n{write_description({**measured['hardware'], 'left_out': []})}",
    ]
    return "\n\n".join(part for part in parts if part)


def _write_prediction(each: dict[str, Any]) -> str:
    observed = "–" if each["measured"] is None else write_unit(each["measured"], "s")
    cells = (f"{each['data']}, {each['rows']:,} rows", each["device"], write_unit(each["seconds"], "s"), observed)
    return f"| {' | '.join(cells)} | {each['bottleneck']} |"


def _write_stages(each: dict[str, Any]) -> str:
    stages = ", ".join(f"{stage['name']} {write_unit(stage['seconds'], 's')}" for stage in each["stages"])
    return f"- Stages, {each['data']} on {each['device']}: {stages}. Those that share a resource take turns."


def write_figures(figures: list[Figure]) -> str:
    """Return figures as a markdown table that is narrow enough for a page; those too noisy to use are marked."""
    rows = [
        f"| {figure.name.replace('_', ' ')} | {figure.device} | {figure.dtype} | {figure.size:,} "
        f"| {write_unit(figure.seconds, 's')} | {write_spread(figure)}{', **too noisy**' if figure.noisy else ''} "
        f"| {write_unit(figure.rate, figure.unit)}"
        f"{f', {figure.rate / figure.limit:.0%} of limit' if figure.limit else ''} |"
        for figure in figures
    ]
    heading = "| what | device | dtype | size | time | spread | rate |\n|---|---|---|---:|---:|---:|---:|"
    return "\n".join([heading, *rows]) if rows else ""


def write_wins(measured: dict[str, Any]) -> list[str]:
    """Say for each device and dtype from which size on it adds vectors faster than the CPU."""
    from tasks.devices import Ratio, find_win

    lines: dict[tuple[str, str], list[Ratio]] = {}
    for row in measured["ratios"]:
        if row["name"] == "add":
            lines.setdefault((row["device"], row["dtype"]), []).append(Ratio(**row))
    wins = {place: find_win(line) for place, line in lines.items()}
    return [
        f"a + b in {dtype}: {device} is faster than the CPU "
        + (f"from {win:,} elements on." if win is not None else "at no size measured.")
        for (device, dtype), win in wins.items()
    ]


def write_changes(changes: list[Ratio], against: dict[str, Any] | None) -> list[str]:
    """Return the comparison with another run: a table of all but a + b, which the plot and the table artifact show."""
    if against is None:
        return []
    others = ", ".join(f"{device}: {name}" for device, name in against["names"].items())
    rows = [
        f"| {each.name.replace('_', ' ')} | {each.device} | {each.dtype} | {each.size:,} | {each.ratio:.3g} | "
        f"{each.low:.3g} … {each.high:.3g}{', **too noisy**' if each.noisy else ''} |"
        for each in changes
        if each.name != "add"
    ]
    heading = "| what | device | dtype | size | times as fast | by the quartiles |\n|---|---|---|---:|---:|---|"
    return [f"**Against the other run** ({others}; {len(changes)} figures in common)", "\n".join([heading, *rows])]


def write_spread(figure: Figure) -> str:
    """Return the interquartile range in per cent of the median; of a single sample that there is only one."""
    return f"{figure.spread:.1%}" if figure.samples > 1 else "one sample"


def write_unit(value: float, unit: str) -> str:
    """Return a number with three significant digits and an SI prefix: 0.0123 s is 12.3 ms."""
    for factor, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"), (1, ""), (1e-3, "m"), (1e-6, "µ")):
        if value >= factor:
            return f"{value / factor:.3g} {prefix}{unit}"
    return f"{value / 1e-9:.3g} n{unit}"
