"""Known answers: on a fake clock the timer finds what a kernel takes, and says when a figure is too noisy to use."""

import time

import pytest
import torch

from tasks.devices.timing import (
    SampleTime,
    Timing,
    cut_blocks,
    make_clock,
    read_busy_cores,
    time_kernel,
    time_passes,
)

ALLOWED = SampleTime(shortest=0.05, longest=2.0)


class FakeTime:
    """A clock that only kernels advance; reading it may cost time too, and others may preempt the kernel."""

    def __init__(self, *durations, reading=0.0, preempted=False):
        self.durations, self.reading, self.preempted = list(durations), reading, preempted
        self.now, self.calls = 0.0, 0

    def clock(self):
        self.now += self.reading
        return self.now

    def kernel(self):
        """Take the first duration in the first call, and so on; then all of them in turn."""
        self.now += self.durations[self.calls % len(self.durations)]
        self.calls += 1

    def count_preemptions(self):
        return self.calls if self.preempted else 0

    def measure(self, allowed=ALLOWED):
        return time_kernel(self.kernel, allowed, self.clock, self.count_preemptions)


@pytest.mark.parametrize("seconds", [1e-6, 1e-3, 0.2])
def test_a_steady_kernel_takes_what_it_takes(seconds):
    timing = FakeTime(seconds).measure()

    assert timing.seconds == pytest.approx(seconds, rel=1e-9)
    assert timing.spread == pytest.approx(0, abs=1e-9)
    assert not timing.noisy


def test_a_sleeping_kernel_takes_at_least_its_sleep_on_the_real_clock():
    timing = time_kernel(lambda: time.sleep(0.005), ALLOWED)

    assert timing.low >= 0.005
    assert timing.samples >= 4


def test_the_first_calls_are_not_counted():
    fake = FakeTime(5.0, *[1e-3] * 100_000)

    assert fake.measure().seconds == pytest.approx(1e-3)


def test_what_reading_the_clock_costs_is_spread_over_many_calls():
    timing = FakeTime(1e-6, reading=1e-6).measure()

    assert timing.seconds == pytest.approx(1e-6, rel=0.01)


def test_an_unsteady_kernel_is_repeated_until_its_time_ends_and_then_called_noisy():
    fake = FakeTime(0.1, 0.3)

    timing = fake.measure()

    assert timing.noisy
    assert (timing.low, timing.high) == pytest.approx((0.1, 0.3))
    assert fake.now < ALLOWED.longest + 10 * 0.3


def test_a_kernel_that_outlasts_its_time_is_too_few_samples():
    timing = FakeTime(10.0).measure()

    assert timing.seconds == 10
    assert timing.samples < 4
    assert timing.noisy


def test_a_kernel_that_others_kept_from_running_is_noisy_however_steady():
    timing = FakeTime(1e-3, preempted=True).measure()

    assert timing.spread == pytest.approx(0, abs=1e-9)
    assert timing.noisy


def test_few_preemptions_do_no_harm():
    class Preempted(FakeTime):
        def count_preemptions(self):
            return self.calls // 100

    assert not Preempted(1e-3).measure().noisy


@pytest.mark.parametrize(("seconds", "longest"), [(0.01, 0.05), (1.05, 1.0), (100, 2.0)])
def test_a_share_of_time_lies_between_the_shortest_and_the_longest(seconds, longest):
    shared = ALLOWED.share(seconds)
    assert shared.shortest == 0.05
    assert shared.longest == pytest.approx(longest)


def test_passes_are_timed_within_their_seconds_after_a_warm_up():
    fake = FakeTime(0.5, *[0.1] * 1000)

    timing = time_passes(fake.kernel, 2.0, fake.clock)

    assert timing.seconds == pytest.approx(0.1)
    assert timing.samples == 15


def test_one_long_pass_is_the_only_sample_and_noisy():
    fake = FakeTime(3.0)

    timing = time_passes(fake.kernel, 2.0, fake.clock)

    assert (timing.seconds, timing.samples, fake.calls, timing.noisy) == (3.0, 1, 1, True)


def test_bursts_of_a_stream_are_averaged_and_not_hidden_by_a_median():
    bursts = [0.0, 0.0, 0.0, 2.0] * 10

    assert Timing.of(bursts).seconds == 0
    assert Timing.of([sum(block) / len(block) for block in cut_blocks(bursts)]).seconds == pytest.approx(0.5)


def test_median_and_quartiles_of_five_samples():
    timing = Timing.of([5.0, 1.0, 4.0, 2.0, 3.0])

    assert (timing.low, timing.seconds, timing.high) == (2, 3, 4)
    assert timing.spread == pytest.approx(2 / 3)


@pytest.mark.parametrize(("high", "noisy"), [(1.09, False), (1.11, True)])
def test_ten_per_cent_between_the_quartiles_is_the_bound(high, noisy):
    assert Timing(seconds=1.0, low=1.0, high=high, samples=9, calls=1).noisy == noisy


def test_the_clock_of_an_accelerator_waits_for_it(monkeypatch):
    waited: list[str] = []
    monkeypatch.setattr(torch.cuda, "synchronize", waited.append)

    make_clock("cuda:1")()

    assert waited == ["cuda:1"]


def test_busy_cores_grow_by_what_this_process_does():
    everyone, own = read_busy_cores()
    deadline = time.process_time() + 0.2
    while time.process_time() < deadline:
        pass
    later_everyone, later_own = read_busy_cores()

    assert later_own - own >= 0.15
    assert later_everyone - everyone >= 0.1
