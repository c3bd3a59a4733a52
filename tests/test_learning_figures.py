"""Pictures of a run can be read on light and dark pages, and show what they should; kept in tests/output."""

import io
import math
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from tasks.learning import figures
from tasks.learning.density import BINS, DensitySums
from tasks.learning.features import Features
from tasks.learning.linear import LinearModel
from tasks.learning.scores import AT_BOTH_ENDS
from tasks.learning.scoring import Moments, score

Image = pytest.importorskip("PIL.Image", reason="figures are drawn by matplotlib, which brings Pillow")

OUTPUT = Path(__file__).parent / "output"
GROUNDS = {"light": (255, 255, 255), "dark": (17, 23, 28), "grey": (37, 39, 43)}  # of MLflow's and Prefect's pages
FEATURES = Features(columns=("fare", "km", "hour_integer"), target="fare", raw=("km", "hour_integer"))
LEGIBLE = 3.0  # the contrast that WCAG 2.2 asks of graphics and large letters


def make_rows(rows=4000):
    random = torch.Generator().manual_seed(5)
    km = torch.rand(rows, generator=random, dtype=torch.float64) * 9
    hour = torch.randint(0, 24, (rows,), generator=random).double()
    noise = torch.randn(rows, generator=random, dtype=torch.float64)
    return torch.stack([3 + 2 * km + (hour == 7) * 9 * noise + noise, km, hour], dim=1)


ROWS = make_rows()
MOMENTS = Moments(FEATURES)
MOMENTS.add(ROWS)
TRAINED = LinearModel.of(FEATURES, (2.1, 0.0), 2.9)
SCORES = score(ROWS.split(512), {"trained": TRAINED, "exact": MOMENTS.exact(), "mean": MOMENTS.mean_model()})
CURVE = [40.0 * 0.7**number + 4 for number in range(60)]
STAGES = {"waiting": [3.0, *[0.01] * 59], "copying": [0.002] * 60, "computing": [0.02] * 60}
DRAWINGS = {
    "curve": figures.draw_curve(CURVE, {"exact": 4.0, "mean": 30.0}),
    "above_exact": figures.draw_excess([*[mse - 4 for mse in CURVE], -0.1]),
    "predicted": figures.draw_density(SCORES.density, "fare"),
    "residuals": figures.draw_residuals(SCORES.density, "fare"),
    "slices": figures.draw_slices(SCORES.slices, "fare"),
    "weights": figures.draw_weights(MOMENTS.standardise(TRAINED), "fare"),
    "times": figures.draw_stages(STAGES),
}


def luminance(colour):
    """How light a colour is, from 0 to 1 (WCAG 2.2)."""
    parts = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in (c / 255 for c in colour)]
    return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]


def contrast(one, other):
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@cache
def render(name, small):
    """A picture, drawn once for all grounds."""
    return figures.shrink(render(name, False)) if small else figures.render(DRAWINGS[name])


def on(ground, png) -> Any:
    """The picture as a page of that ground shows it."""
    picture = Image.open(io.BytesIO(png)).convert("RGBA")
    page = Image.new("RGBA", picture.size, (*ground, 255))
    page.alpha_composite(picture)
    return page.convert("RGB")


@pytest.mark.parametrize("small", [False, True], ids=["whole", "small"])
@pytest.mark.parametrize("ground", GROUNDS)
@pytest.mark.parametrize("name", DRAWINGS)
def test_a_picture_has_no_ground_of_its_own_and_can_be_read_on_the_pages(name, ground, small):
    page = on(GROUNDS[ground], render(name, small))
    OUTPUT.mkdir(exist_ok=True)
    (OUTPUT / ".gitignore").write_text("*\n")
    page.save(OUTPUT / f"figure-{name}-{ground}{'-small' if small else ''}.png")
    edge = {page.getpixel((x, y)) for x in (0, page.width - 1) for y in (0, page.height - 1)}
    assert edge == {GROUNDS[ground]}
    assert page.width == (1100 if small else 1600)
    counted = page.getcolors(2**24)
    ground_share = max(number for number, colour in counted if colour == GROUNDS[ground]) / (page.width * page.height)
    assert ground_share > 0.3
    read = sum(number for number, colour in counted if contrast(colour, GROUNDS[ground]) > LEGIBLE)
    assert read > 0.005 * page.width * page.height


