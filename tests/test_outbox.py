"""What becomes of an outbox that a full disk broke: a broken file stops nothing but itself."""

import logging

import pytest

from tasks.state import STATE
from tasks.tracking import client as record
from tasks.tracking.outbox import INPUTS, METRICS, REGISTRATION, STATUS, TAGS, Outbox
from tasks.tracking.recovery import complete_records


@pytest.fixture
def ended(place):
    """A client, and the outboxes of two runs in this folder that have ended without a complete record."""
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
