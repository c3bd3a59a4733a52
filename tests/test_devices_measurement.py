"""What is measured on which hardware: jobs do what they say, limits are known, and what does not fit is said."""

from dataclasses import replace

import pytest
import torch

from tasks.devices import PLANS, Figure, choose_devices, describe, measure, plan_jobs
from tasks.devices import kernels as k
from tasks.devices.description import CudaDevice
from tasks.devices.kernels import Job
from tasks.devices.measurement import Instruments, find_limit, read_free_memory
from tasks.learning.loop import Iteration
from tasks.usage.stepping import build_step

PLAN = replace(PLANS["quick"], budget=100.0)
CUDA = CudaDevice(
    index=0, name="A", capability="9.0", memory=2**36, multiprocessors=132, clock=None, memory_clock=None,
    memory_bus=None, bandwidth_limit=3e12, link_generation=5, link_width=16, link_limit=63e9, driver=None,
)  # fmt: skip


def hardware_with(*devices):
    return replace(describe(), cuda=devices)


class World:
    """Fake instruments: a clock that kernels advance by their jobs' seconds, and so much free memory."""

    def __init__(self, free=2**40):
        self.now, self.free, self.built = 0.0, free, []

    def instruments(self):
        return Instruments(
            clock=lambda: self.now,
            make_clock=lambda device: lambda: self.now,
            count_preemptions=lambda: 0,
            read_free=lambda device: self.free,
        )

    def job(self, seconds, *, size=1024, memory=1, name="add", device="cpu", dtype="float64", work=1e9, unit="B/s"):
        def build():
            self.built.append(size)
            return lambda: setattr(self, "now", self.now + seconds)

        return Job(
            name=name, device=device, dtype=dtype, size=size, memory=memory, work=work, unit=unit, build=build
        )  # fmt: skip

    def measure(self, *jobs, plan=PLAN, hardware=None):
        return measure(jobs, hardware or hardware_with(CUDA), plan, self.instruments())


def test_a_figure_is_the_jobs_work_over_the_kernels_time():
    world = World()

    (figure,), left_out = world.measure(world.job(0.002, work=4e9))

    assert figure.seconds == pytest.approx(0.002)
    assert figure.rate == pytest.approx(2e12)
    assert not figure.noisy
    assert left_out == []


def test_what_does_not_fit_the_memory_is_neither_built_nor_silent():
    world = World(free=2**30)

    figures, left_out = world.measure(world.job(0.001, memory=2**31, size=2**27), world.job(0.001, size=4))

    assert [figure.size for figure in figures] == world.built == [4]
    assert left_out == ["add of 134,217,728 (float64) on cpu: it needs 2 GiB, and 1 GiB are free."]


def test_a_device_that_runs_out_of_memory_all_the_same_is_said():
    def build():
        raise torch.OutOfMemoryError

    world = World()

    figures, left_out = world.measure(replace(world.job(1.0), build=build), world.job(0.001, name="copy"))

    assert [figure.name for figure in figures] == ["copy"]
    assert left_out == ["add of 1,024 (float64) on cpu: the device ran out of memory."]


def test_a_spent_budget_leaves_the_rest_out_in_one_sentence():
    world = World()
    slow = world.job(30.0, name="matmul")

    figures, left_out = world.measure(slow, *(world.job(1e-3, size=2**n) for n in range(4)), plan=PLAN)

    assert [figure.name for figure in figures] == ["matmul"]
    assert left_out == ["add of 1 to 8 (float64) on cpu: the time budget is spent."]


def test_a_size_that_would_outlast_the_budget_is_not_begun():
    world = World()
    plan = replace(PLAN, budget=20.0)

    figures, left_out = world.measure(*(world.job(1e-3 * 8**n, size=8**n) for n in range(6)), plan=plan)

    assert [figure.size for figure in figures] == [1, 8, 64, 512]
    assert "4,096 to 32,768" in left_out[0]
    assert world.now < plan.budget


def test_unsteady_kernels_leave_time_for_those_after_them():
    world = World()
    unsteady = [world.job(0.5, size=2**n) for n in range(40)]

    figures, _ = world.measure(*unsteady, plan=replace(PLAN, budget=1000.0))

    assert len(figures) == 40


def test_figures_survive_json_rows():
    world = World()
    (figure,), _ = world.measure(world.job(0.001))

    assert Figure.from_row(figure.to_row()) == figure
    assert figure.to_row()["noisy"] is False


@pytest.mark.parametrize(
    ("name", "device", "unit", "limit"),
    [
        ("triad", "cuda:0", "B/s", 3e12),
        ("add", "cuda:0", "B/s", 3e12),
        ("host_to_device_pinned", "cuda:0", "B/s", 63e9),
        ("device_to_host_pageable", "cuda:0", "B/s", 63e9),
        ("matmul", "cuda:0", "FLOP/s", None),
        ("triad", "cpu", "B/s", None),
    ],
)
def test_the_limit_is_that_of_the_memory_or_of_the_link(name, device, unit, limit):
    job = World().job(1.0, name=name, device=device, unit=unit)

    assert find_limit(job, hardware_with(CUDA)) == limit


