"""Addresses as they may be shown and stored: without user, password, and the values of a query.

A presigned address says in its query who may read, and an address with user and password says it before the host. The
whole of it is used to open an object; all else (log, error, record, manifest, report, cache) has what this module makes
of it. Addresses are parsed by urllib; only http(s) has queries, in other schemes `?` is part of a pattern or a name.
"""

import hashlib
import re
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import unquote, urlsplit

MASK = "***"
CONTAINERS = ("abfs", "abfss", "wasb", "wasbs")  # what stands before @ there is a container, no user
URL = re.compile(r"""[A-Za-z][A-Za-z0-9+.-]*://[^\s"'`<>|]+""")
AFTER = ".,:;)]}"  # what may follow an address in a sentence
SIGNED_BY_PREFIX = ("x-amz-", "x-goog-")
SIGNED_WITH = {  # what belongs to a signature, where a parameter of this name is there too
    "sig": frozenset(
        [
            "sig",
            "se",
            "sp",
            "sv",
            "st",
            "sr",
            "sip",
            "spr",
            "ss",
            "srt",
            "sdd",
            "scid",
            "skoid",
            "sktid",
            "skt",
            "ske",
            "sks",
            "skv",
            "saoid",
            "suoid",
            "ses",
            "si",
        ]
    ),
    "signature": frozenset(("signature", "expires", "awsaccesskeyid", "googleaccessid", "policy", "key-pair-id")),
}

SHORTEST = 3  # characters: masking fewer would make a text unreadable, and hide nothing

_withheld: dict[str, str] = {}


def redact(uri: str) -> str:
    """Return an address for people: user and password, and the value of each parameter of its query, are masked."""
    bare = without_user_info(uri)
    if bare != uri:
        scheme, _, rest = bare.partition("://")
        bare = f"{scheme}://{MASK}@{rest}"
    return _change_query(bare, lambda _, pair: f"{pair.partition('=')[0]}={MASK}")


def redact_text(text: str) -> str:
    """Return a text in which every address is redacted."""

    def replace(found: re.Match[str]) -> str:
        whole = found.group()
        uri = whole.rstrip(AFTER)
        return redact(uri) + whole[len(uri) :]

    return URL.sub(replace, text) if "://" in text else text


def redact_all(value: Any) -> Any:
    """Return lists and mappings of JSON's types with every address in their texts redacted."""
    match value:
        case str():
            return redact_text(value)
        case list() | tuple():
            return [redact_all(each) for each in value]
        case Mapping():
            return {key: redact_all(each) for key, each in value.items()}
    return value


def identify(uri: str) -> str:
    """Return what an address names, whoever reads it: without user info and a signature's parameters, else unchanged.

    Fingerprints and caches are of it: an object that is signed anew is the same object, `?id=1` and `?id=2` are two.
    """
    names = {name.lower() for name, _ in _parameters(uri)}
    signing = frozenset[str]().union(*(known for mark, known in SIGNED_WITH.items() if mark in names))
    return _change_query(
        without_user_info(uri),
        lambda name, pair: None if name.lower() in signing or name.lower().startswith(SIGNED_BY_PREFIX) else pair,
    )


def label(uri: str) -> str:
    """Return a name for what an address names, to be stored: its query's values are there as a digest alone."""
    named = identify(uri)
    shown = redact(named)
    if shown == named:  # nothing to hide, or a label already
        return named
    return f"{shown}#{hashlib.sha256(named.encode()).hexdigest()[:16]}"


def without_user_info(uri: str) -> str:
    """Return an address without user and password, however unusual the characters in them."""
    scheme, separator, rest = uri.partition("://")
    if not separator or "@" not in rest or scheme.lower() in CONTAINERS:
        return uri
    try:
        parts = urlsplit(uri)
        _ = parts.port
        user, at, _ = parts.netloc.rpartition("@")
        return f"{scheme}://{rest[len(user) + len(at) :]}"
    except ValueError:  # a password with / or [ in it, which ends before the last @
        return f"{scheme}://{rest.rpartition('@')[2]}"


def is_well_formed(uri: str) -> bool:
    """Return whether every parser finds the same user info in an address, in a text too."""
    try:
        parts = urlsplit(uri)
        _ = parts.port
        return URL.fullmatch(uri) is not None and parts.netloc.count("@") == uri.count("@") == 1
    except ValueError:
        return False


def passwords_in(uri: str) -> list[str]:
    """Return user info and password of an address, as they stand there, decoded, and in the parts that parsers cut."""
    user_info = uri.partition("://")[2].rpartition("@")[0]
    password = user_info.partition(":")[2]
    parts = re.split("[@/?#]", password)[1:]
    forms = {user_info, password, unquote(password), *parts, *map(unquote, parts)}
    return sorted((form for form in forms if len(form) >= SHORTEST), key=len, reverse=True)


def mask(text: str, secrets: list[str]) -> str:
    """Return a text with these secrets masked."""
    for secret in secrets:
        text = text.replace(secret, MASK)
    return text


def is_signed(uri: str) -> bool:
    """Return whether an address says by a signature who may read it, and nothing beside it."""
    return identify(uri) != without_user_info(uri)


def name_of(uri: str) -> str:
    """Return the last part of an address's path, without its query."""
    return (urlsplit(uri).path if _parameters(uri) else uri).rpartition("/")[2]


def withhold(uri: str) -> str:
    """Return an address as it may be stored, and keep the whole of it in this process alone, for `reveal`."""
    if redact(uri) == uri:
        return uri
    shown = f"{redact(uri)}#{hashlib.sha256(uri.encode()).hexdigest()[:16]}"
    _withheld[shown] = uri
    return shown


def reveal(uri: str) -> str:
    """Return the whole of an address that this process withheld; any other as it is."""
    return _withheld.get(uri, uri)


def redact_causes(error: BaseException) -> None:
    """Put a plain error with its redacted text in place of the first cause of an error that shows a secret."""
    link = error
    while (cause := link.__cause__ or (None if link.__suppress_context__ else link.__context__)) is not None:
        text = str(cause)
        if redact_text(text) != text:
            link.__cause__ = Exception(f"{type(cause).__name__}: {redact_text(text)}")
            return
        link = cause


def is_withheld(uri: str) -> bool:
    """Return whether an address lacks what was masked in it."""
    return f"://{MASK}@" in uri or any(pair.endswith(f"={MASK}") for _, pair in _parameters(uri))


def _parameters(uri: str) -> list[tuple[str, str]]:
    """Return the query's parameters as (name, text), in order."""
    if not uri.lower().startswith(("http://", "https://")):
        return []
    query = uri.partition("#")[0].partition("?")[2]
    return [(unquote(pair.partition("=")[0]), pair) for pair in query.split("&") if pair]


def _change_query(uri: str, change: Callable[[str, str], str | None]) -> str:
    """Return an address with each parameter changed; None leaves it out. Where none changes, it stays as it is."""
    pairs = _parameters(uri)
    kept = [change(name, pair) if "=" in pair else pair for name, pair in pairs]
    if kept == [pair for _, pair in pairs]:
        return uri
    rest, hash_, fragment = uri.partition("#")
    query = "&".join(pair for pair in kept if pair is not None)
    return rest.partition("?")[0] + (f"?{query}" if query else "") + hash_ + fragment
