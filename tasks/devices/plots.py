"""Figures drawn for reading: ratio and time by size, bandwidths beside their limits, products, iteration times.

Every function returns a matplotlib Figure made without pyplot, so that no global state is touched and any thread may
draw. The background is opaque and light: text stays legible where a page is dark. Hollow marks are too noisy to use.
"""

from collections.abc import Callable, Iterable, Sequence
from io import BytesIO
from typing import TYPE_CHECKING, Any

from tasks.devices.comparison import Ratio, find_win
from tasks.devices.measurement import Figure
from tasks.devices.prediction import Prediction
from tasks.devices.wording import write_name

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure as Drawing

SMALLEST = 16  # sizes in the close-up
LABEL_WIDTH = 0.35  # of the longest iteration drawn, for a label beside its mark
INK, PAPER, GRID = "#222222", "#fcfcfa", "#d9d9d4"
# Okabe and Ito's colours, which colour-blind people tell apart (https://jfly.uni-koeln.de/color/).
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")
STAGES = {  # of an iteration, in their order
    "fetch": "#56B4E9",
    "receive": "#0072B2",
    "decode": "#E69F00",
    "prepare": "#F0E442",
    "copy": "#CC79A7",
    "step": "#009E73",
}
STYLES = {"float64": ("-", "o"), "float32": ("--", "s"), "bfloat16": (":", "^"), "float16": ("-.", "D")}
NAMES = {
    "copy": "copy  c = a",
    "triad": "triad  c = a + s·b",
    "host_to_device_pageable": "host → device, pageable",
    "host_to_device_pinned": "host → device, pinned",
    "device_to_host_pageable": "device → host, pageable",
    "device_to_host_pinned": "device → host, pinned",
}


def draw_ratios(ratios: Sequence[Ratio], title: str, quantity: str, mark_wins: bool = False) -> "Drawing":
    """Draw the ratios of a + b by size, all sizes and the 16 smallest; `quantity` says what is divided by what.

    `mark_wins` marks the size from which on the device is faster.
    """
    sums = [ratio for ratio in ratios if ratio.name == "add"]
    sizes = sorted({ratio.size for ratio in sums})
    drawing, (whole, close) = _make_drawing(title, columns=2)
    for axes, shown, heading in (
        (whole, set(sizes), "all sizes"),
        (close, set(sizes[:SMALLEST]), f"the {min(SMALLEST, len(sizes))} smallest"),
    ):
        for (device, dtype), line in _group(ratio for ratio in sums if ratio.size in shown):
            _draw_line(axes, line, [ratio.ratio for ratio in line], device, dtype, sums)
        axes.axhline(1, color=INK, linewidth=1)
        axes.set_yscale("log")
        _label_logarithms(axes.yaxis, axes.get_ylim(), "{:g}×".format)
        _label(axes, heading, "elements", quantity)
        _scale_sizes(axes)
    for (device, dtype), line in _group(sums):
        win = find_win(line)
        if mark_wins and win is not None:
            label = f"{dtype} wins from {win:,}"
            whole.axvline(
                win, color=_choose_colour(device, sums), linestyle=STYLES[dtype][0], linewidth=0.8, label=label
            )
    _add_legend(whole, sums)
    return drawing


def draw_times(figures: Sequence[Figure], title: str) -> "Drawing":
    """Draw the seconds of a + b by size on log axes, with the quartiles as a band; crosses are sums waited for."""
    sums = [figure for figure in figures if figure.name == "add"]
    drawing, (axes,) = _make_drawing(title, columns=1)
    for (device, dtype), line in _group(sums):
        _draw_line(axes, line, [figure.seconds for figure in line], device, dtype, sums)
    for (device, dtype), line in _group(figure for figure in figures if figure.name == "add_latency"):
        sizes, seconds = [figure.size for figure in line], [figure.seconds for figure in line]
        label = f"{device} {dtype}, each waited for"
        axes.plot(sizes, seconds, "x", color=_choose_colour(device, sums), label=label)
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(_make_units("s"))
    _label(axes, "a + b", "elements", "time of one sum (median; band: quartiles)")
    _scale_sizes(axes)
    _add_legend(axes, sums)
    return drawing


def draw_bandwidths(figures: Sequence[Figure], title: str) -> "Drawing":
    """Draw bandwidths beside the hardware's own limit: of a + b by size, and of vectors and copies beyond caches."""
    sums = [figure for figure in figures if figure.name == "add"]
    drawing, (curves, points) = _make_drawing(title, columns=2)
    for (device, dtype), line in _group(sums):
        _draw_line(curves, line, [figure.rate for figure in line], device, dtype, sums, band=False)
    for device, limit in sorted({(figure.device, figure.limit) for figure in sums if figure.limit}):
        colour = _choose_colour(device, sums)
        curves.axhline(limit, color=colour, linewidth=1.2, linestyle=(0, (6, 3)), label=f"{device} limit")
    curves.set_yscale("log")
    curves.yaxis.set_major_formatter(_make_units("B/s"))
    _label(curves, "a + b, new memory for each sum", "elements", "bytes read and written per second")
    _scale_sizes(curves)
    _add_legend(curves, sums)
    moves = [figure for figure in figures if figure.name in NAMES]
    _draw_rates(points, moves, [f"{NAMES[figure.name]}  ({figure.device})" for figure in moves], figures)
    _label(points, "beyond caches (bar: the hardware's limit)", "bytes per second", "")
    return drawing


