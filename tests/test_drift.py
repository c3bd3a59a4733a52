"""Drift: two formulas against scipy, quiet where nothing has drifted, loud where something has, whatever the data."""

import io
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats  # type: ignore[import-untyped]

from tasks.errors import ConfigurationError
from tasks.learning import drift
from tasks.learning.drift import Limits, compare_profiles
from tasks.learning.driftpicture import render_drift
from tasks.learning.figures import shrink
from tasks.learning.profiled import take_profile
from tasks.learning.profiles import DataProfile
from tasks.parameters import Drifting

open_image = pytest.importorskip("PIL.Image", reason="figures are drawn by matplotlib, which brings Pillow").open

OUTPUT = Path(__file__).parent / "output"
LIMITS = Limits(psi=Drifting().drift_psi, ks=Drifting().drift_ks)
SHAPES = ("normal", "skewed", "hour", "rare flag", "to the cent", "heavy tails", "constant", "negative and huge")


def draw(rows, seed):
    """[rows, 8] numbers of the shapes that columns have."""
    random = np.random.default_rng(seed)
    return np.column_stack(
        [
            random.normal(38.9, 0.1, rows),
            random.lognormal(2, 1, rows),
            random.integers(0, 24, rows),
            random.random(rows) < 0.02,
            random.integers(0, 5000, rows) / 100,
            random.standard_t(2, rows),
            np.full(rows, 5.3),
            -1e100 * random.exponential(size=rows),
        ]
    )


def profile(rows, reference=None, columns=SHAPES):
    return take_profile(torch.from_numpy(rows).split(4096), columns, reference.edges if reference else None)


def compare(before, now, columns=SHAPES, **given):
    reference = profile(before, columns=columns)
    return compare_profiles(
        reference, profile(now, reference, columns), model="models:/m/3", **{"limits": LIMITS, **given}
    )


def of_column(found, name):
    return next(each for each in found.columns if each.name == name)


@pytest.mark.parametrize(("trained", "now"), [(1000, 1000), (1000, 50), (50, 1000)])
def test_data_that_does_not_drift_is_quiet_over_50_seeds(trained, now):
    found = [compare(draw(trained, seed), draw(now, 1000 + seed)) for seed in range(50)]
    assert [each.verdict for each in found if each.drifted] == []


def test_a_column_that_drifts_is_caught_over_50_seeds_and_named_alone():
    """One of the columns in turn, by half a deviation: a shift that is called large."""
    for seed in range(50):
        at = seed % len(SHAPES)
        before, now = draw(1000, seed), draw(1000, 1000 + seed)
        now[:, at] += 0.5 * before[:, at].std() or 0.2
        if SHAPES[at] == "rare flag":
            now[:, at] = np.arange(1000) < 150
        found = compare(before, now)
        assert found.drifted == (SHAPES[at],), (seed, found.verdict)


@pytest.mark.parametrize("share", [0.05, 0.2])
def test_a_value_that_stands_for_missing_is_caught(share):
    """It lies where the training data had no row: outside of all edges."""
    before, now = draw(5000, 1), draw(5000, 2)
    now[: int(share * 5000), 0] = -1
    assert compare(before, now).drifted == ("normal",)


def test_the_index_is_the_sum_of_both_relative_entropies():
    random = np.random.default_rng(3)
    counts = random.integers(50, 500, (12, 2))
    p, q = (counts + 0.5).T / (counts + 0.5).sum(axis=0)[:, None]
    expected = stats.entropy(p, q) + stats.entropy(q, p)
    assert drift.measure_psi(counts.tolist()) == pytest.approx(expected, rel=1e-12)
    plain = counts.T / counts.sum(axis=0)[:, None]
    assert drift.measure_psi(counts.tolist()) == pytest.approx(
        stats.entropy(*plain) + stats.entropy(*plain[::-1]), rel=0.02
    )


