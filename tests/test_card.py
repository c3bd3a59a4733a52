"""A model's card: facts of a model alone, in Markdown that shows every name letter by letter."""

import html
import math
import re
from dataclasses import replace

import pytest
from markdown_it import MarkdownIt

from tasks.facts import Evaluation, Fit, FitTimes, Promotion, TrainingData, TrainingJob
from tasks.learning.features import DERIVATIONS, ORIGIN_AND_DESTINATION, Features
from tasks.learning.profiles import ColumnProfile, DataProfile
from tasks.learning.scores import Density, Score, Slice
from tasks.parameters import TrainingParameters
from tasks.sources import Sources
from tasks.streaming import Manifest, Shard
from tasks.wording.card import Origin, choose_settings, find_faults, write_card

ORIGIN = Origin(
    tracking_uri="http://mlflow:5000", versions={"torch": "2.13.0"}, revision=None, at="2026-11-29T01:00:00+00:00"
)
NOTHING = "Nothing of what is looked for was found."


def score(rmse, r2=0.5, rows=1000):
    return Score(rows=rows, mse=rmse**2, rmse=rmse, mae=rmse, r2=r2)


def make_job(columns=("y", "area", "rooms"), derive=(), **given):
    manifest = Manifest((Shard("s3://b/part-0.csv", 1234, "e-1", 800),), columns)
    parameters = TrainingParameters(shards="https://user:secret@b/part*.csv?signature=s3cret", **given)
    return TrainingJob(
        parameters=parameters,
        sources=Sources(shards=str(parameters.shards), test_shards=None, region=None, anonymous=False),
        data=TrainingData(
            train=manifest, test=None, rows_of="held-out", judged_on="200 rows held out from training", statistics={}
        ),
        features=Features.choose(columns, derive=derive),
        run_id="0123456789abcdef" * 2,
    )


def make_fit(weights=(1.5, -2.0), **other):
    times = FitTimes(seconds=1.0, wait_seconds=0.0, copy_seconds=0.0, compute_seconds=1.0, stream=None, stages={})
    fit = Fit(
        weights=weights, bias=0.25, learning_rate=0.1, condition=None, device="cpu", curve=(9.0, 4.0), rows=1600,
        times=times, bad_rows=0, bad_rows_file=None, moments=None,
    )  # fmt: skip
    return replace(fit, **other)


def make_evaluation(**other):
    evaluation = Evaluation(
        rows_of="held-out",
        scores={"trained": score(2.0), "exact": score(2.0), "mean": score(5.0, 0.0)},
        slices=(),
        density=Density(edges=(0.0, 1.0), counts=((1,),), residual_edges=(0.0, 1.0), residual_counts=(1,)),
        standardised={"area": 0.75, "rooms": -0.5},
        verdict="This model explains 50.0% of the variance",
        promotion=Promotion(wins=True, against=None, verdict="The model becomes champion, for it beats the mean."),
        train_mse={"trained": 4.0, "exact": 4.0},
    )
    return replace(evaluation, **other)


def make_profile(*columns):
    made = [
        ColumnProfile(
            name=name, rows=800, mean=(least + most) / 2, deviation=1.0, least=least, most=most, edges=(0.0,),
            counts=(800, 0),
        )
        for name, least, most in columns
    ]  # fmt: skip
    return DataProfile(rows=800, columns=tuple(made))


def card_of(job=None, fit=None, evaluation=None):
    return write_card(job or make_job(), fit or make_fit(), evaluation or make_evaluation(), ORIGIN)


def section(card, title):
    return card.split(f"## {title}\n\n")[1].split("\n\n## ")[0]


def test_a_card_of_two_features_without_slices_says_what_where_how_good_and_how_bad():
    card = card_of()
    assert card.startswith("# shardline: `y` by a linear model\n\n**This model explains 50.0% of the variance**\n")
    assert "| `area` | the column | 1.5 | +0.750 |\n| `rooms` | the column | -2 | -0.500 |" in card
    assert "| (constant) |  | 0.25 |  |" in card
    assert "`https://***@b/part*.csv?signature=***`: 1 shard, 800 rows, 1,234 bytes" in section(card, "On which data")
    assert "| trained | 4 | 2 | 2 | 0.5000 |" in section(card, "How good it is")
    assert section(card, "How good it is").count("|---|") == 1
    assert section(card, "Where it is bad") == NOTHING
    assert "- **Code**: revision not known\n" in card


def test_a_card_shows_no_secret_of_an_address():
    assert "secret" not in card_of() and "s3cret" not in card_of()
    assert "https://***@b/part*.csv" in card_of()


def test_a_derived_feature_has_its_formula_and_the_columns_that_it_is_of():
    columns = ("y", *ORIGIN_AND_DESTINATION, "hour_integer")
    job = make_job(columns, derive=("distance_km", "hour_sine"))
    predicts = section(card_of(job, make_fit((1.0,) * 7)), "What it predicts")
    assert f"| `distance_km` | `{DERIVATIONS['distance_km'].formula}`, of `origin_block_latitude_double`, " in predicts
    assert "| `hour_sine` | `sin(2 * pi * hour_integer / 24)`, of `hour_integer` | 1 | – |" in predicts


