"""What data sets hold, as small multiples: a histogram for each column, training beside test, on one page.

All is drawn into one pair of axes whose unit is the inch: axes for each column would take seconds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from tasks.learning.figures import AMBER, BLUE, INK, plain, save
from tasks.learning.profiles import ColumnProfile, DataProfile

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_DRAWN = 60  # columns, the first ones
MOST_BESIDE = 5  # histograms in a row
LETTERS = 15  # of a column's name that an inch holds
TARGET = " (target)"
GAP, CAPTION = 0.12, 0.4  # inches between histograms, and for what stands below them
HEAD, FOOT = 0.28, 0.24  # inches for a column's name, and for the numbers below its histogram
WIDTH = 10.0  # of the page, in inches
APART, THICK = 0.02, 0.04  # of the width of the bins: where what is beyond them stands, and how wide that bar is
NAMES = {"train": "training", "test": "test", "now": "now"}  # for people
COLOURS = {"train": BLUE, "test": AMBER, "now": AMBER}
FILLED, OUTLINED = (True, 0.0, 0.6), (False, 1.2, 1.0)  # filled or not, width of the line, opacity
LOOKS = {"train": FILLED, "test": OUTLINED, "now": OUTLINED}


@dataclass(frozen=True)
class Frame:
    """Where one column is drawn: left and lower end, width and height, in inches."""

    x: float
    y: float
    width: float
    height: float


def render_profiles(profiles: Mapping[str, DataProfile], target: str) -> bytes:
    """Return a PNG of data sets, named train and test, 1,600 pixels wide.

    Columns and edges are those of the first; of very many columns the first ones are drawn, and that is said.
    """
    from matplotlib.figure import Figure

    found = {label: {column.name: column for column in profile.columns} for label, profile in profiles.items()}
    names = list(next(iter(found.values())))
    drawn = names[:MOST_DRAWN]
    frames = lay_out(len(drawn))
    figure = Figure(figsize=(WIDTH, frames[0].y + frames[0].height + HEAD))
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, figure.get_figwidth()), ylim=(0, figure.get_figheight()))
    axes.set_axis_off()
    for name, frame in zip(drawn, frames, strict=True):
        mark = TARGET if name == target else ""
        title = shorten(name, int(LETTERS * frame.width) - len(mark)) + mark
        axes.text(frame.x, frame.y + frame.height + 0.06, plain(title), fontsize=8, color=INK)
        draw_column(axes, frame, {label: columns[name] for label, columns in found.items() if name in columns})
    add_caption(axes, profiles, [f"the first {len(drawn)} of {len(names)} columns"] * (len(drawn) < len(names)))
    return save(figure)


def lay_out(count: int, *, most: int = MOST_BESIDE, head: float = HEAD) -> list[Frame]:
    """Return where so many columns are drawn, row by row from above, `most` of them side by side.

    head: inches above each for what is written there
    """
    rows = math.ceil(count / most)
    beside = math.ceil(count / rows)
    each = (WIDTH - GAP) / beside - GAP
    height = min(1.8, max(0.7, each / 2.6))
    return [
        Frame(
            GAP + number % beside * (each + GAP),
            CAPTION + FOOT + (rows - 1 - number // beside) * (head + height + FOOT),
            each,
            height,
        )
        for number in range(count)
    ]


def shorten(name: str, most: int) -> str:
    """Return a name's beginning and its end where it has more letters than `most`."""
    kept = max(most - 1, 2)
    return name if len(name) <= most else f"{name[: kept - kept // 2]}…{name[-(kept // 2) :]}"


