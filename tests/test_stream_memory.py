"""Memory is what the README's formula says, and flat from 1 to 10 times the data."""

import pytest

from tests.benchmarks.rangeserver import serve_ranges
from tests.benchmarks.stream_memory import are_alike, bound, find_peaks
from tests.benchmarks.stream_setting import HOME, serve_shards

pytestmark = [pytest.mark.long, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def environment():
    with serve_shards() as environment, serve_ranges(HOME / "s3") as url:
        yield environment | {"AWS_ENDPOINT_URL": url}


@pytest.mark.parametrize(
    "options",
    [
        {"batch_size": 2**18},
        {"batch_size": 2**18, "shuffle": True},
        {"batch_size": 2**18, "cache": True},
        {"batch_size": 2**18, "large": True},
    ],
    ids=["plain", "shuffled", "cached", "large"],
)
def test_memory_is_bounded_by_the_formula_and_does_not_grow_with_the_data(options, environment):
    base, one, ten = find_peaks(options, environment)
    assert max(one, ten) <= base + bound(options)
    assert are_alike(one, ten, options), (one, ten)
