"""A model's card: what it predicts, from what, how well and how badly, and how it is loaded; from facts alone."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from tasks.facts import Evaluation, Fit, TrainingJob
from tasks.learning.features import DERIVATIONS, Features
from tasks.learning.profiles import DataProfile
from tasks.learning.scores import Slice
from tasks.naming import escape_markdown, write_code
from tasks.parameters import MODEL_PARAMETERS, TrainingParameters
from tasks.parameters.marks import CURVE
from tasks.redaction import redact
from tasks.runs.profiles import write_table as write_held
from tasks.tracking.views import name_of_model, write_loading
from tasks.wording.worth import (
    find_large,
    format_value,
    tabulate_slices,
    write_condition,
    write_scores,
    write_step,
    write_worst,
)

MOST_LISTED = 100  # features; the weights' file has all
NEAR = 1.01  # times the exact model's error over the training rows, from which on a model is said to be above it
GROUPS = ("Model", "Stream")  # of the parameters that say how a model was made
TOLD_APART = ("derive", "learning_rate")
OF_ITERATING = (  # the exact solver looks at none of these
    *("preset", "iterations", "batch_size", "gradient_norm", "schedule", "shuffle", "seed"),
    *("optimizer", "optimizer_options"),
)


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Where and from which code a model was made.

    tracking_uri: of the store that has it, as it may be shown
    versions: of the libraries, by name
    revision: the code's, in words; None where it is not known
    at: ISO 8601, in UTC
    """

    tracking_uri: str
    versions: Mapping[str, str]
    revision: str | None
    at: str


def write_card(job: TrainingJob, fit: Fit, evaluation: Evaluation, origin: Origin) -> str:
    """Return the card of a model as Markdown."""
    features = job.features
    name, target = name_of_model(job.parameters.experiment), write_code(features.target)
    parts = [
        f"# {escape_markdown(name)}: {target} by a linear model",
        f"**{escape_markdown(evaluation.verdict)}**",
        escape_markdown(evaluation.promotion.verdict),
        "## What it predicts",
        f"{target}, as the sum of each feature times its weight, and a constant. It needs the columns "
        f"{', '.join(map(write_code, features.inputs))}, all numbers.",
        write_weights(features, fit, evaluation.standardised),
        "## On which data",
        write_data(job, fit),
        *write_ranges(evaluation.train_profile),
        "## How good it is",
        write_scores(evaluation),
        *write_slices(evaluation.slices),
        "## Where it is bad",
        write_list(find_faults(job, fit, evaluation)),
        "## How it was made",
        write_making(job, fit, origin),
        "## How to load it",
        write_use(job.run_id, origin.tracking_uri),
    ]
    return "\n\n".join(parts) + "\n"


def write_weights(features: Features, fit: Fit, standardised: Mapping[str, float]) -> str:
    """Return a table of the features: what they are made of, their weights, and how far they move a prediction."""
    rows = [
        (
            write_code(name),
            write_formula(name) if name in features.derived else "the column",
            f"{weight:.6g}",
            f"{standardised[name]:+.3f}" if name in standardised else "–",
        )
        for name, weight in zip(features.names, fit.weights, strict=True)
    ]
    more = len(rows) - MOST_LISTED
    rows = [*rows[:MOST_LISTED], ("(constant)", "", f"{fit.bias:.6g}", "")]
    table = write_table(("feature", "made of", "weight", "moves the prediction by"), "llrr", rows)
    note = "The last column is in deviations of the target, for one deviation of the feature."
    return f"{table}\n\n{note}" + (f" {more} more features stand in the file of weights." if more > 0 else "")


def write_formula(name: str) -> str:
    """Return the formula of a derived feature, and the columns that its words stand for, in order."""
    derivation = DERIVATIONS[name]
    return f"{write_code(derivation.formula)}, of {', '.join(map(write_code, derivation.columns))}"


def write_data(job: TrainingJob, fit: Fit) -> str:
    """Return a list of the shards that it was trained on, and what it was judged on."""
    manifest = job.data.train
    shards = "1 shard" if len(manifest.shards) == 1 else f"{len(manifest.shards):,} shards"
    lines = {
        "Trained on": f"{write_code(redact(job.sources.shards))}: {shards}, {manifest.rows:,} rows, {manifest.size:,} "
        "bytes",
        "Fingerprint": f"{write_code(manifest.fingerprint)} of the shards' names, sizes and ETags",
        "Judged on": escape_markdown(job.data.judged_on),
    }
    if fit.bad_rows:
        lines["Bad rows left out"] = f"{fit.bad_rows:,}"
    return write_list(f"**{name}**: {value}" for name, value in lines.items())


def write_ranges(profile: DataProfile | None) -> list[str]:
    """Return a table of what each column held, where that is known."""
    if profile is None:
        return []
    held = "\n".join(write_held({"training": profile}))
    return [held, f"These are of {profile.rows:,} rows. Of values beyond least and most it has seen none."]


def write_slices(slices: Sequence[Slice]) -> list[str]:
    """Return a table of the scores by slice, where there are two or more."""
    rows = tabulate_slices(slices)
    if len(rows) < 2:
        return []
    header = list(rows[0])
    cells = [[escape_markdown(format_value(row[name])) for name in header] for row in rows]
    return [write_table(header, "l" + "r" * (len(header) - 1), cells)]


