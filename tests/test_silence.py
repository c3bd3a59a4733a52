"""A tracking database that falls silent in the middle of a run: its calls fail in time, and what is lacking is kept."""

import contextlib
import socket
import socketserver
import struct
import threading
import time

import pytest

from tasks.errors import TrackingError
from tasks.tracking import client as record
from tasks.tracking.outbox import METRICS, Outbox
from tasks.tracking.recovery import complete_outbox, complete_records
from tests.postgresql import MISSING, find_initdb, serve_postgresql

SILENT_SECONDS = 3.0  # here, for the tests' sake


@contextlib.contextmanager
def serve(handle):
    """The port of a server that lets `handle` answer each connection, given as a socket."""

    class Handler(socketserver.BaseRequestHandler):
        def handle(self):
            with contextlib.suppress(OSError):
                handle(self.request)

    class Server(socketserver.ThreadingTCPServer):
        daemon_threads, block_on_close = True, False

    with Server(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}).start()
        yield server.server_address[1]
        server.shutdown()


@pytest.fixture
def unlimited():
    """The driver as it was, once the test has ended."""
    extensions = pytest.importorskip("psycopg2.extensions")
    yield
    extensions.set_wait_callback(None)


@pytest.fixture
def greeting():
    """The port of a PostgreSQL that lets anyone in, and answers no query."""

    def handle(connection):
        connection.recv(8)  # whether it speaks TLS
        connection.sendall(b"N")
        connection.recv(4096)
        connection.sendall(b"R" + struct.pack("!ii", 8, 0))
        for name, value in ((b"server_version", b"16.0"), (b"client_encoding", b"UTF8"), (b"DateStyle", b"ISO")):
            text = name + b"\0" + value + b"\0"
            connection.sendall(b"S" + struct.pack("!i", 4 + len(text)) + text)
        connection.sendall(b"Z" + struct.pack("!i", 5) + b"I")
        while connection.recv(4096):
            pass

    with serve(handle) as port:
        yield port


def test_a_query_that_is_never_answered_fails_in_time(greeting, unlimited, monkeypatch):
    import psycopg2  # type: ignore[import-untyped]

    uri = f"postgresql://user:secret@127.0.0.1:{greeting}/db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setattr(record, "SILENT_SECONDS", 0.5)
    monkeypatch.setattr(record, "REACHABLE_WITHIN_SECONDS", 3.0)
    with pytest.raises(TrackingError, match=r"no database at .*no answer within 0.5 s"):
        record.connect()
    with contextlib.closing(psycopg2.connect(uri)) as connection:
        began = time.monotonic()
        with pytest.raises(psycopg2.OperationalError, match=r"no answer within 0.5 s"):
            connection.cursor().execute("SELECT 1")
        assert time.monotonic() - began < 5
        assert connection.closed  # so that no rollback waits for it too


class Link:
    """Passes connections on to a port while it is `open`; after that they stay, and nothing comes, until `cut`."""

    def __init__(self, port):
        self.port, self.open, self.passed = port, True, []

    def cut(self):
        for connection in self.passed:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def handle(self, connection):
        with socket.create_connection(("127.0.0.1", self.port)) as onward:
            self.passed.append(onward)
            other = threading.Thread(target=self.copy, args=(onward, connection), daemon=True)
            other.start()
            self.copy(connection, onward)

    def copy(self, source, target):
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                while not self.open:
                    time.sleep(0.05)
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)


@pytest.mark.long
def test_a_database_that_falls_silent_amid_a_run_is_ours_in_time_and_the_record_is_completed_later(
    unlimited, monkeypatch, tmp_path
):
    if not (initdb := find_initdb()):
        pytest.skip(MISSING)
    assert 2 * record.SILENT_SECONDS < 30
    monkeypatch.setattr(record, "SILENT_SECONDS", SILENT_SECONDS)
    monkeypatch.setattr(record, "REACHABLE_WITHIN_SECONDS", 2 * SILENT_SECONDS)
    monkeypatch.chdir(tmp_path)
    with serve_postgresql(initdb) as settings:
        uri = settings["MLFLOW_BACKEND_STORE_URI"]
        address, _, name = uri.rpartition("/")
        address, _, port = address.rpartition(":")
        link = Link(int(port))
        with serve(link.handle) as reachable:
            monkeypatch.setenv("MLFLOW_TRACKING_URI", f"{address}:{reachable}/{name}")
            client = record.connect()
            outbox = Outbox(record.begin(client, experiment="silence", name="run", parameters={}, tags={}))
            outbox.log(0, {"mse": 1.0})
            link.open = False
            for call in (
                lambda: complete_outbox(client, outbox.path, "FAILED"),
                lambda: record.begin(client, experiment="silence", name="other", parameters={}, tags={}),
                record.connect,
            ):
                began = time.monotonic()
                with pytest.raises(TrackingError) as raised:
                    call()
                assert time.monotonic() - began < 2 * SILENT_SECONDS + 4
                assert "c0rrect" not in str(raised.value)
            assert (outbox.path / METRICS).exists()
            link.open = True
            again = record.connect()
            assert complete_records(again).problems == []
            assert [metric.value for metric in again.get_metric_history(outbox.run_id, "mse")] == [1.0]
            link.cut()
