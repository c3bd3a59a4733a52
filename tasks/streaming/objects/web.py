"""What a web server's refusals, and connections that fail, mean. fsspec hides some of them behind FileNotFoundError."""

import socket
from typing import Any
from urllib.parse import urlsplit

from tasks.errors import BucketError, ConfigurationError, ShardChangedError
from tasks.streaming.objects.retrying import RetryPolicy, TransientError

GONE = (404, 410)
PASSING = (408, 425, 429)


def make_web_options(given: dict[str, Any], retry: RetryPolicy) -> dict[str, Any]:
    """Return fsspec's options for http, with limits on how long a server may say nothing."""
    import aiohttp

    stall = retry.stall_seconds
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=min(5.0, stall), sock_read=stall)
    return given | {"client_kwargs": {"timeout": timeout} | given.get("client_kwargs", {})}


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
    if isinstance(found, aiohttp.ClientSSLError):
        return ConfigurationError(f"{host} cannot be trusted (asked for {uri}): {found}; check its certificate")
    if found is not None:
        return TransientError(f"{host}: {str(found) or type(found).__name__}")
    if isinstance(error, ValueError):  # fsspec's, of a file without a size
        return ShardChangedError(f"{uri}: {host} states no size of it any more, or none of its parts; locate it again")
    return None


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
