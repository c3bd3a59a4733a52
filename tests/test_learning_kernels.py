"""Triton's kernels beside torch's own sums: in its interpreter where there is no CUDA device, and built for one."""

import importlib.util
import itertools
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tasks.errors import NonFiniteLossError
from tasks.learning import kernels
from tasks.learning.batches import Preparation
from tasks.learning.features import Features
from tasks.learning.kernels import sum_slices
from tasks.learning.loop import Settings, Trainer, train
from tasks.learning.loss import curve_along, differentiate
from tasks.learning.reduction import ALONE, slice_rows
from tasks.learning.residency import stay_resident
from tasks.learning.scaling import Scaling

ROOT = Path(__file__).parents[1]
FEATURES = Features.choose(["y", *"abcdefgh"])
SIZES = (1, 63, 64, 2048, 2049, 5000)  # rows of a batch: in one slice, and in several


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
def device(request):
    """Where kernels run: on the CPU they are interpreted (see conftest)."""
    require_triton(request.config)
    return request.param


def require_triton(config):
    """Skip where Triton is not installed; `make test-all` installs it on Linux, where that is a failure."""
    if importlib.util.find_spec("triton") is None:
        assert not (config.getoption("--long") and sys.platform == "linux"), "the extra `kernels` is to be installed"
        pytest.skip("triton is not installed: the extra `kernels` has it")


def draw(rows, features, device="cpu", dtype=torch.float64, seed=0):
    """A table x [rows, features] and y [rows, 1], and theta [features + 1]."""
    generator = torch.Generator().manual_seed(seed)
    drawn = (torch.randn(*shape, generator=generator, dtype=dtype) for shape in ((rows, features), (rows, 1)))
    theta = torch.randn(features + 1, generator=generator, dtype=dtype)
    return [each.to(device) for each in (*drawn, theta)]


def add_up(x, y, theta, rows):
    """The same sums by torch, in float64, of slices of so many rows."""
    x, y, theta = x.double(), y.double(), theta.double()
    found = []
    for x_slice, y_slice in zip(x.split(rows), y.split(rows), strict=True):
        errors = x_slice @ theta[:-1, None] + theta[-1] - y_slice
        found.append(torch.cat([(errors * x_slice).sum(0), errors.sum(0), errors.square().sum(0)]))
    return torch.stack(found)


def assert_close(found, expected, rel):
    """Each column's differences are small beside its largest value: a sum may be near zero by chance."""
    assert found.shape == expected.shape
    assert ((found - expected).abs().amax(0) <= rel * expected.abs().amax(0)).all()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("dtype", "rel"), [(torch.float64, 1e-13), (torch.float32, 1e-4)])
def test_a_slices_sums_are_torchs(device, size, dtype, rel):
    x, y, theta = draw(size, 8, device, dtype)
    rows = slice_rows(size)
    assert_close(sum_slices(theta, x, y, rows).double(), add_up(x, y, theta, rows), rel)


@pytest.mark.parametrize("features", [1, 2, 3, 9, 11, 31])
def test_any_number_of_features_is_summed(device, features):
    x, y, theta = draw(300, features, device)
    assert_close(sum_slices(theta, x, y, 100), add_up(x, y, theta, 100), 1e-13)


@pytest.mark.parametrize(("first", "size"), [(0, 500), (700, 300), (900, 400), (999, 1000), (123, 3500), (0, 1)])
def test_a_batch_begins_at_any_row_and_goes_on_at_the_tables_beginning_as_often_as_it_must(device, first, size):
    x, y, theta = draw(1000, 8, device)
    rows = (first + torch.arange(size)) % 1000
    at = torch.tensor([first], device=device)
    found = sum_slices(theta, x, y, 256, first=at, size=size)
    assert_close(found, add_up(x[rows], y[rows], theta, 256), 1e-13)


def test_without_a_target_the_squares_of_predictions_are_summed(device):
    x, y, theta = draw(1000, 8, device)
    found = sum_slices(theta, x, None, 256)
    assert_close(found, add_up(x, torch.zeros_like(y), theta, 256), 1e-13)


