"""What an outbox writes and reads, file by file, without a tracking store: quick enough for mutation testing."""

import errno
import gc
import json
import math
import os
import time

import pytest

from tasks.errors import TrackingError
from tasks.files import write_whole
from tasks.state import STATE
from tasks.tracking.outbox import METRICS, TAGS, MetricRow, Outbox, held, keeping, outboxes, read_metrics, read_part

REMEDIES = {
    errno.ENOSPC: "make room there",
    errno.EDQUOT: "make room there",
    errno.EFBIG: "make room there",
    errno.EIO: "see to that disk",
    errno.EROFS: "see to that disk",
}


@pytest.fixture
def outbox(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return Outbox("run")


def test_it_stands_in_the_state_of_the_folder_that_it_was_made_in(outbox, monkeypatch, tmp_path):
    assert outbox.path == outboxes() / "run" == tmp_path / STATE / "outbox" / "run"
    assert (outbox.path / "artifacts").is_dir()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    outbox.keep("a/b/c.txt", "text")
    outbox.keep("a/b/d.txt", "more")
    assert (outbox.path / "artifacts" / "a" / "b" / "c.txt").read_text() == "text"
    assert (outbox.path / "artifacts" / "a" / "b" / "d.txt").read_text() == "more"


def test_metrics_are_read_again_as_they_were_told(outbox):
    began = time.time_ns() // 1_000_000
    outbox.log(7, {"mse": 2, "rate": 0.1}, kept={"seconds": 3})
    outbox.log(8, {"mse": 1.5})
    ended = time.time_ns() // 1_000_000
    again, kept = Outbox("run"), read_metrics(outbox.path, part="kept")
    assert again.rows == outbox.rows
    assert [(row.key, row.value, row.step) for row in again.rows] == [
        ("mse", 2.0, 7),
        ("rate", 0.1, 7),
        ("mse", 1.5, 8),
    ]
    assert [(row.key, row.value, row.step) for row in kept] == [("seconds", 3.0, 7)]
    assert all(isinstance(row.value, float) for row in (*outbox.rows, *again.rows, *kept))
    assert all(began <= row.timestamp <= ended for row in (*outbox.rows, *kept))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 0.1, 1e-310, 2.0**60])
def test_every_number_is_read_again_as_it_was_told(value, outbox):
    outbox.log(0, {"mse": value}, kept={"rmse": value})
    for part in ("metrics", "kept"):
        (row,) = read_metrics(outbox.path, part=part)
        assert row.value == value or (math.isnan(row.value) and math.isnan(value))


def test_a_line_of_metrics_has_its_documented_form(outbox):
    outbox.log(7, {"mse": 2.0}, kept={"seconds": 3.0})
    outbox.log(8, {"mse": 1.0}, kept={})
    first, second = map(json.loads, (outbox.path / METRICS).read_text().splitlines())
    assert first == {
        "step": 7, "timestamp": outbox.rows[0].timestamp, "metrics": {"mse": 2.0}, "kept": {"seconds": 3.0},
    }  # fmt: skip
    assert second == {"step": 8, "timestamp": outbox.rows[1].timestamp, "metrics": {"mse": 1.0}}


def test_the_file_of_metrics_is_opened_once_and_closed_with_the_outbox(outbox):
    outbox.log(0, {"mse": 1.0})
    opened = outbox._metrics
    outbox.log(1, {"mse": 1.0})
    assert outbox._metrics == opened
    assert (outbox.path / METRICS).stat().st_mode & 0o777 == 0o644 & ~get_umask()
    other = Outbox("other")
    other.log(0, {"mse": 1.0})
    descriptor = other._metrics
    del other
    gc.collect()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)


def get_umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_two_writers_append(outbox):
    again = Outbox("run")
    outbox.log(0, {"mse": 1.0})
    again.log(1, {"mse": 2.0})
    outbox.log(2, {"mse": 3.0})
    assert [row.step for row in read_metrics(outbox.path)] == [0, 1, 2]