def draw_products(figures: Sequence[Figure], title: str) -> "Drawing":
    """Draw the matrix products' rates by device, dtype and size."""
    products = [figure for figure in figures if figure.name == "matmul"]
    drawing, (axes,) = _make_drawing(title, columns=1)
    labels = [f"{figure.dtype}, {figure.size} × {figure.size}  ({figure.device})" for figure in products]
    _draw_rates(axes, products, labels, figures)
    _label(axes, "matrix product", "floating-point operations per second", "")
    return drawing


def draw_predictions(predictions: Sequence[Prediction], title: str) -> "Drawing":
    """Draw the stages of an iteration as bars, the predicted iteration as a line, the measured one as a diamond."""
    drawing, (axes,) = _make_drawing(title, columns=1)
    units = _make_units("s")
    longest = max(max(each.seconds, each.measured or 0.0) for each in predictions)
    for place, prediction in enumerate(reversed(predictions)):
        height = 0.7 / len(prediction.stages)
        for number, stage in enumerate(prediction.stages):
            y = place + 0.35 - height * (number + 0.5)
            axes.barh(y, stage.seconds, height * 0.9, color=STAGES[stage.name])
        axes.vlines(prediction.seconds, place - 0.42, place + 0.42, color=INK, linewidth=2)
        if prediction.measured is not None:
            axes.plot(prediction.measured, place, "D", color=PAPER, markeredgecolor=INK, markersize=7)
        for x, text in _label_iteration(prediction, units, apart=LABEL_WIDTH * longest).items():
            axes.annotate(
                text, (x, place), xytext=(8, 0), textcoords="offset points", fontsize=8, color=INK, va="center"
            )
    places = range(len(predictions))
    axes.set_yticks(places, [f"{each.data}\non {each.device}" for each in reversed(predictions)], color=INK)
    resources = {stage.name: stage.resource for each in predictions for stage in each.stages}
    for name in (name for name in STAGES if name in resources):
        axes.barh(0, 0, color=STAGES[name], label=write_name(name, resources[name]))
    axes.plot([], [], "|", color=INK, markersize=12, markeredgewidth=2, label="iteration, predicted")
    if any(each.measured is not None for each in predictions):
        axes.plot([], [], "D", color=PAPER, markeredgecolor=INK, label="iteration, measured")
    axes.xaxis.set_major_formatter(units)
    heading = "stages that share a resource take turns, others overlap"
    _label(axes, heading, f"time of an iteration of {predictions[0].rows:,} rows", "")
    axes.margins(x=0.3)
    axes.set_xlim(left=0)
    axes.grid(False, axis="y")
    drawing.legend(loc="outside lower center", ncols=4, fontsize=8, facecolor=PAPER, edgecolor=GRID, labelcolor=INK)
    return drawing


def _label_iteration(each: Prediction, units: Any, apart: float) -> dict[float, str]:
    """Return labels by where they begin: of line and diamond each its own where they are `apart`, else one of both."""
    predicted = f"predicted {_write(units, each.seconds)}"
    if each.measured is None:
        return {each.seconds: predicted}
    measured = f"measured {_write(units, each.measured)}"
    if each.measured - each.seconds > apart:
        return {each.seconds: predicted, each.measured: measured}
    return {max(each.seconds, each.measured): f"{predicted}\n{measured}"}


def render(drawing: "Drawing", dots_per_inch: int = 150) -> bytes:
    """Return a drawing as PNG, of 64 colours: a third of the bytes."""
    from PIL import Image

    buffer = BytesIO()
    drawing.savefig(buffer, format="png", dpi=dots_per_inch, facecolor=PAPER)
    return _compress(Image.open(buffer).convert("RGB"), colours=64)


def shrink(image: bytes, share: float) -> bytes:
    """Return a PNG of so many times the width and height, for pages that carry it as text."""
    from PIL import Image

    whole = Image.open(BytesIO(image)).convert("RGB")
    size = (round(whole.width * share), round(whole.height * share))
    return _compress(whole.resize(size, Image.Resampling.LANCZOS), colours=56)


def _compress(image: Any, colours: int) -> bytes:
    from PIL import Image

    buffer = BytesIO()
    image.quantize(colours, dither=Image.Dither.NONE).save(buffer, "png", optimize=True)
    return buffer.getvalue()


