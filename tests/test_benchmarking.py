"""The benchmarking flow on the real engine: what it leaves in MLflow and Prefect, and how it refuses."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest
from mlflow import MlflowClient
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId
from prefect.serializers import JSONSerializer

from flows.benchmarking import benchmark, check_parameters, find_sources
from tasks.benchmark.hardware import describe_hardware, make_plan
from tasks.benchmark.report import load_benchmark
from tasks.devices import PLANS, Benchmark, Figure, Prediction, describe
from tasks.devices.description import CudaDevice
from tasks.devices.prediction import Data, Stage
from tasks.devices.timing import SampleTime
from tasks.devices.wording import write_description, write_report, write_unit, write_verdict
from tasks.errors import ConfigurationError
from tasks.parameters import BenchmarkParameters
from tasks.tracking import client as record
from tests.flowruns import ended

pytest_plugins = ["tests.verification"]

# as the flow wrote it when its steps passed plain dicts
EARLIER = Path(__file__).parent / "fixtures" / "compatibility" / "benchmark.json"
GIVEN = {"mode": "quick", "device": "cpu", "time_budget": 8.0, "max_size": 2**5}


@pytest.fixture(scope="module")
def workplace(workplace):
    """A working directory of the module's own, and a plan of small vectors, matrices and samples.

    Samples that take a quarter of the time budget leave it unspent where other tests keep both cores busy.
    """
    with pytest.MonkeyPatch.context() as patch:
        samples = SampleTime(shortest=0.005, longest=0.05)
        small = replace(PLANS["quick"], samples=samples, vector=2**12, products={"cpu": (16,)})
        patch.setitem(PLANS, "quick", small)
        yield workplace


def find_run(state):
    """The MLflow run that a flow run left."""
    client = MlflowClient(tracking_uri=record.tracking_uri())
    experiment = client.get_experiment_by_name("shardline-benchmarks").experiment_id
    (run,) = client.search_runs([experiment], f"tags.`prefect.flow_run_id` = '{state.state_details.flow_run_id}'")
    return run


@pytest.fixture(scope="module")
def streamed(prefect_api, workplace, generated):
    """A finished run with shards: its state, its MLflow run, a client."""
    state = ended(benchmark, **GIVEN, shards=f"{generated}/csv/dev/part*.csv")
    assert state.is_completed(), state.message
    return state, find_run(state), MlflowClient(tracking_uri=record.tracking_uri())


@pytest.fixture(scope="module")
def compared(streamed):
    """A finished run without shards, compared with the one that has them."""
    state = ended(benchmark, **GIVEN, against=streamed[1].info.run_id)
    assert state.is_completed(), state.message
    return state, find_run(state), streamed[2]


def read_json(client, run, path):
    return json.loads(Path(client.download_artifacts(run.info.run_id, path)).read_text(encoding="utf-8"))


def read_artifacts(state):
    """The Prefect artifacts of a flow run, by key."""
    this_run = ArtifactFilterFlowRunId(any_=[state.state_details.flow_run_id])
    with get_client(sync_client=True) as client:
        found = client.read_artifacts(artifact_filter=ArtifactFilter(flow_run_id=this_run))
    return {artifact.key: artifact for artifact in found}


def test_the_steps_of_mlflows_metrics_are_the_sizes_logarithms(streamed):
    _, run, client = streamed
    history = client.get_metric_history(run.info.run_id, "add/cpu/float64/seconds")

    assert sorted(metric.step for metric in history) == list(range(6))
    assert all(metric.value > 0 for metric in history)


def test_every_figure_carries_its_spread_and_whether_it_can_be_used(streamed):
    _, run, client = streamed
    rows = read_json(client, run, "benchmark.json")["figures"]

    assert {row["device"] for row in rows if row["name"] == "fetch"} == {"disk"}
    assert {row["name"] for row in rows} >= {"add", "copy", "triad", "matmul", "step", "fetch", "decode", "prepare"}
    assert all(math.isfinite(row["spread"]) and row["noisy"] in (True, False) for row in rows)


def test_predictions_stand_beside_what_was_measured(streamed):
    _, run, client = streamed
    predictions = read_json(client, run, "benchmark.json")["predictions"]

    assert [(each["data"], each["device"]) for each in predictions] == [("streamed", "cpu"), ("resident", "cpu")]
    assert all(each["seconds"] > 0 and each["measured"] > 0 and each["rows"] == 5_000 for each in predictions)
    assert [stage["name"] for stage in predictions[0]["stages"]] == ["fetch", "receive", "decode", "prepare", "step"]


def test_the_table_is_one_that_mlflow_shows_as_a_table(streamed):
    _, run, client = streamed
    table = read_json(client, run, "figures.json")

    assert {"path": "figures.json", "type": "table"} in json.loads(run.data.tags["mlflow.loggedArtifacts"])
    assert {"what", "device", "dtype", "size", "time", "spread", "usable", "rate"} <= set(table["columns"])
    assert all(len(row) == len(table["columns"]) for row in table["data"])


def test_plots_and_report_are_in_mlflow(streamed):
    _, run, client = streamed
    plots = {file.path for file in client.list_artifacts(run.info.run_id, "plots")}

    assert plots == {f"plots/{name}.png" for name in ("times", "bandwidths", "products", "iterations")}
    assert "A training step takes" in run.data.tags["mlflow.note.content"]
    assert run.info.status == "FINISHED"


def test_parameters_are_recorded_as_what_they_stood_for(streamed):
    _, run, _ = streamed

    assert run.data.params["mode"] == "quick"
    assert run.data.params["max_size"] == "32"
    assert run.data.params["time_budget"] == "8.0"


def test_prefect_shows_report_and_figures(streamed):
    artifacts = read_artifacts(streamed[0])

    assert {"benchmark", "figures", "training-shards"} <= set(artifacts)
    assert "data:image/png;base64," in artifacts["benchmark"].data
    assert len(json.loads(artifacts["figures"].data)) > 12


def test_what_no_shards_leave_out_is_said(compared):
    left_out = read_json(compared[2], compared[1], "benchmark.json")["left_out"]

    assert "The stream's rates, and iterations over it: no shards were named." in left_out


def test_two_runs_are_compared_by_ratio(compared, streamed):
    state, run, client = compared
    table = read_json(client, run, "changes.json")
    ours, theirs = (
        {Figure.from_row(row).key: row for row in read_json(client, each, "benchmark.json")["figures"]}
        for each in (run, streamed[1])
    )
    changes = [dict(zip(table["columns"], row, strict=True)) for row in table["data"]]

    assert len(changes) == len(ours)
    for change in changes:
        key = (change["name"], change["device"], change["dtype"], change["size"])
        assert change["ratio"] == pytest.approx(theirs[key]["seconds"] / ours[key]["seconds"])
    assert "changes" in read_artifacts(state)
    assert "plots/changes.png" in {file.path for file in client.list_artifacts(run.info.run_id, "plots")}


@pytest.mark.usefixtures("workplace")
def test_an_unknown_run_to_compare_with_is_refused():
    with pytest.raises(ConfigurationError, match=r"against is 0{32}, .* give the run id of a finished benchmark"):
        load_benchmark("0" * 32)


@pytest.mark.usefixtures("workplace", "prefect_api")
def test_every_read_from_s3_names_the_account_that_must_own_the_bucket(aws, proxy):
    short = {"time_budget": 1.0, "max_size": 2}  # what is read counts, not what is measured
    state = ended(benchmark, **GIVEN | short, shards=f"s3://{aws.bucket}/csv/dev/part*.csv")
    assert state.is_completed(), state.message

    listings_and_reads = [request for request in proxy.requests if request.service == "s3" and request.method == "GET"]
    assert any("list-type" not in request.query for request in listings_and_reads)
    assert {request.headers.get("x-amz-expected-bucket-owner") for request in listings_and_reads} == {"123456789012"}


def test_cuda_is_refused_where_there_is_none(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)

    with pytest.raises(ConfigurationError, match="no CUDA device here: use device=auto"):
        check_parameters(BenchmarkParameters(device="cuda"))


def test_a_benchmark_from_before_is_read_and_written_again_to_the_same_byte():
    text = EARLIER.read_text(encoding="utf-8")

    assert Benchmark.from_json(text).to_json() == text


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"mode": "quick"}'])
def test_what_is_no_benchmark_is_refused(text):
    with pytest.raises(ValueError, match=r"benchmark|Expecting value"):
        Benchmark.from_json(text)


def test_a_benchmark_passes_from_step_to_step_whole():
    benchmark, serializer = Benchmark.from_json(EARLIER.read_text(encoding="utf-8")), JSONSerializer()

    assert serializer.loads(serializer.dumps(benchmark)) == benchmark


def test_without_shards_or_bucket_nothing_is_looked_for(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("BUCKET_ID", raising=False)

    assert find_sources(BenchmarkParameters()) is None


def test_the_descriptions_of_the_parameters_say_what_the_plans_do():
    said = {name: field.description or "" for name, field in BenchmarkParameters.model_fields.items()}

    budgets = ", ".join(f"{PLANS[mode].budget}" for mode in ("quick", "standard"))
    assert f"{budgets} or {PLANS['thorough'].budget}" in said["time_budget"]
    assert PLANS["quick"].max_size == 2**22 and "2^22 in quick mode" in said["max_size"]
    assert PLANS["standard"].max_size == PLANS["thorough"].max_size == 2**27 and "else 2^27" in said["max_size"]


def test_a_given_size_and_budget_replace_the_plans():
    plan = make_plan(BenchmarkParameters(mode="thorough", max_size=7, time_budget=3))

    assert (plan.max_size, plan.budget, plan.samples) == (7, 3, PLANS["thorough"].samples)


def test_the_description_is_a_step_for_other_flows(prefect_api):
    from prefect import flow

    state = ended(flow(name="describing")(lambda: describe_hardware()))

    assert state.result().cpu.usable > 0
    assert "**Processor**" in read_artifacts(state)["hardware"].data


def test_a_gpu_is_described_with_its_limits_and_without_what_nobody_tells():
    device = CudaDevice(
        index=0, name="NVIDIA H100", capability="9.0", memory=80 * 2**30, multiprocessors=132, clock=1980, driver="580",
        memory_clock=2619, memory_bus=5120, bandwidth_limit=3.352e12, link_generation=None, link_width=None,
        link_limit=None,
    )  # fmt: skip

    text = write_description(replace(describe(), cuda=(device,), nvidia_smi="| table |"))

    assert "- **cuda:0**: NVIDIA H100; compute capability 9.0, memory 80.0 GiB" in text
    assert "bandwidth limit 3352 GB/s, driver 580\n" in text
    assert "| table |" in text


def make_measured(**predictions):
    """What measuring a machine with one GPU would give, with these seconds by data_device."""
    return Benchmark(
        mode="quick",
        seconds=1.0,
        hardware=describe(),
        names={"cpu": "C", "cuda:0": "G"},
        figures=(),
        ratios=(),
        left_out=(),
        notes=(),
        predictions=tuple(
            Prediction(data=data, device=device, rows=8, stages=(), seconds=seconds, bottleneck="step")
            for data in get_args(Data)
            for device, short in (("cpu", "cpu"), ("cuda:0", "cuda"))
            if (seconds := predictions.get(f"{data}_{short}"))
        ),
    )


def test_the_verdict_sets_streamed_and_resident_iterations_side_by_side():
    verdict = write_verdict(make_measured(streamed_cpu=4.0, resident_cpu=1.0, streamed_cuda=2.0, resident_cuda=0.01))

    assert verdict == (
        "On G a training iteration should be 2 times as fast as on the CPU from streamed shards and "
        "100 times as fast as on the CPU with the data kept on the device."
    )


def make_streamed(**measured):
    """What measuring a machine without a GPU would give for 342 rows of local files, with these measured seconds."""
    stages = (Stage(name="fetch", resource="disk", seconds=0.3), Stage(name="step", resource="cpu", seconds=0.1))
    streamed = Prediction(
        data="streamed", device="cpu", rows=342, stages=stages, seconds=0.3, bottleneck="fetch",
        measured=measured["streamed"],
    )  # fmt: skip
    resident = replace(
        streamed, data="resident", stages=stages[1:], seconds=0.1, bottleneck="step", measured=measured["resident"]
    )
    return replace(make_measured(), names={"cpu": "C"}, predictions=(streamed, resident), notes=("It was loud.",))


def test_iterations_far_from_what_was_predicted_come_first_and_have_no_bottleneck():
    measured = make_streamed(streamed=3.0, resident=0.15)

    assert write_verdict(measured) == (
        "Iterations as measured and as predicted differ more than 2-fold (streamed on cpu 3 s against 300 ms), so no "
        "bottleneck is named for them. A training step takes 150 ms on this CPU, as measured with a batch of 342 rows "
        "that stays in memory, and there is no GPU to compare. From streamed shards an iteration takes 3 s, as "
        "measured."
    )
    assert "| streamed, 342 rows | cpu | 300 ms | 3 s | unexplained |" in write_report(measured)


def test_a_bottleneck_is_named_where_it_explains_what_was_measured():
    measured = make_streamed(streamed=0.4, resident=0.15)

    assert write_verdict(measured).endswith(
        "From streamed shards an iteration takes 400 ms, as measured, bound by read: a GPU that took no time at all "
        "would make that 1 times as fast at most."
    )
    assert "- Stages, streamed on cpu: read 300 ms, step 100 ms." in write_report(measured)


def test_what_disturbed_the_figures_is_not_among_what_was_left_out():
    text = write_report(make_streamed(streamed=0.4, resident=0.15))

    assert "**Disturbances**\n\n- It was loud." in text and "**Left out**" not in text


def test_a_gpu_is_judged_by_what_was_measured():
    measured = make_measured(streamed_cpu=4.0, resident_cpu=1.0, streamed_cuda=2.0, resident_cuda=0.01)
    timed = tuple(replace(each, measured=each.seconds * (1 + (each.device == "cpu"))) for each in measured.predictions)

    assert write_verdict(replace(measured, predictions=timed)) == (
        "On G a training iteration was measured as 4 times as fast as on the CPU from streamed shards and "
        "200 times as fast as on the CPU with the data kept on the device."
    )


def test_the_report_has_small_sums_one_after_the_other_and_each_waited_for():
    figure = Figure(
        name="add", device="cuda:0", dtype="float64", size=1, rate=1.0, unit="B/s", limit=None, seconds=4e-6, low=4e-6,
        high=4e-6, samples=9, calls=1,
    )  # fmt: skip
    others = (replace(figure, size=2), replace(figure, name="add_latency", seconds=9e-6))

    lines = write_report(replace(make_measured(), figures=(figure, *others))).splitlines()

    assert [line.split("|")[1:6:4] for line in lines if line.startswith("| add")] == [
        [" add ", " 4 µs "], [" add latency ", " 9 µs "]
    ]  # fmt: skip


def test_a_budget_too_small_for_the_step_gives_no_verdict():
    assert "raise it" in write_verdict(make_measured())


@pytest.mark.parametrize(
    ("value", "text"),
    [(12.3456, "12.3 s"), (0.0123, "12.3 ms"), (4.56e-6, "4.56 µs"), (7e-10, "0.7 ns"), (3.35e12, "3.35 Ts")],
)
def test_numbers_are_written_with_three_digits_and_their_unit(value, text):
    assert write_unit(value, "s") == text


def test_a_noisy_figure_is_marked_in_the_report(streamed):
    _, run, client = streamed
    path = client.download_artifacts(run.info.run_id, "benchmark.json")
    measured = Benchmark.from_json(Path(path).read_text(encoding="utf-8"))
    quiet = measured.figures[0]
    noisy = Figure(**{**vars(quiet), "name": "noisy_one", "low": quiet.seconds / 2, "high": quiet.seconds * 2})

    text = write_report(replace(measured, figures=(noisy,)))

    assert [line for line in text.splitlines() if line.startswith("| noisy one") and "**too noisy**" in line]


def test_a_headline_that_rests_on_a_noisy_figure_says_so_and_one_that_does_not_does_not(streamed):
    _, run, client = streamed
    measured = Benchmark.from_json(Path(client.download_artifacts(run.info.run_id, "benchmark.json")).read_text())
    quiet = [calm(figure) for figure in measured.figures]
    steps = [replace(each, high=2 * each.seconds) if each.name == "step" else each for each in quiet]
    shaky = write_verdict(replace(measured, figures=tuple(steps)))
    assert "But this rests on figures too noisy to use (step on cpu" in shaky
    assert write_report(replace(measured, figures=tuple(steps))).startswith(f"**{shaky}**")
    assert "too noisy" not in write_verdict(replace(measured, figures=tuple(quiet)))


def calm(figure):
    """The figure as it would be on an idle machine."""
    return replace(figure, low=figure.seconds, high=figure.seconds, samples=max(figure.samples, 4), preempted=False)


def test_a_report_without_sums_says_nothing_of_their_plots(streamed):
    _, run, client = streamed
    measured = Benchmark.from_json(Path(client.download_artifacts(run.info.run_id, "benchmark.json")).read_text())
    others = tuple(figure for figure in measured.figures if figure.name != "add")
    assert "in the table and the plots" in write_report(measured)
    assert "in the table and the plots" not in write_report(replace(measured, figures=others))