def find_faults(job: TrainingJob, fit: Fit, evaluation: Evaluation) -> Iterator[str]:
    """Yield a sentence for each thing that is known to be bad about a model, the worst first."""
    trained, mean = evaluation.scores["trained"], evaluation.scores["mean"]
    if trained.mse >= mean.mse:
        yield f"It is no better than always guessing the mean: RMSE {trained.rmse:.6g} against {mean.rmse:.6g}."
    if trained.r2 is None:
        yield "The target is constant on the rows that it was judged on, which is no test."
    elif trained.r2 < 0:
        yield "The rows that it was judged on lie on another level than those it was trained on: its R² is negative."
    if evaluation.rows_of == "train":
        yield "It was judged on the rows that it was trained on: how it does on others is not known."
    yield from find_weak_slices(evaluation)
    yield from write_worst(evaluation)
    yield from write_condition(job.parameters.dtype, fit, evaluation.train_mse) or write_distance(evaluation.train_mse)
    if fit.bad_rows:
        yield f"Bad rows were left out of training ({fit.bad_rows:,}): of rows like those it knows nothing."
    columns = evaluation.train_profile.columns if evaluation.train_profile else ()
    constant = [write_code(each.name) for each in columns if each.is_constant and each.name in job.features.inputs]
    if constant:
        yield f"Constant in training, so that their weights mean nothing: {', '.join(constant)}."


def find_weak_slices(evaluation: Evaluation) -> Iterator[str]:
    """Yield a sentence on the slices with a larger error than that of the mean, but for those by the target itself.

    Where the target is near its mean, nothing is better than to guess that.
    """
    large = [each for each in find_large(evaluation) if not each[0].by_target]
    weak = [escape_markdown(each.name) for each, own, mean in large if own.mse >= mean.mse]
    if weak:
        yield f"Always guessing the mean would be no worse in {len(weak)} of {len(large)} slices: {', '.join(weak)}."


def write_distance(train_mse: Mapping[str, float]) -> list[str]:
    """Return a sentence where a model's error over the training rows is above the best linear model's."""
    trained, exact = train_mse["trained"], train_mse["exact"]
    if trained <= NEAR * exact:
        return []
    above = f"{trained / exact - 1:.2%} above" if exact > 0 else "above"
    return [f"Over the training rows its MSE is {above} that of the best linear model, which `--solver exact` finds."]


def write_making(job: TrainingJob, fit: Fit, origin: Origin) -> str:
    """Return a list of how the model was found: settings, hardware, versions, code."""
    settings = ", ".join(f"{name} {write_code(text)}" for name, text in choose_settings(job.parameters).items())
    ranks = f", over {len(fit.ranks)} ranks" if fit.ranks else ""
    passes = f"{fit.iterations:,} iterations" if fit.learning_rate else "one pass"
    versions = ", ".join(f"{name} {version}" for name, version in origin.versions.items())
    again = write_code(f"python -m flows.training --like {job.run_id}")
    lines = {
        "Fitted": f"{passes} over {fit.rows:,} rows on {escape_markdown(fit.device)}{ranks}, in "
        f"{fit.times.seconds:.2f} s, ended {origin.at}",
        "Step size": write_step(fit),
        "Settings": settings,
        "Run in MLflow": f"{write_code(job.run_id)}; {again} repeats it on the same data",
        "Code": escape_markdown(origin.revision or "revision not known"),
        "Versions": escape_markdown(versions),
    }
    return write_list(f"**{name}**: {value}" for name, value in lines.items())


def choose_settings(given: TrainingParameters) -> dict[str, str]:
    """Return by name, as people read them, the parameters that the model depends on, presets resolved."""
    model, resolved = type(given), given.resolved()
    values = given.model_dump() | {name: getattr(resolved, name) for name in MODEL_PARAMETERS}
    left_out = {*TOLD_APART, *(OF_ITERATING if given.solver == "exact" else ())}
    ours = [name for name in values if name in model.marked(CURVE) - left_out and model.group_of(name) in GROUPS]
    return {name: format_value(values[name]) for name in ours if values[name] is not None}


def write_use(run_id: str, tracking_uri: str) -> str:
    """Return lines to copy: loaded by MLflow, by safetensors alone, and from a terminal."""
    uri = f"runs:/{run_id}/model"
    shell = f"""export MLFLOW_TRACKING_URI={shlex.quote(tracking_uri)}
python -m flows.predicting --model {uri} --shards 's3://bucket/path/part*.csv'
mlflow models serve -m {uri} --env-manager local"""
    weights = f"""import mlflow
from safetensors.numpy import load_file

mlflow.set_tracking_uri({tracking_uri!r})
folder = mlflow.artifacts.download_artifacts({uri!r})
weights = load_file(folder + "/data/weights/weights.safetensors")
print(weights["w"], weights["b"])  # x @ w + b, with the features in the order of the table above"""
    return "\n\n".join(
        [
            "By MLflow, from the columns of a table, by their names:",
            f"```python\n{write_loading(uri, tracking_uri, 'model.input_example')}\n```",
            "The weights alone, with nothing but numpy and safetensors to compute by:",
            f"```python\n{weights}\n```",
            "From a terminal, in a folder where shardline is installed:",
            f"```sh\n{shell}\n```",
        ]
    )


def write_table(header: Sequence[str], sides: str, rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table of cells that are Markdown already; `sides` has l or r for each column."""
    line = [{"l": "---", "r": "---:"}[side] for side in sides]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (header, line, *rows))


def write_list(items: Iterable[str]) -> str:
    """Return a Markdown list."""
    return "\n".join(f"- {item}" for item in items) or "Nothing of what is looked for was found."