def test_a_line_that_was_not_wholly_written_is_a_full_disk(outbox, monkeypatch):
    monkeypatch.setattr("tasks.tracking.outbox.os.write", lambda opened, line: len(line) - 1)
    with pytest.raises(
        TrackingError, match=r"the record of run run cannot be kept in .*run: No space left on device; make"
    ):
        outbox.log(0, {"mse": 1.0})
    assert not outbox.rows


@pytest.mark.parametrize("number", REMEDIES)
def test_what_to_do_is_said_for_every_fault_of_a_disk(number, tmp_path):
    with pytest.raises(TrackingError) as caught, keeping(tmp_path / "run"):
        raise OSError(number, os.strerror(number))
    assert str(caught.value) == (
        f"the record of run run cannot be kept in {tmp_path / 'run'}: {os.strerror(number)}; {REMEDIES[number]}, "
        "then start again: the run goes on from its last checkpoint"
    )
    assert isinstance(caught.value.__cause__, OSError)


def test_a_fault_without_a_number_is_told_in_its_words(tmp_path):
    with (
        pytest.raises(TrackingError, match=r"kept in .*: of another kind; see to that disk"),
        keeping(tmp_path / "run"),
    ):
        raise OSError("of another kind")


WRITES = {
    "made": lambda outbox: Outbox(outbox.run_id),
    "tagged": lambda outbox: outbox.tag({"a": "b"}),
    "logged": lambda outbox: outbox.log(0, {"mse": 1.0}),
    "kept": lambda outbox: outbox.keep("a.txt", "a"),
    "held": lambda outbox: held(outbox.path).__enter__(),
}


@pytest.mark.parametrize("write", WRITES)
def test_whatever_is_written_where_there_is_no_folder_any_more_names_the_outbox(write, outbox):
    for path in (outbox.path / "artifacts", outbox.path):
        path.rmdir()
    outbox.path.write_text("no folder")
    with pytest.raises(TrackingError, match=f"the record of run run cannot be kept in {outbox.path}: "):
        WRITES[write](outbox)


def test_tags_are_added_to_those_before(outbox):
    outbox.tag({"a": "1", "b": "2"})
    outbox.tag({"b": "3"})
    assert read_part(outbox.path, TAGS, dict) == {"a": "1", "b": "3"}


def test_a_part_of_another_kind_is_set_aside_and_one_that_is_not_there_is_none(outbox, caplog):
    assert read_part(outbox.path, TAGS, dict) is None
    assert not caplog.records
    for content in ("[1, 2]", "[1, 2, 3]"):
        (outbox.path / TAGS).write_text(content)
        assert read_part(outbox.path, TAGS, dict) is None
        aside = outboxes().with_name("broken") / f"run-{TAGS}"
        assert aside.read_text() == content
        assert not (outbox.path / TAGS).exists()
        assert caplog.records[-1].getMessage() == (
            f"{outbox.path / TAGS} is broken ({len(content)} bytes), perhaps since a disk was full: it is set aside as "
            f"{aside}, and the record of run run goes on without it"
        )


def test_a_part_that_cannot_be_read_or_set_aside_names_the_outbox(outbox):
    (outbox.path / TAGS).mkdir()
    with pytest.raises(TrackingError, match=f"run run cannot be kept in {outbox.path}: Is a directory"):
        read_part(outbox.path, TAGS, dict)
    (outbox.path / TAGS).rmdir()
    (outbox.path / TAGS).write_text("")
    outboxes().with_name("broken").write_text("no folder")
    with pytest.raises(TrackingError, match=f"run run cannot be kept in {outbox.path}: File exists"):
        read_part(outbox.path, TAGS, dict)


def test_an_outbox_is_held_by_one_at_a_time(outbox):
    with held(outbox.path) as first:
        with held(outbox.path) as second:
            assert (first, second) == (True, False)
        with held(outbox.path) as third:
            assert not third
    with held(outbox.path) as again:
        assert again


