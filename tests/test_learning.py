"""The learning library: features, scaling, the loop, residency, evaluation; each against an independent computation."""

import itertools
import math
import time
from dataclasses import replace

import numpy as np
import pytest
import torch

from deployments.generator import COLUMNS as TAXI
from tasks.errors import ConfigurationError, NonFiniteLossError, TrainingError
from tasks.learning.batches import Preparation, Prepared
from tasks.learning.conditioning import Preconditioner
from tasks.learning.features import Features, distance_km
from tasks.learning.linear import LinearModel, initial_weights
from tasks.learning.loop import Settings, Trainer, train
from tasks.learning.residency import stay_resident
from tasks.learning.scaling import Scaling
from tasks.learning.scoring import Moments, score

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def trips():
    """1,003 taxi-like rows, [1003, 9] float64: raw years and longitudes, a fare that follows the distance."""
    draw = np.random.default_rng(7)
    size = 1003
    places = [draw.uniform(low, high, size) for low, high in [(38.82, 38.99), (-77.11, -76.92)] * 2]
    when = [draw.integers(low, high, size) for low, high in [(2015, 2020), (1, 13), (1, 8), (0, 24)]]
    fare = 3.25 + 1.35 * distance_km(*map(torch.from_numpy, places)).numpy() + draw.normal(0, 2, size)
    return torch.from_numpy(np.column_stack([fare, *places, *when]).astype(np.float64))


def endless(rows, size):
    for first in itertools.count(step=size):
        yield rows[torch.arange(first, first + size) % len(rows)]


def trained(rows, size, features, settings, *, standardise=True, resident_bytes=0, device="cpu"):
    scaling = Scaling.of(features.of(rows[:size])) if standardise else Scaling.none(len(features.names))
    trainer = Trainer(features, scaling, settings, torch.device(device))
    preparation = Preparation(features=features, scaling=scaling, dtype=settings.dtype, device=trainer.device)
    batches = stay_resident(preparation.stream(endless(rows, size)), len(rows), resident_bytes)
    return trainer, [iteration.mse for iteration in train(trainer, batches)]


DEFAULT = Settings(iterations=50, learning_rate=None, gradient_norm=0, seed=None)


def table_of(name: str) -> tuple[torch.Tensor, Features]:
    """A data set that scikit-learn ships, as [target, features], and its columns."""
    datasets = pytest.importorskip("sklearn.datasets")
    x, y = getattr(datasets, f"load_{name}")(return_X_y=True)
    rows = torch.from_numpy(np.column_stack([y, x]))
    return rows, Features.choose([f"c{index}" for index in range(rows.shape[1])])


def test_distance_is_the_great_circles():
    # Union Station to Dulles airport, by the spherical law of cosines
    place = [math.radians(degrees) for degrees in (38.8977, -77.0064, 38.9531, -77.4565)]
    cosine = math.sin(place[0]) * math.sin(place[2]) + math.cos(place[0]) * math.cos(place[2]) * math.cos(
        place[3] - place[1]
    )
    found = distance_km(*(torch.tensor([math.degrees(angle)], dtype=torch.float64) for angle in place))
    assert found.item() == pytest.approx(6371.0088 * math.acos(cosine), rel=1e-9)
    assert distance_km(*torch.zeros(4, 1, dtype=torch.float64)).item() == 0


def test_the_target_is_the_first_column_and_the_features_all_others_unless_named():
    assert Features.choose(["y", "a", "b"]).names == ("a", "b")
    chosen = Features.choose(["a", "y", "b"], target="y", features=["b", "a"])
    batch = torch.tensor([[1.0, 2.0, 3.0]])
    assert (chosen.target_of(batch).tolist(), chosen.of(batch).tolist()) == ([[2.0]], [[3.0, 1.0]])


