"""A contract file: what it states, and what it cannot state, with the line."""

import fsspec
import pytest

from tasks.errors import ConfigurationError
from tasks.streaming import ColumnTerms, Terms, read_terms
from tasks.streaming.listing import contracts
from tasks.streaming.listing.contracts import parse_terms

URI = "s3://bucket/contract.yaml"
WHOLE = """\
# by hand
allowed_share_of_bad_rows: 1e-2
other_columns: refuse
columns:
  fare: {minimum: 0, maximum: 500.5}
  passengers:
    minimum: -1e3
    whole: true
  tip:
    required: false
  'a: b':
  2024: {whole: yes}
"""
STATED = Terms(
    uri=URI,
    allowed_share=0.01,
    closed=True,
    columns=(
        ColumnTerms(name="fare", minimum=0, maximum=500.5),
        ColumnTerms(name="passengers", minimum=-1000, whole=True),
        ColumnTerms(name="tip", required=False),
        ColumnTerms(name="a: b"),
        ColumnTerms(name="2024", whole=True),
    ),
)


def test_it_states_columns_bounds_and_the_share_of_bad_rows():
    assert parse_terms(URI, WHOLE) == STATED


@pytest.mark.parametrize(
    "text", ["columns:\n  fare:\n", "columns: {fare: }\nother_columns: allow\n", '"columns": {fare: {}}']
)
def test_what_it_leaves_out_is_allowed(text):
    assert parse_terms(URI, text) == Terms(uri=URI, columns=(ColumnTerms(name="fare"),))


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", " is empty: it may have columns, other_columns and allowed_share_of_bad_rows"),
        ("- fare\n", ", line 1: a contract must be keys with values, such as name: value"),
        ("\ncolumns: [fare]\n", ", line 2: columns must be keys with values, such as name: value"),
        (
            "colums:\n",
            ", line 1: a contract cannot have 'colums', only allowed_share_of_bad_rows, other_columns, columns; the "
            "nearest name is 'columns'",
        ),
        (
            "columns:\n  fare:\n    minimun: 0\n",
            ", line 3: column 'fare' cannot have 'minimun', only minimum, maximum, whole, required; the nearest name "
            "is 'minimum'",
        ),
        ("columns:\n  fare: 3\n", ", line 2: column 'fare' must be keys with values, such as name: value"),
        ("columns:\n  fare:\n  hour:\n  fare:\n", ", line 4: columns has 'fare' twice: leave one out"),
        ("columns:\n  ? [a]\n  : {}\n", ", line 2: columns has a key that is no name"),
        ("columns:\n  fare: {minimum: low}\n", ", line 2: minimum is 'low', which is no finite number"),
        ("columns:\n  fare: {minimum: '0'}\n", ", line 2: minimum is '0', which is no finite number"),
        ("columns:\n  fare: {minimum: true}\n", ", line 2: minimum is 'true', which is no finite number"),
        ("columns:\n  fare: {minimum: .inf}\n", ", line 2: minimum is '.inf', which is no finite number"),
        ("columns:\n  fare: {minimum: 2026-13-45}\n", ", line 2: minimum is '2026-13-45', which is no finite number"),
        ("columns:\n  fare: {minimum: !!int x}\n", ", line 2: minimum is 'x', which is no finite number"),
        ("columns:\n  fare: {minimum: [0]}\n", ", line 2: minimum must have one value"),
        (
            "columns:\n  fare:\n    minimum: 3\n    maximum: 2.5\n",
            ", line 3: column 'fare' has the minimum 3, more than its maximum 2.5",
        ),
        ("columns:\n  fare:\n    whole: 1\n", ", line 3: whole is '1': it may be true or false"),
        ("columns:\n  fare: {required: maybe}\n", ", line 2: required is 'maybe': it may be true or false"),
        ("other_columns: no\n", ", line 1: other_columns is 'no': it may be allow or refuse"),
        (
            "allowed_share_of_bad_rows: 5\n",
            ", line 1: allowed_share_of_bad_rows is 5: it is a share of all rows, from 0 to 1",
        ),
        ("columns:\n  fare: {minimum: 0\n", ", line 3: this is no YAML: expected ',' or '}', but got '<stream end>'"),
        ("columns: *all\n", ", line 1: this is no YAML: found undefined alias 'all'"),
        ("a: 1\n---\nb: 2\n", ", line 2: this is no YAML: but found another document"),
        (b"columns: \xff\n", " is no YAML: "),
        ("[" * 5000, " is no YAML: "),
    ],
)
def test_what_it_cannot_state_is_refused_with_the_line(text, fault):
    with pytest.raises(ConfigurationError) as raised:
        parse_terms(URI, text)
    assert str(raised.value).startswith(f"{URI}{fault}")


class TestReading:
    def test_takes_a_path_or_any_address(self, tmp_path):
        (tmp_path / "contract.yaml").write_text(WHOLE)
        with fsspec.open("memory://place/contract.yaml", "w") as file:
            file.write(WHOLE)
        assert read_terms(f"{tmp_path}/contract.yaml").columns == STATED.columns
        assert read_terms(f"{tmp_path}/contract.yaml").uri == f"file://{tmp_path}/contract.yaml"
        assert read_terms("memory://place/contract.yaml").columns == STATED.columns

    @pytest.mark.parametrize(("name", "count"), [("absent.yaml", "no"), ("*.yaml", "2")])
    def test_needs_one_file(self, name, count, tmp_path):
        for each in ("a.yaml", "b.yaml"):
            (tmp_path / each).write_text(WHOLE)
        with pytest.raises(ConfigurationError) as raised:
            read_terms(f"{tmp_path}/{name}")
        assert str(raised.value) == (
            f"contract names {tmp_path}/{name}, which is {count} files: give the address of one"
        )

    def test_refuses_what_is_too_large_to_be_one(self, tmp_path, monkeypatch):
        monkeypatch.setattr(contracts, "LARGEST", 10)
        (tmp_path / "part.csv").write_text("fare\n" + "1\n" * 100)
        with pytest.raises(
            ConfigurationError, match=r"part.csv has 205 bytes, more than any contract: is it a shard\?"
        ):
            read_terms(f"{tmp_path}/part.csv")


class TestTheDigest:
    def test_is_of_bounds_alone(self):
        bounds = ColumnTerms(name="fare", minimum=0)
        digest = Terms(uri="a", columns=(bounds,)).digest()
        assert (
            digest
            == Terms(uri="b", columns=(ColumnTerms(name="hour"), bounds), closed=True, allowed_share=0.5).digest()
        )
        assert digest != Terms(uri="a", columns=(ColumnTerms(name="fare", minimum=1),)).digest()
        assert digest != Terms(uri="a", columns=(ColumnTerms(name="fare", maximum=0),)).digest()

    def test_of_none_is_none(self):
        assert Terms(uri="a", columns=(ColumnTerms(name="fare"),)).digest() is None
        assert Terms(uri="a", columns=(ColumnTerms(name="fare", whole=True),)).digest(["hour"]) is None
