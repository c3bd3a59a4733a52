"""A folder on loopback as S3 would show it, for reads: MD5s are computed once, where rclone does so at each range."""

import contextlib
import hashlib
import os
import re
import threading
from collections.abc import Iterator
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit


@cache
def compute_md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest()


def list_files(bucket: Path, prefix: str) -> str:
    """The answer to ListObjectsV2, in one page."""
    files = sorted(path for path in (bucket / prefix).parent.rglob("*") if path.is_file())
    keys = {str(path.relative_to(bucket)): path for path in files}
    entries = (
        f'<Contents><Key>{key}</Key><Size>{path.stat().st_size}</Size><ETag>"{compute_md5(path)}"</ETag></Contents>'
        for key, path in keys.items()
        if key.startswith(prefix)
    )
    return f"<ListBucketResult><IsTruncated>false</IsTruncated>{''.join(entries)}</ListBucketResult>"


class Server(ThreadingHTTPServer):
    """Says nothing of connections that a client breaks off."""

    daemon_threads = True
    request_queue_size = 128  # of more than the usual five that connect at once, some wait for a second

    def handle_error(self, request: object, client_address: object) -> None:
        pass


@contextlib.contextmanager
def serve_ranges(folder: Path) -> Iterator[str]:
    """The URL of a server whose buckets are the folder's sub-folders."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            asked = urlsplit(self.path)
            path = folder / unquote(asked.path).strip("/")
            if path.is_dir():
                body = list_files(path, parse_qs(asked.query).get("prefix", [""])[0]).encode()
                self.answer(200, len(body), {"Content-Type": "application/xml"})
                self.wfile.write(body)
                return
            with path.open("rb") as file, contextlib.suppress(ConnectionError):
                size = os.fstat(file.fileno()).st_size
                found = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
                begin, end = (int(found[1]), int(found[2]) + 1) if found else (0, size)
                whole = {"ETag": f'"{compute_md5(path)}"'}
                ranged = {"Content-Range": f"bytes {begin}-{end - 1}/{size}"} if found else {}
                self.answer(206 if found else 200, end - begin, whole | ranged)
                self.connection.setblocking(True)
                while begin < end and (
                    sent := os.sendfile(self.connection.fileno(), file.fileno(), begin, end - begin)
                ):
                    begin += sent

        def answer(self, status: int, length: int, headers: dict[str, str]) -> None:
            self.send_response(status)
            for name, value in (headers | {"Content-Length": str(length)}).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.flush()

        def log_message(self, *_: object) -> None:
            pass

    server = Server(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
