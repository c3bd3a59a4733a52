"""Trains with a disk that fails at the n-th write, fsync or rename, and again with one that does not; without Prefect.

`python -m tests.faultydisk FOLDER SHARDS MOST` with `faultydisk.c` preloaded tries at most so many cases, drawn among
all calls. Each runs in two processes, forked from this one, which has imported everything and has no thread. It prints
how the undisturbed run ended and what it told, then a line of JSON a case: number, errno (0 for a kill), how both runs
ended and what they told, and which outboxes are left.
"""

import ctypes
import importlib
import json
import os
import random
import shutil
import sys
import threading
import traceback
from contextlib import ExitStack
from errno import EIO, ENOSPC, EROFS
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

KILL = 0
KINDS = (ENOSPC, EIO, EROFS, KILL)
ITERATIONS = 6
WELL, OURS, FOREIGN = 0, 3, 4


def train(shards: str) -> list[float]:
    """Do what the flow does from the listing to the record's end, but for evaluation and registration."""
    from prefect.logging.loggers import disable_run_logger

    from flows.training import choose_features, name_data, record_settings
    from tasks.data import split_rows
    from tasks.facts import Located, TrainingJob
    from tasks.parameters import TrainingParameters
    from tasks.runs import lifecycle
    from tasks.runs.checkpoints import checkpoint_folder, discard_checkpoints
    from tasks.runs.history import find_unfinished
    from tasks.runs.lineage import FINGERPRINT, KEY, digest_settings
    from tasks.sources import resolve_sources
    from tasks.streaming import locate
    from tasks.tracking.outbox import Outbox
    from tasks.training.gradient import train_model

    given = TrainingParameters(
        shards=shards, batch_size=40, iterations=ITERATIONS, checkpoint_every="1", on_bad_rows="quarantine"
    )
    sources, manifest = resolve_sources(given), locate(shards)
    data, features = (
        split_rows(Located(manifest=manifest, statistics={}), None, "notebook"),
        choose_features(manifest, given),
    )
    settings = record_settings(given, sources, features)
    tags = {FINGERPRINT: manifest.fingerprint, KEY: digest_settings(settings)}
    find = partial(
        find_unfinished,
        experiment="faulty",
        recorded=settings,
        key=tags[KEY],
        manifest=manifest,
        checkpoint_url=checkpoint_folder(None),
    )
    with ExitStack() as without_prefect:
        without_prefect.enter_context(disable_run_logger())
        without_prefect.enter_context(patch("tasks.training.gradient.ProgressArtifact"))
        for name in ("open_record", "complete_record"):
            without_prefect.enter_context(patch.object(lifecycle, name, getattr(lifecycle, name).fn))
        without_prefect.enter_context(patch.object(lifecycle, "untracked", lambda value: value))
        with lifecycle.tracked("faulty", settings, tags, find) as run:
            job = TrainingJob(parameters=given, sources=sources, data=data, features=features, run_id=run.run_id)
            lifecycle.note_data(run.run_id, name_data(job))
            fit = train_model.fn(job)
            Outbox(run.run_id).keep("report.md", "report")
            Outbox(run.run_id).tag({"shardline.verdict": "good"})
        discard_checkpoints(None, run.run_id)
    return list(fit.curve)


def run_forked(place: Path, shards: str, call: int = 0, error: int = 0) -> tuple[int, dict[str, Any]]:
    """Train in a process of its own; return how it ended (WELL, OURS, FOREIGN, or minus a signal) and what it told."""
    from tasks.errors import ShardlineError

    result = place.with_name("result.json")
    result.unlink(missing_ok=True)
    if child := os.fork():
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        return code, json.loads(result.read_text()) if result.exists() else {}
    disk = ctypes.CDLL(None)
    code = FOREIGN
    try:
        os.chdir(place)
        disk.faulty_disk(str(place / ".shardline").encode(), ctypes.c_long(call), ctypes.c_long(error))
        curve = train(shards)
        told = {"curve": curve, "calls": disk.faulty_disk_calls()} | ({} if call else {"imported": list(sys.modules)})
        code = WELL
    except ShardlineError as problem:
        told = {"told": str(problem)}
        code = OURS
    except BaseException:
        told = {"told": traceback.format_exc()}
    result.write_text(json.dumps(told))
    os._exit(code)


def prepare(home: Path, shards: str) -> tuple[int, dict[str, Any]]:
    """Make the template, a database and nothing else; import what a run needs; return one's end and what it told."""
    import torch

    import flows.training  # noqa: F401
    from tasks.tracking import client

    torch.set_num_threads(1)
    template = home / "template"
    template.mkdir()
    if not os.fork():
        os.chdir(template)
        client.connect()
        os._exit(0)
    os.wait()
    shutil.copytree(template, home / "place")
    code, told = run_forked(home / "place", shards)
    for name in told.pop("imported", []):
        if name not in sys.modules:  # importing takes longer than all else that a run does
            importlib.import_module(name)
    assert threading.active_count() == 1  # else no process could be forked in safety
    return code, told


def try_case(home: Path, shards: str, call: int, error: int) -> dict[str, object]:
    """Run a case on a copy of the state that an earlier run left: with the fault, then without."""
    place = home / "place"
    shutil.rmtree(place)
    shutil.copytree(home / "template", place)
    first, second = run_forked(place, shards, call, error), run_forked(place, shards)
    second[1].pop("imported", None)
    left = sorted(path.name for path in (place / ".shardline" / "outbox").glob("*"))
    return {"call": call, "error": error, "first": first, "second": second, "left": left}


def draw_cases(calls: int, most: int) -> list[tuple[int, int]]:
    """Return pairs of a call's number, drawn with a fixed seed, and what happens at it; each kind as often."""
    numbers = random.Random(11).sample(range(1, calls + 1), min(most, calls))
    return [(call, KINDS[at % len(KINDS)]) for at, call in enumerate(numbers)]


def main() -> None:
    """Try the cases one by one, after a run that nothing disturbs."""
    home, shards, most = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    code, told = prepare(home, shards)
    print(json.dumps([code, told]), flush=True)
    for call, error in draw_cases(told["calls"], most):
        print(json.dumps(try_case(home, shards, call, error)), flush=True)


if __name__ == "__main__":
    main()
