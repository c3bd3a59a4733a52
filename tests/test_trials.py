"""Many models trained at once from their batches' matrices: each equals the run of its own, trial by trial."""

import itertools
import random
from dataclasses import replace

import numpy as np
import pytest
import torch

from deployments.generator import COLUMNS as TAXI
from tasks.learning.batches import Preparation, Prepared
from tasks.learning.features import DERIVATIONS, Features, distance_km
from tasks.learning.grams import GramStream, Units, find_period
from tasks.learning.linear import LinearModel
from tasks.learning.loop import Settings, Trainer, train
from tasks.learning.scaling import Scaling
from tasks.learning.trials import MOST_LOST, PRECONDITIONED, Trial, Trials
from tasks.parameters import CONSTANTS

ALL = Features.choose(TAXI, derive=list(DERIVATIONS))
ROWS, BATCH, ITERATIONS = 3000, 700, 25


@pytest.fixture(scope="module")
def trips():
    """3,000 taxi-like rows: raw years and longitudes, a fare that follows the distance."""
    draw = np.random.default_rng(7)
    places = [draw.uniform(low, high, ROWS) for low, high in [(38.82, 38.99), (-77.11, -76.92)] * 2]
    when = [draw.integers(low, high, ROWS) for low, high in [(2015, 2020), (1, 13), (1, 8), (0, 24)]]
    fare = 3.25 + 1.35 * distance_km(*map(torch.from_numpy, places)).numpy() + draw.normal(0, 2, ROWS)
    return torch.from_numpy(np.column_stack([fare, *places, *when]).astype(np.float64))


def endless(rows, first=0, multiple=1):
    size = BATCH * multiple
    for start in itertools.count(first * size, size):
        yield rows[torch.arange(start, start + size) % len(rows)]


def draw_trial(seed, rows, multiples=(1,)):
    """A trial whose every parameter is drawn at random; raw features diverge by large steps, so they get small ones."""
    draw = random.Random(seed)
    raw = draw.sample(TAXI[1:], draw.randint(1, 8))
    derive = draw.sample(list(DERIVATIONS), draw.randint(0, 3))
    features = Features.choose(TAXI, features=raw, derive=derive)
    standardise = draw.random() < 0.7
    optimizer = draw.choice(list(CONSTANTS))
    options = {
        name: draw.uniform(constant.searched.low, constant.searched.high)
        for name, constant in CONSTANTS[optimizer].items()
        if draw.random() < 0.5
    }
    preconditioned = optimizer == "SGD" and draw.random() < 0.4
    settings = Settings(
        iterations=draw.randint(3, ITERATIONS),
        learning_rate=None if preconditioned else 10 ** draw.uniform(-3, -1) * (1 if standardise else 1e-3),
        gradient_norm=draw.choice([0.0, 0.5, 5.0]) if standardise else 0.5,
        seed=draw.choice([None, seed]),
        optimizer=optimizer,
        options={} if preconditioned else options,
        schedule=draw.choice(["constant", "linear", "cosine"]),
        l2=draw.choice([0.0, 1e-3, 0.1]),
    )
    multiple = draw.choice(multiples)
    x = features.of(next(endless(rows, multiple=multiple)))
    return Trial(
        features=features,
        scaling=Scaling.of(x) if standardise else Scaling.none(len(features.names)),
        settings=settings,
        multiple=multiple,
    )


def alone(trial, rows):
    trainer = Trainer(trial.features, trial.scaling, trial.settings, torch.device("cpu"))
    preparation = Preparation(
        features=trial.features, scaling=trial.scaling, dtype=torch.float64, device=torch.device("cpu")
    )
    iterations = train(trainer, preparation.stream(endless(rows, multiple=trial.multiple)))
    return [each.mse for each in iterations], trainer.model()


def stream(rows, **options):
    units = Units.of(ALL, rows[:BATCH])
    return GramStream(units, lambda first: measured(units, rows, first), find_period(len(rows), BATCH), **options)


def measured(units, rows, first=0):
    for batch in endless(rows, first):
        yield units.measure(batch)


def together(trials, grams):
    """Each trial's curve and model, columns dropped as trials end."""
    running = Trials(trials, grams.units)
    curves: list[list[float]] = [[] for _ in trials]
    models: dict[int, LinearModel] = {}
    streams = {multiple: grams.by(multiple) for multiple in running.multiples}
    while running.alive:
        mse = running.step({multiple: next(streams[multiple]) for multiple in running.multiples})
        for number, value in zip(running.alive, mse.tolist(), strict=True):
            curves[number].append(value)
        ended = [k for k in running.alive if trials[k].settings.iterations == running.iteration]
        models |= {number: running.model(number) for number in ended}
        running.drop([number for number in running.alive if number not in ended])
    return curves, models, running


def test_each_trial_equals_a_run_of_its_own(trips):
    trials = [draw_trial(seed, trips, multiples=(1, 1, 2, 7)) for seed in range(30)]  # 7 batches are more than all rows
    curves, models, running = together(trials, stream(trips))
    for number, trial in enumerate(trials):
        expected, model = alone(trial, trips)
        assert curves[number] == pytest.approx(expected, rel=1e-12), (number, trial)
        predicted = models[number].predict(trips)
        assert torch.allclose(predicted, model.predict(trips), rtol=1e-9, atol=1e-9)
    assert {trial.rule for trial in trials} == {PRECONDITIONED, *CONSTANTS}
    assert {trial.multiple for trial in trials} == {1, 2, 7}
    assert running.lost.max() < MOST_LOST


def steps(trainer, x, y, count):
    return [trainer.step(Prepared(x, y)).item() for _ in range(count)]