@pytest.mark.parametrize("ground", GROUNDS.values(), ids=GROUNDS)
@pytest.mark.parametrize("colour", [figures.INK, figures.BLUE, figures.GREEN, figures.AMBER, figures.ROSE])
def test_every_tone_stands_out_from_both_grounds(colour, ground):
    assert contrast(bytes.fromhex(colour[1:]), ground) > LEGIBLE


@pytest.mark.parametrize("name", DRAWINGS)
def test_what_a_page_carries_as_text_is_small(name):
    assert len(render(name, True)) < 25_000


def test_dollars_in_a_name_are_no_formula():
    figures.render(figures.draw_density(SCORES.density, r"a $\frac$ b"))
    figures.render(figures.draw_weights({r"a $\frac$ b": 1.0, "$": 2.0}, r"$\x$"))


def drawn(draw):
    from matplotlib.figure import Figure

    axes = Figure().add_subplot()
    draw(axes)
    return axes


def axes_of(name):
    return drawn(DRAWINGS[name])


def legend_of(axes):
    return axes.get_legend_handles_labels()[1]


def test_the_error_above_the_exact_model_is_on_a_log_axis_and_says_what_it_cannot_show():
    axes = axes_of("above_exact")
    assert axes.get_yscale() == "log"
    assert legend_of(axes) == ["training batches (1 of 61 are not above it)"]
    assert math.isnan(list(axes.lines[0].get_ydata())[-1])


def test_times_are_stacked_and_what_is_cut_off_is_said():
    axes = axes_of("times")
    assert legend_of(axes) == ["waiting: 3.59 s in all", "copying: 0.12 s in all", "computing: 1.2 s in all"]
    assert axes.get_title("left") == "cut off: iteration 0: 3.02 s"
    tops = [steps.get_data().values[-1] for steps in axes.patches]
    assert tops == pytest.approx([0.01, 0.012, 0.032])


def test_all_bars_that_are_cut_off_are_counted_and_the_longest_named():
    waiting = [3.0, 0.05, 0.2, 0.04, 0.1, 0.3, *[0.01] * 94]
    axes = drawn(figures.draw_stages({"waiting": waiting, "copying": [0.0] * 100, "computing": [0.0] * 100}))
    assert axes.get_title("left") == "cut off: iteration 0: 3 s, 5: 0.3 s, 2: 0.2 s, and 3 shorter ones"
    assert sum(axes.patches[-1].get_data().values > axes.get_ylim()[1]) == 6
    assert axes.get_ylabel() == "seconds per iteration"


