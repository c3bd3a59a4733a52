"""Rows are arithmetic: for any counts, batch size, ranks, seed and iteration, the formula says what a batch holds."""

import itertools

import numpy as np
import pytest

from tasks.streaming.arithmetic import (
    Sequencing,
    Span,
    batch_spans,
    count_batches,
    shard_order,
    split_batch,
    window_permutation,
)
from tasks.streaming.planning import Request, plan_batches

hypothesis = pytest.importorskip("hypothesis")
given, settings, st = hypothesis.given, hypothesis.settings, hypothesis.strategies

shard_counts = st.lists(st.integers(1, 50), min_size=1, max_size=12)
sizes = st.integers(1, 200)
iterations = st.integers(0, 400)
worlds = st.integers(1, 9)
finite = st.one_of(st.none(), st.integers(1, 4))


def positions(rows, batch_size, iteration, **place):
    """Positions in the endless sequence that the spans of a batch cover."""
    spans = batch_spans(rows, batch_size, iteration, **place)
    return [span.epoch * rows + row for span in spans for row in range(span.start, span.stop)]


@given(st.integers(1, 300), sizes, iterations)
def test_a_batch_holds_its_rows_modulo_the_data(rows, batch_size, iteration):
    found = [position % rows for position in positions(rows, batch_size, iteration)]
    assert found == [position % rows for position in range(iteration * batch_size, (iteration + 1) * batch_size)]


@given(st.integers(1, 300), st.integers(1, 30), st.integers(0, 50), worlds)
def test_equal_ranks_follow_the_formula_of_kaen(rows, shard_size, iteration, world_size):
    for rank in range(world_size):
        first = (rank + iteration * world_size) * shard_size
        found = positions(rows, shard_size * world_size, iteration, rank=rank, world_size=world_size)
        assert found == list(range(first, first + shard_size))


@given(st.integers(1, 300), sizes, iterations, worlds, finite)
def test_ranks_together_hold_exactly_the_batch(rows, batch_size, iteration, world_size, epochs):
    together = [
        position
        for rank in range(world_size)
        for position in positions(rows, batch_size, iteration, rank=rank, world_size=world_size, epochs=epochs)
    ]
    assert together == positions(rows, batch_size, iteration, epochs=epochs)


@given(st.integers(1, 120), sizes, st.integers(1, 4))
def test_finite_epochs_hold_every_row_once_an_epoch(rows, batch_size, epochs):
    batches = [positions(rows, batch_size, i, epochs=epochs) for i in range(count_batches(rows, batch_size, epochs))]
    assert [position for batch in batches for position in batch] == list(range(rows * epochs))
    assert all(len(batch) == batch_size for batch in batches[:-1])
    assert not positions(rows, batch_size, len(batches), epochs=epochs)


@given(st.integers(0, 10_000), worlds)
def test_ranks_differ_by_one_row_at_most(length, world_size):
    parts = [split_batch(length, rank, world_size) for rank in range(world_size)]
    lengths = [last - first for first, last in parts]
    assert sum(lengths) == length and max(lengths) - min(lengths) <= 1


