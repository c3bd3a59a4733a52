"""What a stream will ask of its store is known before it is asked: told, counted in the stream, and by the server."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
from torch.utils.data import DataLoader

from tasks.streaming import CacheSettings, ObjectStorageDataset, Placement, foreseeing, locate, splitting
from tasks.streaming.objects.traffic import Traffic, count, read_traffic
from tests.counting import note_answers, serve_kinds
from tests.faults import FaultProxy, Refuse
from tests.servers import BUCKET
from tests.shards import write_shards

COUNTS = (400, 400, 400, 300, 250)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """The URL of a server with shards of each kind below `csv`, `gzip`, `parquet` and `bad`."""
    with serve_kinds(tmp_path_factory.mktemp("shards"), COUNTS) as url:
        yield url


@pytest.fixture
def counting(server, monkeypatch):
    """A proxy before the server, which all that is opened in the test asks, and the bytes of its answers."""
    with note_answers(server, monkeypatch) as sent:
        yield sent


def located(kind="csv", **given):
    return locate(f"s3://{BUCKET}/{kind}/part*", **given)


def measured(dataset, counting):
    """What going through it took, as the stream counts it, and the server."""
    before, earlier = read_traffic(), len(counting)
    for _ in dataset:
        pass
    return read_traffic() - before, Traffic(requests=len(counting) - earlier, bytes=sum(counting[earlier:]))


def foreseen(expected):
    return Traffic(requests=expected.requests, bytes=expected.bytes)


CASES: dict[str, dict[str, Any]] = {
    "one pass": {"epochs": 1},
    "passes": {"epochs": 3},
    "small batches": {"epochs": 2, "batch_size": 7},
    "a batch of all": {"epochs": 2, "batch_size": 5000},
    "an end before the last row": {"stop": 3},
    "a later beginning": {"epochs": 2, "start": 5},
    "shuffled": {"epochs": 2, "shuffle": True, "seed": 3},
    "far ahead": {"stop": 30, "prefetch": 8},
    "a rank": {"stop": 6, "placement": Placement(rank=1, world_size=3)},
    "good rows alone": {"epochs": 2, "on_bad_rows": "quarantine", "kind": "bad"},
    "gzip": {"epochs": 2, "kind": "gzip"},
    "parquet": {"epochs": 2, "kind": "parquet"},
}


@pytest.mark.parametrize("held", [pytest.param(9000, id="some"), pytest.param(2**27, marks=pytest.mark.long, id="all")])
@pytest.mark.parametrize("case", CASES)
def test_requests_and_bytes_are_as_foreseen(case, held, counting, tmp_path, monkeypatch):
    """Whether loading goes ahead a little, some, or as far as it may."""
    monkeypatch.setattr("tasks.streaming.dataset.HELD", held)
    given: dict[str, Any] = {
        "batch_size": 250,
        "prefetch": 1,
        "cache": CacheSettings(enabled=False, folder=tmp_path),
    } | CASES[case]
    dataset = ObjectStorageDataset(located(given.pop("kind", "csv")), **given)
    expected = dataset.expect()
    assert (foreseen(expected),) * 2 == measured(dataset, counting)
    assert expected.requests >= 2 and not expected.stored


@pytest.mark.parametrize("cached", [False, True])
def test_of_very_many_batches_the_rest_ask_as_the_last_ones_do_that_are_gone_through(cached, tmp_path, monkeypatch):
    write_shards(tmp_path, COUNTS)
    cache = CacheSettings(enabled=cached, folder=tmp_path / "cache")
    monkeypatch.setattr("tasks.streaming.dataset.HELD", 9000)

    def expect(most):
        monkeypatch.setattr(foreseeing, "MOST_BATCHES", most)
        monkeypatch.setattr(foreseeing, "HALFWAY", most // 2)
        return ObjectStorageDataset(
            f"{tmp_path}/part*.csv", batch_size=250, prefetch=1, stop=7000, cache=cache
        ).expect()

    every, some = expect(7000), expect(1400)
    assert some.memory == every.memory and some.stored == every.stored
    assert some.requests == pytest.approx(every.requests, rel=0.02) and some.bytes == pytest.approx(
        every.bytes, rel=0.02
    )
    assert (some.requests == every.requests == len(COUNTS)) == cached


@pytest.mark.parametrize("limit", [None, 0], ids=["enough", "none"])
def test_what_the_cache_has_is_not_asked_for_again(limit, counting, tmp_path):
    cache = CacheSettings(folder=tmp_path, limit_bytes=limit)
    dataset = ObjectStorageDataset(located(), batch_size=250, prefetch=1, epochs=2, cache=cache)
    first = dataset.expect()
    earlier = dataset.expect(earlier=first.stored)
    assert (foreseen(first),) * 2 == measured(dataset, counting)
    assert {path.name for path in tmp_path.glob("*.rows")} == first.stored
    assert sum(path.stat().st_size for path in tmp_path.glob("*.rows")) == first.written
    again = dataset.expect()
    assert replace(again, room=earlier.room) == earlier and not again.written
    assert (foreseen(again),) * 2 == measured(dataset, counting)
    assert (again.requests == 0) == (limit is None)


def test_a_cache_that_holds_some_shards_is_asked_for_those_alone(counting, tmp_path):
    """Which ones it holds depends on which come first; how many does not."""
    cache = CacheSettings(folder=tmp_path, limit_bytes=25_000)
    dataset = ObjectStorageDataset(located(), batch_size=250, prefetch=1, epochs=2, cache=cache)
    expected, earlier = dataset.expect(), len(counting)
    for _ in dataset:
        pass
    assert len(counting) - earlier == expected.requests
    assert len(list(tmp_path.glob("*.rows"))) == len(expected.stored) == 2
    assert expected.written <= expected.room == 25_000 < expected.wanted


def test_worker_processes_ask_as_often_as_foreseen(counting, tmp_path):
    dataset = ObjectStorageDataset(located(), batch_size=250, prefetch=1, epochs=2)
    expected = dataset.expect(workers=2)
    before = len(counting)
    for _ in DataLoader(dataset, batch_size=None, num_workers=2, multiprocessing_context="fork"):
        pass
    assert len(counting) - before == expected.requests
    assert sum(counting[before:]) == expected.bytes


@pytest.mark.parametrize("cached", [False, True])
def test_ranges_of_a_large_shard_are_requests(cached, counting, tmp_path, monkeypatch):
    monkeypatch.setattr("tasks.streaming.loading.LARGE", 1000)
    monkeypatch.setattr(splitting, "RANGE", 3000)
    cache = CacheSettings(enabled=cached, folder=tmp_path)
    dataset = ObjectStorageDataset(located(), batch_size=250, prefetch=1, epochs=1, cache=cache)
    expected = dataset.expect()
    sizes = [shard.size for shard in dataset.manifest.shards]
    assert expected.requests == sum(-(-size // 3000) for size in sizes) > len(sizes)
    own, server = measured(dataset, counting)
    assert own == foreseen(expected)
    assert server.requests == expected.requests  # its bytes are more: the first range's request asks for the whole


def test_a_local_folder_is_foreseen_too(tmp_path):
    write_shards(tmp_path, COUNTS)
    dataset = ObjectStorageDataset(str(tmp_path / "part*.csv"), batch_size=250, prefetch=1, epochs=2)
    before = read_traffic()
    expected = dataset.expect()
    assert read_traffic() == before
    for _ in dataset:
        pass
    assert read_traffic() - before == foreseen(expected)


def test_an_attempt_that_fails_counts_as_a_request(server, monkeypatch):
    for name, value in (("ACCESS_KEY_ID", "key"), ("SECRET_ACCESS_KEY", "secret"), ("DEFAULT_REGION", "us-east-1")):
        monkeypatch.setenv(f"AWS_{name}", value)
    with FaultProxy(server, Refuse(503, "SlowDown"), key="part-00001.csv", times=1) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        dataset = ObjectStorageDataset(located(), batch_size=250, prefetch=1, epochs=1)
        before = read_traffic()
        expected = dataset.expect()
        for _ in dataset:
            pass
    assert read_traffic() - before == Traffic(requests=expected.requests + 1, bytes=expected.bytes)


def test_traffic_is_counted_from_any_thread():
    before = read_traffic()
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: count(requests=1, received=3), range(4000)))
    assert read_traffic() - before == Traffic(requests=4000, bytes=12_000)
