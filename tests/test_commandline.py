"""The command line, the flow's signature and Prefect's form: three views of one parameter model."""

import subprocess
import sys

import pytest
import torch
from prefect.utilities.callables import parameter_schema

from flows.benchmarking import benchmark
from flows.commandline import PATTERNS, parse
from flows.monitoring import monitor
from flows.predicting import predict
from flows.promoting import promote
from flows.searching import search
from flows.training import check_parameters, train
from tasks.errors import ConfigurationError
from tasks.parameters import (
    PRESETS,
    BenchmarkParameters,
    MonitoringParameters,
    PredictionParameters,
    PromotionParameters,
    SearchParameters,
    TrainingParameters,
)

MODELS = [TrainingParameters, PredictionParameters, MonitoringParameters, BenchmarkParameters, SearchParameters]


def parsed(*words):
    return parse(TrainingParameters, words, "flows.training", "")


def test_options_become_parameters_with_their_types():
    given = parsed("--batch-size", "64", "--features", "a, b", "--no-verify-identity", "--learning-rate", "1e-3")
    assert (given.batch_size, given.features, given.verify_identity, given.learning_rate) == (
        64,
        ["a", "b"],
        False,
        1e-3,
    )


def test_names_with_commas_and_spaces_are_written_as_csv_does():
    assert parsed("--features", '"a, b",c d').features == ["a, b", "c d"]
    assert parsed("--columns", 'y," a"', "--target", "y").columns == ["y", " a"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--batch-size", "0"], "--batch-size '0': input should be greater than or equal to 1"),
        (
            ["--batch-size", "many"],
            "--batch-size 'many': input should be a valid integer, unable to parse string as an integer",
        ),
        (["--device", "tpu"], "--device 'tpu': input should be 'auto', 'cpu' or 'cuda'"),
        (["--learning-rate", "nan"], "--learning-rate 'nan': input should be a finite number"),
        (["--gradient-norm", "-1"], "--gradient-norm '-1': input should be greater than or equal to 0"),
        (["--bucket-id", "xyz"], "--bucket-id 'xyz': should be 32 hexadecimal digits (0-9, a-f)"),
        (["--derive", "speed"], "--derive 'speed': input should be 'distance_km', 'hour_sine' or 'hour_cosine'"),
        (
            ["--checkpoint-every", "5m"],
            "--checkpoint-every '5m': should be a number of iterations (100) or of seconds (30s)",
        ),
        (["--no-such-thing", "1"], "unrecognized arguments: --no-such-thing 1"),
        (["--batch", "64"], "unrecognized arguments: --batch 64"),
        (["--columns", "a,b,a"], "columns names a column twice: a,b,a"),
        (["--target", "a", "--features", "a,b"], "target 'a' is among the features: leave it out of one of them"),
        (
            ["--columns", "a,b", "--target", "c"],
            "column 'c' is used as target or feature and is not among columns: add it there",
        ),
        (
            ["--features", '"a, b'],
            """argument --features: the quotes in '"a, b' do not enclose a name: write them as CSV does, '"a, b",c'""",
        ),
        (["--columns", '"a, b",c,"a, b"'], 'columns names a column twice: "a, b",c,"a, b"'),
        (["--header", "none"], "header is none, so nothing names the columns: list them in columns"),
        (
            ["--bucket-id", "0" * 32, "--shards", "x*.csv"],
            "shards and bucket_id both say where the data is: leave one out",
        ),
    ],
)
def test_what_is_not_valid_is_one_line_and_exit_code_2(words, message, capsys):
    with pytest.raises(SystemExit) as left:
        parsed(*words)
    assert left.value.code == 2
    assert capsys.readouterr().err == f"flows.training: {message} (--help lists every parameter)\n"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_cuda_without_a_cuda_device_is_told_before_anything_is_started():
    with pytest.raises(ConfigurationError, match="device is cuda, and torch finds no CUDA device here"):
        check_parameters(TrainingParameters(shards="x*.csv", device="cuda"))


def test_a_checkpoint_url_that_cannot_be_used_is_told_before_anything_is_started():
    with pytest.raises(ConfigurationError, match="checkpoint_url 'bogus://x' cannot be used"):
        check_parameters(TrainingParameters(shards="x*.csv", checkpoint_url="bogus://x"))