@given(st.integers(0, 10_000), worlds, st.integers(1, 700))
def test_ranks_take_whole_slices_in_their_order_and_differ_by_one_slice_at_most(length, world_size, slice_rows):
    parts = [split_batch(length, rank, world_size, slice_rows) for rank in range(world_size)]
    assert [parts[0][0], parts[-1][1]] == [0, length]
    assert all(before[1] == after[0] for before, after in itertools.pairwise(parts))
    assert all(first % slice_rows == 0 or first == length for first, _ in parts)
    slices = [-(-(last - first) // slice_rows) for first, last in parts]
    assert max(slices) - min(slices) <= 1


def read_epoch(sequencing, epoch):
    """Every row of an epoch, in order, as (shard, row) pairs."""
    span = batch_spans(sequencing.rows, sequencing.rows, epoch)[0]
    if sequencing.window is None:
        return [(piece.shard, row) for piece in sequencing.pieces(span) for row in range(piece.start, piece.stop)]
    rows = []
    for number, inside in sequencing.windows(span):
        window = sequencing.window_span(epoch, number)
        unshuffled = [
            (piece.shard, row) for piece in sequencing.pieces(window) for row in range(piece.start, piece.stop)
        ]
        order = window_permutation(window.rows, sequencing.seed, epoch, number)
        rows += [unshuffled[index] for index in order[inside.start : inside.stop]]
    return rows


@given(shard_counts, st.integers(0, 5))
def test_unshuffled_epochs_go_through_the_shards_in_order(counts, epoch):
    assert read_epoch(Sequencing(counts), epoch) == [(s, row) for s, count in enumerate(counts) for row in range(count)]


@settings(deadline=None)
@given(shard_counts, st.integers(0, 5), st.integers(1, 100), st.integers(0, 2**32))
def test_a_shuffled_epoch_is_a_permutation(counts, epoch, window, seed):
    rows = read_epoch(Sequencing(counts, window=window, seed=seed), epoch)
    assert sorted(rows) == [(s, row) for s, count in enumerate(counts) for row in range(count)]


def test_epochs_and_seeds_are_shuffled_differently():
    counts = [40] * 10
    orders = {
        tuple(read_epoch(Sequencing(counts, window=64, seed=seed), epoch)) for seed in range(3) for epoch in range(3)
    }
    assert len(orders) == 9


def test_the_permutation_never_changes():
    """Its figures are kept here, so that another NumPy, or another shardline, cannot change a resumed run unnoticed."""
    assert window_permutation(10, 0, 0, 0).tolist() == [0, 8, 9, 3, 7, 5, 1, 2, 6, 4]
    assert window_permutation(10, 7, 3, 2).tolist() == [8, 4, 6, 3, 2, 1, 0, 9, 5, 7]
    assert shard_order(9, 7, 2) == [7, 3, 1, 0, 2, 4, 6, 8, 5]


def test_rows_are_mixed_evenly_within_a_window():
    """Each row lands in each tenth of the window about equally often: chi-squared, 81 degrees of freedom."""
    table = np.zeros((10, 10))
    for window in range(300):
        places = np.argsort(window_permutation(100, 1, 0, window))
        np.add.at(table, (np.arange(100) // 10, places // 10), 1)
    assert ((table - 300) ** 2 / 300).sum() < 130


@pytest.mark.parametrize(
    ("rows", "batch_size", "epochs", "batches"), [(10, 5, 1, 2), (10, 6, 1, 2), (10, 100, 1, 1), (10, 3, 2, 7)]
)
def test_the_number_of_batches_is_rounded_up(rows, batch_size, epochs, batches):
    assert count_batches(rows, batch_size, epochs) == batches


def test_one_sequencing_has_the_order_of_every_epoch():
    sequencing = Sequencing([5, 6, 7], window=8)
    assert sequencing.seed == 0
    for epoch in (0, 1, 1, 3, 0):
        assert read_epoch(sequencing, epoch) == read_epoch(Sequencing([5, 6, 7], window=8, seed=0), epoch)


def test_a_span_is_cut_at_the_windows():
    found = Sequencing([20], window=8).windows(Span(3, 5, 18))
    assert found == [(0, Span(3, 5, 8)), (1, Span(3, 0, 8)), (2, Span(3, 0, 2))]


def plan(sequencing, **given):
    everything = {"first": 0, "step": 1, "rank": 0, "world_size": 1, "batch_size": 5, "epochs": 2}
    return list(plan_batches(sequencing, Request(**everything | given)))


def test_no_batch_is_planned_behind_the_last_row():
    assert [batch.iteration for batch in plan(Sequencing([10]))] == [0, 1, 2, 3]
    assert [batch.iteration for batch in plan(Sequencing([10]), first=1, step=2)] == [1, 3]
    assert [batch.iteration for batch in plan(Sequencing([10]), epochs=None, stop=3)] == [0, 1, 2]
    assert [batch.rows for batch in plan(Sequencing([10]), batch_size=8)] == [8, 8, 4]


def test_epochs_are_numbered_from_the_first_one_on():
    found = [batch.spans for batch in plan(Sequencing([10]), batch_size=8, epoch=3)]
    assert found == [(Span(3, 0, 8),), (Span(3, 8, 10), Span(4, 0, 6)), (Span(4, 6, 10),)]


def test_a_plan_names_windows_and_all_shards_that_lie_in_them():
    assert [batch.windows for batch in plan(Sequencing([10]))] == [()] * 4
    shuffled = plan(Sequencing([6, 6], window=8, seed=3), batch_size=4, epochs=1)
    assert [batch.windows for batch in shuffled] == [((0, 0),), ((0, 0),), ((0, 1),)]
    order = tuple(shard_order(2, 3, 0))
    assert [batch.shards for batch in shuffled] == [order, order, order[1:]]


def test_a_rank_takes_whole_slices():
    parts = [plan(Sequencing([10]), rank=rank, world_size=2, slice_rows=4, batch_size=10, epochs=1) for rank in (0, 1)]
    assert all(batch.rows % 4 == 0 for batch in parts[0])
    assert sum(batch.rows for part in parts for batch in part) == 10
