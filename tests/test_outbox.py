"""The outbox under a full disk: its files are there whole or not at all, and a broken one stops nothing but itself."""

import errno
import json
import logging
import os

import pytest

from tasks.errors import TrackingError
from tasks.files import write_whole
from tasks.state import STATE
from tasks.tracking import client as record
from tasks.tracking.outbox import INPUTS, METRICS, REGISTRATION, STATUS, TAGS, Outbox
from tasks.tracking.recovery import complete_records


@pytest.fixture
def ended(tmp_path, monkeypatch):
    """A client, and the outboxes of two runs in this folder that have ended without a complete record."""
    monkeypatch.chdir(tmp_path)
    client = record.connect()
    outboxes = []
    for name in ("first", "second"):
        outbox = Outbox(record.begin(client, experiment="outbox", name=name, parameters={}, tags={}))
        outbox.log(0, {"mse": 1.0})
        outbox.tag({"name": name})
        (outbox.path / STATUS).write_text("FAILED")
        outboxes.append(outbox)
    return client, outboxes


@pytest.mark.parametrize("name", [TAGS, INPUTS, REGISTRATION, METRICS])
@pytest.mark.parametrize("content", [b"", b'{"a": ', b"\0" * 100 + b"\n", b"null\n"])
def test_a_broken_file_is_set_aside_by_name_and_stops_no_run(name, content, ended, caplog):
    client, (broken, whole) = ended
    (broken.path / name).write_bytes(content)
    with caplog.at_level(logging.WARNING):
        assert complete_records(client).problems == []
    cut_short = name == METRICS and b"\n" not in content  # its last line, as a kill leaves it, is no damage
    aside = STATE / "broken" / f"{broken.run_id}-{name}"
    if name != REGISTRATION and not cut_short:  # a failed run registers nothing, so nothing looks at it
        assert aside.read_bytes() == content
        assert f"{broken.path / name} is broken ({len(content)} bytes)" in caplog.text
        assert str(aside.absolute()) in caplog.text
    assert {client.get_run(each.run_id).info.status for each in (broken, whole)} == {"FAILED"}
    assert client.get_run(whole.run_id).data.tags["name"] == "second"
    assert not broken.path.exists()


def test_an_empty_status_is_that_of_a_killed_run(ended):
    client, (broken, _) = ended
    (broken.path / STATUS).write_bytes(b"")
    assert complete_records(client).problems == []
    assert client.get_run(broken.run_id).info.status == "KILLED"


def test_tags_of_an_outbox_whose_tags_were_broken_are_kept_again(ended):
    _, (broken, _) = ended
    (broken.path / TAGS).write_bytes(b"")
    broken.tag({"verdict": "good"})
    assert json.loads((broken.path / TAGS).read_text()) == {"verdict": "good"}


def test_a_line_that_cannot_be_read_takes_no_other_with_it(ended):
    _, (broken, _) = ended
    broken.log(2, {"mse": 3.0})
    lines = (broken.path / METRICS).read_bytes().splitlines(keepends=True)
    (broken.path / METRICS).write_bytes(lines[0] + b"\0\0\0\n" + lines[1])
    again = Outbox(broken.run_id)
    assert [(row.step, row.value) for row in again.rows] == [(0, 1.0), (2, 3.0)]
    assert (broken.path / METRICS).read_bytes() == b"".join(lines)


@pytest.mark.parametrize("call", ["os.fsync", "Path.replace"])
def test_what_could_not_be_written_leaves_the_file_before_and_nothing_else(call, tmp_path, monkeypatch):
    (tmp_path / TAGS).write_text("before")

    def fail(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(f"tasks.files.{call}", fail)
    with pytest.raises(OSError, match="No space left"):
        write_whole(tmp_path / TAGS, "after")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {TAGS: "before"}


def test_a_full_disk_is_a_clear_stop_for_every_file_of_the_outbox(ended, monkeypatch):
    def fail(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    _, (outbox, _) = ended
    monkeypatch.setattr("tasks.files.os.fsync", fail)
    for write in (lambda: outbox.tag({"a": "b"}), lambda: outbox.keep("weights/w.txt", "w")):
        with pytest.raises(TrackingError, match=r"cannot be kept in .*: No space left on device; make room there"):
            write()
    assert json.loads((outbox.path / TAGS).read_text()) == {"name": "first"}


def test_what_an_outbox_keeps_shows_no_password_and_no_signature(ended):
    _, (outbox, _) = ended
    secret = "https://me:hush@example.org/a.csv?X-Amz-Signature=hushed"
    outbox.tag({"shards": secret})
    outbox.keep("report.md", f"shards: {secret}")
    outbox.keep("data.bin", b"\x00hush")
    kept = (outbox.path / TAGS).read_text() + (outbox.path / "artifacts" / "report.md").read_text()
    assert "hush" not in kept and "example.org/a.csv" in kept
    assert (outbox.path / "artifacts" / "data.bin").read_bytes() == b"\x00hush"