def test_a_slices_sums_do_not_depend_on_the_other_slices(device):
    x, y, theta = draw(1000, 8, device)
    whole = sum_slices(theta, x, y, 256)
    assert torch.equal(sum_slices(theta, x[512:], y[512:], 256), whole[2:])
    assert sum_slices(theta, x[:0], y[:0], 256).shape == (0, 10)


def test_rows_beside_the_batch_are_not_read(device):
    x, y, theta = draw(1000, 8, device)
    expected = sum_slices(theta, x[:300].clone(), y[:300].clone(), 256)
    x[300:], y[300:] = torch.nan, torch.nan
    assert torch.equal(sum_slices(theta, x, y, 256, size=300), expected)


@pytest.mark.parametrize("size", SIZES)
def test_loss_gradient_and_curvature_are_those_of_torchs_closed_form(device, size, monkeypatch):
    x, y, theta = draw(size, 8, device)
    w, b = theta[:-1, None], theta[-1:, None]
    monkeypatch.setattr(kernels, "are_usable", lambda x: False)
    expected = [*differentiate(w, b, x, y, ALONE), curve_along(w, b, x, ALONE)]
    monkeypatch.setattr(kernels, "are_usable", lambda x: True)
    found = [*differentiate(w, b, x, y, ALONE), curve_along(w, b, x, ALONE)]
    for ours, torchs in zip(found, expected, strict=True):
        assert ours.dtype == torchs.dtype
        assert torch.allclose(ours, torchs, rtol=1e-12, atol=1e-13)


STEPS = [
    {"learning_rate": 0.1},
    {"learning_rate": 0.1, "gradient_norm": 0.5, "l2": 0.2, "schedule": "linear"},
    {"learning_rate": None, "l2": 0.2, "schedule": "cosine"},
    {"learning_rate": None, "gradient_norm": 0.5, "seed": None},
    {"learning_rate": None, "dtype": torch.float32},
]


def begin(device, usable, monkeypatch, rows=900, size=256, iterations=30, **given):
    """A trainer that takes its steps by kernels, eight in a block, or by torch; its batches; how many rows."""
    monkeypatch.setattr("tasks.learning.loop.MOST", 8)
    monkeypatch.setattr(kernels, "are_usable", lambda x: usable)
    usual = {"iterations": iterations, "learning_rate": None, "gradient_norm": 0.0, "seed": 3}
    settings = Settings(**(usual | given))
    generator = torch.Generator().manual_seed(1)
    table = torch.randn(rows, 9, dtype=torch.float64, generator=generator) * 3
    table[:, 0] += table[:, 1:].sum(dim=1)
    trainer = Trainer(FEATURES, Scaling.none(8), settings, torch.device(device))
    assert (trainer.steps is not None) == usable
    preparation = Preparation(
        features=FEATURES, scaling=Scaling.none(8), dtype=settings.dtype, device=torch.device(device)
    )
    stream = (table[torch.arange(at, at + size) % rows] for at in itertools.count(0, size))
    return trainer, preparation.stream(stream), rows


@pytest.mark.parametrize("given", STEPS)
def test_steps_by_kernels_are_torchs(device, given, monkeypatch):
    found = []
    for usable in (False, True):
        trainer, batches, _ = begin(device, usable, monkeypatch, iterations=6, **given)
        curve = torch.tensor([each.mse for each in train(trainer, batches)])
        found.append(torch.cat([curve, trainer.w.view(-1), trainer.b.view(-1)]).double())
    rel = 1e-5 if given.get("dtype") else 1e-12
    assert torch.allclose(found[0], found[1], rtol=rel, atol=rel)


