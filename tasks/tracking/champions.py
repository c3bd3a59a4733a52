"""Which version of a registered model is its champion, which one was before it, and how it is replaced.

MLflow's aliases keep no history. So a version that becomes champion keeps in a tag which one was before it, and these
tags lead from the champion back to the first one; a version that the alias is taken from keeps why.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

from tasks.errors import ConfigurationError
from tasks.naming import join_names
from tasks.tracking.client import translated

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

    from tasks.tracking.client import Client

CHAMPION = "champion"
BEFORE = "shardline.champion.before"  # of a version that became champion: the one that was before it
WITHDRAWN = "shardline.champion.withdrawn"  # of a version that was champion: why it is not any more
CHANGED = "shardline.champion.changed"  # of a version, and of the model: the last change of champion by a person
GATE = "shardline.gate"  # of a version: what came of holding it against the champion
BECOMES = "The model becomes champion"  # how that begins where it won


@dataclass(frozen=True, kw_only=True)
class RegisteredVersion:
    """A version of a registered model, and the run that made it."""

    name: str
    version: str
    run_id: str
    description: str
    tags: Mapping[str, str] = field(default_factory=dict)

    @property
    def won(self) -> bool:
        """Whether it became champion when it was registered."""
        return self.tags.get(GATE, "").startswith(BECOMES)


@dataclass(frozen=True, kw_only=True)
class ChampionChange:
    """A change of champion by a person: from one version, where there was a champion, to another one.

    withdrawn: the versions, the present champion first, that were champion since the new one was; none where it is new
        to it
    at: ISO 8601, in UTC
    """

    name: str
    version: str
    before: str | None
    withdrawn: tuple[str, ...]
    reason: str
    by: str
    at: str

    @property
    def verdict(self) -> str:
        """The change in one sentence, with its reason."""
        again = "again" if self.withdrawn else "now"
        instead = f", in place of version {self.before}" if self.before else ""
        return f"Version {self.version} is champion of {self.name} {again}{instead}: {self.reason}"


@dataclass(frozen=True, kw_only=True)
class Succession:
    """The versions of a registered model that are there, the newest one first, and which is champion."""

    name: str
    versions: tuple[RegisteredVersion, ...]
    champion: str | None

    @cached_property
    def numbered(self) -> Mapping[str, RegisteredVersion]:
        """The versions by their numbers."""
        return {each.version: each for each in self.versions}

    def find(self, version: str) -> RegisteredVersion:
        """Return a version that is there; raise ConfigurationError for another."""
        if version not in self.numbered:
            raise ConfigurationError(f"there is no version {version} of {self.name}: {self.remedy}")
        return self.numbered[version]

    def before(self, version: str) -> str | None:
        """Return the version that was champion before this one; None where none is known.

        Versions of before there was a tag for it say in their gate's verdict alone that they became champion: the one
        before is then the newest of those that are older.
        """
        own = self.numbered[version].tags.get(BEFORE)
        older = (each for each in self.versions if int(each.version) < int(version))
        return own or next((each.version for each in older if each.won and WITHDRAWN not in each.tags), None)

    @cached_property
    def champions(self) -> tuple[str, ...]:
        """The versions that were champion, as far back as is known, from the present one on."""
        known = [self.champion] if self.champion else []
        while known and (before := self.before(known[-1])) and before in self.numbered and before not in known:
            known.append(before)
        return tuple(known)

    @property
    def former(self) -> str:
        """The version that was champion before the present one; ConfigurationError where none is known, or there."""
        if self.champion is None:
            raise ConfigurationError(f"{self.name} has no champion that another was before: {self.remedy}")
        before = self.before(self.champion)
        if before is None:
            raise ConfigurationError(
                f"no version of {self.name} is known to have been champion before version {self.champion}: "
                f"{self.remedy}"
            )
        if before not in self.numbered:
            raise ConfigurationError(
                f"version {before} of {self.name}, champion before version {self.champion}, is not there any more: "
                f"{self.remedy}"
            )
        return before

    @property
    def remedy(self) -> str:
        """What a person can do who was refused, with the versions that can be named."""
        if not self.versions:
            return "it has no versions, so train one first"
        there = join_names(f"{each.version} ({self._describe(each)})" for each in self.versions)
        return f"name the one that is to be champion with --version; there are {there}"

    def _describe(self, version: RegisteredVersion) -> str:
        if version.version == self.champion:
            return "champion"
        if WITHDRAWN in version.tags:
            return "withdrawn"
        return "was champion" if version.won or version.version in self.champions else "challenger"


def read_succession(client: Client, name: str) -> Succession:
    """Return the versions of a registered model; raise ConfigurationError where there is no such model.

    Raises TrackingError without an answer.
    """
    from mlflow.exceptions import MlflowException

    with translated("the model registry does not answer"):
        try:
            model = client.get_registered_model(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            raise ConfigurationError(
                f"there is no registered model {name!r}: name the experiment of a training that registered one with "
                "--experiment"
            ) from error
        quote = '"' if "'" in name else "'"
        found = client.search_model_versions(f"name = {quote}{name}{quote}")
    champion = model.aliases.get(CHAMPION)
    versions = sorted(map(describe_version, found), key=lambda each: -int(each.version))
    return Succession(name=name, versions=tuple(versions), champion=None if champion is None else str(champion))


def describe_version(found: ModelVersion) -> RegisteredVersion:
    """Return a version of MLflow's as plain facts."""
    return RegisteredVersion(
        name=str(found.name),
        version=str(found.version),
        run_id=str(found.run_id or ""),
        description=str(found.description or ""),
        tags=dict(found.tags),
    )


def promote(client: Client, name: str, version: str, before: str | None) -> None:
    """Make a version champion after another one, which it keeps in a tag.

    The alias comes last: where that breaks off, the same call does all of it again.
    """
    if before is not None:
        client.set_model_version_tag(name, version, BEFORE, before)
    client.set_registered_model_alias(name, CHAMPION, version)


def replace_champion(client: Client, change: ChampionChange) -> None:
    """Carry out a change of champion, and keep its reason.

    Raises ConfigurationError where another version became champion since the change was described, and TrackingError
    where MLflow does not take it.
    """
    name, version = change.name, change.version
    told = f"{change.verdict} ({change.by}, {change.at})"
    with translated(f"the champion of {name} cannot be replaced"):
        now = client.get_registered_model(name).aliases.get(CHAMPION)
        if str(now) != str(change.before):
            raise ConfigurationError(
                f"version {now} of {name} became champion in the meantime, and not version {change.before} is to be "
                "replaced any more: start again"
            )
        for each in change.withdrawn:
            client.set_model_version_tag(name, each, WITHDRAWN, told)
        if WITHDRAWN in client.get_model_version(name, version).tags:
            client.delete_model_version_tag(name, version, WITHDRAWN)
        client.set_model_version_tag(name, version, CHANGED, told)
        client.set_registered_model_tag(name, CHANGED, told)
        promote(client, name, version, None if change.withdrawn else change.before)