@pytest.mark.parametrize("optimizer", list(CONSTANTS))
def test_it_does_after_many_iterations_near_the_least_loss_too(optimizer, trips):
    """But for RMSprop: its steps stay as large as ever, however small a gradient is, and so its rounding."""
    rows, features = trips[:BATCH], Features.choose(TAXI, derive=["distance_km"])
    settings = Settings(iterations=300, learning_rate=0.1, gradient_norm=0, seed=3, optimizer=optimizer)
    trial = Trial(features=features, scaling=Scaling.of(features.of(rows)), settings=settings)
    x, y = trial.scaling.apply(features.of(rows)), features.target_of(rows).clone()
    trainers = [Trainer(features, trial.scaling, settings, torch.device("cpu")) for _ in range(2)]
    curve = together([trial], stream(rows))[0][0]
    expected = steps(trainers[0], x, y, 300)
    if optimizer != "RMSprop":
        assert curve == pytest.approx(expected, rel=1e-12)
        return
    assert curve[:100] == pytest.approx(expected[:100], rel=1e-12)
    assert curve == pytest.approx(expected, rel=1e-2)
    other_order = steps(trainers[1], x.flip(0).contiguous(), y.flip(0).contiguous(), 300)
    assert other_order != pytest.approx(expected, rel=1e-12)  # the same rows: it does not repeat itself closer


@pytest.mark.parametrize("most_bytes", [2**30, 5 * 8 * 13**2, 0])
def test_a_batch_is_streamed_once_where_its_matrix_can_be_kept(most_bytes, trips):
    opened, period, units = [], find_period(ROWS, BATCH), Units.of(ALL, trips[:BATCH])

    def open_stream(first):
        for number, gram in enumerate(measured(units, trips, first), first):
            opened.append(number)
            yield gram

    grams = GramStream(units, open_stream, period, most_bytes=most_bytes)
    first, again = (list(itertools.islice(grams, 2 * period)) for _ in range(2))
    assert all(torch.equal(a.products, b.products) for a, b in zip(first, again, strict=True))
    kept = grams.streamed
    assert kept == min(period, most_bytes // (8 * 13**2))
    assert opened == list(range(kept if kept == period else 2 * period)) + (
        [] if kept == period else list(range(kept, 2 * period))
    )


@pytest.mark.parametrize("most_bytes", [2**30, 5 * 8 * 13**2, 0])
def test_batches_of_every_size_are_made_of_the_same_ones(most_bytes, trips):
    opened, units = [], Units.of(ALL, trips[:BATCH])

    def open_stream(first):
        opened.append(first)
        yield from measured(units, trips, first)

    grams = GramStream(units, open_stream, find_period(ROWS, BATCH), most_bytes=most_bytes)
    together = zip(grams.by(7), grams.by(2), grams, strict=True)
    for at, (seven, two, one) in enumerate(itertools.islice(together, 6)):
        for multiple, gram in ((7, seven), (2, two), (1, one)):
            expected = units.measure(next(endless(trips, at, multiple)))
            assert gram.rows == expected.rows == multiple * BATCH
            assert torch.allclose(gram.products, expected.products, rtol=1e-12, atol=1e-9)
    assert opened == {2**30: [0], 5 * 8 * 13**2: [0, 5, 5], 0: [0, 0, 0]}[most_bytes]


def test_a_stream_that_never_repeats_goes_on_where_its_matrices_end_until_it_is_closed(trips):
    opened, closed, units = [], [], Units.of(ALL, trips[:BATCH])

    def open_stream(first):
        opened.append(first)
        try:
            yield from measured(units, trips, first)
        finally:
            closed.append(first)

    grams = GramStream(units, open_stream, None)
    for length in (4, 9):
        assert len(list(itertools.islice(grams, length))) == length
    assert (opened, closed) == ([0], [])
    grams.close()
    assert closed == [0]


def test_matrices_of_batches_add_up_to_the_matrix_of_all(trips):
    units = Units.of(ALL, trips[:BATCH])
    parts = [units.measure(part) for part in trips.split(1000)]
    whole = units.measure(trips)
    added = parts[0].add(parts[1]).add(parts[2])
    assert added.rows == whole.rows == ROWS
    assert torch.allclose(added.products, whole.products, rtol=1e-12, atol=1e-9)


def test_a_loss_that_is_left_over_from_far_larger_terms_is_told_apart(trips):
    rows = trips.clone()
    rows[:, 0] = 3 * rows[:, 7] + 1  # a target without noise: what is left of its squares is rounding
    features = Features.choose(TAXI)
    settings = Settings(iterations=30, learning_rate=None, gradient_norm=0, seed=None)
    trial = Trial(features=features, scaling=Scaling.of(features.of(rows[:BATCH])), settings=settings)
    running = Trials([trial], Units.of(features, rows[:BATCH]))
    for gram in itertools.islice(measured(running.units, rows), 30):
        running.step({1: gram})
    assert running.lost[0] > MOST_LOST


def test_a_trial_that_diverges_leaves_the_others_as_they_are(trips):
    good, bad = (draw_trial(seed, trips) for seed in (1, 2))
    bad = replace(bad, settings=replace(good.settings, optimizer="SGD", options={}, learning_rate=1e9, gradient_norm=0))
    running, only = Trials([good, bad], stream(trips).units), Trials([good], stream(trips).units)
    for gram in itertools.islice(stream(trips), 3):
        assert running.step({1: gram})[0].item() == pytest.approx(only.step({1: gram})[0].item(), rel=1e-14)
    assert running.measure(gram)[1] > 1e12
