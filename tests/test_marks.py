"""What a parameter touches stands beside its definition, and what follows from it: digests, resuming, repeating."""

from typing import Annotated

import pytest
from pydantic import Field

from tasks.parameters import Mark, TrainingParameters
from tasks.runs.resuming import settings_key

TOUCHED = {Mark.CURVE, Mark.SPEED, Mark.PLACE, Mark.RECORD}
RECORDED = TrainingParameters(shards="s3://b/x*.csv").model_dump()


@pytest.mark.parametrize("name", TrainingParameters.model_fields)
def test_every_parameter_of_a_training_says_one_thing_that_it_touches(name):
    assert len(TOUCHED & set(TrainingParameters.model_fields[name].metadata)) == 1


@pytest.mark.parametrize("name", TrainingParameters.model_fields)
def test_the_digest_follows_what_the_curve_depends_on_and_nothing_else(name):
    changed = settings_key(RECORDED | {name: "another"}) != settings_key(RECORDED)
    assert changed == (name in TrainingParameters.marked(Mark.CURVE))


class Later(TrainingParameters):
    """The parameters of a version to come, which has one more that the curve depends on."""

    momentum: Annotated[float, Mark.CURVE, Mark.LATER] = Field(0.0, ge=0, description="Of the optimiser.")


def test_a_parameter_that_comes_later_orphans_no_stopped_run(monkeypatch):
    monkeypatch.setattr("tasks.runs.resuming.TrainingParameters", Later)
    before, after = RECORDED, Later(shards="s3://b/x*.csv").model_dump()
    assert after.keys() - before.keys() == {"momentum"}
    assert settings_key(after) == settings_key(before)
    assert settings_key(after | {"momentum": 0.9}) != settings_key(before)
