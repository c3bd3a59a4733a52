"""Step sizes that fall, penalties and the optimisers' constants: against torch's autograd, resumed, and refused."""

import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from tasks.learning.batches import Prepared
from tasks.learning.features import Features
from tasks.learning.loop import Settings, Trainer
from tasks.learning.optimizers import SGD, make_optimizer, share_of_step
from tasks.learning.scaling import Scaling
from tasks.learning.scoring import Moments
from tasks.parameters import CONSTANTS, TrainingParameters

ROOT = Path(__file__).parents[1]
ITERATIONS = 12
FEATURES = Features.choose(["y", "a", "b", "c"])
OPTIONS = {
    "SGD": {"momentum": 0.9},
    "Adam": {"beta1": 0.8, "beta2": 0.99, "eps": 1e-6},
    "AdamW": {"beta1": 0.8, "weight_decay": 0.05},
    "RMSprop": {"alpha": 0.9, "momentum": 0.5},
    "Adagrad": {"lr_decay": 0.01, "eps": 1e-6},
}
SCHEDULES = ("constant", "linear", "cosine", "linear", "cosine")
EACH = pytest.mark.parametrize(
    "settings",
    [
        Settings(
            iterations=ITERATIONS, learning_rate=0.05, gradient_norm=2.0, seed=1,
            optimizer=name, options=options, schedule=schedule, l2=0.1,
        )
        for (name, options), schedule in zip(OPTIONS.items(), SCHEDULES, strict=True)
    ],
    ids=lambda settings: settings.optimizer,
)  # fmt: skip


@pytest.fixture(scope="module")
def batches():
    generator = torch.Generator().manual_seed(0)
    found = []
    for _ in range(ITERATIONS):
        x = torch.randn(300, 3, dtype=torch.float64, generator=generator)
        y = x.sum(dim=1, keepdim=True) + 3 + torch.randn(300, 1, dtype=torch.float64, generator=generator)
        found.append(Prepared(x, y))
    return found


def begin(settings):
    return Trainer(FEATURES, Scaling.none(3), settings, torch.device("cpu"))


def torchs(weights, settings):
    options = dict(settings.options)
    betas = {"betas": (options.pop("beta1"), options.pop("beta2", 0.999))} if "beta1" in options else {}
    return getattr(torch.optim, settings.optimizer)(weights, lr=settings.learning_rate, **betas, **options)


def fall(schedule, iteration):
    return {
        "constant": 1.0,
        "linear": (ITERATIONS - iteration) / ITERATIONS,
        "cosine": math.cos(math.pi * iteration / ITERATIONS / 2) ** 2,
    }[schedule]


@EACH
def test_a_training_is_that_of_torchs_autograd(settings, batches):
    trainer = begin(settings)
    w, b = (weights.clone().requires_grad_() for weights in (trainer.w, trainer.b))
    optimizer = torchs([w, b], settings)
    for iteration, batch in enumerate(batches):
        mse = torch.nn.functional.mse_loss(batch.x @ w + b, batch.y)
        optimizer.zero_grad()
        (mse + settings.l2 * (w**2).sum()).backward()
        torch.nn.utils.clip_grad_norm_([w, b], settings.gradient_norm)
        optimizer.param_groups[0]["lr"] = 0.05 * fall(settings.schedule, iteration)
        optimizer.step()
        assert trainer.step(batch).item() == pytest.approx(mse.item(), rel=1e-12)
    assert torch.allclose(trainer.w, w, rtol=1e-11)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_steps_of_sgd_and_what_it_remembers_are_torchs_to_the_last_bit(momentum):
    generator = torch.Generator().manual_seed(0)
    pairs = []
    for make in (SGD, torch.optim.SGD):
        weights = [torch.full((n, 1), 1 / 3, dtype=torch.float64, requires_grad=True) for n in (37, 1)]
        pairs.append((weights, make(weights, lr=0.3, momentum=momentum)))
    for iteration in range(20):
        gradients = [torch.randn(n, 1, dtype=torch.float64, generator=generator) for n in (37, 1)]
        for weights, optimizer in pairs:
            optimizer.param_groups[0]["lr"] = 0.3 / (iteration + 1)
            for tensor, gradient in zip(weights, gradients, strict=True):
                tensor.grad = gradient.clone()
            optimizer.step()
    (ours, own), (theirs, known) = pairs
    assert all(a.equal(b) for a, b in zip(ours, theirs, strict=True))
    state, expected = own.state_dict()["state"], known.state_dict()["state"]
    assert {(k, name) for k, kept in state.items() for name in kept} == {
        (k, name) for k, kept in expected.items() for name, value in kept.items() if value is not None
    }
    assert all(kept["momentum_buffer"].equal(expected[k]["momentum_buffer"]) for k, kept in state.items())


