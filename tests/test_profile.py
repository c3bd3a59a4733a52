"""A profile: what each column holds, against numpy, however its rows are cut, merged, stopped or spread."""

import functools
import io
import json
import math
from fractions import Fraction
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
import torch

from tasks.errors import TrainingError
from tasks.learning import columnsums
from tasks.learning.columnsums import ColumnSums, Histograms
from tasks.learning.edges import MOST_BINS, MOST_CELLS, Grid, lay_edges
from tasks.learning.figures import shrink
from tasks.learning.multiples import Frame, draw_column, find_bars, find_filled, render_profiles, shorten
from tasks.learning.profiled import suggest_edges, take_profile
from tasks.learning.profiles import DataProfile
from tasks.learning.tallying import find_function
from tests.profiles import assert_is_numpys
from tests.sanitizing import fuzz_with_sanitizers, needs_compiler

OUTPUT = Path(__file__).parent / "output"
DRAW = np.random.default_rng(17)
ROWS = 6000
SHAPES = {
    "normal": DRAW.normal(size=ROWS),
    "negative": -DRAW.lognormal(2, 1, ROWS),
    "constant": np.full(ROWS, 5.3),
    "zero": np.zeros(ROWS),
    "whole and constant": np.full(ROWS, 2019.0),
    "hour": DRAW.integers(0, 24, ROWS).astype(float),
    "flag": (DRAW.random(ROWS) < 0.0004).astype(float),
    "years from 1900": DRAW.integers(1900, 2026, ROWS).astype(float),
    "ids": DRAW.integers(10**15, 10**15 + 10**7, ROWS).astype(float),
    "far from zero": 1e9 + DRAW.normal(size=ROWS),
    "huge": DRAW.normal(size=ROWS) * 1e300,
    "tiny": DRAW.normal(size=ROWS) * 1e-300,
    "to the cent": DRAW.integers(0, 10000, ROWS) / 100,
    "with an outlier": np.where(np.arange(ROWS) == 77, 1e12, DRAW.random(ROWS)),
    "sorted": np.sort(DRAW.normal(size=ROWS)),
}
TABLE = torch.from_numpy(np.column_stack(list(SHAPES.values())))


@pytest.fixture(params=["C", "torch"])
def adder(request, monkeypatch):
    """Who adds columns up: what was built from tally.c, or torch where that was not built."""
    if request.param == "torch":
        monkeypatch.setattr(columnsums, "find_function", lambda: None)
    elif not find_function():
        pytest.skip("tally.c was not built, for want of a C compiler")
    return request.param


by_both = pytest.mark.usefixtures("adder")


@by_both
@pytest.mark.parametrize("size", [1, 700, 2048, 5000, ROWS])
def test_every_column_holds_what_numpy_finds(size):
    batches = TABLE[: 700 if size == 1 else ROWS].split(size)
    profile = take_profile(batches, list(SHAPES))
    assert [column.name for column in profile.columns] == list(SHAPES)
    for column in profile.columns:
        assert_is_numpys(column, SHAPES[column.name][: profile.rows])


@by_both
def test_deviations_far_from_zero_lose_no_digits():
    values = 1e9 + DRAW.normal(size=ROWS)
    exact = [Fraction(value) for value in values]
    mean = sum(exact) / ROWS
    deviation = math.sqrt(sum((value - mean) ** 2 for value in exact) / ROWS)
    found = take_profile(torch.from_numpy(values)[:, None].split(999), ["a"]).columns[0]
    assert found.deviation == pytest.approx(deviation, rel=1e-12)
    assert found.mean == pytest.approx(float(mean), rel=1e-15)


@by_both
@pytest.mark.parametrize("columns", [1, 2, 40])
def test_one_row_is_a_profile_and_none_is_none(columns):
    names = [str(at) for at in range(columns)]
    row = torch.arange(columns, dtype=torch.float64)[None] + 0.5
    for column, value in zip(take_profile([row], names).columns, row[0].tolist(), strict=True):
        assert_is_numpys(column, np.array([value]))
        assert column.is_constant and column.deviation == 0 and column.mean == value
    with pytest.raises(TrainingError, match="no rows were streamed"):
        take_profile([row[:0]], names)


@by_both
def test_batches_of_float32_count_as_the_numbers_that_they_are():
    values = TABLE[:, [0, 1, 5]].float()
    for column, each in zip(take_profile(values.split(999), ["a", "b", "c"]).columns, values.T, strict=True):
        assert_is_numpys(column, each.double().numpy())


@by_both
def test_batches_stay_as_they_are():
    for batch in (TABLE.clone(), TABLE[:, :1].clone()):
        before = batch.clone()
        take_profile([batch], [str(at) for at in range(batch.shape[1])])
        assert batch.equal(before)


@by_both
def test_edges_that_are_given_are_kept_and_what_is_beyond_them_is_counted_there():
    """Also those that lie on no grid: they are searched."""
    given = {"hour": (-0.5, 5.5, 11.5), "normal": (-0.1, 0.2, 0.3, 1.1), "huge": (0.0, 1e300), "flag": (2.0,)}
    profile = take_profile(TABLE.split(999), list(SHAPES), given)
    for column in profile.columns:
        assert column.edges == given.get(column.name, column.edges)
        assert_is_numpys(column, SHAPES[column.name])
    again = take_profile([TABLE], list(SHAPES), profile.edges)
    assert [column.counts for column in again.columns] == [column.counts for column in profile.columns]


