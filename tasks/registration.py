"""The step that makes a trained model one that others can load: from MLflow, by name, in a process of its own.

It is saved into the run's outbox with the code that it predicts by, its card, and a plan of how it is to be registered;
`tasks.tracking.recovery` carries the plan out when all else is recorded, now or later.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from prefect.logging import get_run_logger

from tasks.facts import Evaluation, Fit, Preview, TrainingJob
from tasks.learning.profiles import PROFILE, DataProfile
from tasks.naming import escape_markdown
from tasks.policy import READING, step
from tasks.runs.lineage import describe_commit, read_versions
from tasks.tracking.client import show_uri, tracking_uri
from tasks.tracking.outbox import MODEL, Outbox
from tasks.tracking.packaging import save_model
from tasks.tracking.registry import RegistrationPlan, plan_registration
from tasks.tracking.views import name_of_model
from tasks.wording.card import Origin, write_card

if TYPE_CHECKING:
    import pandas as pd  # type: ignore[import-untyped]
    from torch import Tensor

    from tasks.learning.linear import LinearModel

SHIPPED = (
    "__init__", "errors", "naming", "redaction",
    "learning/__init__", "learning/features", "learning/linear", "learning/served",
)  # fmt: skip
LOADER = "learning/served"  # of these, the one that MLflow loads the weights by
REQUIRED = ("mlflow", "torch", "numpy", "pandas", "safetensors")


@step("register model", pauses=READING)
def register_model(job: TrainingJob, fit: Fit, evaluation: Evaluation, preview: Preview) -> None:
    """Save the model into the run's outbox, and plan its registration: as challenger, and champion where it won.

    The rows that the preview saw are its example. What the rows trained on hold goes with it.
    """
    import torch

    from tasks.learning.linear import LinearModel

    outbox, manifest = Outbox(job.run_id), job.data.train
    model = LinearModel.of(job.features, fit.weights, fit.bias)
    save_model(
        outbox.path / MODEL,
        take_example(model, torch.tensor(preview.first, dtype=torch.float64)),
        partial(save_weights, model, evaluation.train_profile),
        target=model.features.target,
        modules=SHIPPED,
        loader=LOADER,
        requirements=REQUIRED,
        card=write_card(job, fit, evaluation, find_origin()),
    )
    promotion = evaluation.promotion
    plan = RegistrationPlan(
        name=name_of_model(job.parameters.experiment),
        description=escape_markdown(evaluation.verdict),
        tags={"shardline.gate": promotion.verdict, "shardline.fingerprint": manifest.fingerprint},
        wins=promotion.wins,
        against=promotion.against,
    )
    plan_registration(outbox.path, plan)
    get_run_logger().info("The model will be registered as %r when the record is complete", plan.name)


def save_weights(model: LinearModel, profile: DataProfile | None, folder: Path) -> None:
    """Write what the model is served from into a new folder, and beside it the profile of the rows trained on."""
    from tasks.learning.served import save_served

    save_served(model, folder)
    if profile:
        (folder / PROFILE).write_text(json.dumps(profile.to_dict()), encoding="utf-8")


def find_origin() -> Origin:
    """Return where and from which code this process makes a model, now."""
    commit = describe_commit()
    changed = ", changed since" if commit.get("git.changed") == "true" else ""
    return Origin(
        tracking_uri=show_uri(tracking_uri()),
        versions=read_versions(),
        revision=f"git {commit['mlflow.source.git.commit']}{changed}" if commit else None,
        at=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def take_example(model: LinearModel, batch: Tensor) -> pd.DataFrame:
    """Return the model's input columns of some rows, as a data frame."""
    import pandas as pd

    at = [model.features.columns.index(name) for name in model.features.inputs]
    return pd.DataFrame(batch[:, at].double().numpy(), columns=list(model.features.inputs))
