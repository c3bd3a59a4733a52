"""What can go wrong, in words for the person who reads it.

    ShardlineError
    ├── ConfigurationError      a parameter, a setting or a combination of them; nothing was started
    ├── CredentialsError        AWS credentials missing, wrong, expired, or without the right to ask
    ├── BucketError             a bucket missing, in another region, foreign, or denied
    ├── ShardError              what was listed is not what is read
    │   ├── ShardsNotFoundError     the glob matches nothing that can be read
    │   ├── ShardChangedError       an object replaced, deleted or truncated since it was listed
    │   ├── TransferError           the bytes did not come whole, within the deadline
    │   ├── RowCountError           more or fewer rows than the metadata states
    │   └── RowError                a header, a line or a cell that breaks the data contract
    ├── TrainingError           the loop cannot go on, or cannot go on from where it stopped
    │   ├── NonFiniteLossError      the loss is not a finite number
    │   ├── RankError               a rank of a training over several processes was lost, or is not heard of
    │   └── CheckpointError         no checkpoint that fits, or none that is whole
    └── TrackingError           MLflow cannot be reached, or its record is incomplete

Every message says what was wrong, shows the offending value and its place (URI, line, column), and what to do.
Each class takes that one message, so that it crosses process borders unchanged; addresses in it are redacted. Foreign
errors are kept as `__cause__`. This module stands below all floors: it imports but `redaction`, and every room may
import it.
"""

from tasks.redaction import redact_text


class ShardlineError(Exception):
    """Base of all errors that this project raises on purpose.

    `retryable` says whether the same call may succeed a little later without anyone doing anything.
    """

    retryable = False

    def __init__(self, message: str = "") -> None:
        super().__init__(redact_text(message))


class ConfigurationError(ShardlineError):
    """A parameter, a setting, or a combination of them, that cannot work."""


class CredentialsError(ShardlineError):
    """AWS credentials that are missing, wrong, expired or not allowed to say who they are."""


class BucketError(ShardlineError):
    """A bucket that is missing, in another region, somebody else's, or denied."""


class ShardError(ShardlineError):
    """A shard that cannot be read as it was listed."""


class ShardsNotFoundError(ShardError):
    """A glob that matches no shard with rows."""


class ShardChangedError(ShardError):
    """A shard that was replaced, deleted or truncated after it was listed."""


class TransferError(ShardError):
    """A shard whose bytes did not arrive whole within the deadline."""

    retryable = True


class RowCountError(ShardError):
    """A shard with more or fewer rows than its metadata states."""


class RowError(ShardError):
    """A header, a line or a cell that breaks the data contract."""


class TrainingError(ShardlineError):
    """A training loop that cannot go on."""


class NonFiniteLossError(TrainingError):
    """A loss that is infinite or not a number."""


class RankError(TrainingError):
    """A rank of a training over several processes that was lost too often, or is not heard of any more."""

    retryable = True


class CheckpointError(TrainingError):
    """A checkpoint that is damaged, or was made from other data or settings."""


class TrackingError(ShardlineError):
    """An MLflow server that cannot be reached, or a record that is incomplete."""
