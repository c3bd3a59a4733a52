"""Temporary folders: what a process that was killed left is removed by the next one, and nothing else is."""

import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tasks.tracking.scratch import LOCK, ScratchFolder

HOLDS = """
import sys, time
from pathlib import Path
from tasks.tracking.scratch import ScratchFolder
folder = ScratchFolder("shardline-tried-")
(Path(folder.name) / "file").write_text("something")
print(folder.name, flush=True)
time.sleep(600)
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    return tmp_path


@pytest.fixture
def holder(folder):
    """A process that holds a folder, and that folder."""
    process = subprocess.Popen([sys.executable, "-c", HOLDS], stdout=subprocess.PIPE, text=True)
    assert process.stdout
    yield process, Path(process.stdout.readline().strip())
    process.kill()
    process.communicate()


def test_what_a_killed_process_left_is_removed_by_the_next_one(folder, holder):
    process, left = holder
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert (left / "file").exists()
    with ScratchFolder("shardline-other-"):
        assert left.exists()
    with ScratchFolder("shardline-tried-") as name:
        assert [str(path) for path in folder.iterdir()] == [name]
    assert not list(folder.iterdir())


def test_what_a_living_process_holds_stays(folder, holder):
    with ScratchFolder("shardline-tried-"):
        assert (holder[1] / "file").exists()
    assert (holder[1] / "file").exists()


def test_folders_of_this_process_leave_each_other_alone(folder):
    with ScratchFolder("shardline-tried-") as first, ScratchFolder("shardline-tried-") as second:
        assert Path(first).exists()
        assert Path(second).exists()


def test_folders_without_a_lock_and_links_to_folders_stay(folder):
    (folder / "shardline-tried-mine").mkdir()
    elsewhere = folder / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / LOCK).touch()
    (folder / "shardline-tried-link").symlink_to(elsewhere)
    with ScratchFolder("shardline-tried-"):
        pass
    assert (folder / "shardline-tried-mine").exists()
    assert (elsewhere / LOCK).exists()