def test_a_training_by_sgd_does_not_import_torchs_compiler():
    program = """
import sys
import torch
from tests.test_optimizers import FEATURES
from tasks.learning.batches import Prepared
from tasks.learning.loop import Settings, Trainer
from tasks.learning.scaling import Scaling
settings = Settings(iterations=2, learning_rate=None, gradient_norm=1.0, seed=0, l2=0.1, schedule="cosine")
trainer = Trainer(FEATURES, Scaling.none(3), settings, torch.device("cpu"))
for _ in range(2):
    trainer.step(Prepared(torch.randn(9, 3, dtype=torch.float64), torch.randn(9, 1, dtype=torch.float64)))
trainer.restore(trainer.state())
print("torch._dynamo" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


@EACH
def test_a_training_goes_on_from_its_state_to_the_same_bits(settings, batches):
    whole, first, rest = (begin(settings) for _ in range(3))
    curve = [whole.step(batch).item() for batch in batches]
    before = [first.step(batch).item() for batch in batches[:5]]
    rest.restore(first.state())
    assert before + [rest.step(batch).item() for batch in batches[5:]] == curve


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_the_step_falls_from_the_whole_to_nearly_nothing(schedule):
    shares = [share_of_step(schedule, iteration, 1000) for iteration in range(1000)]
    assert shares[0] == 1 and shares == sorted(shares, reverse=True) and 0 < shares[-1] < 0.002


@pytest.mark.parametrize("standardise", [True, False])
def test_with_a_penalty_gradient_and_exact_solver_find_the_same_model(standardise, batches):
    rows = torch.cat([torch.cat([each.y, each.x * torch.tensor([1, 5, 0.2])], dim=1) for each in batches])
    scaling = Scaling.of(FEATURES.of(rows)) if standardise else Scaling.none(3)
    settings = Settings(iterations=60, learning_rate=None, gradient_norm=0, seed=None, l2=0.3)
    trainer = Trainer(FEATURES, scaling, settings, torch.device("cpu"))
    for _ in range(settings.iterations):
        trainer.step(Prepared(scaling.apply(FEATURES.of(rows)), FEATURES.target_of(rows)))
    moments = Moments(FEATURES)
    moments.add(rows)
    exact = moments.exact(0.3, standardise=standardise)
    assert torch.allclose(trainer.model().w, exact.w, rtol=1e-6)
    assert trainer.model().b.item() == pytest.approx(exact.b.item(), rel=1e-6)
    assert not torch.allclose(exact.w, moments.exact().w, rtol=1e-2)


def test_all_constants_that_can_be_given_are_torchs():
    weights = [torch.zeros(1, requires_grad=True)]
    for name, constants in CONSTANTS.items():
        own = make_optimizer(weights, name, None, {}).defaults
        assert {"beta1", "beta2"} <= set(constants) if "betas" in own else "betas" not in own
        assert set(constants) - {"beta1", "beta2"} <= set(own)
        for constant in constants.values():
            assert constant.least <= constant.searched.low < constant.searched.high < constant.below


def test_constants_are_read_from_texts():
    given = TrainingParameters(optimizer="Adam", optimizer_options=["beta1=0.8", "eps=1e-6"])
    assert given.options == {"beta1": 0.8, "eps": 1e-6}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"optimizer": "Adam", "optimizer_options": ["momentum=0.9"]}, "has 'momentum=0.9': the constants of Adam are"),
        ({"optimizer": "Adam", "optimizer_options": ["eps"]}, "has 'eps': write a number, such as eps=0.9"),
        ({"optimizer": "Adam", "optimizer_options": ["beta1=1"]}, "must be at least 0 and less than 1"),
        ({"optimizer": "Adam", "optimizer_options": ["eps=inf"]}, "must be at least 0 and finite"),
        ({"optimizer": "Adam", "optimizer_options": ["eps=1", "eps=2"]}, "names eps twice"),
        ({"optimizer_options": ["momentum=0.9"]}, "needs a learning_rate with SGD"),
    ],
)
def test_a_constant_that_cannot_be_is_refused(given, message):
    with pytest.raises(ValidationError, match=message):
        TrainingParameters(**given)


def test_settings_without_them_are_those_of_before(batches):
    plain = Settings(iterations=ITERATIONS, learning_rate=0.05, gradient_norm=0.5, seed=1)
    named = replace(plain, options={}, schedule="constant", l2=0.0)
    curves = [[trainer.step(batch).item() for batch in batches] for trainer in (begin(plain), begin(named))]
    assert curves[0] == curves[1]
