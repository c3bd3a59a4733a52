"""What the tests of `verify_credentials` share: a call with everyday arguments, and a proxy before the stand-in.

A plugin that its users also import from: PYTEST_DONT_REWRITE spares them pytest's warning about that.
"""

import traceback
from collections.abc import Iterator
from typing import Any

import pytest

from deployments.standin import StandIn
from tasks.aws import identity
from tasks.aws.identity import Identity
from tasks.credentials import verify_credentials
from tasks.errors import ShardlineError
from tests.awsproxy import AwsProxy


@pytest.fixture
def proxy(aws: StandIn, monkeypatch: pytest.MonkeyPatch) -> Iterator[AwsProxy]:
    """A proxy in front of the stand-in, which this test's environment leads to; no pauses between attempts."""
    with AwsProxy(upstream=aws.endpoint) as running:
        monkeypatch.setenv("AWS_ENDPOINT_URL", running.url)
        monkeypatch.setattr(identity, "BUSY_PAUSES", (0.0, 0.0))
        yield running


def verify(*uris: str, **changes: Any) -> Identity:
    """Verify these URIs in us-east-1, by STS, as the caller's own, but for the changes."""
    given: dict[str, Any] = {
        "uris": uris,
        "region": "us-east-1",
        "bucket_owner": None,
        "verify_identity": True,
        "anonymous": False,
    }
    return verify_credentials(**given | changes)


def refusal(*uris: str, **changes: Any) -> ShardlineError:
    """The error that `verify` ends in."""
    with pytest.raises(ShardlineError) as caught:
        verify(*uris, **changes)
    return caught.value


def everything_said(error: BaseException | None) -> str:
    """The traceback, and what hangs on each error of the chain."""
    said = "".join(traceback.format_exception(error))
    while error is not None:
        said += repr(error) + repr(vars(error))
        error = error.__cause__ or error.__context__
    return said
