"""The step that says, before a training begins, what it will take: by the arithmetic that its stream follows.

Not foreseen are attempts that fail and are made again, what a champion reads that has other columns, and by how much
more ranks ask for, who each read a part of a shard, where they share the evaluation too.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from prefect.artifacts import create_markdown_artifact
from prefect.logging import get_run_logger

from tasks.facts import FirstRead, Preview, TrainingJob
from tasks.policy import step
from tasks.runs.checkpoints import checkpoint_folder
from tasks.sources import cache_folder, open_beginning, open_dataset
from tasks.streaming.memory import A_PROCESS
from tasks.streaming.objects.traffic import Traffic
from tasks.training.opening import ITEM_BYTES, open_training, place, stays
from tasks.training.start import find_device
from tasks.usage.forecast import Forecast, Need, Stage, Work
from tasks.usage.measuring import Meters, read_memory, read_meters
from tasks.usage.wording import write_forecast, write_lack, write_lines

if TYPE_CHECKING:
    from tasks.devices.description import Hardware
    from tasks.streaming import Manifest, ObjectStorageDataset
    from tasks.streaming.foreseeing import Expected

LEARNING_BATCHES = 6  # of the prepared kind: features, scaled, in use, and what their sums and profile take
MOMENT = 25  # characters of a number in a checkpoint's JSON


@dataclass(frozen=True, kw_only=True)
class Part:
    """A part of a run: what it asks for, the rows that it goes through, and how many bytes of them stay in memory."""

    name: str
    expected: Expected
    work: Work
    passes: float
    resident: int = 0


@step("foresee")
def foresee_run(job: TrainingJob, begun: Meters, preview: Preview, hardware: Hardware) -> Forecast:
    """Return what the rest of a run takes, and has taken since `begun`; the log has it in a line or two.

    It warns where memory or a disk will not do, with the parameters that change it. A markdown artifact shows all.
    """
    forecast = make_forecast(job, begun, preview.read, hardware)
    logger = get_run_logger()
    for line in write_lines(forecast):
        logger.info("%s", line)
    for need in forecast.short:
        logger.warning("%s", write_lack(need))
    create_markdown_artifact(key="forecast", description="What this run will take", markdown=write_forecast(forecast))
    return forecast


def make_forecast(job: TrainingJob, begun: Meters, read: FirstRead | None, hardware: Hardware) -> Forecast:
    """Return the forecast, as `foresee_run` does."""
    from tasks.tracking.client import connect
    from tasks.usage.pace import find_pace

    given, data = job.parameters, job.data
    now = read_meters()
    parts = list(foresee_parts(job, find_first(job)))
    device = find_device(given.device)
    pace = find_pace(connect(), given.experiment, job.sources.shards, name_device(str(device)), read, hardware)
    work = sum((part.work for part in parts), start=Work(fetched=0, cached=0, resident=0))
    spent = now.traffic - begun.traffic
    if not job.run_id:  # a plan: what the cache has since, and what is known of bad rows, the run does not ask for
        spent += expect_again(job, read)
    judged = () if data.test is None else data.test.shards
    return Forecast(
        shards=len(data.train.shards) + len(judged),
        rows=data.train.rows + (data.test.rows if data.test else 0),
        stages=(
            Stage(name="so far", requests=spent.requests, bytes=spent.bytes, passes=0.0),
            *(
                Stage(name=part.name, requests=part.expected.requests, bytes=part.expected.bytes, passes=part.passes)
                for part in parts
            ),
        ),
        memory=need_memory(job, parts, on_device=device.type == "cuda"),
        disk=tuple(need_disk(job, parts)),
        seconds=None if pace is None else now.seconds - begun.seconds + work.seconds_at(pace),
        pace="not known: python -m flows.benchmarking measures it" if pace is None else pace.source,
        gpus=0 if device.type == "cpu" else given.ranks if given.device == "cuda" else int(given.ranks == 1),
    )


def expect_again(job: TrainingJob, read: FirstRead | None) -> Traffic:
    """Return by how much a run's first steps ask for other than these have, which have read the first batch."""
    expected = open_beginning(job.data.train, job.sources, job.parameters).expect()
    again = Traffic(requests=expected.requests, bytes=expected.bytes)
    return again - read.asked if read else Traffic()


def name_device(device: str) -> str:
    """Return a torch device as figures name it."""
    return "cuda:0" if device == "cuda" else device


def find_first(job: TrainingJob) -> int:
    """Return the iteration that a run goes on from, 0 where it is a new one."""
    from tasks.learning.checkpoints import Checkpoints

    if not job.run_id or job.parameters.solver == "exact":
        return 0
    kept = Checkpoints(checkpoint_folder(job.parameters.checkpoint_url), job.run_id).latest()
    return kept.iteration if kept else 0


def foresee_parts(job: TrainingJob, first: int) -> Iterator[Part]:
    """Yield the parts of a run from iteration `first` on: learning, and judging what was learned."""
    given, data = job.parameters, job.data
    learning = foresee_solving(job) if given.solver == "exact" else foresee_training(job, first)
    yield learning
    stored, seen = learning.expected.stored, given.resolved().iterations
    dataset = open_dataset(data.train, job.sources, given, epochs=1, start=seen, shuffle=given.shuffle, seed=given.seed)
    rows = dataset.manifest.rows - seen * dataset.batch_size
    if given.solver == "gradient" and rows > 0:
        expected = dataset.expect(earlier=stored)
        yield make_part("rows that training does not see", expected, rows, dataset.manifest.rows)
        stored |= expected.stored
    yield foresee_judging(job, stored)


