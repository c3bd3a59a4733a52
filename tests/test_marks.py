"""What a parameter touches stands beside its definition, and what follows from it: digests, resuming, repeating."""

from typing import Annotated

import pytest
from pydantic import Field

from tasks.parameters import Mark, TrainingParameters
from tasks.runs.lineage import digest_settings

TOUCHED = {Mark.CURVE, Mark.SPEED, Mark.PLACE, Mark.RECORD}
RECORDED = TrainingParameters(shards="s3://b/x*.csv").model_dump()


@pytest.mark.parametrize("name", TrainingParameters.model_fields)
def test_every_parameter_of_a_training_says_one_thing_that_it_touches(name):
    assert len(TOUCHED & set(TrainingParameters.model_fields[name].metadata)) == 1


@pytest.mark.parametrize("name", TrainingParameters.model_fields)
def test_the_digest_follows_what_the_curve_depends_on_and_nothing_else(name):
    changed = digest_settings(RECORDED | {name: "another"}) != digest_settings(RECORDED)
    assert changed == (name in TrainingParameters.marked(Mark.CURVE))


def test_an_empty_batch_size_is_2_to_the_20_in_the_digest_as_it_was_before_it_could_be_empty():
    assert RECORDED["batch_size"] is None
    assert digest_settings(RECORDED) == digest_settings(RECORDED | {"batch_size": 1048576})
    assert digest_settings(RECORDED) != digest_settings(RECORDED | {"batch_size": 15_000})


class Later(TrainingParameters):
    """The parameters of a version to come, which has one more that the curve depends on."""

    momentum: Annotated[float, Mark.CURVE, Mark.LATER] = Field(0.0, ge=0, description="Of the optimiser.")


def test_a_parameter_that_comes_later_orphans_no_stopped_run(monkeypatch):
    monkeypatch.setattr("tasks.runs.lineage.TrainingParameters", Later)
    before, after = RECORDED, Later(shards="s3://b/x*.csv").model_dump()
    assert after.keys() - before.keys() == {"momentum"}
    assert digest_settings(after) == digest_settings(before)
    assert digest_settings(after | {"momentum": 0.9}) != digest_settings(before)