def _make_drawing(title: str, columns: int) -> tuple["Drawing", list["Axes"]]:
    from matplotlib.figure import Figure as Drawing

    drawing = Drawing(figsize=(8.8, 4.3) if columns > 1 else (7, 4.3), layout="constrained", facecolor=PAPER)
    drawing.suptitle(title, color=INK, fontsize=11)
    panels = list(drawing.subplots(1, columns, squeeze=False)[0])
    for axes in panels:
        axes.set_facecolor(PAPER)
        axes.grid(True, color=GRID, linewidth=0.7)
        axes.set_axisbelow(True)
        axes.tick_params(which="both", colors=INK, labelsize=8)
        for side, spine in axes.spines.items():
            spine.set_color(INK)
            spine.set_visible(side in ("left", "bottom"))
    return drawing, panels


def _draw_line(
    axes: "Axes",
    line: Sequence[Any],
    values: Sequence[float],
    device: str,
    dtype: str,
    everything: Sequence[Any],
    band: bool = True,
) -> None:
    colour, (style, mark) = _choose_colour(device, everything), STYLES[dtype]
    sizes = [point.size for point in line]
    axes.plot(sizes, values, linestyle=style, color=colour, linewidth=1.4, label=f"{device} {dtype}")
    if band:
        axes.fill_between(
            sizes, [point.low for point in line], [point.high for point in line], color=colour, alpha=0.18
        )
    for point, value in zip(line, values, strict=True):
        face = PAPER if point.noisy else colour
        axes.plot(point.size, value, mark, markersize=4.5, markerfacecolor=face, markeredgecolor=colour)


def _draw_rates(axes: "Axes", figures: Sequence[Figure], labels: Sequence[str], everything: Sequence[Any]) -> None:
    """Draw rates as points on a log axis with their quartiles, noisy ones hollow, and a bar at each limit."""
    units = _make_units(figures[0].unit if figures else "")
    for place, figure in enumerate(reversed(figures)):
        colour = _choose_colour(figure.device, everything)
        low, high = (figure.rate * figure.seconds / seconds for seconds in (figure.high, figure.low))
        axes.errorbar(
            figure.rate,
            place,
            xerr=[[figure.rate - low], [high - figure.rate]],
            fmt="o",
            color=colour,
            markerfacecolor=PAPER if figure.noisy else colour,
            markersize=7,
            capsize=4,
        )
        text = _write(units, figure.rate)
        if figure.limit:
            axes.vlines(figure.limit, place - 0.2, place + 0.2, color=INK, linewidth=2.5)
            text += f", {figure.rate / figure.limit:.0%} of limit"
        text += ", too noisy" if figure.noisy else ""
        axes.annotate(
            text, (figure.rate, place), xytext=(0, 9), textcoords="offset points", fontsize=7, color=INK, ha="center"
        )
    axes.set_yticks(range(len(figures)), list(reversed(labels)), color=INK)
    axes.set_ylim(-0.7, len(figures) - 0.2)
    axes.set_xscale("log")
    rates = [rate for figure in figures for rate in (figure.rate, figure.limit) if rate]
    axes.set_xlim(min(rates, default=1) / 3, max(rates, default=1) * 3)
    _label_logarithms(axes.xaxis, axes.get_xlim(), units.format_data)


def _group(points: Iterable[Any]) -> list[tuple[tuple[str, str], list[Any]]]:
    """Return the points of each device and dtype, by size."""
    groups: dict[tuple[str, str], list[Any]] = {}
    for point in sorted(points, key=lambda point: point.size):
        groups.setdefault((point.device, point.dtype), []).append(point)
    return sorted(groups.items(), key=lambda item: (item[0][0], list(STYLES).index(item[0][1])))


def _choose_colour(device: str, everything: Sequence[Any]) -> str:
    devices = sorted({point.device for point in everything})
    return COLOURS[devices.index(device) % len(COLOURS)]


def _scale_sizes(axes: "Axes") -> None:
    axes.set_xscale("log", base=2)


def _label(axes: "Axes", heading: str, x: str, y: str) -> None:
    axes.set_title(heading, color=INK, fontsize=9)
    axes.set_xlabel(x, color=INK, fontsize=9)
    axes.set_ylabel(y, color=INK, fontsize=9)


def _add_legend(axes: "Axes", points: Sequence[Any]) -> None:
    if any(point.noisy for point in points):
        axes.plot([], [], "o", color=PAPER, markeredgecolor=INK, markersize=4.5, label="hollow: too noisy to use")
    axes.legend(fontsize=8, facecolor=PAPER, edgecolor=GRID, labelcolor=INK, framealpha=0.9)


def _make_units(unit: str) -> Any:
    from matplotlib.ticker import EngFormatter

    return EngFormatter(unit=unit, places=None)


def _write(units: Any, value: float) -> str:
    """Write a value with three significant digits and its unit."""
    return str(units.format_data(float(f"{value:.3g}")))


def _label_logarithms(axis: "Axis", limits: tuple[float, float], write: Callable[[float], str]) -> None:
    """Label a log axis; at 2 and 5 too where it spans so little that decades alone would leave it bare."""
    from matplotlib.ticker import FuncFormatter

    shown = "125" if limits[1] / limits[0] < 100 else "1"
    formatter = FuncFormatter(lambda value, _: write(value) if f"{value:e}"[0] in shown else "")
    axis.set_major_formatter(formatter)
    axis.set_minor_formatter(formatter)