@pytest.mark.parametrize("moved", [0.0, 1.0, 5.0])
def test_the_distance_of_values_with_a_bin_each_is_scipys(moved):
    before, now = draw(3000, 5)[:, 2], draw(2000, 6)[:, 2] + moved
    found = compare(before[:, None], now[:, None], ["hour"]).columns[0]
    in_bins = np.clip(now, -1, 24)  # what is beyond the edges is in one bin
    assert found.ks == pytest.approx(stats.ks_2samp(before, in_bins).statistic, abs=1e-15)


@pytest.mark.parametrize("at", [0, 1, 5])
def test_the_distance_of_a_histogram_is_scipys_but_for_what_is_within_a_bin(at):
    before, now = draw(20_000, 7)[:, [at]], draw(20_000, 8)[:, [at]] * 1.01 + 0.02
    reference = profile(before, columns=["a"])
    after = profile(now, reference, ["a"])
    found = compare_profiles(reference, after, model="m", limits=LIMITS).columns[0].ks
    exact = stats.ks_2samp(before[:, 0], now[:, 0]).statistic
    largest = max(max(each.columns[0].counts) for each in (reference, after)) / 20_000
    assert exact - largest <= found <= exact + 1e-12


def test_a_normal_column_that_moves_has_the_distances_that_the_limits_are_chosen_by():
    normal = np.random.default_rng(9).normal(size=(400_000, 1))
    for moved in (math.sqrt(0.1), 0.5):
        found = compare(normal, normal + moved, ["a"]).columns[0]
        assert found.psi == pytest.approx(moved**2, rel=0.03)
        assert found.ks == pytest.approx(2 * stats.norm.cdf(moved / 2) - 1, rel=0.03)
    assert pytest.approx(2 * stats.norm.cdf(math.sqrt(0.1) / 2) - 1, abs=0.001) == LIMITS.ks


@pytest.mark.parametrize("bins", [2, 3, 10, 40, 66])
@pytest.mark.parametrize("alpha", [0.05, 0.001, 0.0001])
def test_critical_values_are_scipys(bins, alpha):
    expected = (1 / 500 + 1 / 2000) * stats.chi2.isf(alpha, bins - 1)
    assert drift.critical_psi(500, 2000, bins, alpha) == pytest.approx(expected, rel=0.08 if bins < 4 else 0.02)
    scale = math.sqrt(1 / 500 + 1 / 2000)
    assert drift.critical_ks(500, 2000, alpha) == pytest.approx(scale * stats.kstwobign.isf(alpha), rel=1e-4)


def test_what_chance_moves_is_the_share_of_false_alarms_that_is_asked_for():
    """Half as many again at most: rows in a bin are few, and the index has a logarithm."""
    beyond = 0
    for seed in range(600):
        pairs = np.random.default_rng(seed).multinomial(1000, np.full(20, 0.05), 2).T.tolist()
        beyond += drift.measure_psi(pairs) > drift.critical_psi(1000, 1000, 20, 0.05)
    assert 0.02 < beyond / 600 < 0.075


@pytest.mark.parametrize(
    ("before", "now", "drifted"),
    [
        (5.3, 5.3, False),
        (5.3, 5.31, True),  # in the same bin
        (0.0, 1e-9, True),
        (2019.0, 2020.0, True),
        (-1e308, 1e308, True),
    ],
)
def test_a_constant_that_is_another_one_has_drifted(before, now, drifted):
    found = compare(np.full((100, 1), before), np.full((100, 1), now), ["a"])
    assert bool(found.drifted) == drifted
    assert found.columns[0].ks == float(drifted)
    assert (found.columns[0].psi > 1) == drifted


@pytest.mark.parametrize(("trained", "now"), [(1, 1), (1, 1000), (1000, 1), (3, 3)])
def test_of_a_few_rows_nothing_is_said(trained, now):
    found = compare(draw(trained, 1), draw(now, 2) + 1e6)
    assert found.drifted == ()
    assert found.verdict == (
        f"{now:,} and {trained:,} rows are too few to tell drift from what models:/m/3 was trained on."
    )


def test_ten_rows_that_are_all_elsewhere_are_enough():
    assert len(compare(draw(1000, 1), draw(10, 2) - 1e6).drifted) == len(SHAPES) - 1  # not those that are huge


