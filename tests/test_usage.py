"""What a run takes is measured in its own process, adds up over attempts, and costs what the user's prices say."""

import json
import os
import time
from contextlib import suppress
from dataclasses import asdict, replace

import numpy as np
import pytest
from prefect.serializers import JSONSerializer

from tasks.devices.prediction import Prediction
from tasks.devices.prediction import Stage as Timed
from tasks.errors import ConfigurationError
from tasks.learning.tables import count_batches
from tasks.streaming.memory import bound_memory
from tasks.streaming.objects.traffic import count
from tasks.tracking.outbox import Outbox
from tasks.usage.account import FILE, Account, Ledger
from tasks.usage.forecast import Forecast, Need, Pace, Stage, Work
from tasks.usage.measuring import Meter, Usage, read_memory, read_meters
from tasks.usage.pace import pace_of
from tasks.usage.prices import Prices, read_prices
from tasks.usage.wording import write_account, write_forecast, write_lines, write_seconds

MIB = 2**20
MEMORY = Need(name="memory", place="this machine", bytes=300 * MIB, free=2**33, remedy="smaller --batch-size")
CACHE = Need(name="cache", place="/cache", bytes=90 * MIB, free=80 * MIB, remedy="--cache-dir")
FORECAST = Forecast(
    shards=4,
    rows=1750,
    stages=(
        Stage(name="so far", requests=5, bytes=1000, passes=0.0),
        Stage(name="training", requests=12, bytes=36_000, passes=3.5),
        Stage(name="evaluation", requests=1, bytes=9000, passes=1.0),
    ),
    memory=MEMORY,
    disk=(),
    seconds=12.5,
    pace="a benchmark",
    gpus=0,
)
USAGE = Usage(
    seconds=10.0, cpu_seconds=7.5, gpu_seconds=0.0, requests=18, bytes=46_000, peak_memory=250 * MIB, attempts=1
)
PRICES = Prices(currency="EUR", per_1000_requests=0.5, per_GB=100.0, per_cpu_hour=3.6, per_gpu_hour=36.0)


def test_a_forecast_adds_up_and_is_read_back_from_a_file():
    assert (FORECAST.requests, FORECAST.bytes) == (18, 46_000)
    assert Forecast.from_dict(json.loads(json.dumps(asdict(FORECAST)))) == FORECAST


def test_an_account_passes_from_step_to_step():
    account = Account(forecast=replace(FORECAST, disk=(CACHE,)), usage=USAGE, prices=PRICES)
    serializer = JSONSerializer()
    assert serializer.loads(serializer.dumps(account)) == account


def test_usage_adds_up_over_attempts_and_memory_is_the_most_of_any():
    other = replace(USAGE, peak_memory=300 * MIB, requests=2, gpu_seconds=1.5)
    total = USAGE + other
    assert (total.seconds, total.cpu_seconds, total.gpu_seconds) == (20.0, 15.0, 1.5)
    assert (total.requests, total.bytes, total.peak_memory, total.attempts) == (20, 92_000, 300 * MIB, 2)