@by_both
def test_a_value_on_an_edge_is_in_the_bin_that_begins_there_and_the_one_before_it_is_not():
    edges = lay_edges(0.0, 10.0, whole=False)
    values = np.array([each for edge in edges for each in (np.nextafter(edge, -np.inf), edge)])
    found = take_profile([torch.from_numpy(values)[:, None]], ["a"], {"a": edges}).columns[0]
    assert found.counts == (1, *[2] * (len(edges) - 1), 1)


@by_both
def test_parts_are_merged_in_any_order_to_the_same_counts_and_ends_and_sums_to_1e_12():
    edges = [column.edges for column in take_profile([TABLE], list(SHAPES)).columns]
    histograms = Histograms(edges)
    parts = [ColumnSums.join(*histograms.measure(part, 256)) for part in TABLE.split([1, 17, 982, 5000])]
    orders = []
    for first, *others in permutations(parts):
        merged = first
        for other in others:
            merged = merged.merge(other)
        orders.append(merged)
    whole = orders[0]
    reach = torch.maximum(whole.least.abs(), whole.most.abs())
    for other in orders[1:]:
        assert other.rows == whole.rows and other.counts.equal(whole.counts)
        assert other.least.equal(whole.least) and other.most.equal(whole.most)
        assert ((other.mean - whole.mean).abs() <= 1e-12 * reach).all()
        assert (
            torch.allclose(other.squares, whole.squares, rtol=1e-12, atol=0)
            or ((other.squares - whole.squares).abs() <= 1e-12 * ROWS * reach**2).all()
        )


@pytest.mark.parametrize("columns", [1, 3, 15, 200])
@pytest.mark.parametrize("size", [1, 7, 320, 6000])
@pytest.mark.parametrize("adder", ["C"], indirect=True)
def test_what_is_added_up_in_c_is_what_torch_adds_up(columns, size, adder, monkeypatch):
    table = TABLE[: 60 if size == 1 else ROWS - 5].repeat(1, 14)[:, :columns]
    edges = [suggest_edges(column) for column in table.T]
    sums, counts = Histograms(edges).measure(table.contiguous(), size)
    assert all(map(torch.equal, Histograms(edges).measure(table.T.contiguous().T, size), (sums, counts)))
    monkeypatch.setattr(columnsums, "find_function", lambda: None)
    expected, expected_counts = Histograms(edges).measure(table, size)
    assert counts.equal(expected_counts) and int(counts.sum()) == table.numel()
    (rows, mean, squares, *ends), (_, mean_of_torch, squares_of_torch, *ends_of_torch) = (
        sums.unbind(1),
        expected.unbind(1),
    )
    assert rows.equal(expected[:, 0]) and all(map(torch.equal, ends, ends_of_torch))
    reach = (table.abs().amax(0) / Histograms(edges).unit).clamp(min=1)
    assert ((mean - mean_of_torch).abs() <= 1e-13 * reach).all()
    assert ((squares - squares_of_torch).abs() <= 1e-13 * (rows * reach**2 + squares)).all()


@needs_compiler
@pytest.mark.long
def test_sanitizers_find_nothing_in_what_is_written_in_c(tmp_path):
    source = Path(columnsums.__file__).with_name("tally.c")
    assert int(fuzz_with_sanitizers(source, "tests.fuzz_tallying", 10, tmp_path)) > 100


@pytest.mark.parametrize(
    ("low", "high", "whole", "edges"),
    [
        (0, 23, True, [hour - 0.5 for hour in range(25)]),
        (0, 1, True, [-0.5, 0.5, 1.5]),
        (2019, 2019, True, [2018.5, 2019.5]),
        (0, 64, True, [float(edge) for edge in range(66)]),
        (1, 127, True, [float(edge) for edge in range(0, 129, 2)]),
        (0.1, 16.0, False, [edge / 4 for edge in range(66)]),
    ],
)
def test_edges_are_round_and_whole_numbers_that_are_few_have_a_bin_each(low, high, whole, edges):
    assert lay_edges(low, high, whole=whole) == tuple(edges)


@pytest.mark.parametrize("name", SHAPES)
def test_between_the_edges_are_enough_bins_and_nearly_all_rows(name):
    values = SHAPES[name]
    edges = suggest_edges(torch.from_numpy(values))
    few = len(np.unique(values)) <= MOST_BINS
    assert (1 if few else MOST_BINS / 4) <= len(edges) - 1 <= MOST_BINS + 1
    assert ((values >= edges[0]) & (values < edges[-1])).mean() >= 0.997
    if few:
        assert len(np.unique(np.searchsorted(edges, values, side="right"))) == len(np.unique(values))