def test_the_verdict_names_the_columns_that_moved_most_the_first_ones_first():
    before, now = draw(4000, 1), draw(4000, 2)
    assert compare(before, now).verdict.startswith(
        "None of 8 columns has drifted from what models:/m/3 was trained on: "
    )
    now[:, 0] += 1
    assert compare(before, now).verdict.startswith(
        "1 of 8 columns has drifted from what models:/m/3 was trained on: normal (PSI "
    )
    now[:, [1, 2, 4]] *= 5
    found = compare(before, now)
    assert found.verdict.startswith("4 of 8 columns have drifted from ") and found.verdict.endswith(" and 1 more.")
    distances = [each.psi for each in found.columns[:4]]
    assert distances == sorted(distances, reverse=True)


def test_columns_that_are_gone_and_new_are_named_and_only_the_first_are_drift():
    before, now = draw(500, 1), draw(500, 2)
    reference = profile(before)
    after = profile(now[:, 2:], reference, SHAPES[2:])
    given = {"gone": ["normal", "skewed"], "new": ["tip, in $"]}
    found = compare_profiles(reference, after, model="m", limits=LIMITS, **given)
    assert found.drifted == ("normal", "skewed")
    assert found.verdict.endswith('; gone: normal, skewed; new: "tip, in $".')
    assert compare(before, now, new=["tip"]).drifted == ()


def test_data_of_other_columns_altogether_is_said():
    before, now = profile(draw(50, 1), columns=SHAPES), profile(draw(50, 2)[:, :1], columns=["other"])
    found = compare_profiles(before, now, model="m", limits=LIMITS, gone=["normal"], new=["other"])
    assert found.verdict == "None of these columns is among what m was trained on; gone: normal; new: other."


def test_limits_are_the_callers():
    before, now = draw(20_000, 1), draw(20_000, 2)
    now[:, 0] += 0.2 * 0.1
    assert compare(before, now).drifted == ()
    assert compare(before, now, limits=Limits(psi=0.02, ks=1.0)).drifted == ("normal",)
    assert compare(before, now, limits=Limits(psi=9.0, ks=0.05)).drifted == ("normal",)


def test_histograms_with_some_edges_in_common_are_compared_between_those():
    rows = draw(3000, 1)[:, [2]]
    all_edges = profile(rows, columns=["hour"])
    column = replace(all_edges.columns[0], edges=all_edges.columns[0].edges[::3], counts=())
    coarse = profile(rows, DataProfile(rows=1, columns=(column,)), ["hour"])
    found = compare_profiles(all_edges, coarse, model="m", limits=LIMITS).columns[0]
    assert (found.psi, found.ks) == (0, 0)
    apart = replace(coarse.columns[0], edges=(0.1, 0.2), counts=(1, 2, 2997))
    with pytest.raises(ConfigurationError, match="'hour' have no edge in common"):
        compare_profiles(all_edges, DataProfile(rows=3000, columns=(apart,)), model="m", limits=LIMITS)


def test_what_is_found_is_plain_json():
    found = compare(draw(100, 1), draw(1, 2))
    plain = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert plain["verdict"] == found.verdict
    assert [each["name"] for each in plain["columns"]] == [each.name for each in found.columns]


@pytest.mark.parametrize(("columns", "small"), [(1, False), (8, False), (8, True)])
def test_the_columns_that_moved_most_are_drawn(columns, small):
    names = [f"{name} $m^2$" for name in SHAPES[:columns]]
    before, now = draw(5000, 1)[:, :columns], draw(3000, 2)[:, :columns]
    now[:, 0] += 0.1
    reference = profile(before, columns=names)
    after = profile(now, reference, names)
    png = render_drift(compare_profiles(reference, after, model="m", limits=LIMITS), reference, after)
    png = shrink(png) if small else png
    OUTPUT.mkdir(exist_ok=True)
    (OUTPUT / f"drift-{columns}{'-small' * small}.png").write_bytes(png)
    image = open_image(io.BytesIO(png))
    assert image.width == (1100 if small else 1600)
    assert len(png) < (60_000 if small else 300_000)
