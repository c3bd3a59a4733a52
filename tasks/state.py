"""The folder in the working directory for what outlives a run: records not yet sent, checkpoints, caches, databases."""

from pathlib import Path

STATE = Path(".shardline")
