"""What Google's and Azure's refusals mean, by status: gcsfs and adlfs, installed by who needs them, have own errors."""

from tasks.errors import BucketError, ConfigurationError
from tasks.streaming.objects.retrying import TransientError

SCHEMES = ("gs", "gcs", "abfs", "abfss", "az")
PASSING = (408, 425, 429)


def translate_cloud_error(error: BaseException, uri: str) -> Exception | None:
    """Return the error that a refusal stands for, or TransientError; None where none is stated, or nothing is there."""
    if isinstance(error, FileNotFoundError):
        return None
    status = _find_status(error)
    if status is None:
        azures = type(error).__module__.startswith("azure.")  # of a connection, where it states no status
        return TransientError(f"{uri}: {error}") if azures else None
    if status >= 500 or status in PASSING:
        return TransientError(f"{uri}: its store answered {status}")
    if status in (401, 403):
        return BucketError(f"access to {uri} is denied ({status}): see to the credentials, and to what they may read")
    return ConfigurationError(f"the store of {uri} answered {status}: {error}; check the address and storage_options")


def _find_status(error: BaseException | None) -> int | None:
    """Return the HTTP status that an error, or one that it came from, states."""
    while error is not None:
        for name in ("status_code", "code"):  # adlfs's, gcsfs's
            stated = str(getattr(error, name, ""))
            if stated.isdigit() and 400 <= int(stated) < 600:
                return int(stated)
        if isinstance(error, OSError) and str(error).startswith("Forbidden: "):  # gcsfs's
            return 403
        error = error.__cause__ or error.__context__
    return None