@pytest.mark.parametrize(
    "ends",
    [(1e308, 1.7e308), (-1.7e308, 1.7e308), (1.7e308, 1.7e308), (-1.7e308, -1.7e308), (0.0, 5e-324), (-1e-310, 0)],
)
def test_edges_are_finite_and_ascend_at_the_ends_of_float64(ends):
    edges = lay_edges(*ends, whole=False)
    assert all(map(math.isfinite, edges)) and list(edges) == sorted(set(edges)) and edges[0] <= ends[0]
    values = np.array(ends)
    found = take_profile([torch.from_numpy(values)[:, None]], ["a"]).columns[0]
    assert sum(found.counts) == 2 and (found.least, found.most) == ends


@pytest.mark.parametrize(
    ("edges", "width", "cells"),
    [
        ((-0.5, 0.5, 1.5), 0.5, 4),
        ((0.0, 2.0, 4.0), 2.0, 2),
        ((0.25, 0.5, 4.0), 0.25, 15),
        ((0.0,), 1.0, 0),
        ((3.0, 8.0), 1.0, 5),
        ((0.1, 0.2), None, None),
        ((0.0, 1.0, MOST_CELLS + 2.0), None, None),
        ((0.0, 5e-324), None, None),
    ],
)
def test_edges_lie_on_the_coarsest_grid_that_has_them_all(edges, width, cells):
    grid = Grid.find(edges)
    assert (grid and grid.width, grid and grid.cells) == (width, cells)


def test_a_profile_is_the_same_after_json():
    profile = take_profile([TABLE], list(SHAPES))
    assert DataProfile.from_dict(json.loads(json.dumps(profile.to_dict(), allow_nan=False))) == profile


# Its picture


def profiles_of(table, names):
    """Of four fifths of the rows and of the others."""
    parts = torch.from_numpy(table).tensor_split([len(table) * 4 // 5])
    found = take_profile([parts[0]], names)
    return {"train": found, "test": take_profile([parts[1]], names, found.edges)}


@functools.cache
def pages():
    wide = np.column_stack([DRAW.normal(at, 1 + at, ROWS) for at in range(70)])
    return {
        "shapes": profiles_of(TABLE.numpy(), list(SHAPES)),
        "2 columns": profiles_of(TABLE[:, [1, 5]].numpy(), ["price", "hour"]),
        "70 columns": profiles_of(wide, [f"a_column_whose_name_is_long_{at}_and_ends_with_{at}" for at in range(70)]),
        "2 rows": profiles_of(np.array([[1.0, -1e300], [1.0, 1e300]]), ["$a$", "b"]),
    }


@pytest.mark.parametrize(
    ("name", "small"), [("shapes", False), ("2 columns", True), ("70 columns", True), ("2 rows", False)]
)
def test_a_page_of_it_is_drawn_without_a_ground_and_is_kept_to_be_looked_at(name, small):
    image = pytest.importorskip("PIL.Image", reason="figures are drawn by matplotlib, which brings Pillow")
    png = render_profiles(pages()[name], "price")
    png = shrink(png) if small else png
    picture = image.open(io.BytesIO(png)).convert("RGBA")
    assert picture.width == (1100 if small else 1600)
    assert picture.getpixel((0, 0))[3] == 0
    assert not small or len(png) < 120_000
    OUTPUT.mkdir(exist_ok=True)
    page = image.new("RGBA", picture.size, (255, 255, 255, 255))
    page.alpha_composite(picture)
    page.convert("RGB").save(OUTPUT / f"profile-{name.replace(' ', '-')}{'-small' if small else ''}.png")


def drawn(name):
    from matplotlib.figure import Figure

    axes = Figure().add_subplot()
    draw_column(axes, Frame(0, 0, 1, 1), {label: column(profile, name) for label, profile in pages()["shapes"].items()})
    return [text.get_text() for text in axes.texts]


def column(profile, name):
    return next(each for each in profile.columns if each.name == name)


@pytest.mark.parametrize(
    ("name", "texts"),
    [
        ("constant", ["always 5.3"]),
        ("whole and constant", ["always 2019"]),
        ("hour", ["0", "23"]),
        ("flag", ["0", "1"]),
    ],
)
def test_below_a_histogram_stand_its_ends_and_a_constant_column_is_said_to_be_one(name, texts):
    assert drawn(name) == texts


@pytest.mark.parametrize("label", ["train", "test"])
@pytest.mark.parametrize("name", [name for name in SHAPES if "constant" not in name and name != "zero"])
def test_bars_are_shares_of_a_data_sets_rows_and_those_apart_hold_the_rest(name, label):
    found = [column(profile, name) for profile in pages()["shapes"].values()]
    begin, end = find_filled(found)
    (heights, edges), *apart = find_bars(column(pages()["shapes"][label], name), begin, end)
    assert sum(heights) + sum(height for (height,), _ in apart) == pytest.approx(1)
    assert len(heights) == len(edges) - 1 and len(apart) <= 2
    assert all(beyond[1] < edges[0] or beyond[0] > edges[-1] for _, beyond in apart)


def test_names_that_are_too_long_keep_their_beginning_and_their_end():
    assert shorten("origin_block_latitude_double", 16) == "origin_b…_double"
    assert shorten("fare", 4) == "fare"
    assert len(shorten("a" * 99, 3)) == 3
