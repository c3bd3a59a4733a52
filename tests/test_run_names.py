"""A flow run's name: what was typed stays, what Prefect drew is replaced by what is done."""

import pytest
from prefect.utilities.names import generate_slug

from flows.names import is_drawn


def test_names_that_prefect_draws_are_known():
    assert all(is_drawn(generate_slug(2)) for _ in range(300))


@pytest.mark.parametrize("name", ["try 3", "my-run", "baseline", "before-the-change", "theta151-fleming-m"])
def test_names_that_people_type_or_a_form_shows_are_not_taken_for_drawn(name):
    assert not is_drawn(name)
