"""ProgressBar is drawn for a person at a terminal, and for nobody else."""

import io
import sys

import pytest

from tasks.streaming import ObjectStorageDataset, progress
from tasks.streaming.progress import ProgressBar
from tests.shards import write_shards


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def eager(monkeypatch):
    monkeypatch.setattr(progress, "EVERY", 0)


@pytest.fixture
def glob(tmp_path):
    write_shards(tmp_path, [10, 10])
    return f"{tmp_path}/part*.csv"


def test_a_terminal_shows_it_and_is_wiped_clean(eager, glob, monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    assert len(list(ObjectStorageDataset(glob, batch_size=5, epochs=1, progress=True))) == 4
    shown = terminal.getvalue().split("\r\033[K")
    assert any(line.startswith("counting rows: ") for line in shown)
    assert any("streaming: ████████████······" in line and " 50%  10 rows of 20 rows" in line for line in shown)
    assert shown[-1] == ""


def test_a_log_shows_nothing(eager, glob, capfd):
    list(ObjectStorageDataset(glob, batch_size=5, epochs=1, progress=True))
    assert capfd.readouterr() == ("", "")


def test_a_stream_without_end_shows_rows_and_rate(eager, monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    ProgressBar("streaming", None, "rows").advance(1_234_567)
    assert "streaming: 1.23 M rows, " in terminal.getvalue() and "rows/s" in terminal.getvalue()
