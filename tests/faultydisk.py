"""Trains with a disk that fails at the n-th write, fsync or rename, and again with one that does not; without Prefect.

`python -m tests.faultydisk FOLDER SHARDS CASE…` with `faultydisk.c` preloaded; a case is NUMBER:ERRNO, with errno 0 for
a kill. Each case runs in two processes, forked from this one, which has imported everything. It prints a line of JSON a
case, the undisturbed run first: number, errno, how both runs ended and what they told, and which outboxes are left.
"""

import ctypes
import json
import os
import shutil
import sys
import traceback
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from unittest.mock import patch

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


def run_forked(place: Path, shards: str, call: int, error: int, result: Path) -> int:
    """Train in a process of its own; return how it ended: WELL, OURS, FOREIGN, or the negative number of a signal."""
    from tasks.errors import ShardlineError

    result.unlink(missing_ok=True)
    if child := os.fork():
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    disk = ctypes.CDLL(None)
    code = FOREIGN
    try:
        os.chdir(place)
        disk.faulty_disk(str(place / ".shardline").encode(), ctypes.c_long(call), ctypes.c_long(error))
        curve = train(shards)
        result.write_text(json.dumps({"curve": curve, "calls": disk.faulty_disk_calls()}))
        code = WELL
    except ShardlineError as problem:
        result.write_text(json.dumps({"told": str(problem)}))
        code = OURS
    except BaseException:
        result.write_text(json.dumps({"told": traceback.format_exc()}))
    finally:
        os._exit(code)


def try_case(home: Path, shards: str, call: int, error: int) -> dict[str, object]:
    """Run a case on a copy of the state that an earlier run left: with the fault, then without."""
    place, result = home / "place", home / "result.json"
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(home / "template", place)
    first = run_forked(place, shards, call, error, result)
    told = json.loads(result.read_text()) if result.exists() else {}
    second = run_forked(place, shards, 0, 0, result) if call else first
    again = json.loads(result.read_text()) if result.exists() else {}
    left = sorted(path.name for path in (place / ".shardline" / "outbox").glob("*"))
    return {"call": call, "error": error, "first": [first, told], "second": [second, again], "left": left}


def main() -> None:
    """Make the template, a database and nothing else, and try the cases one by one."""
    import mlflow  # noqa: F401
    import torch

    import flows.training  # noqa: F401
    import tasks.streaming
    import tasks.training.gradient  # noqa: F401
    from tasks.tracking import client

    torch.set_num_threads(1)
    home, shards = Path(sys.argv[1]), sys.argv[2]
    if not (home / "template").exists():
        (home / "template").mkdir()
        if not os.fork():
            os.chdir(home / "template")
            client.connect()
            os._exit(0)
        os.wait()
    for case in ["0:0", *sys.argv[3:]]:
        call, error = map(int, case.split(":"))
        print(json.dumps(try_case(home, shards, call, error)), flush=True)


if __name__ == "__main__":
    main()
