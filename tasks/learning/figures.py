"""Pictures of a training run, wide and sharp; without a ground of their own, legible on light and on dark pages.

All lines and letters are of a middle tone. A picture is made by `render` from a function that draws into axes, and such
functions are made from plain facts.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

from tasks.learning.scores import AT_BOTH_ENDS, Density, Slice

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    Draw: TypeAlias = Callable[[Axes], None]

INK = "#7b818a"  # of letters: as far from white as from the ground of a dark page
BLUE, GREEN, AMBER, ROSE = "#3b82f6", "#0b9a6d", "#c2740c", "#e0457b"  # of lines, in the middle too
REFERENCES = {"exact": ("exact least squares", GREEN), "mean": ("always the mean", AMBER)}
FEW_TO_MANY = (BLUE, ROSE, AMBER)  # of cells; the fewest, too, stand out from both grounds
TITLES = {
    "curve": "Mean squared error by iteration",
    "above_exact": "Error above the exact model by iteration",
    "predicted": "Predicted against actual",
    "residuals": "Residuals",
    "slices": "Error by slice",
    "weights": "Standardised weights",
    "times": "Time by iteration",
    "ridge_path": "Weights by strength of the penalty",
    "ridge_error": "Cross-validated error by strength of the penalty",
}
STAGES = {"waiting": AMBER, "copying": ROSE, "computing": BLUE}
MOST_MARKED = 80  # values of a curve: beyond, they are a line without dots
MOST_BARS = 150
MOST_SHADES = 8  # rows in a cell of the density: up to so many, each number has its own shade
RESIDUAL_BARS = (1, 3, 9)  # bins of the residuals in a bar, odd so that no error at all stays in the middle of one
MOST_WEIGHTS = 25
LEGEND_LETTERS = 100  # that fit beside each other, where a label's mark takes six
TALL = 1.6  # times the height below which nearly all bars are: taller ones are cut off, and said
SMALL_COLOURS, SMALL_WIDTH = 64, 1100  # so wide, its letters are as large as those of the page


def plain(text: str) -> str:
    """Return text as matplotlib is to be given it: it takes what stands between two dollars for a formula."""
    return text.replace("$", r"\$")


def render(draw: Draw, title: str = "") -> bytes:
    """Return a PNG of what a function draws, 1,600 pixels wide."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.8), layout="constrained")
    axes = figure.add_subplot()
    draw(axes)
    style(axes)
    add_legend(figure, axes)
    figure.suptitle(title, color=INK, fontsize=12)
    return save(figure)


def save(figure: Figure) -> bytes:
    """Return a PNG of a figure 10 inches wide, 1,600 pixels."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    figure.set_dpi(160)
    figure.patch.set_alpha(0)
    for axes in figure.axes:
        axes.patch.set_alpha(0)
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer)  # type: ignore[no-untyped-call]  # savefig lays it out and draws it twice
    return buffer.getvalue()


def shrink(png: bytes) -> bytes:
    """Return a picture for pages that carry it as text: 1,100 pixels wide, in few colours, a third of the bytes."""
    from PIL import Image

    whole = Image.open(io.BytesIO(png)).convert("RGBA")
    size = (SMALL_WIDTH, round(whole.height * SMALL_WIDTH / whole.width))
    buffer = io.BytesIO()
    small = whole.resize(size, Image.Resampling.HAMMING).quantize(SMALL_COLOURS, method=Image.Quantize.FASTOCTREE)
    small.save(buffer, format="png", optimize=True)
    return buffer.getvalue()


def style(axes: Axes) -> None:
    """Give letters and lines of the frame their tone."""
    axes.tick_params(which="both", colors=INK, labelsize=9)
    for side, spine in axes.spines.items():
        spine.set_color(INK)
        spine.set_visible(side in ("left", "bottom"))
    for label in (axes.xaxis.label, axes.yaxis.label, axes.title, *axes.texts):
        label.set_color(INK)
    axes.grid(True, which="major", color=INK, alpha=0.25, linewidth=0.6)
    axes.set_axisbelow(True)


def add_legend(figure: Figure, axes: Axes) -> None:
    """Put a legend below the axes, where anything in them has a label."""
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        columns = max(1, min(len(labels), LEGEND_LETTERS // (6 + max(map(len, labels)))))
        figure.legend(
            handles, labels, fontsize=9, frameon=False, labelcolor=INK, loc="outside lower center", ncols=columns
        )


def draw_curve(mse: Sequence[float], reference: Mapping[str, float]) -> Draw:
    """Draw the mean squared error by iteration on a log axis, the reference models' as lines."""

    def draw(axes: Axes) -> None:
        _draw_series(axes, range(len(mse)), mse, "training batches")
        for name, (label, colour) in REFERENCES.items():
            if reference.get(name):
                value = reference[name]
                axes.axhline(value, color=colour, linestyle="--", linewidth=1.4, label=f"{label}: {value:.4g}")
        if min(mse) > 0:
            axes.set_yscale("log")
        axes.set_xlabel("iteration")
        axes.set_ylabel("mean squared error")

    return draw