@pytest.mark.parametrize(
    ("wanted", "devices", "measured", "said"),
    [
        ("auto", [], ("cpu",), "no CUDA device"),
        ("cuda", [], (), "no CUDA device"),
        ("cpu", [CUDA], ("cpu",), "the device parameter says cpu"),
        ("auto", [CUDA], ("cpu", "cuda:0"), ""),
        ("cuda", [CUDA, replace(CUDA, index=1)], ("cpu", "cuda:0"), "cuda:1: the same as cuda:0 (A)"),
        ("auto", [CUDA, replace(CUDA, index=1, name="B")], ("cpu", "cuda:0", "cuda:1"), ""),
    ],
)
def test_each_kind_of_device_is_measured_once_and_the_rest_is_said(wanted, devices, measured, said):
    chosen, left_out = choose_devices(hardware_with(*devices), wanted)

    assert chosen == measured
    assert said in " ".join(left_out)


def never(device, dtype, rows):
    """Build no step: these jobs are looked at, not run."""
    raise AssertionError


def test_small_sums_on_an_accelerator_are_waited_for_too_and_on_the_cpu_need_not_be():
    jobs = [job for job in plan_jobs(["cpu", "cuda:0"], PLAN, never) if job.name == "add_latency"]

    assert [(job.device, job.size) for job in jobs] == [("cuda:0", 1), ("cuda:0", 2**8), ("cuda:0", 2**16)]


def test_a_sum_that_is_waited_for_waits_for_its_device(monkeypatch):
    waited: list[str] = []
    monkeypatch.setattr(torch.cuda, "synchronize", waited.append)

    k.make_latency("cpu", "float64", 8).build()()

    assert waited == ["cpu"]


def test_sums_go_through_all_powers_of_two_with_the_devices_in_turn():
    jobs = [job for job in plan_jobs(["cpu", "cuda:0"], replace(PLAN, max_size=1000), never) if job.name == "add"]

    assert sorted({job.size for job in jobs}) == [2**n for n in range(10)]
    assert [(job.device, job.dtype) for job in jobs[:4]] == [
        ("cpu", "float64"), ("cuda:0", "float64"), ("cpu", "float32"), ("cuda:0", "float32")
    ]  # fmt: skip


def test_the_full_plan_reaches_the_notebooks_largest_size():
    assert max(job.size for job in plan_jobs(["cpu"], PLANS["standard"], never) if job.name == "add") == 2**27


def test_only_accelerators_have_transfers():
    names = {(job.device, job.name) for job in plan_jobs(["cpu", "cuda:0"], PLAN, never)}

    assert ("cuda:0", "host_to_device_pinned") in names
    assert not [name for device, name in names if device == "cpu" and "host" in name]


@pytest.mark.parametrize(
    "job",
    [
        k.make_add("cpu", "bfloat16", 8),
        *k.make_bandwidth("cpu", 128),
        k.make_product("cpu", "tf32", 8),
        k.make_step("cpu", "float32", build_step, 64),
    ],
    ids=lambda job: job.name,
)
def test_every_kernel_of_the_cpu_runs(job):
    kernel = job.build()
    kernel()
    kernel()


def test_the_sum_is_of_the_size_and_dtype_that_the_job_says():
    job = k.make_add("cpu", "float32", 8)

    result = job.build()()

    assert isinstance(result, torch.Tensor)
    assert (result.shape, result.dtype, job.memory, job.work) == ((8,), torch.float32, 96, 96)


def keeping(function, kept):
    """The function, whose results are kept in a list."""

    def call(*given, **named):
        kept.append(function(*given, **named))
        return kept[-1]

    return call


@pytest.mark.parametrize("to_device", [True, False])
def test_a_transfer_copies_the_batch(to_device, monkeypatch):
    vectors: list[torch.Tensor] = []
    monkeypatch.setattr(torch, "rand", keeping(torch.rand, vectors))

    kernel = k._build_transfer("cpu", 16, to_device, False)
    source = vectors[0].clone() if to_device else vectors[1].clone()
    kernel()

    assert torch.equal(vectors[0], source) and torch.equal(vectors[1], source)


def test_pinned_transfers_do_not_wait_and_pageable_ones_do():
    class Tensor:
        def copy_(self, source, non_blocking):
            self.copied = (source, non_blocking)

    asked = {}
    for pinned in (True, False):
        host, there = Tensor(), Tensor()
        tensors = iter([host, there])
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch, "rand", lambda *_, tensors=tensors, **how: asked.update(how) or next(tensors))
            k._build_transfer("cuda:0", 16, True, pinned)()
        assert there.copied == (host, pinned)
        assert (asked["pin_memory"], asked["device"]) == (pinned, "cuda:0")


def test_a_tf32_product_leaves_the_precision_of_others_alone():
    k.make_product("cpu", "tf32", 8).build()()

    assert torch.get_float32_matmul_precision() == "highest"


def test_the_step_that_is_timed_is_an_iteration_of_the_training_loop():
    iterate = k.make_step("cpu", "float64", build_step, 256).build()

    told = [each for each in (iterate() for _ in range(50)) if isinstance(each, Iteration)]

    assert [each.iteration for each in told] == list(range(50))
    assert told[-1].mse < told[0].mse / 2


def test_free_memory_of_the_cpu_ends_at_the_control_groups_limit(monkeypatch):
    monkeypatch.setattr("tasks.devices.cgroups.read_memory_limit", lambda: 2**20)

    assert read_free_memory("cpu") < 2**20


def test_free_memory_of_an_accelerator_is_what_cuda_says(monkeypatch):
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (len(device), 99))

    assert read_free_memory("cuda:0") == 6
