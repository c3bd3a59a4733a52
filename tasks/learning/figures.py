"""Pictures of a training run, legible on light and on dark pages."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence

NAMES = {"exact": "exact least squares", "mean": "always the mean"}
INK, PAPER = "#1f2937", "#ffffff"


def draw_curve(mse: Sequence[float], reference: Mapping[str, float], *, small: bool = False) -> bytes:
    """Draw the mean squared error by iteration on a log axis, the reference models' as lines; return a PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.2, 2.4) if small else (8, 4.5), dpi=72 if small else 120, facecolor=PAPER)
    FigureCanvasAgg(figure)
    axes = figure.add_subplot(facecolor=PAPER)
    axes.plot(
        range(len(mse)),
        mse,
        color="#2563eb",
        linewidth=1.8,
        label="training batches",
        marker="." if len(mse) < 80 else "",
    )
    for (name, label), colour in zip(NAMES.items(), ("#059669", "#b45309"), strict=True):
        if reference.get(name):
            axes.axhline(
                reference[name], color=colour, linestyle="--", linewidth=1.2, label=f"{label}: {reference[name]:.4g}"
            )
    if min(mse) > 0:
        axes.set_yscale("log")
    axes.set_xlabel("iteration", color=INK)
    axes.set_ylabel("mean squared error", color=INK)
    axes.tick_params(colors=INK, labelsize=7 if small else 9)
    axes.grid(True, which="major", color="#e5e7eb", linewidth=0.6)
    axes.legend(fontsize=7 if small else 9, frameon=False, labelcolor=INK)
    figure.tight_layout()
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()