def test_ranges_are_shown_where_the_data_was_profiled():
    profile = make_profile(("y", -3.0, 1e12), ("area", 0.5, 0.5), ("rooms", 1.0, 9.0))
    evaluation = make_evaluation(train_profile=profile)
    data = section(card_of(evaluation=evaluation), "On which data")
    assert "| `y` | 5e+11 | 1 | -3 | 1e+12 |" in data
    assert "These are of 800 rows." in data
    assert "training least" in data and "training least" not in card_of()
    faults = list(find_faults(make_job(), make_fit(), evaluation))
    assert faults == ["Constant in training, so that their weights mean nothing: `area`."]


def scores_of(trained, mean):
    return {"scores": {"trained": trained, "exact": score(1.0), "mean": mean}}


def slices_of(*rmses, by_target=False):
    return tuple(
        Slice(name=f"hour {at}", scores=dict.fromkeys(("trained", "exact"), score(rmse, None)) | {"mean": score(5.0)},
              by_target=by_target)
        for at, rmse in enumerate(rmses)
    )  # fmt: skip


@pytest.mark.parametrize(
    ("fit", "evaluation", "sentence"),
    [
        ({}, scores_of(score(6.0), score(5.0)), "It is no better than always guessing the mean: RMSE 6 against 5."),
        ({}, scores_of(score(4.0, -19.0), score(80.0)), "on another level than those it was trained on: its R²"),
        ({}, scores_of(score(4.0, None), score(5.0)), "The target is constant on the rows that it was judged on"),
        ({}, {"rows_of": "train"}, "It was judged on the rows that it was trained on"),
        ({"bad_rows": 1234}, {}, "Bad rows were left out of training (1,234): of rows"),
        (
            {"condition": 1e13},
            {"train_mse": {"trained": 8.0, "exact": 4.0}},
            "The features nearly depend on each other",
        ),
        ({}, {"train_mse": {"trained": 5.0, "exact": 4.0}}, "its MSE is 25.00% above that of the best linear model"),
        ({}, {"train_mse": {"trained": 1e-9, "exact": 0.0}}, "its MSE is above that of the best linear model"),
        ({}, {"slices": slices_of(6.0, 1.0)}, "guessing the mean would be no worse in 1 of 2 slices: hour 0."),
        ({}, {"slices": slices_of(3.0, 1.0, 2.0)}, "The errors are largest where hour 0 (RMSE 3 over 1,000 rows"),
    ],
)
def test_what_is_bad_about_a_model_stands_on_its_card(fit, evaluation, sentence):
    bad = section(card_of(fit=make_fit(**fit), evaluation=make_evaluation(**evaluation)), "Where it is bad")
    assert len([line for line in bad.splitlines() if sentence in line]) == 1


def test_slices_by_the_target_are_not_held_against_a_model_where_the_mean_is_near():
    evaluation = make_evaluation(slices=slices_of(6.0, 1.0, by_target=True))
    assert list(find_faults(make_job(), make_fit(), evaluation)) == []


def test_slices_stand_in_a_table():
    good = section(card_of(evaluation=make_evaluation(slices=slices_of(3.0, 1.0))), "How good it is")
    assert "| slice | rows | RMSE trained | RMSE exact | RMSE mean |\n|---|---:" not in good  # cells are apart
    assert "| hour 0 | 1000 | 3 | 3 | 5 |" in good


NASTY = ["a|b", "*a*", "`a`", "<b>a</b>", "a,b", "größe (m²)"]


def test_names_full_of_marks_are_shown_letter_by_letter_in_cells_of_their_own():
    job = make_job(("y|*z*", *NASTY), experiment="trips|*all*")
    profile = make_profile(*((name, 1.0, 1.0) for name in NASTY))
    slices = tuple(replace(each, name=f"y|*z* < {each.name}") for each in slices_of(6.0, 7.0, 8.0))
    evaluation = make_evaluation(standardised={}, slices=slices, train_profile=profile)
    made = MarkdownIt("gfm-like", {"linkify": False}).render(card_of(job, make_fit((1.0,) * len(NASTY)), evaluation))
    rows = [re.findall(r"<td[^>]*>(.*?)</td>", row) for row in re.findall(r"<tr>(.*?)</tr>", made, re.S)]
    first = [html.unescape(re.sub("<[^>]*>", "", cells[0])) for cells in rows if cells]
    assert first[: len(NASTY)] == NASTY
    assert {len(cells) for cells in rows if cells} == {4, 5}
    assert "<em>" not in made and "<b>" not in made
    assert "trips|*all*: y|*z* by a linear model" in html.unescape(re.sub("<[^>]*>", "", made))


def test_settings_are_those_that_the_model_depends_on_with_the_presets_resolved():
    settings = choose_settings(TrainingParameters(shards="x*.csv", preset="notebook", l2=0.5, batch_size=64))
    assert settings["gradient_norm"] == "0.5" and settings["l2"] == "0.5" and settings["batch_size"] == "64"
    assert not {"shards", "target", "derive", "cache", "experiment", "optimizer_options"} & set(settings)
    exact = choose_settings(TrainingParameters(shards="x*.csv", solver="exact"))
    assert {"solver", "l2", "standardise", "dtype"} <= set(exact)
    assert not {"iterations", "optimizer", "seed"} & set(exact)


def test_a_figure_that_is_none_or_large_breaks_no_table():
    evaluation = make_evaluation(**scores_of(score(1e150, None), score(math.pi * 1e150, None)))
    assert "| trained | 1e+300 | 1e+150 | 1e+150 | – |" in card_of(evaluation=evaluation)