def test_what_a_block_takes_is_measured():
    kept: list[Usage] = []
    begun = read_meters()
    with Meter(begun, kept.append, gpus=2) as meter:
        before = read_memory()
        held = np.ones(80 * MIB // 8)
        count(requests=3, received=50)
        time.sleep(0.2)
        del held
        until = time.process_time() + 0.2
        while time.process_time() < until:
            pass
        taken = meter.read()
    assert before + 80 * MIB <= taken.peak_memory < before + 100 * MIB
    assert 0.4 <= taken.seconds < 5.0 and 0.2 <= taken.cpu_seconds <= taken.seconds * (os.cpu_count() or 1)
    assert taken.gpu_seconds == pytest.approx(2 * taken.seconds, abs=0.1)
    assert (taken.requests, taken.bytes, taken.attempts) == (3, 50, 1)
    assert kept[-1].seconds >= taken.seconds


def test_what_was_taken_is_kept_when_the_block_is_left_by_an_error():
    kept: list[Usage] = []
    with suppress(KeyboardInterrupt), Meter(read_meters(), kept.append):
        count(requests=1)
        raise KeyboardInterrupt
    assert kept[-1].requests == 1


@pytest.fixture
def outbox(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return Outbox("0" * 32)


class Empty:
    """An MLflow that has nothing of the run."""

    def list_artifacts(self, run_id):
        return []


def test_attempts_at_one_run_add_up_in_its_record_and_the_first_forecast_stays(outbox):
    first = Ledger(Empty(), outbox, FORECAST, None)
    first.keep(replace(USAGE, requests=1))
    first.keep(USAGE)  # of the same attempt, later
    second = Ledger(Empty(), outbox, replace(FORECAST, stages=FORECAST.stages[:1]), PRICES)
    account = second.add(USAGE)
    assert account.forecast == FORECAST
    assert account.usage.requests == 36 and account.usage.attempts == 2
    second.keep(USAGE)
    assert json.loads((outbox.path / "artifacts" / FILE).read_text())["usage"]["requests"] == 36


@pytest.mark.parametrize("text", ["", "{", "[]", '{"forecast": {}, "usage": {}}'])
def test_a_broken_account_is_begun_anew(text, outbox):
    outbox.keep(FILE, text)
    assert Ledger(Empty(), outbox, FORECAST, None).add(USAGE) == Account(forecast=FORECAST, usage=USAGE)


def test_cost_is_by_the_prices_and_none_without():
    account = Account(forecast=FORECAST, usage=replace(USAGE, gpu_seconds=100.0), prices=PRICES)
    assert account.cost == pytest.approx(18 / 1000 * 0.5 + 46_000 / 1e9 * 100 + 7.5 / 1000 + 1.0)
    assert account.metrics["usage_cost"] == account.cost
    assert Account(forecast=FORECAST, usage=USAGE).cost is None
    assert "usage_cost" not in Account(forecast=FORECAST, usage=USAGE).metrics
    assert account.metrics["usage_requests_foreseen"] == account.metrics["usage_requests"] == 18


@pytest.mark.parametrize(
    ("text", "prices"),
    [
        ("currency: EUR\nper_GB: 0.09\n", Prices(currency="EUR", per_GB=0.09)),
        ('{"currency": "USD", "per_1000_requests": 1}', Prices(currency="USD", per_1000_requests=1)),
    ],
)
def test_prices_are_read_from_yaml_and_json(text, prices, tmp_path):
    (tmp_path / "prices").write_text(text)
    assert read_prices(str(tmp_path / "prices")) == prices


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("per_GB: 1", "has no currency: write lines such as currency: USD"),
        ("currency: USD\nper_gb: 1", "has 'per_gb'; the nearest name is 'per_GB'"),
        ("currency: USD\nper_GB: free", "whose per_GB is 'free': write a number, 0 or more"),
        ("currency: USD\nper_GB: -1", "whose per_GB is -1"),
        ("currency: USD\nper_GB: .inf", "whose per_GB is inf"),
        ("currency: USD\nper_GB: true", "whose per_GB is True"),
        ("a: [", "cannot be read"),
    ],
)
def test_prices_that_are_none_are_refused(text, told, tmp_path):
    (tmp_path / "prices").write_text(text)
    with pytest.raises(ConfigurationError, match="prices names") as refused:
        read_prices(str(tmp_path / "prices"))
    assert told in str(refused.value)


def test_prices_that_are_not_there_are_refused(tmp_path):
    with pytest.raises(ConfigurationError, match="cannot be read"):
        read_prices(str(tmp_path / "none.yaml"))


def test_time_follows_from_rows_by_where_they_come_from():
    pace = Pace(streamed=1e-3, cached=1e-4, resident=1e-5, source="")
    work = Work(fetched=1000, cached=0, resident=10) + Work(fetched=0, cached=5000, resident=90)
    assert work.seconds_at(pace) == pytest.approx(1 + 0.5 + 0.001)


def make_prediction(data, measured=None):
    stages = [("fetch", "network", 8.0), ("decode", "cpu", 3.0), ("prepare", "cpu", 1.0), ("step", "cpu", 2.0)]
    chosen = stages if data == "streamed" else stages[-1:]
    return Prediction(
        data=data,
        device="cpu",
        rows=2,
        stages=tuple(Timed(name=name, resource=resource, seconds=seconds) for name, resource, seconds in chosen),
        seconds=8.0 if data == "streamed" else 2.0,
        bottleneck="fetch",
        measured=measured,
    )


