"""Plots are labelled, show what they should, and leave matplotlib's global state alone."""

import subprocess
import sys
from dataclasses import replace
from io import BytesIO

import numpy as np
import pytest

from tasks.devices import Figure, StreamRates, compare_devices, plots, predict

Image = pytest.importorskip("PIL.Image", reason="plots are drawn by matplotlib, which brings Pillow")


def make_figures(sizes=24):
    """Sums on two devices, with every fifth one noisy; vectors, copies, products and a step of each."""
    shapes = [("add", 2**n, "B/s") for n in range(sizes)]
    shapes += [("copy", 2**24, "B/s"), ("triad", 2**24, "B/s"), ("matmul", 512, "FLOP/s"), ("step", 2**20, "rows/s")]
    shapes += [("host_to_device_pinned", 2**23, "B/s")]
    return [
        Figure(
            name=name, device=device, dtype="float64", size=size, unit=unit, samples=9, calls=1,
            seconds=seconds, low=seconds * 0.99, high=seconds * (1.5 if n % 5 == 0 else 1.01),
            rate=size * 24 / seconds, limit=3e12 if device != "cpu" and unit == "B/s" else None,
        )
        for n, (name, size, unit) in enumerate(shapes)
        for device, seconds in (("cpu", 1e-6 + size / 1e9), ("cuda:0", 6e-6 + size / 1e11))
    ]  # fmt: skip


FIGURES = make_figures()
RATES = StreamRates(fetch=5e8, receive=2e9, decode=4e6, prepare=9e6, row_bytes=60.0, numbers=10)
DRAWINGS = {
    "ratios": lambda: plots.draw_ratios(compare_devices(FIGURES), "made up", "CPU ÷ device", mark_wins=True),
    "times": lambda: plots.draw_times(FIGURES, "made up"),
    "bandwidths": lambda: plots.draw_bandwidths(FIGURES, "made up"),
    "products": lambda: plots.draw_products(FIGURES, "made up"),
    "iterations": lambda: plots.draw_predictions(predict(FIGURES, "cuda:0", 2**20, RATES), "made up"),
}


@pytest.mark.parametrize("name", DRAWINGS)
def test_every_plot_is_titled_labelled_and_opaque(name):
    drawing = DRAWINGS[name]()

    image = Image.open(BytesIO(plots.render(drawing))).convert("RGBA")

    assert drawing.get_suptitle() == "made up"
    assert all(axes.get_xlabel() and axes.get_title() for axes in drawing.axes)
    assert min(image.width, image.height) > 400
    assert image.getchannel("A").getextrema() == (255, 255)
    assert image.convert("RGB").crop((0, 0, 1, 1)).tobytes() > bytes((240, 240, 240))


@pytest.mark.parametrize("name", DRAWINGS)
def test_no_legend_crowds_a_title(name):
    drawing = DRAWINGS[name]()
    drawing.savefig(BytesIO(), format="png")  # which lays it out

    titles = [text.get_window_extent() for text in (*drawing.texts, *(axes.title for axes in drawing.axes))]

    legends = [legend.get_window_extent() for axes in drawing.axes if (legend := axes.get_legend())]
    assert len(titles) == 1 + len(drawing.axes)
    assert not [legend for legend in legends for title in titles if legend.overlaps(title)]


def x_of(line):
    return np.asarray(line.get_xdata())


def legend_of(axes):
    legend = axes.get_legend()
    return [text.get_text() for text in legend.get_texts()]


def test_ratios_show_all_sizes_and_the_16_smallest_on_log2_axes():
    from matplotlib.scale import LogTransform

    whole, close = DRAWINGS["ratios"]().axes

    assert [axes.get_xscale() for axes in (whole, close)] == ["log", "log"]
    transform = whole.xaxis.get_transform()
    assert isinstance(transform, LogTransform) and transform.base == 2
    assert [len(x_of(axes.lines[0])) for axes in (whole, close)] == [24, 16]
    assert list(x_of(close.lines[0])) == [2**n for n in range(16)]


def test_the_size_from_which_the_gpu_wins_is_in_the_legend():
    whole, _ = DRAWINGS["ratios"]().axes

    assert "float64 wins from 8,192" in legend_of(whole)


def test_figures_too_noisy_to_use_are_hollow_and_the_legend_says_so():
    (axes,) = DRAWINGS["times"]().axes

    hollow = [line for line in axes.lines if len(x_of(line)) == 1 and line.get_markerfacecolor() == plots.PAPER]

    assert len(hollow) == 2 * 5
    assert "hollow: too noisy to use" in legend_of(axes)


def test_sums_that_were_waited_for_are_crosses_beside_the_others():
    waited = [replace(each, name="add_latency") for each in FIGURES if each.name == "add" and each.device == "cuda:0"]
    (axes,) = plots.draw_times([*FIGURES, *waited[:3]], "made up").axes

    (crosses,) = [line for line in axes.lines if line.get_marker() == "x"]

    assert list(x_of(crosses)) == [1, 2, 4]
    assert "cuda:0 float64, each waited for" in legend_of(axes)


def test_rates_are_written_beside_their_share_of_the_limit():
    _, points = DRAWINGS["bandwidths"]().axes

    assert any("% of limit" in text.get_text() for text in points.texts)


def test_predicted_and_measured_iterations_are_labelled_each_at_its_mark():
    from matplotlib.text import Annotation

    streamed, resident = predict(FIGURES, "cpu", 2**20, RATES)
    timed = [replace(streamed, measured=9 * streamed.seconds), replace(resident, measured=0.8 * resident.seconds)]
    (axes,) = plots.draw_predictions(timed, "made up").axes

    labels = [(text.xy[0], text.get_text().replace("\n", " ")) for text in axes.texts if isinstance(text, Annotation)]
    assert [x for x, _ in labels] == [resident.seconds, streamed.seconds, 9 * streamed.seconds]
    assert labels[0][1].startswith("predicted ") and " measured " in labels[0][1]
    assert [text.split()[0] for _, text in labels[1:]] == ["predicted", "measured"]


def test_what_a_page_carries_as_text_is_small():
    image = plots.shrink(plots.render(DRAWINGS["bandwidths"]()), 0.55)

    assert len(image) < 40_000


def test_drawing_touches_neither_pyplot_nor_the_global_settings():
    code = """
import sys, matplotlib
before = matplotlib.rcParams.copy()
sys.path.insert(0, "tests")
import test_devices_plots as here
for draw in here.DRAWINGS.values():
    here.plots.render(draw())
print("matplotlib.pyplot" in sys.modules, before == matplotlib.rcParams.copy())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)

    assert done.stdout.split() == ["False", "True"], done.stderr
