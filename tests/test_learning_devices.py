"""Training on each device that there is: the same curve, to the last bit where it repeats; and what CUDA needs."""

import itertools
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from tasks.learning.batches import Preparation, pin_pages
from tasks.learning.checkpoints import Checkpoints
from tasks.learning.features import Features
from tasks.learning.loop import Settings, Trainer, train
from tasks.learning.residency import InMemory, stay_resident
from tasks.learning.scaling import Scaling
from tasks.streaming import ObjectStorageDataset

ROOT = Path(__file__).parents[1]
COLUMNS, ROWS, BATCH, ITERATIONS = ("y", *"abcdefgh"), 50_021, 8_192, 24
FEATURES = Features.choose(COLUMNS)
EVERYTHING = 2**40  # bytes that may stay resident


@pytest.fixture(scope="module")
def rows():
    """50,021 rows of a target and eight features, of magnitudes from a hundredth to a hundred thousand."""
    return draw_rows()


def draw_rows():
    draw = np.random.default_rng(1)
    x = draw.normal(size=(ROWS, 8)) * 10.0 ** np.arange(-2, 6) + 2017
    return torch.from_numpy(np.column_stack([x @ draw.normal(size=8) + draw.normal(size=ROWS), x]))


def endless(rows, first=0, size=BATCH):
    for start in itertools.count(first * size, size):
        yield rows[torch.arange(start, start + size) % len(rows)]


def start(rows, device, *, resident=EVERYTHING, kept=None, **given):
    """A trainer, from a checkpoint where there is one, and the batches from there on."""
    usual = {"iterations": ITERATIONS, "learning_rate": None, "gradient_norm": 0.0, "seed": 3}
    settings = Settings(**(usual | given))
    trainer = Trainer(FEATURES, Scaling.of(FEATURES.of(rows[:BATCH])), settings, torch.device(device))
    if kept:
        trainer.restore(kept)
    preparation = Preparation(
        features=FEATURES, scaling=trainer.scaling, dtype=settings.dtype, device=torch.device(device)
    )
    return trainer, stay_resident(preparation.stream(endless(rows, trainer.iteration)), len(rows), resident)


def curve(rows, device, **given):
    return [each.mse for each in train(*start(rows, device, **given))]


@pytest.mark.parametrize(("dtype", "allowed"), [(torch.float64, 1e-12), (torch.float32, 2e-3)])
def test_the_curve_is_that_of_plain_gradient_descent_in_float64_on_the_cpu(rows, device, dtype, allowed):
    found = curve(rows, device, dtype=dtype, learning_rate=0.1)
    trainer, _ = start(rows, "cpu", dtype=dtype, learning_rate=0.1)
    w, b, scaling = trainer.w.double(), trainer.b.double(), trainer.scaling
    for mse, batch in zip(found, endless(rows), strict=False):
        x = scaling.apply(FEATURES.of(batch))
        errors = x @ w + b - FEATURES.target_of(batch)
        assert mse == pytest.approx((errors**2).mean().item(), rel=allowed)
        w, b = w - 0.2 * (x.T @ errors) / len(x), b - 0.2 * errors.mean()


@pytest.mark.race
@pytest.mark.parametrize("learning_rate", [None, 0.1])
def test_a_curve_repeats_to_the_last_bit_streamed_and_resident(rows, device, learning_rate):
    first, second, streamed = (
        curve(rows, device, learning_rate=learning_rate, resident=resident) for resident in (EVERYTHING, EVERYTHING, 0)
    )
    assert first == second == streamed


