"""A contract given to flows: what breaks it ends a run before it trains, and it is drafted from what a training saw."""

import json
from dataclasses import asdict

import numpy as np
import pytest

from flows.contracting import draft
from flows.training import check_parameters, train
from tasks.errors import ConfigurationError
from tasks.learning.profiles import ColumnProfile, DataProfile
from tasks.parameters import TrainingParameters
from tasks.runs.contracts import check_output, draft_contract, find_profile, quote_name, widen
from tasks.streaming import ColumnTerms
from tasks.streaming.listing.contracts import parse_terms
from tasks.tracking import client as record
from tasks.tracking.recorded import find_runs, read_artifact
from tests.flowruns import ended

hypothesis = pytest.importorskip("hypothesis")
examples, settings, st = hypothesis.given, hypothesis.settings, hypothesis.strategies


@pytest.fixture
def place(place):
    """A working directory with an MLflow store of its own, and shards with a bad row each, one of them to judge by."""
    random = np.random.default_rng(0)
    for name in ("dev-0", "dev-1", "dev-2", "test-0"):
        lines = ["price,area", *(f"{3 * area},{area}" for area in random.uniform(20, 200, 50).round(3))]
        lines[10] = "300,-1"
        (place / f"{name}.csv").write_text("\n".join(lines) + "\n")
    return place


def run_training(place, **given):
    return ended(train, shards=f"{place}/dev-*.csv", test_shards=f"{place}/test-*.csv", solver="exact", **given)


BROKEN = {  # by what breaks it: the contract, the parameter on_bad_rows, the error
    "a column that is missing": (
        "columns: {price: {}, rooms: {}}",
        "error",
        "dev-0.csv: column 'rooms' is missing, which file://{place}/contract.yaml requires; found price, area: correct",
    ),
    "too many rows that the model would be judged on": (
        "columns: {area: {minimum: 0}}\nallowed_share_of_bad_rows: 0.01",
        "quarantine",
        "1 of 50 rows break the contract (2.000%), and file://{place}/contract.yaml allows 1.000%: column 'area' is",
    ),
}


@pytest.mark.usefixtures("prefect_api")
@pytest.mark.parametrize("case", BROKEN)
def test_what_breaks_it_ends_a_run_before_anything_is_trained(case, place):
    contract, on_bad_rows, message = BROKEN[case]
    (place / "contract.yaml").write_text(contract)
    if on_bad_rows == "quarantine":  # none of the rows to train on is bad
        for path in place.glob("dev-*.csv"):
            path.write_text(path.read_text().replace("300,-1", "300,100"))
    state = run_training(place, contract="contract.yaml", on_bad_rows=on_bad_rows)
    assert state.is_failed()
    assert state.message and message.format(place=place) in state.message
    assert find_runs(record.connect(), "shardline") == []


@pytest.mark.long
@pytest.mark.usefixtures("prefect_api")
def test_a_run_by_a_contract_in_s3_leaves_bad_rows_out_and_by_another_one_it_is_another_run(place, aws):
    uri, settings = f"s3://{aws.bucket}/contract.yaml", set()
    for minimum, left_out in ((0, 3), (-1, 0)):
        text = f"columns: {{area: {{minimum: {minimum}}}}}\n"
        aws.client("s3").put_object(Bucket=aws.bucket, Key="contract.yaml", Body=text.encode())
        state = run_training(place, contract=uri, on_bad_rows="quarantine")
        assert state.is_completed(), state.message
        run = find_runs(record.connect(), "shardline")[0]
        terms = json.loads(read_artifact(record.connect(), run.run_id, "manifest.json") or "")["terms"]
        assert run.params["contract"] == terms["uri"] == uri
        assert terms["columns"][0]["minimum"] == minimum
        assert run.tags["shardline.contract"] == run.params["contract_bounds"]
        assert (f"Bad rows left out: {left_out}" in run.tags["mlflow.note.content"]) == (left_out > 0)
        settings.add(run.tags["shardline.settings"])
    assert len(settings) == 2


def test_a_local_contract_that_cannot_be_is_told_before_anything_is_started(place):
    (place / "contract.yaml").write_text("columns: {area: {minimum: low}}\n")
    given = TrainingParameters(shards="dev-*.csv", contract="contract.yaml")
    with pytest.raises(ConfigurationError, match=rf"{place}/contract.yaml, line 1: minimum is 'low', which is no"):
        check_parameters(given)


