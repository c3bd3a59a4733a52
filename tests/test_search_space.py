"""What a search may try, and what it refuses; which rows it compares trials on; what it says of what it found."""

import optuna
import pytest
from pydantic import ValidationError

from tasks.data import set_aside
from tasks.errors import ConfigurationError
from tasks.facts import Ridge, Searched, TrainingData
from tasks.learning.features import Features
from tasks.parameters import CONSTANTS, Searchable, SearchParameters, TrainingParameters
from tasks.reporting import write_find, write_ridge
from tasks.streaming.manifest import Manifest, Shard
from tasks.training.space import check_batch_sizes, choose_parameters

FEATURES = Features.choose(["y", "a", "b", "hour_integer"], derive=["hour_sine", "hour_cosine"])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"search": ["speed"]}, "search names 'speed': what can be tried is "),
        ({"search": ["l2", "l2=0.1..1"]}, "search names l2 twice"),
        ({"search": ["l2=much"]}, "search has 'l2=much': a range goes|write a range"),
        ({"search": ["l2=1..0.1"]}, "a range goes from a smaller to a larger number"),
        ({"search": ["l2=0..0.1"]}, "a range goes from a smaller to a larger number"),
        ({"search": ["derive=1..2"]}, "search has 'derive=1..2'"),
        ({"dtype": "float32"}, "dtype is float32"),
        ({"solver": "exact"}, "solver is exact"),
        ({"search": ["seed"]}, "search names seed"),
        ({"search": ["features"], "on_bad_rows": "quarantine"}, "search names features while bad rows are set aside"),
        ({"search": ["batch_size"]}, "search names batch_size, of which multiples are tried: give batch_size too"),
        ({"search": ["batch_size=200|300"], "batch_size": 200}, "a batch_size of 300, which is no multiple of batch_"),
        ({"search": ["batch_size=1.5|2"], "batch_size": 1}, "a batch_size of 1.5, which is no multiple"),
        ({"search": ["batch_size=0"], "batch_size": 1}, "a batch_size of 0, which is no multiple"),
        ({"search": ["batch_size=1..8"], "batch_size": 1}, "a batch_size of 1..8, which is no multiple"),
    ],
)
def test_what_cannot_be_searched_is_refused(given, message):
    with pytest.raises(ValidationError, match=message):
        SearchParameters(**given)


def test_ranges_and_choices_can_be_given():
    searched = SearchParameters(search=["learning_rate=0.01..0.1", "optimizer=SGD|Adam", "l2"]).searched()
    assert searched["learning_rate"] == Searchable(low=0.01, high=0.1, log=True)
    assert searched["optimizer"].choices == ("SGD", "Adam")
    assert searched["l2"] == TrainingParameters.searchable()["l2"]


@pytest.mark.parametrize(
    ("tried", "multiples"), [("l2", (1,)), ("batch_size", (1, 2, 4, 8)), ("batch_size=900|300|900", (1, 3))]
)
def test_batch_sizes_are_multiples_of_the_searchs_own(tried, multiples):
    given = SearchParameters(search=[tried], batch_size=300)
    assert given.multiples == multiples
    if tried != "l2":
        sizes = given.searched()["batch_size"].choices
        assert {given.multiple_of(size) for size in sizes if isinstance(size, int)} == set(multiples)


@pytest.mark.parametrize(("size", "shuffle"), [(2**17, True), (2**20, False)])
def test_batch_sizes_that_see_the_same_rows_are_taken(size, shuffle):
    check_batch_sizes(SearchParameters(search=[f"batch_size={size}"], batch_size=2**16, shuffle=shuffle))


def test_shuffled_batches_whose_order_follows_from_their_size_are_refused():
    with pytest.raises(ConfigurationError, match="batches of up to 262,144 rows are tried while rows are shuffled"):
        check_batch_sizes(SearchParameters(search=["batch_size=262144"], batch_size=2**16, shuffle=True))


def test_whatever_is_chosen_can_be_trained_and_all_of_it_is_chosen_sometimes():
    names = [name for name in TrainingParameters.searchable() if name != "seed"]
    given = SearchParameters(search=names, batch_size=100)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    optimizers, raw, sizes = set(), set(), set()
    for _ in range(60):
        chosen = choose_parameters(study.ask(), given, FEATURES)
        if not chosen["features"]:
            continue
        training = given.training(chosen)
        assert set(training.options) == set(CONSTANTS[training.optimizer])
        optimizers.add(training.optimizer)
        sizes.add(training.batch_size)
        raw.add(tuple(training.features or ()))
    assert optimizers == set(CONSTANTS)
    assert len(raw) == 7
    assert sizes == {100, 200, 400, 800}


def of_shards(*rows):
    shards = tuple(Shard(uri=f"s3://b/{at}.csv", size=1, etag="e", rows=count) for at, count in enumerate(rows))
    manifest = Manifest(shards=shards, columns=("y", "a"))
    return TrainingData(train=manifest, test=None, rows_of="train", judged_on="", statistics={})


@pytest.mark.parametrize(("asked", "left"), [(0, 3), (1, 3), (2, 2)])
def test_the_last_shards_are_set_aside(asked, left):
    data = set_aside(of_shards(10, 10, 10, 10), asked)
    assert data.validation is not None
    assert (len(data.train.shards), len(data.validation.shards)) == (left, 4 - left)
    assert data.train.shards + data.validation.shards == of_shards(10, 10, 10, 10).train.shards


@pytest.mark.parametrize(("rows", "asked"), [((10,), 0), ((10, 10), 2)])
def test_where_none_is_left_to_train_on_it_is_said(rows, asked):
    with pytest.raises(ConfigurationError, match=f"of {len(rows)} shards to train on"):
        set_aside(of_shards(*rows), asked)


def test_what_was_found_is_said_in_a_sentence():
    found = Searched(
        number=3, best={}, mse=4.0, counts={"complete": 2, "pruned": 5, "fail": 1},
        validation_rows=1000, streamed=9, seconds=1.0,
    )  # fmt: skip
    assert write_find(found) == (
        "Trial 3 of 8 (2 trained to their end, 5 dropped on the way, 1 failed) is the best: RMSE 2 on the 1,000 "
        "validation rows."
    )
    assert write_ridge(None) == []
    assert "best without a penalty" in write_ridge(Ridge(l2=0.0, mse=1.0, without=1.0, folds=4))[0]
    assert (
        "`python -m flows.training --solver exact --l2 0.1`"
        in write_ridge(Ridge(l2=0.1, mse=1.0, without=2.0, folds=4))[0]
    )
