"""Where a run's checkpoints are, what they say of its data, and when they go."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prefect.logging import get_run_logger

from tasks.errors import CheckpointError, ConfigurationError
from tasks.redaction import label
from tasks.state import STATE

if TYPE_CHECKING:
    from tasks.streaming.manifest import Manifest


def checkpoint_folder(given: str | None) -> str:
    """Return where checkpoints are kept: the parameter, else a folder in STATE."""
    return given or str((STATE / "checkpoints").absolute())


def check_checkpoint_url(url: str) -> None:
    """Raise ConfigurationError for a URL whose scheme no installed package knows."""
    import fsspec

    try:
        fsspec.core.url_to_fs(url)
    except (ValueError, ImportError) as error:
        raise ConfigurationError(f"checkpoint_url {url!r} cannot be used: {error}") from error


def describe_change(checkpoint_url: str, run_id: str, manifest: Manifest) -> str:
    """Return which shards differ from those of a run's checkpoint, the first few by name."""
    from tasks.learning.checkpoints import Checkpoints

    before = Checkpoints(checkpoint_url, run_id).latest()
    if before is None:
        return "its manifest is not at hand"
    old = {label(uri): etag for uri, etag in before.facts.get("shards", {}).items()}
    new = manifest.etags
    changes = [f"{uri} is gone" for uri in old if uri not in new]
    changes += [f"{uri} is new" for uri in new if uri not in old]
    changes += [f"{uri} was replaced" for uri in new if uri in old and old[uri] != new[uri]]
    return ", ".join(changes[:5]) + (f" and {len(changes) - 5} more" if len(changes) > 5 else "")


def discard_checkpoints(given: str | None, run_id: str) -> None:
    """Delete the checkpoints of a run that has ended well: its weights stand in its record."""
    from tasks.learning.checkpoints import Checkpoints

    try:
        Checkpoints(checkpoint_folder(given), run_id).delete()
    except CheckpointError as error:
        get_run_logger().warning("The run is complete, and its checkpoints are left behind: %s", error)