@pytest.mark.parametrize("names", [["a"], ["c", "a", "b"], ["a", "b", "d"], ["d", "b", "c"], ["b", "c"]])
def test_features_are_the_columns_of_their_names_in_their_order(names):
    columns = ["a", "y", "b", "c", "d"]
    batch = torch.arange(20.0).view(4, 5)
    found = Features.choose(columns, target="y", features=names).of(batch)
    assert torch.equal(found, batch[:, [columns.index(name) for name in names]])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"target": "z"}, "no column 'z' in the shards: they have y, a"),
        ({"features": ["z"]}, "no column 'z' in the shards: they have y, a"),
        ({"derive": ["speed"]}, "derive names 'speed': it can be distance_km, hour_sine, hour_cosine"),
        (
            {"derive": ["hour_sine"]},
            "derive names 'hour_sine', which is made of hour_integer: the shards have no hour_integer",
        ),
    ],
)
def test_a_column_or_derivation_that_is_not_there_is_named(words, message):
    with pytest.raises(ConfigurationError) as raised:
        Features.choose(["y", "a"], **words)
    assert str(raised.value) == message


def test_a_presets_derivation_is_left_out_where_its_columns_are_not_there():
    assert Features.choose(["y", "a"], derive=["distance_km"], skip_missing=True).names == ("a",)
    assert Features.choose(TAXI, derive=["distance_km"], skip_missing=True).names[-1] == "distance_km"


def test_constant_columns_get_scale_1():
    x = torch.tensor([[1.0, 2017.1, 0.0]] * 7, dtype=torch.float64)
    assert Scaling.of(x).scale.tolist() == [1, 1, 1]


def test_folded_weights_predict_raw_rows_as_the_trained_ones_predict_standardised_rows(trips):
    features = Features.choose(TAXI, derive=["distance_km"])
    x = features.of(trips)
    scaling = Scaling.of(x)
    w, b = initial_weights(9, seed=3)
    raw_w, raw_b = scaling.fold(w, b)
    assert torch.allclose(x @ raw_w + raw_b, scaling.apply(x) @ w + b, rtol=1e-9, atol=1e-9)


def test_known_statistics_replace_those_of_the_first_batch():
    scaling = Scaling.of(torch.rand(5, 2, dtype=torch.float64), known={1: (10.0, 4.0)})
    assert (scaling.mean[1].item(), scaling.scale[1].item()) == (10.0, 4.0)


