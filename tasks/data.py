"""Steps that find the shards and look at their first rows, before anything is trained on them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.logging import get_run_logger

from tasks.errors import ConfigurationError
from tasks.facts import FirstRead, Located, Preview, TrainingData
from tasks.naming import escape_markdown, join_names, write_code
from tasks.parameters import MOST_ROWS, Listing, TrainingParameters
from tasks.policy import READING, step
from tasks.redaction import redact, reveal
from tasks.sources import Sources, open_beginning, open_dataset, read_contract, read_only_used
from tasks.streaming.objects.traffic import Traffic, read_traffic
from tasks.usage.wording import write_bytes

if TYPE_CHECKING:
    from torch import Tensor

    from tasks.streaming import Manifest, ObjectStorageDataset, Terms
    from tasks.streaming.formats.contract import Header

MOST_SHARDS_IN_A_TABLE = 100
MOST_EXACT = 2**53  # below it float64 has every whole number
ROUNDED = "column {} has numbers of 2^53 and more, which float64 rounds: an id is better left out of the features"
UNCHECKED = "the contract's bounds of {} are not checked: nothing reads them"
SHOWN_ROWS = 5
HEADERS: dict[str, Header] = {"infer": "infer", "first": 0, "none": None}
SMALLEST_SHARE, LARGEST_SHARE = 0.1, 0.5  # of the rows, that are held out


@step("locate shards", run_name="locate {role} shards", pauses=READING)
def locate_shards(
    sources: Sources,
    given: Listing,
    role: Literal["training", "test", "input"] = "training",
    names: Sequence[str] | None = None,
    terms: Terms | None = None,
) -> Located:
    """List the shards of a role (test: those of `test_shards`), and read what is stated of their columns.

    `names` are those of all columns where there is no header line, if not all are among `columns`; `terms` are the
    contract's, where it was read before. Of shards to predict no columns are required but the model's. A table artifact
    shows the shards. Statistics of other rows than those listed are left unused, with a warning.
    """
    from tasks.streaming import locate, read_statistics
    from tasks.streaming.formats.native import describe_decoder

    uri = str(sources.test_shards) if role == "test" else sources.shards
    terms = terms or read_contract(sources)
    manifest = locate(
        uri,
        meta_shards=None if role == "test" else given.meta_shards and reveal(given.meta_shards),
        header=HEADERS[given.header],
        columns=given.columns,
        names=names,
        max_shards=given.max_shards,
        terms=terms and (terms.require_none() if role == "input" else terms),
        storage_options=sources.storage_options(uri),
    )
    logger = get_run_logger()
    warn_of_secrets(uri, given)
    logger.info(
        "%s: %d shards, %s rows, %s, fingerprint %s",
        redact(uri),
        len(manifest.shards),
        f"{manifest.rows:,}",
        write_bytes(manifest.size),
        manifest.fingerprint[:12],
    )
    for note in manifest.notes:
        logger.info("%s", note)
    if role != "test":
        logger.info("CSV is decoded by %s", describe_decoder())
        logger.info("Rows are held against %s", terms.uri if terms else "no contract")
    show_shards(manifest, uri, role)
    statistics = read_statistics(manifest, sources.storage_options(uri))
    counted = {stated.count for stated in statistics.values()}
    if statistics and counted != {manifest.rows} and not given.max_shards:
        logger.warning(".meta/stats is of %s rows, the shards have %d: left unused", counted, manifest.rows)
        statistics = {}
    return Located(manifest=manifest, statistics=statistics)


def warn_of_secrets(uri: str, given: Listing) -> None:
    """Say what a run cannot do later whose address holds a password or signature, and where Prefect keeps that."""
    if redact(uri) == uri:
        return
    get_run_logger().warning(
        "%s is recorded like this: a run that goes on with this one, or repeats it (--like), needs the whole address "
        "again, signed anew where the signature has expired%s",
        redact(uri),
        "; it was given as a parameter of this flow run, where Prefect keeps the whole of it"
        if uri in (given.shards, getattr(given, "test_shards", None))
        else "",
    )


def show_shards(manifest: Manifest, uri: str, role: str) -> None:
    """Leave a table artifact of the first shards, with the sums of all."""
    first = manifest.shards[:MOST_SHARDS_IN_A_TABLE]
    create_table_artifact(
        key=f"{role}-shards",
        table=[
            {"shard": redact(s.uri).rsplit("/", 1)[-1], "rows": s.rows, "bytes": s.size, "etag": s.etag} for s in first
        ],
        description="\n".join(
            [
                f"**{role.capitalize()} shards** of {write_code(redact(uri))}: {len(manifest.shards)} shards, "
                f"{manifest.rows:,} rows, {write_bytes(manifest.size)}; fingerprint `{manifest.fingerprint}`",
                *(["", f"The table shows the first {len(first)}."] if len(first) < len(manifest.shards) else []),
                *(f"- {escape_markdown(note)}" for note in manifest.notes),
            ]
        ),
    )


def locate_data(sources: Sources, given: TrainingParameters) -> TrainingData:
    """List the training shards and, where some are named, the test shards; else hold the last ones out."""
    located, test = locate_shards(sources, given), None
    found = located.manifest
    located = replace(located, manifest=read_only_used(found, given, given.resolved().derive))
    if sources.test_shards:  # in the order of the training shards' columns
        same_columns = given.model_copy(update={"columns": list(located.manifest.columns)})
        test = locate_shards(sources, same_columns, role="test", names=found.known, terms=found.terms).manifest
    data = split_rows(located, test, given.preset)
    data = set_aside(data, given.validation_shards) if given.validation_shards else data
    get_run_logger().info("The model will be judged on %s", data.judged_on)
    return data


def split_rows(located: Located, test: Manifest | None, preset: str) -> TrainingData:
    """Choose which rows a model is judged on: those of the test shards, else those of shards held out from training.

    The notebook's preset trains on everything, as the notebook did.
    """
    manifest, statistics = located.manifest, located.statistics
    if test is None and preset != "notebook":
        return hold_out(located)
    return TrainingData(
        train=manifest,
        test=test,
        rows_of="test" if test else "train",
        judged_on=f"the {test.rows:,} rows of the test shards"
        if test
        else "the training rows themselves: the notebook's preset holds none out",
        statistics=statistics,
    )


def hold_out(located: Located) -> TrainingData:
    """Hold out the last shards, which have a tenth of the rows or more.

    None is held out, and `judged_on` says why, where that takes more than half of the rows or the only shard.
    """
    manifest = located.manifest
    shards, rows = manifest.shards, manifest.rows
    first = len(shards) - count_last(manifest)
    held = sum(manifest.counts[first:])
    if not SMALLEST_SHARE * rows <= held <= LARGEST_SHARE * rows:
        reason = "there is only one shard" if len(shards) == 1 else "the last ones do not hold between 10 % and half"
        return TrainingData(
            train=manifest,
            test=None,
            rows_of="train",
            judged_on=f"the training rows themselves: no test shards are named, and {reason}",
            statistics=located.statistics,
        )
    last = len(shards) - first
    words = "shard" if last == 1 else f"{last} shards"
    return TrainingData(
        train=replace(manifest, shards=shards[:first]),
        test=replace(manifest, shards=shards[first:]),
        rows_of="held-out",
        judged_on=f"{held:,} rows held out from training, {held / rows:.0%} of all: the last {words} of {len(shards)}",
        statistics={},  # they are of the rows held out, too
    )


def count_last(manifest: Manifest) -> int:
    """Return how many of the last shards have a tenth of the rows or more; of one shard alone, none."""
    first, held = len(manifest.shards), 0
    while first > 1 and held < SMALLEST_SHARE * manifest.rows:
        first -= 1
        held += manifest.counts[first]
    return len(manifest.shards) - first


def set_aside(data: TrainingData, count: int) -> TrainingData:
    """Leave so many of the last training shards to validation; 0: those that have a tenth of the rows.

    Raises ConfigurationError where no shard is left to train on, or to compare on.
    """
    manifest = data.train
    count = count or count_last(manifest)
    if not 0 < count < len(manifest.shards):
        raise ConfigurationError(
            f"of {len(manifest.shards)} shards to train on, {count} cannot be set aside to compare trials on: a search "
            "needs two at least; write the data as several shards, or name others with --shards"
        )
    return replace(
        data,
        train=replace(manifest, shards=manifest.shards[:-count]),
        validation=replace(manifest, shards=manifest.shards[-count:]),
        statistics={},  # they are of the rows set aside, too
    )


@step("preview batch", pauses=READING)
def preview_batch(data: TrainingData, sources: Sources, given: TrainingParameters) -> Preview:
    """Read the first rows to train on and hold them against the contract: columns, dtype and, where stated, ranges.

    A markdown artifact shows the shape and dtype of the training batch, each column's range and five rows, and warns
    where a column leaves the range that `.meta/stats` states. Where bad rows are set aside, this is when all shards are
    gone through, those to judge the model on as well where a contract says how many may be bad. Raises RowError where
    the contract is broken.
    """
    from tasks.streaming.listing.locating import NUMBERS_FIRST
    from tasks.streaming.listing.statistics import check_statistics

    columns = data.train.columns
    before = read_traffic()
    if given.on_bad_rows == "quarantine":
        survey_judged(data, sources, given)
    else:
        check_statistics(data.train, data.statistics)
    dataset = open_beginning(data.train, sources, given)
    batch = next(iter(dataset))
    least, most = batch.min(dim=0).values.tolist(), batch.max(dim=0).values.tolist()
    ranges = dict(zip(columns, zip(least, most, strict=True), strict=True))
    preview = Preview(
        batch_shape=(given.batch_size or MOST_ROWS, batch.shape[1]),
        dtype=given.dtype,
        rows=len(batch),
        ranges=ranges,
        outside=tuple(
            f"column {name} runs from {low:g} to {high:g}, and .meta/stats states {stated.min:g} to {stated.max:g}"
            for name, (low, high) in ranges.items()
            if (stated := data.statistics.get(name)) and not stated.min <= low <= high <= stated.max
        ),
        doubts=(
            *(note for note in data.train.notes if note.startswith(NUMBERS_FIRST)),
            *(ROUNDED.format(name) for name, ends in ranges.items() if max(map(abs, ends)) >= MOST_EXACT),
            *([UNCHECKED.format(join_names(unread))] if (unread := data.train.unchecked) else []),
        ),
        first=tuple(map(tuple, batch[:SHOWN_ROWS].double().tolist())),
        read=note_read(dataset, read_traffic() - before),
    )
    for doubt in preview.doubts:
        get_run_logger().warning("%s", doubt)
    for fault in preview.outside:
        get_run_logger().warning("The statistics are of other data: %s", fault)
    held = ", and within those of `.meta/stats`" if data.statistics and not preview.outside else ""
    show_preview(preview, batch[:SHOWN_ROWS], held)
    get_run_logger().info("Batches of shape %s, dtype %s", list(preview.batch_shape), preview.dtype)
    return preview


def survey_judged(data: TrainingData, sources: Sources, given: TrainingParameters) -> None:
    """Look for bad rows among those that the model is judged on, before it is trained: evaluation does not look again.

    Raises RowError where they are more than the contract allows.
    """
    if data.test and data.test.terms:
        open_dataset(data.test, sources, given, epochs=1)


def note_read(dataset: ObjectStorageDataset, asked: Traffic) -> FirstRead | None:
    """Return what reading a dataset's first batch took, for which the store was asked so much."""
    if dataset.times is None:
        return None
    read = dataset.manifest.begin(dataset.batch_size)
    return FirstRead(
        rows=read.rows,
        columns=len(read.columns),
        bytes=read.size,
        asked=asked,
        fetch_seconds=dataset.times.fetch_seconds,
        decode_seconds=dataset.times.decode_seconds,
    )


def show_preview(preview: Preview, rows: Tensor, held: str) -> None:
    """Leave a markdown artifact: the training batches, the columns' ranges, the first rows, and what is amiss."""
    height, width = preview.batch_shape
    lines = [
        f"| {escape_markdown(name)} | {least:.8g} | {most:.8g} | " + " | ".join(f"{value:g}" for value in column) + " |"
        for (name, (least, most)), column in zip(preview.ranges.items(), rows.T.double().tolist(), strict=True)
    ]
    create_markdown_artifact(
        key="preview",
        description="The first rows against the data contract",
        markdown="\n".join(
            [
                f"Training batches are **{height:,} × {width}** tensors of **{preview.dtype}**. "
                f"Ranges are of the first {preview.rows:,} rows{held}.",
                *(f"- ⚠ {escape_markdown(fault)}" for fault in (*preview.doubts, *preview.outside)),
                "",
                "| column | min | max | " + " | ".join(f"row {i}" for i in range(len(rows))) + " |",
                "|---|---:|---:|" + "---:|" * len(rows),
                *lines,
            ]
        ),
    )