def make_column(name, least, most):
    middle = least / 2 + most / 2
    return ColumnProfile(
        name=name, rows=1000, mean=middle, deviation=1.5, least=least, most=most, edges=(0.0,), counts=(0, 1000)
    )


PROFILE = DataProfile(
    rows=1000,
    columns=(make_column("fare", 2.5, 60.25), make_column("hour: of day", 0.0, 23.0), make_column("far", 0.0, 1e-7)),
)
RUN = "0123456789abcdef0123456789abcdef"
DRAFT = f"""\
# Bounds of the 1,000 rows that run {RUN} was trained on.
# They are what was seen, not what is right: edit them, and leave out what may be any number.
# allowed_share_of_bad_rows: 0.01    # with --on-bad-rows quarantine, a run ends where more are bad
# other_columns: refuse              # shards may have no column that is not named here
columns:
  fare:    # mean 31.375, deviation 1.5
    minimum: 2.5
    maximum: 60.25
  "hour: of day":    # mean 11.5, deviation 1.5
    minimum: 0
    maximum: 23
    # whole: true    # both bounds are: where all numbers must be
  far:    # mean 5e-08, deviation 1.5
    minimum: 0
    maximum: 1.0e-07
"""


def test_a_draft_has_the_bounds_as_they_were_with_what_helps_to_edit_them():
    assert draft_contract(PROFILE, RUN, 0.0) == DRAFT
    assert "trained on, wider by 12.500% of each column's range.\n" in draft_contract(PROFILE, RUN, 0.125)


@pytest.mark.parametrize(
    ("least", "most", "margin", "bounds"),
    [
        (2.5, 60.5, 0.0, (2.5, 60.5)),
        (10.5, 12.5, 0.5, (9.5, 13.5)),
        (0.0, 23.0, 0.1, (0.0, 26.0)),
        (-5.0, 5.0, 0.05, (-6.0, 6.0)),
        (-4.0, -1.0, 1.0, (-7.0, 0.0)),
        (7.0, 7.0, 1.0, (7.0, 7.0)),
    ],
)
def test_a_margin_keeps_whole_bounds_whole_and_one_sign(least, most, margin, bounds):
    assert widen(make_column("x", least, most), margin) == bounds


FINITE = st.floats(-1e300, 1e300)


@settings(deadline=None)
@examples(st.text(min_size=1).filter(lambda name: name.isprintable()), FINITE, FINITE)
def test_a_draft_states_what_was_seen_to_the_bit(name, one, other):
    least, most = sorted((one, other))
    profile = DataProfile(rows=1000, columns=(make_column(name, least, most),))
    (column,) = parse_terms("contract.yaml", draft_contract(profile, RUN, 0.0)).columns
    assert column == ColumnTerms(name=name, minimum=least, maximum=most)


@pytest.mark.parametrize(("name", "key"), [("fare", "fare"), ("yes", '"yes"'), ("1", '"1"'), ("a #b", '"a #b"')])
def test_a_name_is_quoted_where_yaml_would_read_something_else(name, key):
    assert quote_name(name) == key


def record_profile(profiles):
    """The id of a run with these profiles in its record."""
    client = record.connect()
    run_id = record.begin(client, experiment="shardline", name="run", parameters={}, tags={})
    client.log_text(run_id, json.dumps(profiles), "data/profile.json")
    return run_id


@pytest.mark.usefixtures("prefect_api")
def test_drafting_writes_a_file_and_leaves_one_that_is_there_as_it_is(place):
    run = record_profile({"train": asdict(PROFILE)})
    state = ended(draft, run=run)
    assert state.is_completed(), state.message
    assert (place / "contract.yaml").read_text() == DRAFT.replace(RUN, run)
    with pytest.raises(ConfigurationError, match=r"output is contract\.yaml, which is there already: name another"):
        check_output("contract.yaml")


def test_drafting_says_where_there_is_nothing_to_draft_from(place):
    with pytest.raises(ConfigurationError, match="experiment shardline has no champion: name a run with --run"):
        find_profile("shardline", None)
    for run in (RUN, record_profile({"test": asdict(PROFILE)})):
        with pytest.raises(ConfigurationError, match=f"run {run} has no profile of training rows"):
            find_profile("shardline", run)