def draw_excess(excess: Sequence[float]) -> Draw:
    """Draw by how much each MSE is above the exact model's, on a log axis; where it is not there are gaps."""
    above = [value if value > 0 else math.nan for value in excess]
    below = sum(map(math.isnan, above))

    def draw(axes: Axes) -> None:
        label = f"training batches ({below} of {len(excess)} are not above it)" if below else "training batches"
        _draw_series(axes, range(len(above)), above, label)
        if below < len(above):
            axes.set_yscale("log")
        axes.set_xlabel("iteration")
        axes.set_ylabel("MSE above the exact model's")

    return draw


def _draw_series(axes: Axes, steps: Sequence[int], values: Sequence[float], label: str) -> None:
    marker = "." if len(steps) < MOST_MARKED else ""
    axes.plot(steps, values, color=BLUE, linewidth=1.8, label=label, marker=marker)


def draw_density(density: Density, target: str) -> Draw:
    """Draw how many rows lie where: predictions over the target, and the line on which they are equal."""
    shown = [[count or math.nan for count in row] for row in zip(*density.counts, strict=True)]
    low, high = density.edges[0], density.edges[-1]

    def draw(axes: Axes) -> None:
        from matplotlib.colors import LinearSegmentedColormap
        from matplotlib.ticker import NullFormatter, StrMethodFormatter

        few_to_many = LinearSegmentedColormap.from_list("few to many", FEW_TO_MANY)
        norm, ticks = _choose_shades(max(max(row) for row in density.counts))
        mesh = axes.pcolormesh(density.edges, density.edges, shown, cmap=few_to_many, norm=norm)
        axes.plot((low, high), (low, high), color=INK, linestyle="--", linewidth=1.2, label="predicted = actual")
        axes.set_xlim(low, high)
        axes.set_ylim(low, high)
        axes.set_xlabel(f"{plain(target)}, as it is{_write_beyond(density.beyond)}")
        axes.set_ylabel(f"{plain(target)}, as predicted")
        bar = axes.get_figure().colorbar(mesh, ax=axes, ticks=ticks)  # type: ignore[union-attr]
        bar.ax.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
        bar.ax.yaxis.set_minor_formatter(NullFormatter())
        bar.set_label("rows in a cell", color=INK)
        bar.ax.tick_params(which="both", colors=INK, labelsize=9)
        bar.outline.set_edgecolor(INK)

    return draw


def _choose_shades(most: int) -> tuple[Any, list[float]]:
    """Return how up to so many rows in a cell are shaded, a number each or by their logarithm, and which are named."""
    from matplotlib.colors import BoundaryNorm, LogNorm

    if most <= MOST_SHADES:
        return BoundaryNorm([number + 0.5 for number in range(most + 1)], 256), [*range(1, most + 1)]
    steps = (1, 2, 5) if most < 1000 else (1,)
    return LogNorm(1, most), [step * 10**power for power in range(len(str(most))) for step in steps]


def _write_beyond(rows: int) -> str:
    if not rows:
        return ""
    return f" ({rows:,} {'row' if rows == 1 else 'rows'} beyond the frame stand{'s' * (rows == 1)} at its edge)"


def _choose_bar(counts: Sequence[int]) -> int:
    """Return how many bins one bar is to hold: as many as leave 2 · ∛rows bars (Rice's rule)."""
    fewest = 2 * sum(counts) ** (1 / 3)
    return max((bins for bins in RESIDUAL_BARS if len(counts) % bins == 0 and len(counts) / bins >= fewest), default=1)


def draw_residuals(density: Density, target: str) -> Draw:
    """Draw the distribution of predictions less the target."""
    counts = density.residual_counts
    bins = _choose_bar(counts)
    edges = density.residual_edges[::bins]
    bars = [sum(counts[at : at + bins]) for at in range(0, len(counts), bins)]

    def draw(axes: Axes) -> None:
        axes.stairs(bars, edges, fill=True, color=BLUE, alpha=0.75)
        axes.axvline(0, color=INK, linestyle="--", linewidth=1.2)
        axes.set_xlim(edges[0], edges[-1])
        axes.set_xlabel(f"{plain(target)}: predicted less actual{_write_beyond(density.residual_beyond)}")
        axes.set_ylabel("rows")

    return draw


