"""Ratios and predictions have known answers."""

from dataclasses import replace

import pytest

from tasks.devices import Figure, StreamRates, compare_devices, compare_runs, find_win, limit_speedup, predict

RATES = StreamRates(fetch=100.0, receive=1000.0, decode=10.0, prepare=50.0, row_bytes=4.0, numbers=10)


def make_figure(name="add", device="cpu", seconds=1.0, *, size=1, rate=1.0, dtype="float64", spread=0.0):
    return Figure(
        name=name, device=device, dtype=dtype, size=size, rate=rate, unit="B/s", limit=None, samples=9, calls=1,
        seconds=seconds, low=seconds * (1 - spread / 2), high=seconds * (1 + spread / 2),
    )  # fmt: skip


STEP, GPU_STEP = make_figure("step", rate=20.0), make_figure("step", "cuda:0", rate=1000.0)
COPY = make_figure("host_to_device_pinned", "cuda:0", rate=800.0)


def test_a_device_is_as_many_times_as_fast_as_its_time_is_shorter():
    (ratio,) = compare_devices([make_figure(seconds=6.0, spread=0.08), make_figure(device="cuda:0", seconds=2.0)])

    assert (ratio.device, ratio.ratio, ratio.noisy) == ("cuda:0", 3.0, False)
    assert (ratio.low, ratio.high) == pytest.approx((2.88, 3.12))


def test_a_ratio_of_a_noisy_figure_is_noisy():
    (ratio,) = compare_devices([make_figure(), make_figure(device="cuda:0", spread=0.5)])

    assert ratio.noisy


def test_only_equal_kernels_dtypes_and_sizes_are_compared():
    others = [make_figure(device="cuda:0", size=2), make_figure("copy", "cuda:0"),
              make_figure(device="cuda:0", dtype="float32")]  # fmt: skip

    assert compare_devices([make_figure(), *others]) == []


@pytest.mark.parametrize(
    ("ratios", "win"),
    [
        ([0.1, 0.9, 1.1, 5.0], 4),
        ([0.1, 2.0, 0.9, 5.0], 8),
        ([2.0, 2.0, 2.0, 2.0], 1),
        ([0.1, 2.0, 3.0, 0.5], None),
        ([], None),
    ],
)
def test_the_gpu_wins_from_the_size_after_which_it_never_loses(ratios, win):
    figures = [
        make_figure(device=device, seconds=seconds, size=2**n)
        for n, ratio in enumerate(ratios)
        for device, seconds in (("cpu", ratio), ("cuda:0", 1.0))
    ]

    assert find_win(compare_devices(figures)) == win


def test_two_runs_are_compared_figure_by_figure():
    ours = [make_figure(seconds=2.0), make_figure(seconds=1.0, size=2)]
    theirs = [make_figure(seconds=3.0), make_figure(seconds=1.0, size=4)]

    assert [(ratio.size, ratio.ratio) for ratio in compare_runs(ours, theirs)] == [(1, 1.5)]


def test_stages_on_one_resource_take_turns_and_others_overlap():
    streamed, resident = predict([STEP], "cpu", 100, RATES)

    assert {stage.name: stage.seconds for stage in streamed.stages} == pytest.approx(
        {"fetch": 4.0, "receive": 0.4, "decode": 10.0, "prepare": 2.0, "step": 5.0}
    )
    assert streamed.seconds == pytest.approx(17.4)
    assert streamed.bottleneck == "decode"
    assert (resident.seconds, resident.bottleneck) == (5.0, "step")


def test_a_gpu_takes_the_step_off_the_processor_and_adds_a_copy():
    streamed, resident = predict([STEP, GPU_STEP, COPY], "cuda:0", 100, RATES)

    assert streamed.seconds == pytest.approx(12.4)
    assert {stage.name: stage.resource for stage in streamed.stages}["copy"] == "link"
    assert [stage.seconds for stage in streamed.stages if stage.name == "copy"] == [10.0]
    assert resident.seconds == pytest.approx(0.1)


def test_what_a_gpu_prepares_itself_is_no_work_of_the_processors():
    preparing = make_figure("prepare", "cuda:0", rate=1000.0)

    streamed, _ = predict([STEP, GPU_STEP, COPY, preparing], "cuda:0", 100, RATES)

    assert {stage.name: stage.resource for stage in streamed.stages}["prepare"] == "cuda:0"
    assert [stage.seconds for stage in streamed.stages if stage.name == "prepare"] == [0.1]


def test_a_slow_network_is_the_bottleneck():
    streamed, _ = predict([STEP], "cpu", 100, replace(RATES, fetch=1.0))

    assert (streamed.seconds, streamed.bottleneck) == (400.0, "fetch")


@pytest.mark.parametrize(
    ("figures", "device", "rates", "data"),
    [
        ([], "cpu", RATES, []),
        ([STEP], "cpu", None, ["resident"]),
        ([STEP, GPU_STEP], "cuda:0", RATES, ["resident"]),
    ],
)
def test_nothing_is_predicted_from_what_was_not_measured(figures, device, rates, data):
    assert [each.data for each in predict(figures, device, 100, rates)] == data


def test_what_the_fastest_step_could_save():
    streamed, resident = predict([STEP], "cpu", 100, RATES)

    assert limit_speedup(streamed) == pytest.approx(17.4 / 12.4)
    assert limit_speedup(resident) == float("inf")
