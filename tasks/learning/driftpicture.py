"""The columns that moved most, drawn: what the training data held, beside what is there now."""

from __future__ import annotations

from tasks.learning.drift import Drift, align
from tasks.learning.figures import INK, plain, save
from tasks.learning.multiples import LETTERS, WIDTH, add_caption, draw_column, lay_out, shorten
from tasks.learning.profiles import DataProfile

MOST_DRAWN = 6
MOST_BESIDE = 3  # histograms in a row
HEAD = 0.45  # inches for a column's name and how far it has moved


def render_drift(drift: Drift, reference: DataProfile, found: DataProfile) -> bytes:
    """Return a PNG of the columns that moved most and how far, 1,600 pixels wide."""
    from matplotlib.figure import Figure

    before, now = ({each.name: each for each in profile.columns} for profile in (reference, found))
    drawn = drift.columns[:MOST_DRAWN]
    frames = lay_out(len(drawn), most=MOST_BESIDE, head=HEAD)
    height = frames[0].y + frames[0].height + HEAD
    figure = Figure(figsize=(WIDTH, height))
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, WIDTH), ylim=(0, height))
    axes.set_axis_off()
    for each, frame in zip(drawn, frames, strict=True):
        name = plain(shorten(each.name, int(LETTERS * frame.width)))
        distances = f"{'drifted' if each.drifted else 'not drifted'}: PSI {each.psi:.3g}, KS {each.ks:.3g}"
        axes.text(frame.x, frame.y + frame.height + 0.06, f"{name}\n{distances}", fontsize=8, color=INK)
        train, today = align(before[each.name], now[each.name])
        draw_column(axes, frame, {"train": train, "now": today})
    add_caption(axes, {"train": reference, "now": found}, [])
    return save(figure)
