"""A proxy on loopback that gives AWS's documented answers where the stand-in behind it cannot, and counts requests.

A rule looks at a request and answers it, or leaves it to the next rule; what no rule answers goes to the stand-in,
unchanged, so that signatures stay valid. Bodies follow
https://docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses.html and STS's query protocol.
"""

import http.client
import threading
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Self
from urllib.parse import parse_qs, urlsplit

LOOPBACK = "127.0.0.1"
HOP_HEADERS = {"connection", "transfer-encoding", "content-length", "date", "server"}


@dataclass(frozen=True)
class Request:
    """A request as it came in."""

    method: str
    path: str
    query: Mapping[str, list[str]]
    headers: Mapping[str, str]  # names in lower case
    body: bytes

    @property
    def service(self) -> str:
        """`sts` or `s3`; anything that is not a form for STS is for S3."""
        return "sts" if b"Action=" in self.body else "s3"

    @property
    def region(self) -> str:
        """The region that the request was signed for; empty where it was not signed."""
        scope = self.headers.get("authorization", "").partition("Credential=")[2].split("/")
        return scope[2] if len(scope) > 2 else ""

    def __str__(self) -> str:
        if b"Action=GetCallerIdentity" in self.body:
            return "POST GetCallerIdentity"
        return "GET listing" if "list-type" in self.query else f"{self.method} {self.path}"


@dataclass(frozen=True)
class Answer:
    """What to say; `silent` says nothing until the proxy closes, `broken` breaks the connection off."""

    status: int = 200
    body: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)
    silent: bool = False
    broken: bool = False


Rule = Callable[[Request], Answer | None]


class AwsProxy(AbstractContextManager["AwsProxy"]):
    """A context manager: entered, it listens at `url`; `requests` lists what came in, `sent` the bytes that went out.

    `sent` has what was asked, in a word or two, beside the bytes of each answer's body.
    """

    def __init__(self, *rules: Rule, upstream: str | None = None) -> None:
        self.rules = list(rules)
        self.requests: list[Request] = []
        self.sent: list[tuple[str, int]] = []
        self.closing = threading.Event()
        self._upstream = urlsplit(upstream).netloc if upstream else None
        self._server = ThreadingHTTPServer((LOOPBACK, 0), self._handler())
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})
        self.url = f"http://{LOOPBACK}:{self._server.server_address[1]}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.closing.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def asked(self) -> list[str]:
        """What was asked so far, a word or two for each request."""
        return [str(request) for request in self.requests]

    def answer(self, request: Request) -> Answer:
        """The first rule's answer, else the stand-in's."""
        for rule in self.rules:
            if answer := rule(request):
                return answer
        if self._upstream is None:
            return s3_error(
                "NotImplemented", "A header you provided implies functionality that is not implemented.", 501
            )
        return self._forward(request)

    def _forward(self, request: Request) -> Answer:
        assert self._upstream is not None
        connection = http.client.HTTPConnection(self._upstream, timeout=30)
        try:
            connection.request(request.method, request.path, body=request.body, headers=dict(request.headers))
            response = connection.getresponse()
            headers = {name: value for name, value in response.getheaders() if name.lower() not in HOP_HEADERS}
            return Answer(response.status, response.read().decode(), headers)
        finally:
            connection.close()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            wbufsize = -1  # head and body in one packet: two would wait for each other's acknowledgement

            def _serve(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                headers = {name.lower(): value for name, value in self.headers.items()}
                query = parse_qs(urlsplit(self.path).query, keep_blank_values=True)
                request = Request(self.command, self.path, query, headers, body)
                proxy.requests.append(request)
                answer = proxy.answer(request)
                if answer.silent:
                    proxy.closing.wait()
                if answer.silent or answer.broken:
                    self.close_connection = True
                    return
                payload = answer.body.encode()
                self.send_response(answer.status)
                for name, value in answer.headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(payload)))
                self.end_headers()
                if self.command != "HEAD":
                    proxy.sent.append((str(request), len(payload)))
                    self.wfile.write(payload)

            do_GET = do_HEAD = do_POST = do_PUT = _serve  # noqa: N815

            def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002
                """Say nothing on the screen."""

        return Handler