def test_help_shows_each_parameter_with_default_bounds_and_sentence(capsys):
    with pytest.raises(SystemExit):
        parsed("--help")
    shown = " ".join(capsys.readouterr().out.split())
    for name, field in TrainingParameters.model_fields.items():
        assert f"--{name.replace('_', '-')}" in shown
        assert " ".join((field.description or "").split()) in shown
    assert "[default: empty; at least 1]" in shown


def test_the_form_shows_what_help_shows():
    properties = parameter_schema(train).properties
    assert list(properties) == list(TrainingParameters.model_fields)
    for name, field in TrainingParameters.model_fields.items():
        assert properties[name]["description"] == field.description
        assert properties[name].get("default") == field.default
    assert properties["batch_size"]["anyOf"] == [{"type": "integer", "minimum": 1}, {"title": "empty", "enum": [None]}]
    assert properties["device"]["enum"] == ["auto", "cpu", "cuda"]


@pytest.mark.parametrize("flow", [train, predict, monitor, benchmark, search, promote])
def test_the_form_calls_empty_what_may_be_left_out(flow):
    properties = [each["anyOf"] for each in parameter_schema(flow).properties.values() if "anyOf" in each]
    assert properties and all(null["title"] == "empty" for _, null in properties)


def test_the_form_shows_an_empty_field_where_there_is_one_and_no_switch_that_would_stand_for_nothing():
    properties = parameter_schema(train).properties
    typed = {name: null for name, each in properties.items() if "anyOf" in each for null in each["anyOf"][1:]}
    assert [name for name, null in typed.items() if "type" in null] == ["standardise"]
    assert typed["standardise"] == {"title": "empty", "type": "null"}


@pytest.mark.parametrize("model", MODELS)
def test_descriptions_read_the_same_as_text_and_as_the_markdown_that_the_form_takes_them_for(model):
    assert not [name for name, field in model.model_fields.items() if "**" in field.description]


def test_what_has_no_default_is_asked_for_by_the_form_and_by_the_command_line(capsys):
    assert parameter_schema(promote).required == ["reason"]
    with pytest.raises(SystemExit):
        parse(PromotionParameters, ["--version", "2"], "flows.promoting", "")
    assert "flows.promoting: --reason has no default: give it (--help" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        parse(PromotionParameters, ["--help"], "flows.promoting", "")
    assert "is notified. [required]" in " ".join(capsys.readouterr().out.split())


def test_the_form_begins_with_what_people_change_and_ends_with_access():
    first = ["shards", "test_shards", "target", "features", "preset", "iterations", "batch_size", "device"]
    properties = parameter_schema(train).properties
    assert list(properties)[:8] == first
    assert sorted(properties, key=lambda name: properties[name]["position"]) == list(properties)
    assert [TrainingParameters.group_of(name) for name in list(properties)[-7:]] == ["Stream"] + ["Access"] * 6


@pytest.mark.parametrize("model", MODELS)
def test_every_pattern_is_told_in_words(model):
    patterns = {each.pattern for field in model.model_fields.values() for each in field.metadata if patterned(each)}
    assert patterns and patterns <= PATTERNS.keys()


def patterned(constraint):
    return getattr(constraint, "pattern", None) is not None


def test_an_empty_batch_size_is_all_rows_at_most_2_to_the_20_and_for_the_notebook_2_to_the_20():
    assert TrainingParameters().sized(15_000).batch_size == 15_000
    assert TrainingParameters().sized(2**21).batch_size == 2**20
    assert TrainingParameters(preset="notebook").sized(15_000).batch_size == 2**20
    assert TrainingParameters(batch_size=64).sized(15_000).batch_size == 64


def test_an_explicit_value_wins_over_the_preset_and_null_does_not():
    resolved = TrainingParameters(preset="notebook", learning_rate=0.5, iterations=None).resolved()
    assert (resolved.learning_rate, resolved.iterations) == (0.5, PRESETS["notebook"].iterations)


def test_a_gradient_norm_of_zero_wins_over_the_preset():
    assert TrainingParameters(preset="notebook", gradient_norm=0).resolved().gradient_norm == 0


def test_unconfigured_it_exits_2_names_make_train_and_starts_nothing(tmp_path):
    done = subprocess.run([sys.executable, "-m", "flows.training"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "make train" in done.stderr
    assert list(tmp_path.iterdir()) == []
