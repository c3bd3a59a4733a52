"""The device that a stopped run goes on on, and one that gives no state any more; stand-ins take the place of a GPU."""

import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tasks.learning.checkpoints import Checkpoint, Checkpoints
from tasks.learning.features import Features
from tasks.learning.loop import Settings, Trainer
from tasks.learning.scaling import Scaling
from tasks.training.gradient import Saver
from tasks.training.start import find_device

TRAIN = SimpleNamespace(etags={}, fingerprint="f")


@pytest.mark.parametrize(
    ("asked", "began", "has_cuda", "device", "said"),
    [
        ("auto", None, True, "cuda", ""),
        ("auto", None, False, "cpu", ""),
        ("auto", "cuda", True, "cuda", ""),
        ("auto", "cuda", False, "cpu", "began on a CUDA device, and torch finds none here"),
        ("auto", "cpu", True, "cpu", "began on the CPU and goes on there; resume=never starts anew, on CUDA"),
        ("auto", "cpu", False, "cpu", ""),
        ("cuda", "cpu", True, "cuda", ""),
        ("cpu", "cuda", True, "cpu", ""),
    ],
)
def test_a_run_goes_on_on_the_device_that_it_began_on_or_says_so(
    asked, began, has_cuda, device, said, monkeypatch, caplog
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_cuda)
    facts = {} if began is None else {"device": began}
    assert find_device(asked, Checkpoint(1, {}, facts)).type == device
    assert (said in caplog.text) if said else not caplog.text


def test_a_trainers_state_says_which_device_it_is_on():
    settings = Settings(iterations=1, learning_rate=0.01, gradient_norm=0, seed=0)
    trainer = Trainer(Features.choose(["y", "a"]), Scaling.none(1), settings, torch.device("cpu"))
    assert trainer.state().facts["device"] == "cpu"


def test_a_device_that_gives_no_state_any_more_hides_nothing_of_what_stopped_the_training(tmp_path):
    from prefect.logging.loggers import disable_run_logger

    def fail():
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered\nCompile with …")

    trainer = SimpleNamespace(iteration=0, is_whole=True, state=fail, device=torch.device("cuda"))
    given = SimpleNamespace(resume="never", checkpoint_every="1", seed=0, model_dump=lambda mode: {})
    job: Any = SimpleNamespace(run_id="run", parameters=given, data=SimpleNamespace(train=TRAIN))
    started: Any = SimpleNamespace(trainer=trainer, first_pass=None)
    checkpoints = Checkpoints(str(tmp_path / "kept"), "run")

    def stop():
        with disable_run_logger(), Saver(checkpoints, job, started) as saver:
            trainer.iteration = 1
            saver.save(0)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        stop()
    assert checkpoints.latest() is None


@pytest.mark.parametrize(
    ("every", "written", "due"), [("1", {1, 2, 3, 4}, 1), ("2", {1, 2, 4}, 1), ("50s", {1}, sys.maxsize)]
)
def test_states_that_wait_for_facts_that_come_late_are_all_written(every, written, due, tmp_path):
    settings = Settings(iterations=9, learning_rate=0.01, gradient_norm=0, seed=0)
    trainer = Trainer(Features.choose(["y", "a"]), Scaling.none(1), settings, torch.device("cpu"))
    given = SimpleNamespace(resume="never", checkpoint_every=every, seed=0, model_dump=lambda mode: {})
    job: Any = SimpleNamespace(run_id="run", parameters=given, data=SimpleNamespace(train=TRAIN))
    started: Any = SimpleNamespace(trainer=trainer, first_pass=None)
    checkpoints, seen = Checkpoints(str(tmp_path / "kept"), "run"), []
    saver = Saver(checkpoints, job, started)
    for iteration in range(4):  # all are launched before the first one's loss is known
        trainer.iteration = iteration + 1
        saver.keep(trainer)
    for iteration in range(4):
        saver.save(iteration)
        kept = checkpoints.latest()
        assert kept
        seen.append(kept.iteration)
    assert set(seen) == written
    assert saver.due(49) == due
