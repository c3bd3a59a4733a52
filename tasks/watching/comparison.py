"""The steps that say whether data has drifted from what a model was trained on; they read profiles, and no row."""

from __future__ import annotations

import json
from collections.abc import Sequence

from prefect.logging import get_run_logger

from tasks.errors import ShardlineError
from tasks.facts import Evaluation, Reference, TrainingJob
from tasks.learning.drift import Drift, Limits, compare_profiles
from tasks.learning.profiles import DataProfile
from tasks.parameters import Drifting
from tasks.policy import step
from tasks.runs.reference import find_reference
from tasks.tracking.registry import find_champion_version


@step("compare with the training data")
def compare_data(run_id: str, reference: Reference, found: DataProfile, known: Sequence[str], given: Drifting) -> Drift:
    """Compare a profile with that of a model's training data; keep what was found, and a picture, in a run's record.

    known: names of all columns that the shards have, read or not. A target that is not there is no drift: rows that are
        to be predicted have none.
    """
    return _compare(run_id, reference, found, known, given)


@step("compare with the champion's data")
def compare_with_champion(job: TrainingJob, evaluation: Evaluation) -> Drift | None:
    """Compare the rows trained on with those of the present champion, likewise.

    None where there is no champion, or either of both does not say what it was trained on. Whatever is wrong with the
    champion does not stop the run.
    """
    from tasks.tracking.client import connect

    found = evaluation.train_profile
    if found is None or evaluation.promotion.against is None:  # a store that is away is not waited for once more
        return None
    try:
        client = connect()
        champion = find_champion_version(client, job.parameters.experiment)
        if champion is None:
            return None
        reference = find_reference(client, f"models:/{champion.name}/{champion.version}", champion.run_id)
        return _compare(job.run_id, reference, found, job.data.train.known, Drifting()) if reference else None
    except ShardlineError as error:
        get_run_logger().warning("The training data cannot be compared with the champion's: %s", error)
        return None


def _compare(run_id: str, reference: Reference, found: DataProfile, known: Sequence[str], given: Drifting) -> Drift:
    from tasks.learning.driftpicture import render_drift
    from tasks.tracking.outbox import Outbox

    drift = compare_profiles(
        reference.profile,
        found,
        model=reference.model,
        limits=Limits(psi=given.drift_psi, ks=given.drift_ks),
        gone=[name for name in reference.profile.edges if name not in (*known, reference.target)],
        new=[name for name in known if name not in reference.known],
    )
    outbox = Outbox(run_id)
    outbox.keep("drift.json", json.dumps(drift.to_dict(), indent=1))
    if drift.columns:
        outbox.keep("figures/drift.png", render_drift(drift, reference.profile, found))
    (get_run_logger().warning if drift.drifted else get_run_logger().info)("%s", drift.verdict)
    return drift