def test_a_last_line_cut_short_is_cut_off_and_nothing_else(outbox):
    outbox.log(0, {"mse": 1.0})
    outbox.log(1, {"mse": 2.0})
    whole = (outbox.path / METRICS).read_bytes()
    (outbox.path / METRICS).write_bytes(whole + b'{"step": 2, "timest')
    assert Outbox("run").rows == outbox.rows
    assert (outbox.path / METRICS).read_bytes() == whole
    (outbox.path / METRICS).write_bytes(b'{"step": 0')
    assert Outbox("run").rows == []
    assert (outbox.path / METRICS).read_bytes() == b""


BROKEN_LINES = [
    b"\0\0\0",
    b"[1]",
    b'"step timestamp metrics"',
    b'{"step": 1, "timestamp": 2}',
    b'["step", "timestamp", "metrics"]',
]


@pytest.mark.parametrize("line", BROKEN_LINES)
def test_a_broken_line_takes_no_other_with_it(line, outbox):
    outbox.log(0, {"mse": 1.0}, kept={"seconds": 5.0})
    outbox.log(1, {"mse": 2.0})
    lines = (outbox.path / METRICS).read_bytes().splitlines(keepends=True)
    broken = lines[0] + line + b"\n" + lines[1]
    (outbox.path / METRICS).write_bytes(broken)
    assert read_metrics(outbox.path) == outbox.rows
    assert (outbox.path / METRICS).read_bytes() == b"".join(lines)
    assert read_metrics(outbox.path, part="kept") == [MetricRow("seconds", 5.0, outbox.rows[0].timestamp, 0)]
    assert (outboxes().with_name("broken") / f"run-{METRICS}").read_bytes() == broken


def test_a_file_of_metrics_that_cannot_be_read_names_the_outbox(outbox):
    (outbox.path / METRICS).mkdir()
    with pytest.raises(TrackingError, match=f"run run cannot be kept in {outbox.path}: Is a directory"):
        Outbox("run")


def test_tags_of_an_outbox_whose_tags_were_broken_are_kept_again(outbox):
    (outbox.path / TAGS).write_bytes(b"")
    outbox.tag({"verdict": "good"})
    assert json.loads((outbox.path / TAGS).read_text()) == {"verdict": "good"}


@pytest.mark.parametrize("call", ["os.fsync", "Path.replace"])
def test_what_could_not_be_written_leaves_the_file_before_and_nothing_else(call, tmp_path, monkeypatch):
    (tmp_path / TAGS).write_text("before")

    def fail(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(f"tasks.files.{call}", fail)
    with pytest.raises(OSError, match="No space left"):
        write_whole(tmp_path / TAGS, "after")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {TAGS: "before"}


def test_a_full_disk_is_a_clear_stop_for_every_file_of_the_outbox(outbox, monkeypatch):
    def fail(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    outbox.tag({"name": "first"})
    monkeypatch.setattr("tasks.files.os.fsync", fail)
    for write in (lambda: outbox.tag({"a": "b"}), lambda: outbox.keep("weights/w.txt", "w")):
        with pytest.raises(TrackingError, match=r"cannot be kept in .*: No space left on device; make room there"):
            write()
    assert json.loads((outbox.path / TAGS).read_text()) == {"name": "first"}


def test_what_an_outbox_keeps_shows_no_password_and_no_signature(outbox):
    secret = "https://me:hush@example.org/a.csv?X-Amz-Signature=hushed"
    outbox.tag({"shards": secret})
    outbox.keep("report.md", f"shards: {secret}")
    outbox.keep("data.bin", b"\x00hush")
    kept = (outbox.path / TAGS).read_text() + (outbox.path / "artifacts" / "report.md").read_text()
    assert "hush" not in kept and "example.org/a.csv" in kept
    assert (outbox.path / "artifacts" / "data.bin").read_bytes() == b"\x00hush"