def s3_error(code: str, message: str, status: int, extra: str = "", headers: Mapping[str, str] | None = None) -> Answer:
    """S3's error document."""
    body = (
        f'<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>{code}</Code><Message>{message}</Message>{extra}'
        "<RequestId>4442587FB7D0A2F9</RequestId><HostId>TMnOREh0Ms0touCRX0XkJinw7xqsF0v=</HostId></Error>"
    )
    return Answer(status, body, {"Content-Type": "application/xml", **(headers or {})})


def sts_error(code: str, message: str, status: int = 403) -> Answer:
    """The query protocol's error document, as STS sends it."""
    body = (
        '<ErrorResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><Error><Type>Sender</Type>'
        f"<Code>{code}</Code><Message>{message}</Message></Error>"
        "<RequestId>c6104cbe-af31-11e0-8154-cbc7ccf896c7</RequestId></ErrorResponse>"
    )
    return Answer(status, body, {"Content-Type": "text/xml"})


def caller_identity(account: str, arn: str) -> Answer:
    """STS's answer to GetCallerIdentity."""
    body = (
        '<GetCallerIdentityResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><GetCallerIdentityResult>'
        f"<Arn>{arn}</Arn><UserId>AIDACKCEVSQ6C2EXAMPLE</UserId><Account>{account}</Account></GetCallerIdentityResult>"
        "<ResponseMetadata><RequestId>01234567-89ab-cdef-0123-456789abcdef</RequestId></ResponseMetadata>"
        "</GetCallerIdentityResponse>"
    )
    return Answer(200, body, {"Content-Type": "text/xml"})


def listing(region: str = "us-east-1") -> Answer:
    """An empty listing, with the bucket's region among its headers, as AWS sends it."""
    body = (
        '<?xml version="1.0" encoding="UTF-8"?>\n<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
        "<KeyCount>0</KeyCount><MaxKeys>1</MaxKeys><IsTruncated>false</IsTruncated></ListBucketResult>"
    )
    return Answer(200, body, {"Content-Type": "application/xml", "x-amz-bucket-region": region})


def web_page(status: int) -> Answer:
    """What a captive portal or a wrong port answers."""
    return Answer(status, "<html><body><p>Welcome<br></body></html>", {"Content-Type": "text/html"})


def always(service: str, answer: Answer) -> Rule:
    """The same answer to every request of a service."""
    return lambda request: answer if request.service == service else None


def in_turn(service: str, *answers: Answer) -> Rule:
    """These answers to a service's first requests; then none."""
    left = list(answers)
    return lambda request: left.pop(0) if left and request.service == service else None


def access_denied(detail: str = "Access Denied") -> Rule:
    """S3's answer to a caller without the right to list."""
    return always("s3", s3_error("AccessDenied", detail, 403))


def owned_by(account: str) -> Rule:
    """A bucket that belongs to an account: 403 where another one is expected."""

    def answer(request: Request) -> Answer | None:
        if request.headers.get("x-amz-expected-bucket-owner", account) == account:
            return None
        return s3_error("AccessDenied", "Access Denied", 403)

    return lambda request: answer(request) if request.service == "s3" else None


def elsewhere(region: str, follows: bool = True) -> Rule:
    """A bucket of another region: 301 until the request is signed for that one; for ever where `follows` is false."""
    redirect = s3_error(
        "PermanentRedirect",
        "The bucket you are attempting to access must be addressed using the specified endpoint. Please send all "
        "future requests to this endpoint.",
        301,
        extra=f"<Endpoint>s3.{region}.amazonaws.com</Endpoint>",
        headers={"x-amz-bucket-region": region},
    )

    def answer(request: Request) -> Answer:
        return listing(region) if follows and request.region == region else redirect

    return lambda request: answer(request) if request.service == "s3" else None