@pytest.mark.parametrize("optimizer", ["SGD", "Adam", "AdamW", "RMSprop", "Adagrad"])
@pytest.mark.parametrize("norm", [0.0, 0.5])
def test_a_checkpoint_goes_on_to_the_last_bit(rows, device, optimizer, norm, tmp_path):
    given = {"optimizer": optimizer, "gradient_norm": norm, "learning_rate": None if optimizer == "SGD" else 0.05}
    whole, checkpoints = curve(rows, device, **given), Checkpoints(tmp_path.as_uri(), "run")
    trainer, batches = start(rows, device, **given)
    for iteration in train(trainer, batches, lambda trainer: checkpoints.write(trainer.state())):
        if iteration.iteration == 10:
            break
    kept = checkpoints.latest(at_most=11)
    assert kept is not None and kept.iteration == 11
    assert {tensor.device.type for tensor in kept.tensors.values()} == {"cpu"}
    assert curve(rows, device, kept=kept, **given) == whole[11:]


def test_a_stream_from_shards_gives_the_curve_of_its_rows(rows, device, tmp_path):
    text = [",".join(COLUMNS), *(",".join(map(repr, row)) for row in rows[:9000].tolist())]
    (tmp_path / "part-0.csv").write_text("\n".join([*text, ""]))
    trainer, _ = start(rows, device, iterations=5)
    dataset = ObjectStorageDataset(f"{tmp_path}/part-*.csv", batch_size=4000)
    preparation = Preparation(features=FEATURES, scaling=trainer.scaling, dtype=torch.float64, device=trainer.device)
    streamed = [each.mse for each in train(trainer, preparation.stream(iter(dataset)))]
    other, _ = start(rows, device, iterations=5)
    assert streamed == [each.mse for each in train(other, preparation.stream(endless(rows[:9000], size=4000)))]


def test_a_training_that_was_killed_goes_on_to_the_last_bit(rows, device, tmp_path):
    script = f"""
import os, signal
from tasks.learning.checkpoints import Checkpoints
from tasks.learning.loop import train
from tests.test_learning_devices import draw_rows, start

checkpoints = Checkpoints({tmp_path.as_uri()!r}, "run")
for iteration in train(*start(draw_rows(), {device!r}), lambda trainer: checkpoints.write(trainer.state())):
    if iteration.iteration == 10:
        os.kill(os.getpid(), signal.SIGKILL)
"""
    assert subprocess.run([sys.executable, "-c", script], cwd=ROOT).returncode == -signal.SIGKILL
    kept = Checkpoints(tmp_path.as_uri(), "run").latest()
    assert kept is not None and kept.iteration >= 11
    assert curve(rows, device, kept=kept) == curve(rows, device)[kept.iteration :]


@pytest.mark.cuda
@pytest.mark.parametrize("resident", [0, EVERYTHING], ids=["streamed", "resident"])
def test_waiting_copying_and_computing_are_what_passes_in_the_loop(resident):
    draw = torch.randn(2**20, 9, dtype=torch.float64)
    trainer, _ = start(draw, "cuda", iterations=30, learning_rate=0.01)
    preparation = Preparation(features=FEATURES, scaling=Scaling.none(8), dtype=torch.float64, device=trainer.device)
    training = train(trainer, stay_resident(preparation.stream(itertools.repeat(draw)), 2**21, resident))
    told = [next(training)]
    began = time.perf_counter()
    told += list(training)
    passed = time.perf_counter() - began + sum(parts_of(told[0]))
    assert sum(itertools.chain(*map(parts_of, told))) == pytest.approx(passed, rel=0.05)
    assert min(itertools.chain(*map(parts_of, told))) >= 0


def parts_of(iteration):
    return iteration.wait_seconds, iteration.copy_seconds, iteration.compute_seconds