def draw_column(axes: Axes, frame: Frame, columns: Mapping[str, ColumnProfile]) -> None:
    """Draw one column's histograms in several data sets as shares of their rows, or say which one value it has."""
    axes.plot((frame.x, frame.x + frame.width), (frame.y, frame.y), color=INK, linewidth=0.8)
    first, *_ = columns.values()
    if {value for column in columns.values() for value in (column.least, column.most)} == {first.least}:
        middle = frame.x + frame.width / 2, frame.y + frame.height / 2
        axes.text(*middle, f"always {first.least:.10g}", ha="center", va="center", fontsize=8, color=INK)
        return
    begin, end = find_filled(list(columns.values()))
    bars = {label: find_bars(column, begin, end) for label, column in columns.items()}
    ends = [edge for pieces in bars.values() for _, edges in pieces for edge in (edges[0], edges[-1])]
    low, high = min(ends), max(ends)
    tallest = max(height for pieces in bars.values() for heights, _ in pieces for height in heights)

    def place(value: float) -> float:
        return frame.x + frame.width * (value / (high - low) - low / (high - low))

    for label, pieces in bars.items():
        fill, line, alpha = LOOKS[label]
        for heights, edges in pieces:
            tops = [frame.y + frame.height * height / tallest for height in heights]
            axes.stairs(
                tops,
                [place(edge) for edge in edges],
                baseline=frame.y,
                color=COLOURS[label],
                fill=fill,
                linewidth=line,
                alpha=alpha,
            )
    numbered = number_ends(first.edges[begin : end + 1])
    for (number, align), text in zip(zip(numbered, ("left", "right"), strict=True), write_ends(*numbered), strict=True):
        axes.text(place(number), frame.y - 0.04, text, ha=align, va="top", fontsize=7, color=INK)


Piece = tuple[Sequence[float], Sequence[float]]  # heights, and the edges between which they are


def find_bars(column: ColumnProfile, begin: int, end: int) -> list[Piece]:
    """Return a histogram's bars from edge `begin` to edge `end`, then, apart, those of what is beyond, if anything is.

    Heights are shares of the rows; where bins are not alike, shares of one of the usual width.
    """
    edges, shares = column.edges[begin : end + 1], [count / column.rows for count in column.counts]
    span = edges[-1] / 2 - edges[0] / 2  # of half the size, which is finite
    widths = [(high / 2 - low / 2) / span * (len(edges) - 1) for low, high in pairwise(edges)]
    bars: list[Piece] = [([s / w for s, w in zip(shares[begin + 1 : end + 1], widths, strict=True)], edges)]
    near, far = 2 * APART * span, 2 * (APART + THICK) * span
    if below := sum(shares[: begin + 1]):
        bars.append(([below], (edges[0] - far, edges[0] - near)))
    if above := sum(shares[end + 1 :]):
        bars.append(([above], (edges[-1] + near, edges[-1] + far)))
    return bars


def find_filled(columns: Sequence[ColumnProfile]) -> tuple[int, int]:
    """Return the first and the last edge between which there are rows in any of the histograms, one bin at least."""
    inner = [sum(counts) for counts in zip(*(column.counts[1:-1] for column in columns), strict=True)]
    filled = [at for at, count in enumerate(inner) if count] or [0, len(inner) - 1]
    return filled[0], filled[-1] + 1


def number_ends(edges: Sequence[float]) -> tuple[float, float]:
    """Return which numbers are written below a histogram: its ends, or the first and last whole number with a bin."""
    half = 0.5 if edges[0] % 1 == 0.5 and edges[1] - edges[0] == 1 else 0.0
    return edges[0] + half, edges[-1] - half


def write_ends(low: float, high: float) -> tuple[str, str]:
    """Return two numbers in as few digits, four at least, as tell them apart."""
    digits = next((digits for digits in range(4, 17) if f"{low:.{digits}g}" != f"{high:.{digits}g}"), 17)
    return f"{low:.{digits}g}", f"{high:.{digits}g}"


def add_caption(axes: Axes, profiles: Mapping[str, DataProfile], notes: Sequence[str]) -> None:
    """Say below which colour is which data set, and what bars that stand apart are."""
    from matplotlib.patches import Patch

    columns = [column for profile in profiles.values() for column in profile.columns if not column.is_constant]
    if any(column.counts[0] or column.counts[-1] for column in columns):
        notes = ["bars that stand apart hold what is beyond", *notes]
    handles = []
    for label, profile in profiles.items():
        fill, line, alpha = LOOKS[label]
        text = f"{NAMES[label]}: {profile.rows:,} rows"
        handles.append(Patch(color=COLOURS[label], fill=fill, linewidth=line, alpha=alpha, label=text))
    handles += [Patch(alpha=0, label=note) for note in notes]
    axes.legend(handles=handles, fontsize=8, frameon=False, labelcolor=INK, loc="lower center", ncols=len(handles))
