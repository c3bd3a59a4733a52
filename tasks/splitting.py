"""Which rows a model is judged on: test shards where there are some, else shards that are held out from training."""

from __future__ import annotations

from typing import Any

ROWS_OF = {"test": "test", "held-out": "held-out", "train": "training"}  # in words, by kind
SMALLEST_SHARE, LARGEST_SHARE = 0.1, 0.5


def hold_out(manifest: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any] | None, str]:
    """The manifest to train on, that of the last shards, which hold a tenth of the rows or more, and a sentence on it.

    None is held out, and the sentence says why, where that takes more than half of the rows or the only shard.
    """
    from dataclasses import replace

    from tasks.streaming import Manifest

    located = Manifest.from_dict(manifest)
    shards, rows = located.shards, located.rows
    first, held = len(shards), 0
    while first > 1 and held < SMALLEST_SHARE * rows:
        first -= 1
        held += shards[first].rows
    if not SMALLEST_SHARE * rows <= held <= LARGEST_SHARE * rows:
        reason = "there is only one shard" if len(shards) == 1 else "the last ones do not hold between 10 % and half"
        return manifest, None, f"the training rows themselves: no test shards are named, and {reason}"
    last = len(shards) - first
    words = "shard" if last == 1 else f"{last} shards"
    return (
        replace(located, shards=shards[:first]).to_dict(),
        replace(located, shards=shards[first:]).to_dict(),
        f"{held:,} rows held out from training, {held / rows:.0%} of all: the last {words} of {len(shards)}",
    )


def split_rows(
    manifest: dict[str, Any], test_manifest: dict[str, Any] | None, preset: str
) -> tuple[dict[str, Any], dict[str, Any] | None, str, str]:
    """What to train on, what to judge on (None: the same), its kind (test, held-out or train), and what it is.

    The notebook's preset trains on everything, as the notebook did.
    """
    if test_manifest:
        return manifest, test_manifest, "test", f"the {test_manifest['rows']:,} rows of the test shards"
    if preset == "notebook":
        return manifest, None, "train", "the training rows themselves: the notebook's preset holds none out"
    training, held, sentence = hold_out(manifest)
    return training, held, "held-out" if held else "train", sentence
