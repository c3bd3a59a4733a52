"""A contract file: YAML that names columns, their bounds, and which share of the rows may be bad.

    allowed_share_of_bad_rows: 0.01
    other_columns: refuse
    columns:
      fare: {minimum: 0, maximum: 500}
      passengers:
        minimum: 0
        whole: true
      tip:
        required: false

Every key may be left out. What it cannot say is refused, with its line.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from tasks.errors import ConfigurationError
from tasks.naming import join_names, suggest
from tasks.redaction import redact
from tasks.streaming.formats.terms import ColumnTerms, Terms, write_number
from tasks.streaming.objects.retrying import RetryPolicy
from tasks.streaming.objects.schemes import open_store
from tasks.streaming.objects.transfer import list_objects, read_object

if TYPE_CHECKING:
    from yaml import Node

T = TypeVar("T")
LARGEST = 2**20  # bytes: what is larger is no contract, but perhaps a shard
SHARE, OTHERS, COLUMNS = "allowed_share_of_bad_rows", "other_columns", "columns"
CHOICES = {"allow": False, "refuse": True}


def read_terms(
    uri: str, storage_options: Mapping[str, Any] | None = None, *, retry: RetryPolicy = RetryPolicy()
) -> Terms:
    """Return what the contract file at a URI or path states.

    storage_options: as fsspec's implementation of the scheme (s3fs for s3) names them

    Raises ConfigurationError, with the line, where there is no such file, or it states what cannot be.
    """
    store = open_store(uri, storage_options, retry)
    found = list_objects(store, uri, retry)
    if len(found) != 1:
        raise ConfigurationError(f"contract names {uri}, which is {len(found) or 'no'} files: give the address of one")
    if found[0].size > LARGEST:
        raise ConfigurationError(f"{uri} has {found[0].size:,} bytes, more than any contract: is it a shard?")
    return parse_terms(found[0].uri, b"".join(read_object(store, found[0], retry)))


def parse_terms(uri: str, text: bytes | str) -> Terms:
    """Return what a contract file states, of which this is the text; raises ConfigurationError, with the line."""
    import yaml

    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 1
        raise ConfigurationError(f"{uri}, line {line}: this is no YAML: {error.problem or error}") from error
    except (yaml.YAMLError, RecursionError) as error:
        raise ConfigurationError(f"{uri} is no YAML: {error}") from error
    return _Reader(uri).read_terms(root)


class _Reader:
    """Reads YAML's nodes, and names the line of what cannot be."""

    def __init__(self, uri: str) -> None:
        self._uri = uri

    def read_terms(self, root: "Node | None") -> Terms:
        if root is None:
            raise ConfigurationError(f"{self._uri} is empty: it may have {COLUMNS}, {OTHERS} and {SHARE}")
        found = self._read_mapping(root, "a contract", (SHARE, OTHERS, COLUMNS))
        columns = self._read_mapping(found[COLUMNS], COLUMNS) if COLUMNS in found else {}
        share = self._take(found, SHARE, self._read_number)
        if share is not None and not 0 <= share <= 1:
            self._refuse(found[SHARE], f"{SHARE} is {write_number(share)}: it is a share of all rows, from 0 to 1")
        return Terms(
            uri=redact(self._uri),
            columns=tuple(self._read_column(name, node) for name, node in columns.items()),
            closed=CHOICES[self._take(found, OTHERS, self._read_choice) or "allow"],
            allowed_share=share,
        )

    def _read_column(self, name: str, node: "Node") -> ColumnTerms:
        known = ("minimum", "maximum", "whole", "required")
        if _is_null(node):
            return ColumnTerms(name=name)
        found = self._read_mapping(node, f"column {name!r}", known)
        minimum, maximum = (self._take(found, bound, self._read_number) for bound in known[:2])
        if minimum is not None and maximum is not None and minimum > maximum:
            self._refuse(
                found["minimum"],
                f"column {name!r} has the minimum {write_number(minimum)}, more than its maximum "
                f"{write_number(maximum)}",
            )
        required = self._take(found, "required", self._read_switch)
        return ColumnTerms(
            name=name,
            minimum=minimum,
            maximum=maximum,
            whole=self._take(found, "whole", self._read_switch) or False,
            required=required is not False,
        )

    def _read_mapping(self, node: "Node", what: str, known: Iterable[str] | None = None) -> "dict[str, Node]":
        """Return the values by key, each key once, and none but the known ones; None: any."""
        import yaml

        if not isinstance(node, yaml.MappingNode):
            self._refuse(node, f"{what} must be keys with values, such as name: value")
        found: dict[str, Node] = {}
        for key, value in node.value:
            name = key.value if isinstance(key, yaml.ScalarNode) else ""
            if not name:
                self._refuse(key, f"{what} has a key that is no name")
            if known is not None and name not in known:
                self._refuse(key, f"{what} cannot have {name!r}, only {join_names(known)}{suggest(name, known)}")
            if name in found:
                self._refuse(key, f"{what} has {name!r} twice: leave one out")
            found[name] = value
        return found

    def _take(self, found: "Mapping[str, Node]", key: str, read: "Callable[[str, Node], T]") -> T | None:
        """Return the value of a key, as it is read; None where it is not there, or null."""
        return read(key, found[key]) if key in found and not _is_null(found[key]) else None

    def _read_number(self, key: str, node: "Node") -> float:
        value, number = self._read_value(key, node), math.nan
        is_text = isinstance(value, bool) or node.style is not None  # unquoted, 1e6 is a text to YAML alone
        with suppress(TypeError, ValueError, OverflowError):
            number = math.nan if is_text else float(value)
        if not math.isfinite(number):
            self._refuse(node, f"{key} is {node.value!r}, which is no finite number")
        return number

    def _read_switch(self, key: str, node: "Node") -> bool:
        value = self._read_value(key, node)
        if not isinstance(value, bool):
            self._refuse(node, f"{key} is {node.value!r}: it may be true or false")
        return value

    def _read_choice(self, key: str, node: "Node") -> str:
        value = self._read_value(key, node)
        if value not in CHOICES:
            self._refuse(node, f"{key} is {node.value!r}: it may be {' or '.join(CHOICES)}")
        return str(value)

    def _read_value(self, key: str, node: "Node") -> Any:
        import yaml

        if not isinstance(node, yaml.ScalarNode):
            self._refuse(node, f"{key} must have one value")
        try:
            return yaml.SafeLoader("").construct_object(node)
        except (ValueError, yaml.YAMLError):  # a date that is none, a tag that nobody knows
            return node.value

    def _refuse(self, node: "Node", fault: str) -> NoReturn:
        raise ConfigurationError(f"{self._uri}, line {node.start_mark.line + 1}: {fault}")


def _is_null(node: "Node") -> bool:
    return bool(node.tag == "tag:yaml.org,2002:null")