def draw_slices(slices: Sequence[Slice], target: str) -> Draw:
    """Draw the root mean squared error in each slice, beside that of always guessing the mean."""
    found = [each for each in slices if each.scores["trained"]]

    def draw(axes: Axes) -> None:
        for offset, (model, label, colour) in enumerate(
            (("trained", "this model", BLUE), ("mean", "always the mean", AMBER))
        ):
            heights = [score.rmse for each in found if (score := each.scores[model])]
            places = [number + 0.4 * (offset - 0.5) for number in range(len(found))]
            axes.bar(places, heights, width=0.38, color=colour, label=label)
        names = [each.name.replace(target, "y") for each in found]
        axes.set_xticks(range(len(found)), names, rotation=40, ha="right")
        axes.set_xlim(-0.6, len(found) - 0.4)
        caveat = f" ({AT_BOTH_ENDS})" if any(each.by_target for each in found) else ""
        axes.set_xlabel(f"y: {plain(target)}{caveat}")
        axes.set_ylabel("RMSE")

    return draw


def draw_weights(standardised: Mapping[str, float], target: str) -> Draw:
    """Draw how many deviations of the target a deviation of each feature moves the prediction, the largest first."""
    largest = sorted(standardised.items(), key=lambda item: -abs(item[1]))[:MOST_WEIGHTS]
    left_out = len(standardised) - len(largest)

    def draw(axes: Axes) -> None:
        names, values = [plain(name) for name, _ in largest], [value for _, value in largest]
        axes.barh(names, values, color=[BLUE if value >= 0 else ROSE for value in values])
        axes.axvline(0, color=INK, linewidth=1.0)
        axes.invert_yaxis()
        rest = f"; {left_out} smaller ones are left out" if left_out else ""
        axes.set_xlabel(f"deviations of {plain(target)} for one deviation of the feature{rest}")

    return draw


def draw_path(strengths: Sequence[float], weights: Sequence[Sequence[float]], names: Sequence[str]) -> Draw:
    """Draw each feature's weight over the strength of the penalty; without a penalty there is no place on the axis."""
    by_feature = list(zip(*weights, strict=True))
    largest = sorted(range(len(names)), key=lambda at: -abs(by_feature[at][0]))[:MOST_WEIGHTS]

    def draw(axes: Axes) -> None:
        for rank, at in enumerate(largest):
            colour = (BLUE, GREEN, AMBER, ROSE)[rank] if rank < 4 else INK
            label = plain(names[at]) if rank < 4 else None
            axes.plot(strengths[1:], by_feature[at][1:], color=colour, linewidth=1.8 if rank < 4 else 1.0, label=label)
        axes.axhline(0, color=INK, linewidth=1.0)
        axes.set_xscale("log")
        axes.set_xlabel("l2, the strength of the penalty")
        axes.set_ylabel("weight for one deviation of the feature")

    return draw


def draw_ridge_error(strengths: Sequence[float], mse: Sequence[float]) -> Draw:
    """Draw the cross-validated error over the strength of the penalty, beside the one without a penalty."""

    def draw(axes: Axes) -> None:
        axes.plot(strengths[1:], mse[1:], color=BLUE, linewidth=1.8, label="with the penalty")
        axes.axhline(mse[0], color=GREEN, linestyle="--", linewidth=1.4, label=f"without: {mse[0]:.6g}")
        axes.set_xscale("log")
        axes.set_xlabel("l2, the strength of the penalty")
        axes.set_ylabel("cross-validated MSE")

    return draw


def draw_stages(stages: Mapping[str, Sequence[float]]) -> Draw:
    """Draw for how long each iteration waited, copied and computed, in seconds, stacked.

    Where they are many, a bar is the mean of several. What is far taller than nearly all others is cut off, and said.
    """
    count = len(next(iter(stages.values())))
    size = math.ceil(count / MOST_BARS)
    starts = range(0, count, size)
    means = {
        name: [sum(part) / len(part) for at in starts if (part := values[at : at + size])]
        for name, values in stages.items()
    }
    totals = [sum(parts) for parts in zip(*means.values(), strict=True)]
    usual = sorted(totals)[int(0.9 * (len(totals) - 1))]
    tall = [(at, total) for at, total in zip(starts, totals, strict=True) if total > TALL * usual > 0]
    cut = sorted(tall, key=lambda bar: -bar[1]) if max(totals) > 2 * TALL * usual else []

    def draw(axes: Axes) -> None:
        below = [0.0] * len(totals)
        for name, values in means.items():
            label = f"{name}: {sum(stages[name]):.3g} s in all"
            tops = [low + value for low, value in zip(below, values, strict=True)]
            axes.stairs(tops, [*starts, starts[-1] + size], baseline=below, fill=True, color=STAGES[name], label=label)
            below = tops
        if cut:
            axes.set_ylim(0, TALL * usual)
            where = ", ".join(f"{at}: {total:.3g} s" for at, total in cut[:3])
            rest = f", and {len(cut) - 3} shorter ones" if len(cut) > 3 else ""
            axes.set_title(f"cut off: iteration {where}{rest}", fontsize=9, loc="left", color=INK)
        axes.set_xlim(0, count)
        axes.set_xlabel("iteration" if size == 1 else f"iteration (a bar is the mean of {size})")
        axes.set_ylabel("seconds per iteration")

    return draw
