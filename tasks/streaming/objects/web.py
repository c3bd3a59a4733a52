"""What a web server's refusals, and connections that fail, mean. fsspec hides some of them behind FileNotFoundError."""

import socket
import ssl
from typing import Any
from urllib.parse import urlsplit

from tasks.errors import BucketError, ConfigurationError, ShardChangedError
from tasks.streaming.objects.retrying import RetryPolicy, TransientError

GONE = (404, 410)
READ_SIZE = 2**18  # of a piece: a block is read from where one begins
PASSING = (408, 425, 429)


def choose_block_size(retry: RetryPolicy, most: int) -> int:
    """Return how many bytes are asked for at once: no more than may come, slowly, before a connection is given up."""
    return max(READ_SIZE, min(most, int(retry.stall_seconds * retry.minimum_throughput)))


def make_web_options(given: dict[str, Any], retry: RetryPolicy, most: int) -> dict[str, Any]:
    """Return fsspec's options for http, with limits on how long a server may say nothing, and take for a block."""
    import aiohttp

    stall = retry.stall_seconds
    slowest = (choose_block_size(retry, most) + READ_SIZE) / retry.minimum_throughput
    timeout = aiohttp.ClientTimeout(total=stall + slowest, sock_connect=min(5.0, stall), sock_read=stall)
    tracing = aiohttp.TraceConfig()
    tracing.on_request_end.append(_check_range)
    return given | {"client_kwargs": {"timeout": timeout, "trace_configs": [tracing]} | given.get("client_kwargs", {})}


async def _check_range(_session: object, _context: object, request: Any) -> None:
    """Raise ShardChangedError where a server says that it sends other bytes than were asked for: fsspec takes them."""
    asked, response = request.headers.get("Range"), request.response
    sent = response.headers.get("Content-Range", "")
    if asked and response.status == 206 and sent.split("-")[0] != asked.split("-")[0].replace("=", " "):
        response.close()
        raise ShardChangedError(f"{request.url}: asked for {asked}, was sent '{sent}'; its server is not to be trusted")


def translate_web_error(error: BaseException, uri: str) -> Exception | None:
    """Return the error that a failed request stands for, or TransientError; None where the object is not there."""
    import aiohttp

    host = urlsplit(uri).netloc.rpartition("@")[2]
    found = _find_cause(error)
    if isinstance(found, aiohttp.ClientResponseError):
        return None if found.status in GONE else _translate_status(found.status, host, uri)
    reason = found.os_error if isinstance(found, aiohttp.ClientConnectorError) else None
    if isinstance(reason, socket.gaierror) and reason.errno != socket.EAI_AGAIN:
        return ConfigurationError(f"there is no host {host} (asked for {uri}): check the address, and the network")
    if isinstance(found, aiohttp.ClientSSLError) and not isinstance(reason, ssl.SSLEOFError):
        return _translate_tls(reason, host, uri)
    if found is not None:
        return TransientError(f"{host}: {str(found) or type(found).__name__}")
    if isinstance(error, ValueError):  # fsspec's, of a file without a size
        return ShardChangedError(f"{uri}: {host} states no size of it any more, or none of its parts; locate it again")
    return None


def _translate_tls(reason: OSError | None, host: str, uri: str) -> Exception:
    """Return the error for a server whose certificate is wrong, or that speaks no TLS."""
    if isinstance(reason, ssl.SSLCertVerificationError):
        return ConfigurationError(
            f"{host} cannot be trusted (asked for {uri}): {reason.verify_message}; check its address and certificate, "
            "or name a file with the authority that signed it in SSL_CERT_FILE"
        )
    return ConfigurationError(
        f"{host} speaks no TLS that is understood (asked for {uri}): {reason}; check the address, or try http://"
    )


def _find_cause(error: BaseException | None) -> BaseException | None:
    """Return what the network said, in the chain of an error."""
    import aiohttp

    while error is not None and not isinstance(error, aiohttp.ClientError | TimeoutError | ConnectionError):
        error = error.__cause__ or error.__context__
    return error


def _translate_status(status: int, host: str, uri: str) -> Exception:
    if status >= 500 or status in PASSING:
        return TransientError(f"{host} answered {status}")
    if status in (401, 403):
        return BucketError(f"{host} denied access to {uri} ({status}): give an address that may be read by anyone")
    if status == 416:
        return ShardChangedError(f"{uri} is shorter than it was when listed: locate the shards again")
    return ConfigurationError(f"{host} answered {status} when asked for {uri}: check the address")
