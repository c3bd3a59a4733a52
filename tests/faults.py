"""A proxy in front of an S3 server that injects one fault: into listings, or into the reads of one object.

    with FaultProxy("http://127.0.0.1:9000", Reset(after=5000), key="part-00001.csv", times=2) as proxy:
        …  # AWS_ENDPOINT_URL = proxy.url; proxy.gets counts the requests for the object

What it cannot fake is sent on as it came. Servers behind it must not check signatures, where a fault changes headers.
"""

import contextlib
import http.client
import itertools
import re
import socket
import ssl
import struct
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

FOREVER = 10**9


@dataclass
class Answer:
    """What the upstream server answered, or what stands in for it."""

    status: int
    headers: dict[str, str]
    body: bytes
    after: int | None = None  # bytes of the body after which `ending` comes
    ending: str = "fin"  # fin, reset, stall, trickle

    def set_length(self) -> "Answer":
        self.headers["Content-Length"] = str(len(self.body))
        return self


@dataclass(frozen=True)
class Fault:
    """Sends the answer on as it is. `prepare` changes the request, `change` the answer."""

    def prepare(self, headers: dict[str, str]) -> None: ...

    def change(self, answer: Answer) -> Answer:
        return answer


@dataclass(frozen=True)
class Noting(Fault):
    """Notes how many bytes of the body each answer has, and sends it on as it is."""

    sent: list[int] = field(default_factory=list)

    def change(self, answer: Answer) -> Answer:
        self.sent.append(len(answer.body))
        return answer


@dataclass(frozen=True)
class Refuse(Fault):
    status: int
    code: str
    headers: dict[str, str] = field(default_factory=dict)

    def change(self, answer: Answer) -> Answer:
        body = f"<?xml version='1.0'?><Error><Code>{self.code}</Code><Message>as asked</Message></Error>".encode()
        return Answer(self.status, {"Content-Type": "application/xml", **self.headers}, body).set_length()


@dataclass(frozen=True)
class BreakOff(Fault):
    """The connection ends, or hangs, after so many bytes of the body."""

    after: int
    ending: str = "fin"

    def change(self, answer: Answer) -> Answer:
        answer.after, answer.ending = self.after, self.ending
        return answer


@dataclass(frozen=True)
class Shorten(Fault):
    """A shorter body whose Content-Length says so."""

    to: int

    def change(self, answer: Answer) -> Answer:
        answer.body = answer.body[: self.to]
        return answer.set_length()


@dataclass(frozen=True)
class IgnoreRange(Fault):
    def prepare(self, headers: dict[str, str]) -> None:
        headers.pop("Range", None)


@dataclass(frozen=True)
class ShiftRange(Fault):
    """Another range than the one asked for, and Content-Range says so."""

    def prepare(self, headers: dict[str, str]) -> None:
        if "Range" in headers:
            headers["Range"] = re.sub(r"\d+", lambda found: str(int(found.group()) - 1), headers["Range"], count=1)


@dataclass(frozen=True)
class FlipBit(Fault):
    at: int

    def change(self, answer: Answer) -> Answer:
        body = bytearray(answer.body)
        body[self.at] ^= 1
        answer.body = bytes(body)
        return answer


@dataclass(frozen=True)
class AddHeaders(Fault):
    headers: dict[str, str]

    def change(self, answer: Answer) -> Answer:
        added = {name.lower() for name in self.headers}
        answer.headers = {n: v for n, v in answer.headers.items() if n.lower() not in added} | self.headers
        return answer


@dataclass(frozen=True)
class Edit(Fault):
    """The body with every match of `pattern` replaced."""

    pattern: bytes
    by: bytes

    def change(self, answer: Answer) -> Answer:
        answer.body = re.sub(self.pattern, self.by, answer.body, flags=re.DOTALL)
        return answer.set_length()


@dataclass(frozen=True)
class Sequence(Fault):
    """One fault for each request in turn; none after the last."""

    faults: tuple[Fault, ...]


class FaultProxy(contextlib.AbstractContextManager["FaultProxy"]):
    """Injects `fault` into the first `times` requests for `key`, or into listings where key is None.

    url: its address, https where `tls` has its certificate. gets: requests for the key, faulty ones included.
    """

    def __init__(
        self, upstream: str, fault: Fault, *, key: str | None, times: int = FOREVER, tls: ssl.SSLContext | None = None
    ) -> None:
        self.upstream = urlsplit(upstream)
        self.fault, self.key, self.times = fault, key, times
        self.gets = 0
        self.closing = threading.Event()
        self._count = itertools.count()
        self._server = _Server(("127.0.0.1", 0), _make_handler(self))
        self._server.tls = tls
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self.url = f"{'https' if tls else 'http'}://127.0.0.1:{self._server.server_address[1]}"
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self.closing.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def choose_fault(self, path: str) -> Fault:
        parts = urlsplit(path)
        concerned = "list-type=2" in parts.query if self.key is None else unquote(parts.path).endswith(self.key)
        if not concerned:
            return Fault()
        self.gets += 1
        number = next(self._count)
        if isinstance(self.fault, Sequence):
            return self.fault.faults[number] if number < len(self.fault.faults) else Fault()
        return self.fault if number < self.times else Fault()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128  # of more than the usual five that connect at once, some wait for a second
    tls: ssl.SSLContext | None = None

    def get_request(self) -> tuple[socket.socket, object]:
        """Shake hands when the first byte is read, in the thread of the connection."""
        connection, address = super().get_request()
        if self.tls:
            connection = self.tls.wrap_socket(connection, server_side=True, do_handshake_on_connect=False)
        return connection, address

    def handle_error(self, request: object, address: object) -> None:
        """Connections that a client gave up are what this is for."""


def _make_handler(proxy: FaultProxy) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True  # else a body may wait until the client has acknowledged the headers

        def handle_request(self) -> None:
            fault = proxy.choose_fault(self.path)
            headers = dict(self.headers.items())
            fault.prepare(headers)
            sent = self.rfile.read(int(headers.get("Content-Length", 0)))
            self.send_answer(fault.change(self.ask_upstream(headers, sent)))

        do_GET = do_PUT = do_HEAD = do_DELETE = do_POST = handle_request  # noqa: N815

        def ask_upstream(self, headers: dict[str, str], sent: bytes) -> Answer:
            connection = http.client.HTTPConnection(proxy.upstream.hostname or "", proxy.upstream.port, timeout=60)
            try:
                connection.request(self.command, self.path, sent, headers)
                response = connection.getresponse()
                kept = {name: value for name, value in response.getheaders() if name.lower() != "transfer-encoding"}
                answer = Answer(response.status, kept, response.read())
                return answer if self.command == "HEAD" else answer.set_length()
            finally:
                connection.close()

        def send_answer(self, answer: Answer) -> None:
            self.send_response_only(answer.status)
            for name, value in answer.headers.items():
                self.send_header(name, value)
            self.end_headers()
            with contextlib.suppress(ConnectionError):
                if self.command == "HEAD":
                    return
                self.wfile.write(answer.body[: answer.after])
                if answer.after is not None and answer.after < len(answer.body):
                    self.end_early(answer)

        def end_early(self, answer: Answer) -> None:
            self.close_connection = True
            if answer.ending == "stall":
                proxy.closing.wait()
            elif answer.ending == "trickle":
                for byte in answer.body[answer.after :]:
                    self.wfile.write(bytes([byte]))
                    if proxy.closing.wait(0.01):
                        return
            elif answer.ending == "reset":
                time.sleep(0.02)  # or the reset overtakes the bytes before it
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.connection.close()

        def log_message(self, *_: object) -> None:
            pass

    return Handler