@pytest.mark.parametrize("name", ["diabetes", "wine", "breast_cancer"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_default_preset_comes_within_a_hundredth_of_the_exact_model_on_data_of_others(name, dtype, device):
    rows, features = table_of(name)
    trainer, _ = trained(rows, len(rows), features, replace(DEFAULT, dtype=dtype), device=device)
    moments = Moments(features)
    moments.add(rows)
    assert moments.mse(trainer.model()) <= 1.01 * moments.mse(moments.exact())


def test_no_preconditioned_step_raises_the_loss_of_its_batch(device):
    rows, features = table_of("wine")  # sorted by its target: each batch looks unlike the first
    scaling = Scaling.of(features.of(rows[:32]))
    trainer = Trainer(features, scaling, DEFAULT, torch.device(device))
    for start in range(0, 160, 32):
        part = rows[start : start + 32]
        batch = Prepared(scaling.apply(features.of(part)).to(device), features.target_of(part).to(device))
        before = trainer.step(batch)
        after = torch.nn.functional.mse_loss(batch.x @ trainer.w + trainer.b, batch.y)
        assert after <= before


def test_a_column_that_is_constant_at_first_does_no_harm_when_it_varies(device):
    random = np.random.default_rng(0)
    rows = torch.from_numpy(random.normal(size=(6000, 4)))
    rows[:, 3] = torch.arange(6000) // 1000 + 2015.0  # a batch a year
    rows[:, 0] = rows[:, 1:3].sum(dim=1) + 3 * (rows[:, 3] - 2015) + 0.1 * rows[:, 0]
    features = Features.choose(["y", "a", "b", "year"])
    trainer, _ = trained(rows, 1000, features, DEFAULT, device=device)
    moments = Moments(features)
    moments.add(rows)
    assert moments.mse(trainer.model()) < 0.01 * float(moments.covariance[-1, -1])


def test_the_condition_number_is_that_of_the_loss():
    x = torch.from_numpy(np.random.default_rng(0).normal(size=(500, 4))) * torch.tensor([1, 10, 100, 0])
    design = torch.cat([x, torch.ones(500, 1, dtype=torch.float64)], 1)[:, [0, 1, 2, 4]]
    assert Preconditioner.of(x).condition == pytest.approx(float(torch.linalg.cond(design.T @ design)), rel=1e-6)


def test_the_same_seed_gives_the_same_curve_to_the_last_bit(trips, device):
    features = Features.choose(TAXI)
    first, second = (trained(trips, 100, features, DEFAULT, device=device)[1] for _ in range(2))
    assert first == second


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_default_settings_come_within_one_percent_of_the_exact_model(trips, dtype, device):
    features = Features.choose(TAXI, derive=["distance_km"])
    settings = Settings(iterations=50, learning_rate=None, gradient_norm=0, seed=0, dtype=dtype)
    trainer, _ = trained(trips, len(trips), features, settings, device=device)
    moments = Moments(features)
    moments.add(trips)
    assert moments.mse(trainer.model()) < 1.01 * moments.mse(moments.exact())


@pytest.mark.parametrize("size", [1, 64, 100, 1003, 1500])
def test_resident_batches_give_the_streamed_curve_to_the_last_bit(trips, size, device):
    features = Features.choose(TAXI, derive=["distance_km"])
    streamed, kept = (trained(trips, size, features, DEFAULT, resident_bytes=b, device=device)[1] for b in (0, 2**30))
    assert streamed == kept


def test_resident_data_takes_the_stream_once_only(trips):
    taken = []

    def counted():
        for batch in endless(trips, 100):
            taken.append(len(batch))
            yield batch

    preparation = Preparation(features=Features.choose(TAXI), scaling=Scaling.none(8), dtype=torch.float64, device=CPU)
    batches = stay_resident(preparation.stream(counted()), len(trips), 2**30)
    assert len(list(itertools.islice(batches, 50))) == 50
    assert len(taken) == 11


@pytest.mark.parametrize("size", [1, 100, 300, 1003, 1500])
@pytest.mark.parametrize("world_size", [2, 3, 8])
def test_what_a_rank_keeps_equals_its_stream_to_the_last_bit(trips, size, world_size):
    rows, features = trips[:1000], Features.choose(TAXI)
    preparation = Preparation(features=features, scaling=Scaling.of(features.of(rows)), dtype=torch.float64, device=CPU)
    for rank in range(world_size):
        first, last = rank * size // world_size, (rank + 1) * size // world_size
        parts = [
            preparation.stream(batch[first:last] for batch in endless(rows, size)),
            stay_resident(
                preparation.stream(batch[first:last] for batch in endless(rows, size)), 1000, 2**30, batch_rows=size
            ),
        ]
        for streamed, kept in itertools.islice(zip(*parts, strict=True), 30):
            assert torch.equal(streamed.x, kept.x)
            assert torch.equal(streamed.y, kept.y)


def test_a_rank_keeps_only_the_rows_that_it_sees(trips):
    preparation = Preparation(features=Features.choose(TAXI), scaling=Scaling.none(8), dtype=torch.float64, device=CPU)
    needed = 250 * 9 * 8  # a fourth of each batch of 500, of 1,000 rows
    for allowed, is_kept in ((needed, True), (needed - 1, False)):
        parts = preparation.stream(batch[125:250] for batch in endless(trips[:1000], 500))
        batches = stay_resident(parts, 1000, allowed, batch_rows=500)
        assert [batch.next_is_ready for batch in itertools.islice(batches, 4)] == [False, *[is_kept] * 3]


def test_data_that_does_not_fit_is_streamed(trips):
    preparation = Preparation(features=Features.choose(TAXI), scaling=Scaling.none(8), dtype=torch.float64, device=CPU)
    needed = len(trips) * 9 * 8
    for allowed, waits in ((needed, False), (needed - 1, True)):
        batches = stay_resident(preparation.stream(endless(trips, 1003)), len(trips), allowed)
        _, second = next(batches), next(batches)
        assert (second.wait_seconds > 0) == waits


def test_data_that_nobody_has_the_memory_for_is_streamed_with_a_warning(trips, device, caplog):
    preparation = Preparation(
        features=Features.choose(TAXI), scaling=Scaling.none(8), dtype=torch.float64, device=torch.device(device)
    )
    batches = stay_resident(preparation.stream(endless(trips, 100)), 2**50, 2**80)
    for rows, batch in zip(endless(trips[:300], 100), itertools.islice(batches, 3), strict=False):
        batch.await_copy()
        assert torch.equal(batch.x.cpu(), rows[:, 1:])
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert (
        f"The data, 7.55e+07 GiB, do not stay on {'cuda:0' if device == 'cuda' else device} as they were to: "
        in caplog.text
    )


def test_waiting_copying_and_computing_add_up_to_the_time_that_passed(trips):
    def slow():
        for batch in endless(trips, 100):
            time.sleep(0.01)
            yield batch

    features = Features.choose(TAXI)
    preparation = Preparation(features=features, scaling=Scaling.none(8), dtype=torch.float64, device=CPU)
    trainer = Trainer(features, Scaling.none(8), DEFAULT, CPU)
    began = time.perf_counter()
    iterations = list(train(trainer, stay_resident(preparation.stream(slow(), waited=5), len(trips), 2**30)))
    passed = time.perf_counter() - began + 5
    times = [(each.wait_seconds, each.copy_seconds, each.compute_seconds) for each in iterations]
    assert sum(map(sum, times)) == pytest.approx(passed, abs=0.01)
    assert min(map(min, times)) >= 0
    assert sum(wait for wait, _, _ in times) > 5.1


def test_an_iteration_is_told_before_the_next_batch_is_waited_for(trips, device):
    features, asked = Features.choose(TAXI), []

    def counted():
        for number, batch in enumerate(endless(trips, 100)):
            asked.append(number)
            yield batch

    trainer = Trainer(features, Scaling.none(8), DEFAULT, torch.device(device))
    preparation = Preparation(features=features, scaling=Scaling.none(8), dtype=torch.float64, device=trainer.device)
    for iteration in train(trainer, preparation.stream(counted())):
        assert asked[-1] == iteration.iteration


def test_a_stream_that_ends_early_is_an_error(trips):
    features = Features.choose(TAXI)
    preparation = Preparation(features=features, scaling=Scaling.none(8), dtype=torch.float64, device=CPU)
    trainer = Trainer(features, Scaling.none(8), DEFAULT, CPU)
    with pytest.raises(TrainingError, match="the stream ended before iteration 2 of 50"):
        list(train(trainer, preparation.stream(iter([trips, trips]))))


def test_a_loss_that_is_not_finite_stops_with_its_place_and_what_to_try(trips, device):
    settings = Settings(iterations=50, learning_rate=1e6, gradient_norm=0, seed=0)
    with pytest.raises(
        NonFiniteLossError, match=r"iteration \d+ \(rows \d+ to \d+ of .* is (inf|nan): .* learning_rate"
    ):
        trained(trips, 100, Features.choose(TAXI), settings, standardise=False, device=device)


def test_the_default_settings_come_within_one_percent_of_the_exact_model_on_298_rows(dctaxi):
    rows = [np.loadtxt(dctaxi / f"{name}.csv", delimiter=",", skiprows=1) for name in ("train", "valid", "test")]
    all_rows, features = torch.from_numpy(np.concatenate(rows)), Features.choose(TAXI, derive=["distance_km"])
    trainer, _ = trained(all_rows, len(all_rows), features, DEFAULT)
    moments = Moments(features)
    moments.add(all_rows)
    assert len(all_rows) == 298
    assert moments.mse(trainer.model()) < 1.01 * moments.mse(moments.exact())


def test_the_exact_model_is_numpys_to_nine_digits_on_raw_years_and_longitudes(trips):
    features = Features.choose(TAXI, derive=["distance_km"])
    moments = Moments(features)
    for batch in trips.split(97):
        moments.add(batch)
    design = torch.cat([features.of(trips), torch.ones(len(trips), 1, dtype=torch.float64)], 1).numpy()
    expected, *_ = np.linalg.lstsq(design, trips[:, :1].numpy(), rcond=None)
    assert np.allclose(moments.exact().w.numpy(), expected[:-1], rtol=1e-9, atol=0)
    assert moments.exact().b.item() == pytest.approx(expected[-1].item(), rel=1e-9)


def test_the_exact_model_leaves_out_constant_columns_and_shares_among_dependent_ones():
    draw = torch.from_numpy(np.random.default_rng(1).normal(size=(200, 1)))
    y = 3 * draw + 2
    rows = torch.cat([y, draw, draw, torch.full_like(draw, 2017.1)], dim=1)
    moments = Moments(Features.choose(["y", "a", "b", "c"]))
    moments.add(rows)
    assert torch.allclose(moments.exact().w.flatten(), torch.tensor([1.5, 1.5, 0], dtype=torch.float64))
    assert moments.mse(moments.exact()) == pytest.approx(0, abs=1e-12)


def test_scores_are_what_numpy_computes(trips):
    features = Features.choose(TAXI)
    w, b = initial_weights(8, seed=5)
    models = {"trained": LinearModel(features, w, b)}
    facts = score(trips.split(100), models).overall["trained"]
    y, predicted = trips[:, 0].numpy(), (trips[:, 1:] @ w + b).flatten().numpy()
    assert facts.rows == len(trips)
    assert facts.mse == pytest.approx(np.mean((predicted - y) ** 2), rel=1e-12)
    assert facts.mae == pytest.approx(np.mean(np.abs(predicted - y)), rel=1e-12)
    assert facts.r2 == pytest.approx(1 - np.mean((predicted - y) ** 2) / np.var(y), rel=1e-9)


def test_slices_partition_the_rows_by_hour_and_by_fare(trips):
    features = Features.choose(TAXI)
    moments = Moments(features)
    moments.add(trips)
    slices = [each.to_row() for each in score(trips.split(100), {"mean": moments.mean_model()}).slices]
    hours = {each["slice"]: each["mean_rows"] for each in slices if each["slice"].startswith("hour")}
    assert hours == {f"hour {h:02d}": int((trips[:, 8] == h).sum()) for h in range(24)}
    assert sum(each["mean_rows"] for each in slices) == 2 * len(trips)


def test_r2_of_a_constant_target_is_null(trips):
    rows = trips.clone()
    rows[:, 0] = 3.25
    features = Features.choose(TAXI)
    moments = Moments(features)
    moments.add(rows)
    assert score([rows], {"mean": moments.mean_model()}).overall["mean"].r2 is None


@pytest.mark.parametrize("column", [0, 2])
def test_values_whose_squares_overflow_are_told_by_their_column(trips, column):
    rows, features = trips.clone(), Features.choose(TAXI)
    rows[500, column] = -1e160
    with pytest.raises(ConfigurationError, match=rf"column '{TAXI[column]}' holds values up to 1e\+160, whose squares"):
        trained(rows, 1003, features, DEFAULT)
    moments = Moments(features)
    moments.add(rows[:400])
    moments.add(rows[400:])
    with pytest.raises(ConfigurationError, match=f"column '{TAXI[column]}' holds values whose squares"):
        moments.exact()


def test_a_later_batch_whose_squares_overflow_is_told_by_its_column(trips):
    rows, features = trips.clone(), Features.choose(TAXI)
    rows[500, 3] = 1e160
    with pytest.raises(NonFiniteLossError, match=f"iteration 5 .*column '{TAXI[3]}' reaches 1e"):
        trained(rows, 100, features, DEFAULT, standardise=False)