@pytest.mark.parametrize("size", [BATCH, 10_000, ROWS, 2 * ROWS])
def test_data_kept_as_they_are_read_in_the_hosts_memory_give_the_streams_curve(rows, device, size):
    derived = Features.choose(COLUMNS, features=["b", "a", *"fgh"])
    scaling, read = Scaling.of(derived.of(rows)), []

    def counted():
        for batch in endless(rows, size=size):
            read.append(len(batch))
            yield batch

    def train_on(batches, is_ready=lambda: False):
        settings = Settings(iterations=ITERATIONS, learning_rate=None, gradient_norm=0.0, seed=3)
        trainer = Trainer(derived, scaling, settings, torch.device(device))
        preparation = Preparation(features=derived, scaling=scaling, dtype=torch.float64, device=trainer.device)
        return [each.mse for each in train(trainer, preparation.stream(batches, is_ready=is_ready))]

    memory = InMemory(counted(), len(rows), 2 * rows.nbytes)  # page-locked: a power of two
    assert train_on(iter(memory), memory.is_ready) == train_on(endless(rows, size=size))
    assert len(read) == -(-len(rows) // size)
    assert memory.is_ready()


def test_data_too_large_for_the_hosts_memory_are_streamed_again_and_again(rows):
    memory = InMemory(endless(rows), len(rows), rows.nbytes - 1)
    kept = list(itertools.islice(memory, 20))
    assert all(torch.equal(*both) for both in zip(kept, itertools.islice(endless(rows), 20), strict=True))
    assert not memory.is_ready()


@pytest.mark.cuda
def test_what_the_stream_reads_for_a_gpu_lies_in_page_locked_memory(rows, tmp_path):
    text = [",".join(COLUMNS), *(",".join(map(repr, row)) for row in rows.tolist())]
    (tmp_path / "part-0.csv").write_text("\n".join([*text, ""]))
    dataset = ObjectStorageDataset(f"{tmp_path}/part-*.csv", batch_size=2**15, epochs=1, pages=pin_pages)
    assert all(batch.is_pinned() for batch in dataset if batch.nbytes >= 2**20)
    kept = list(itertools.islice(InMemory(endless(rows), len(rows), 2 * rows.nbytes), 9))
    assert kept[8].is_pinned()


@pytest.mark.cuda
@pytest.mark.race
def test_a_gpu_far_behind_the_cpu_reads_no_batch_that_was_written_over(rows):
    prompt = curve(rows, "cuda", resident=0)
    trainer, batches = start(rows, "cuda", resident=0)

    def delayed():
        for batch in batches:
            torch.cuda._sleep(20_000_000)  # about 10 ms on the step's stream
            yield batch

    assert [each.mse for each in train(trainer, delayed())] == prompt


@pytest.mark.cuda
def test_nothing_in_the_loop_waits_for_the_gpu_but_what_says_so(rows):
    training = train(*start(rows, "cuda", learning_rate=0.01))
    list(itertools.islice(training, 10))  # all rows were seen
    torch.cuda.set_sync_debug_mode("error")  # events may be waited for; item(), .to(), nonzero() on CUDA may not
    try:
        assert len(list(training)) == ITERATIONS - 10
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.cuda
def test_facts_come_an_iteration_late_while_the_next_batch_is_at_hand_and_at_once_while_it_is_not(rows):
    trainer, batches = start(rows, "cuda")
    ahead = [trainer.iteration - each.iteration for each in train(trainer, batches)]
    passed = -(-ROWS // BATCH)
    assert set(ahead[: passed - 1]) == {1}  # streamed, from a generator that cannot say whether it is ready
    assert ahead[passed:] == list(range(ITERATIONS - passed, 0, -1))  # all others are one block


@pytest.mark.cuda
def test_memory_is_given_back(rows):
    curve(rows, "cuda")
    torch.cuda.synchronize()
    before, pinned = torch.cuda.memory_allocated(), torch.cuda.host_memory_stats()["num_host_alloc"]
    for _ in range(3):
        curve(rows, "cuda", resident=0)
    torch.cuda.synchronize()
    assert torch.cuda.memory_allocated() == before
    created = torch.cuda.host_memory_stats()["num_host_alloc"] - pinned
    assert created <= 12  # some blocks for batches that are streamed, none for each pass


@pytest.mark.cuda
def test_a_second_device_computes_the_same(rows):
    if torch.cuda.device_count() < 2:
        pytest.skip("one CUDA device only")
    assert curve(rows, "cuda:1") == pytest.approx(curve(rows, "cuda:0"), rel=1e-12)
