"""Which failed attempts of a step are worth another, on Prefect's own engine."""

import pytest
from prefect import flow

from tasks.errors import RowError, TransferError
from tasks.policy import step

PAUSES = (0.01, 0.01)


def attempts_of(*errors: Exception) -> tuple[int, object]:
    """How often a step is tried that raises these errors, one an attempt, and what comes of it."""
    left = list(errors)
    tried = []

    @step("try", run_name="try {number}", pauses=PAUSES)
    def try_it(number: int) -> int:
        tried.append(number)
        if left:
            raise left.pop(0)
        return number

    result = flow(name="trying")(lambda: try_it(7))(return_state=True).result(raise_on_failure=False)
    return len(tried), result


@pytest.mark.parametrize(
    ("errors", "tried"),
    [
        ([], 1),
        ([TransferError("late")], 2),
        ([TransferError("late"), TransferError("late")], 3),
    ],
)
def test_an_error_that_may_be_gone_is_tried_again_after_each_pause(prefect_api, errors, tried):
    assert attempts_of(*errors) == (tried, 7)


@pytest.mark.parametrize(
    ("errors", "tried"),
    [
        ([RowError("bad cell")], 1),
        ([OSError("not ours")], 1),
        ([TransferError("late"), RowError("bad cell")], 2),
        ([TransferError("late")] * 3, 3),
    ],
)
def test_any_other_error_and_one_too_many_ends_the_step(prefect_api, errors, tried):
    times, error = attempts_of(*errors)
    assert times == tried
    assert type(error) is type(errors[-1])


def test_a_step_takes_nothing_from_a_cache(prefect_api):
    calls = []

    @step("count")
    def count(number: int) -> int:
        calls.append(number)
        return len(calls)

    assert flow(name="counting")(lambda: (count(1), count(1)))() == (1, 2)