def foresee_training(job: TrainingJob, first: int) -> Part:
    """Return what training from iteration `first` on takes, by all ranks together."""
    given, iterations = job.parameters, job.parameters.resolved().iterations
    device = find_device(given.device)
    datasets = [open_training(job, first, device, rank if given.ranks > 1 else None) for rank in range(given.ranks)]
    streamed = (datasets[0].stop or 0) - first
    kept = (iterations - first - streamed) * datasets[0].batch_size
    part = join("training", datasets, streamed * datasets[0].batch_size, given.num_workers)
    width = (len(job.features.names) + 1) * ITEM_BYTES[given.dtype]
    rows = datasets[0].manifest.rows
    return Part(
        name=part.name,
        expected=part.expected,
        work=part.work + Work(fetched=0, cached=0, resident=kept),
        passes=part.passes + kept / rows,
        resident=rows * width if stays(job, datasets[0], device, given.ranks) else 0,
    )


def foresee_solving(job: TrainingJob) -> Part:
    """Return what the exact solver's pass takes, by all ranks together."""
    given, size = job.parameters, job.parameters.batch_size or 1
    if given.ranks == 1:
        datasets = [open_dataset(job.data.train, job.sources, given, epochs=1)]
    else:
        stop = -(-job.data.train.rows // size)
        datasets = [
            open_dataset(job.data.train, job.sources, given, stop=stop, placement=place(given, rank))
            for rank in range(given.ranks)
        ]
    return join("the exact model", datasets, datasets[0].manifest.rows, given.num_workers)


def join(name: str, datasets: list[ObjectStorageDataset], rows: int, workers: int) -> Part:
    """Return what ranks take together, each with a part of the batches, that share a cache; `rows` go by in all."""
    expected = datasets[0].expect(workers=workers)
    for dataset in datasets[1:]:
        expected += dataset.expect(workers=workers, earlier=expected.stored)
    return make_part(name, expected, rows, datasets[0].manifest.rows)


def foresee_judging(job: TrainingJob, stored: frozenset[str]) -> Part:
    """Return what going once through the rows takes that the model is judged on."""
    from tasks.streaming.cache import NO_CACHE
    from tasks.streaming.quarantine import is_surveyed

    given, judged = job.parameters, job.data.judged
    if given.on_bad_rows == "quarantine" and not is_surveyed(judged, cache_folder(given) / "quarantine"):
        dataset = open_dataset(judged, job.sources, given, epochs=1, on_bad_rows="error", cache=NO_CACHE)
        expected = dataset.expect()
        expected += expected  # the pass that looks for bad rows, and the one that judges
    else:
        dataset = open_dataset(judged, job.sources, given, epochs=1)
        expected = dataset.expect(earlier=stored)
    return make_part("evaluation", expected, dataset.manifest.rows, dataset.manifest.rows)


def make_part(name: str, expected: Expected, rows: int, of: int) -> Part:
    """Return a part in which `rows` rows of a data set of `of` rows go by."""
    fetched = min(rows, expected.rows)
    work = Work(fetched=fetched, cached=rows - fetched, resident=0)
    return Part(name=name, expected=expected, work=work, passes=rows / of)


def need_memory(job: TrainingJob, parts: list[Part], *, on_device: bool) -> Need:
    """Return the most memory that the run's processes take together; each rank is taken to begin as this process."""
    from tasks.devices.measurement import read_free_memory

    given, base = job.parameters, read_memory()
    batch = (given.batch_size or 1) * (len(job.features.names) + 1) * 8
    streams = max(part.expected.memory for part in parts)
    resident = 0 if on_device else max(part.resident for part in parts)
    processes = given.ranks * max(1, given.num_workers)
    more = processes * streams + LEARNING_BATCHES * batch + resident
    others = (given.ranks - 1) * base + given.ranks * given.num_workers * A_PROCESS
    return Need(
        name="memory",
        place="this machine",
        bytes=base + more + others,
        free=base + read_free_memory("cpu"),
        remedy="smaller --batch-size or --prefetch, or --resident-bytes 0, takes less",
    )


def need_disk(job: TrainingJob, parts: list[Part]) -> Iterator[Need]:
    """Yield what the cache, temporary files and checkpoints take, where they are on a disk of this machine."""
    from tasks.streaming.cache import find_existing

    given = job.parameters
    if given.cache:
        yield Need(
            name="cache",
            place=str(cache_folder(given)),
            bytes=sum(part.expected.wanted for part in parts),
            free=max(part.expected.room for part in parts),
            remedy="what does not fit is fetched again in each pass: give a larger --cache-bytes, or a --cache-dir on "
            "a larger disk",
        )
    if staged := max(part.expected.staged for part in parts):
        folder = Path(tempfile.gettempdir())
        yield Need(
            name="temporary files",
            place=str(folder),
            bytes=staged,
            free=shutil.disk_usage(folder).free,
            remedy="set TMPDIR to a folder on a larger disk, or write the data as smaller shards",
        )
    folder = Path(checkpoint_folder(given.checkpoint_url).removeprefix("file://"))
    if "://" not in str(folder) and given.solver == "gradient":
        yield Need(
            name="checkpoints",
            place=str(folder),
            bytes=count_checkpoints(job.data.train, len(job.features.names)),
            free=shutil.disk_usage(find_existing(folder)).free,
            remedy="give a --checkpoint-url with more room",
        )


def count_checkpoints(manifest: Manifest, features: int) -> int:
    """Return about how many bytes the checkpoints of one run take: tensors, and as JSON the shards and the moments."""
    from tasks.learning.checkpoints import KEPT

    tensors = 8 * (features + 6) * (features + 1)
    return (KEPT + 1) * (tensors + MOMENT * (features + 1) * (features + 3) + 2 * len(json.dumps(manifest.etags)))