@pytest.mark.parametrize("given", STEPS[1:3])
@pytest.mark.parametrize(("rows", "size"), [(900, 256), (1024, 256), (300, 1000)])
def test_blocks_of_iterations_are_the_steps_one_by_one_to_the_last_bit(device, given, rows, size, monkeypatch):
    one, batches, _ = begin(device, True, monkeypatch, rows, size, **given)
    expected = [each.mse for each in train(one, batches)]
    trainer, batches, _ = begin(device, True, monkeypatch, rows, size, **given)
    seen: list[tuple[int, Tensor]] = []

    def keep(trainer):
        seen.append((trainer.iteration, trainer.state().tensors["w"]))

    resident = stay_resident(batches, rows, 2**40)
    told = list(train(trainer, resident, keep, lambda iteration: 10 - iteration % 10))
    assert [each.iteration for each in told] == list(range(30))
    assert [each.mse for each in told] == expected
    assert {each.rows for each in told} == {size} and min(each.compute_seconds for each in told) > 0
    passed = -(-rows // size)
    ends = {*range(1, passed + 1), *range(passed, 10, 8), 10, 18, 20, 28, 30}
    assert [at for at, _ in seen] == sorted(ends)
    assert seen[-1][1].equal(one.w) and trainer.b.equal(one.b)


def test_a_loss_that_is_not_finite_is_named_by_its_iteration_amid_a_block(device, monkeypatch):
    trainer, batches, rows = begin(device, True, monkeypatch, learning_rate=1e30)
    found: list[object] = []
    with pytest.raises(NonFiniteLossError, match=r"of iteration (\d+) .* the step size 1e\+30 is too large") as caught:
        found.extend(train(trainer, stay_resident(batches, rows, 2**40)))
    assert f"iteration {len(found)} " in str(caught.value) and len(found) > 4


def test_momentum_and_other_optimisers_take_torchs_steps(monkeypatch):
    monkeypatch.setattr(kernels, "are_usable", lambda x: True)
    for optimizer, options in (("SGD", {"momentum": 0.9}), ("Adam", {})):
        settings = Settings(
            iterations=1, learning_rate=0.1, gradient_norm=0.0, seed=0, optimizer=optimizer, options=options
        )
        assert Trainer(FEATURES, Scaling.none(8), settings, torch.device("cpu")).steps is None


def test_all_that_a_training_launches_is_tried_out_before_it_is_relied_on(device, monkeypatch):
    tried: list[bool] = []
    take = kernels.Steps.take

    def note(*given):
        tried.append(given[-1] is None)
        take(*given)

    monkeypatch.setattr(kernels.Steps, "take", note)
    kernels.try_out(torch.device(device))
    assert tried == [True, False]


def test_on_the_cpu_torch_sums(monkeypatch):
    assert not kernels.are_usable(torch.zeros(1))


BUILD = """
import re, triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from tasks.learning import kernels

for number, features in (("fp64", 8), ("fp32", 11)):
    for has_target, wraps_once in ((True, True), (False, True), (True, False)):
        pointers = dict.fromkeys(("x", "y", "theta"), f"*{number}") | {"first": "*i64", "sums": f"*{number}"}
        constants = dict(
            features=features, columns=triton.next_power_of_2(features), block=kernels.BLOCK,
            has_target=has_target, wraps_once=wraps_once,
        )
        signature = pointers | dict.fromkeys(("rows", "size", "slice_rows"), "i32")
        signature |= dict.fromkeys(constants, "constexpr")
        source = ASTSource(fn=kernels._sum_slice, signature=signature, constexprs=constants)
        built = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": kernels.WARPS})
        assert built.asm["cubin"]
        assert bool(re.search(r"rem\\.[su]64", built.asm["ptx"])) != wraps_once
        assert "st.local" not in built.asm["ptx"]

for number, features in (("fp64", 8), ("fp32", 60)):
    names = dict.fromkeys(("sums", "theta", "direction"), f"*{number}")
    names |= dict.fromkeys(("settings", "losses", "inverse", "gradient", "step"), "*fp64")
    names |= dict.fromkeys(("number", "slices", "size"), "i32")
    sizes = dict(features=features, columns=triton.next_power_of_2(features + 2), block=kernels.SLICES)
    for kernel, constants in (
        (kernels._descend, sizes | dict(block_rows=kernels.ROWS, is_turned=False)),
        (kernels._descend, sizes | dict(block_rows=kernels.ROWS, is_turned=True)),
        (kernels._go_along, sizes),
    ):
        signature = {name: names.get(name, "constexpr") for name in kernel.arg_names}
        source = ASTSource(fn=kernel, signature=signature, constexprs=constants)
        built = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": kernels.WARPS})
        assert built.asm["cubin"]
"""


def test_the_kernels_build_for_compute_capability_9(request):
    require_triton(request.config)
    environment = os.environ | {"TRITON_INTERPRET": "0"}
    done = subprocess.run([sys.executable, "-c", BUILD], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