def test_pace_is_what_was_measured_else_predicted_and_a_cache_neither_fetches_nor_decodes():
    predictions = [make_prediction("streamed", measured=10.0), make_prediction("resident")]
    assert pace_of(predictions, "cpu", "b") == Pace(streamed=5.0, cached=1.5, resident=1.0, source="b")
    assert pace_of(predictions[1:], "cpu", "b") is None
    assert pace_of(predictions, "cuda:0", "b") is None


def test_what_there_is_no_room_for_is_said_first_with_the_parameters_that_change_it():
    text = write_forecast(replace(FORECAST, disk=(CACHE,)))
    assert text.startswith("**cache: 90.0 MiB may be needed in /cache, and 80.0 MiB are free: --cache-dir**\n\n| what")
    assert write_forecast(FORECAST).startswith("| what")


def test_a_forecast_is_one_table_whose_columns_stand_below_each_other():
    lines = write_forecast(FORECAST).splitlines()
    assert len({len(line) for line in lines}) == 1
    assert any("12 requests, 35.2 KiB in 3.5 passes" in line for line in lines)


def test_the_first_lines_of_a_run_are_short():
    first, second = write_lines(replace(FORECAST, disk=(CACHE,)))
    assert first == ("To read: 4 shards, 1,750 rows: 18 requests (so far 5, training 12, evaluation 1), 44.9 KiB")
    assert second == (
        "To take: memory 300.0 MiB of 8.0 GiB; cache 90.0 MiB of 80.0 MiB; time: about 12.5 s by a benchmark"
    )


def test_an_account_sets_measured_beside_foreseen():
    text = write_account(Account(forecast=FORECAST, usage=USAGE + USAGE, prices=PRICES))
    cells = {cells[0]: cells[1:] for line in text.splitlines() if (cells := [c.strip() for c in line.split("|")[1:-1]])}
    assert cells["requests"] == ["18", "36"]
    assert cells["peak memory"] == ["300.0 MiB", "250.0 MiB"]
    assert cells["cost"][1] == "0.0422 EUR"
    assert "GPU time" not in cells
    assert "all 2 attempts together" in text


@pytest.mark.parametrize(("seconds", "text"), [(None, "–"), (1.25, "1.2 s"), (600.0, "10 min"), (9000.0, "2.5 h")])
def test_times_are_short(seconds, text):
    assert write_seconds(seconds) == text


def test_the_bound_of_a_streams_memory_is_the_readmes_formula():
    batch = 72 * MIB
    assert bound_memory(batch, 2, loaders=4) == 4 * 25 * MIB + 3 * batch + 4 * batch
    assert bound_memory(MIB, 2, loaders=4, shuffle=True) == 4 * 25 * MIB + 128 * MIB + 8 * MIB
    assert bound_memory(batch, 2, loaders=4, large=True, held=0) == 4 * 32 * MIB + 4 * batch
    assert bound_memory(batch, 2, loaders=4, held=MIB) == 4 * 25 * MIB + MIB + 4 * batch
    assert bound_memory(MIB, 2, loaders=2, parquet=3 * MIB) == 2 * (25 + 6) * MIB + 128 * MIB + 4 * MIB
    assert bound_memory(batch, 2, loaders=4, held=0, batches=1) == 4 * 25 * MIB + batch
    assert bound_memory(batch, 2, loaders=4, held=0, batches=1, shuffle=True) == 4 * 25 * MIB + 2 * batch


@pytest.mark.parametrize("rows", [7, 12, 298, 1000])
@pytest.mark.parametrize("batch_rows", [1, 4, 6, 298, 700])
def test_after_so_many_batches_every_row_was_seen(rows, batch_rows):
    needed = count_batches(rows, batch_rows, batch_rows)
    seen = [{row % rows for row in range(i * batch_rows, (i + 1) * batch_rows)} for i in range(needed)]
    assert set().union(*seen) == set(range(rows))
    assert needed == 1 or set().union(*seen[:-1]) != set(range(rows))