def make_density(rows, far=0.0):
    """The density of so many rows, of which the last is `far` off; the first ones alone lay down the bins."""
    target = torch.linspace(0, 9, rows, dtype=torch.float64)
    predicted = target + torch.randn(rows, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    sums = DensitySums(target, predicted)
    predicted[-1] += far
    sums.add(target, predicted)
    return sums.density()


@pytest.mark.parametrize(("rows", "bars"), [(40, 9), (100, 27), (100_000, 81)])
def test_few_residuals_are_drawn_in_fewer_bars_and_no_row_is_lost(rows, bars):
    (steps,) = drawn(figures.draw_residuals(make_density(rows), "fare")).patches
    values, edges, _ = steps.get_data()
    assert (len(values), len(edges), values.sum()) == (bars, bars + 1, rows)
    assert edges[bars // 2] == pytest.approx(-edges[bars // 2 + 1])


def test_rows_beyond_the_frame_are_said_where_there_are_some():
    for draw, label in (
        (figures.draw_density, "fare, as it is"),
        (figures.draw_residuals, "fare: predicted less actual"),
    ):
        assert drawn(draw(make_density(40), "fare")).get_xlabel() == label
        beyond = drawn(draw(make_density(40, far=99.0), "fare")).get_xlabel()
        assert beyond == f"{label} (1 row beyond the frame stands at its edge)"


def test_cells_of_one_row_stand_out_and_the_bar_names_whole_numbers():
    from matplotlib.colors import LinearSegmentedColormap

    shades = LinearSegmentedColormap.from_list("", figures.FEW_TO_MANY)
    for shade in (shades(number / 20) for number in range(21)):
        assert min(contrast([255 * part for part in shade[:3]], ground) for ground in GROUNDS.values()) > LEGIBLE
    for rows in (100, 4000):
        axes = drawn(figures.draw_density(make_density(rows) if rows == 100 else SCORES.density, "fare"))
        (bar,) = (each for each in axes.figure.axes if each is not axes)
        axes.figure.draw_without_rendering()
        named = [tick.get_text() for tick in bar.get_yticklabels(which="both") if tick.get_text()]
        assert len(named) > 1 and all(text.isdecimal() for text in named)


@pytest.mark.parametrize("name", DRAWINGS)
def test_every_figure_has_a_title(name):
    bare, titled = (figures.render(DRAWINGS[name], title) for title in ("", figures.TITLES[name]))
    assert bare != titled


def test_slices_by_the_target_are_marked_and_drawn_with_what_to_mind():
    assert [each.by_target for each in SCORES.slices] == ["fare" in each.name for each in SCORES.slices]
    assert axes_of("slices").get_xlabel() == f"y: fare ({AT_BOTH_ENDS})"


def test_many_iterations_are_drawn_as_means_of_some():
    axes = drawn(figures.draw_stages({"waiting": [1.0] * 999, "copying": [0.0] * 999, "computing": [2.0] * 999}))
    assert [len(steps.get_data().values) for steps in axes.patches] == [143] * 3
    assert axes.get_xlabel() == "iteration (a bar is the mean of 7)"


def test_a_density_counts_every_row_once_whatever_the_batches():
    density = SCORES.density
    assert sum(map(sum, density.counts)) == sum(density.residual_counts) == len(ROWS)
    target = ROWS[:, 0]
    expected = [int(((target >= low) & (target < high)).sum()) for low, high in pairwise(density.edges)]
    assert [sum(row) for row in density.counts][1:-1] == expected[1:-1]
    below_zero = int((TRAINED.predict(ROWS).flatten() - target < density.residual_edges[40]).sum())
    assert sum(density.residual_counts[:40]) == below_zero
    assert len(density.counts) == BINS


@pytest.mark.parametrize("far", [1e300, 0.0])
def test_a_density_of_a_model_that_is_far_off_or_of_rows_all_alike_has_a_frame(far):
    target = torch.full((10,), 7.0, dtype=torch.float64)
    sums = DensitySums(target, target + far)
    sums.add(target, target + far)
    edges = sums.density().edges
    assert edges[0] < 7 < edges[-1] and all(map(math.isfinite, edges))
    assert sums.counts.sum() == 10


def test_standardised_weights_are_deviations_for_deviations():
    km = ROWS[:, 1].std(correction=0) / ROWS[:, 0].std(correction=0) * 2.1
    assert MOMENTS.standardise(TRAINED) == pytest.approx({"km": km.item(), "hour_integer": 0.0})


def test_r2_is_left_out_where_rows_were_chosen_by_the_target():
    of_ranges = [each for each in SCORES.slices if "fare" in each.name]
    of_hours = [each for each in SCORES.slices if each.name.startswith("hour")]
    assert len(of_ranges) == 5
    assert {score and score.r2 for each in of_ranges for score in each.scores.values()} == {None}
    assert all((score := each.scores["trained"]) and score.r2 is not None for each in of_hours)
