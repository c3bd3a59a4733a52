"""What passes from step to step survives Prefect's JSON serializer, whichever step's result it is."""

import subprocess
import sys
from dataclasses import fields, is_dataclass
from math import inf
from pathlib import Path

import pytest
from prefect.serializers import JSONSerializer

from tasks import facts
from tasks.learning.features import Features
from tasks.learning.scores import Density, Score, Slice
from tasks.learning.sums import MomentSums, ProfileSums
from tasks.parameters import SearchParameters, TrainingParameters
from tasks.sources import Sources
from tasks.streaming import ColumnStatistics, Manifest, Shard
from tasks.streaming.objects.traffic import Traffic

SHARDS = (Shard("s3://b/part-0.csv", 10, "e-1", 3), Shard("s3://b/part-1.csv", 2**40, "e-2", 2**40))
MANIFEST = Manifest(SHARDS, ("y", "a"), ("a note",), ("y", "a", "left out"))
STATISTICS = {"y": ColumnStatistics(count=3, mean=1 / 3, stddev=0.1, min=-1.0, max=1e300)}
DATA = facts.TrainingData(
    train=MANIFEST, test=None, rows_of="train", judged_on="the training rows", statistics=STATISTICS
)
SCORE = Score(rows=3, mse=1 / 3, rmse=0.57, mae=0.5, r2=None)
TIMES = facts.StreamTimes(fetch_seconds=0.1, decode_seconds=0.2, assemble_seconds=0.3)
RANK = facts.RankTimes(
    rank=1,
    host="node-1",
    process=7,
    iterations=2,
    rows=8,
    wait_seconds=1 / 3,
    copy_seconds=0.0,
    compute_seconds=0.1,
    gather_seconds=0.05,
)
PROFILE = ProfileSums(
    rows=8,
    columns=("y",),
    edges=((-0.5, 0.5),),
    units=(0.5,),
    means=(1 / 3,),
    squares=(0.1,),
    least=(-1e300,),
    most=(1.0,),
    counts=((1, 2**40, 0),),
)
PROMOTION = facts.Promotion(wins=False, against="7", verdict="The model stays challenger")
REFERENCE = facts.Reference(
    model="models:/m/1",
    profile=PROFILE.profile(),
    known=("y", "a", "left out"),
    target="y",
    rmse=1 / 3,
    judged_on="the 3 rows of the test shards",
)
EXAMPLES = [
    facts.Located(manifest=MANIFEST, statistics=STATISTICS),
    DATA,
    facts.Preview(
        batch_shape=(8, 2),
        dtype="float64",
        rows=3,
        ranges={"y": (0.0, 1 / 3)},
        outside=("column y",),
        first=((0.0, 0.1), (1 / 3, 1e-300)),
    ),
    facts.FirstRead(
        rows=3, columns=2, bytes=50, asked=Traffic(requests=1, bytes=50), fetch_seconds=0.1, decode_seconds=1 / 3
    ),
    facts.TrainingJob(
        parameters=TrainingParameters(shards="s3://b/part*.csv", derive=["distance_km"], learning_rate=0.1),
        sources=Sources(
            shards="s3://b/part*.csv", test_shards=None, region="eu-west-1", anonymous=False, owner="1" * 12
        ),
        data=DATA,
        features=Features(columns=("y", "a"), target="y", raw=("a",)),
        run_id="0" * 32,
        edges={"y": (-0.5, 1 / 3)},
    ),
    facts.SearchJob(
        parameters=SearchParameters(shards="s3://b/part*.csv", trials=3, learning_rate=0.1),
        sources=Sources(shards="s3://b/part*.csv", test_shards=None, region=None, anonymous=True, owner=None),
        data=DATA,
        features=Features(columns=("y", "a"), target="y", raw=("a",)),
        run_id="0" * 32,
    ),
    facts.Searched(
        number=7,
        best={"l2": 1 / 3, "features": ["a"]},
        mse=0.1 + 0.2,
        counts={"COMPLETE": 3, "FAIL": 1},
        validation_rows=2**40,
        streamed=5,
        seconds=0.1,
    ),
    facts.Ridge(l2=1e-300, mse=1 / 3, without=0.1 + 0.2, folds=5),
    TIMES,
    RANK,
    facts.FitTimes(seconds=1.0, wait_seconds=0.1, copy_seconds=0.0, compute_seconds=0.9, stream=TIMES, stages={}),
    facts.Fit(
        weights=(1 / 3, -1e-300),
        bias=0.1 + 0.2,
        learning_rate=None,
        condition=1 / 3,
        device="cuda:0",
        curve=(4.0, 1 / 3),
        rows=16,
        times=facts.FitTimes(
            seconds=1.0,
            wait_seconds=0.1,
            copy_seconds=0.0,
            compute_seconds=0.9,
            stream=None,
            stages={"waiting": (0.1, 0.0)},
        ),
        bad_rows=0,
        bad_rows_file=None,
        ranks=(RANK, RANK),
        moments=MomentSums(
            rows=8,
            of=9,
            batches=2,
            shift=(1 / 3, 0.1),
            sums=(1e300, -0.0),
            products=((inf, 0.1), (0.1, 1 / 7)),
            profile=PROFILE,
        ),
    ),
    PROMOTION,
    facts.Evaluation(
        rows_of="held-out",
        scores={"trained": SCORE, "champion": SCORE},
        slices=(Slice(name="hour 00", scores={"trained": SCORE, "mean": None}),),
        density=Density(edges=(0.0, 1 / 3), counts=((3,),), residual_edges=(-1.0, 1.0), residual_counts=(3,)),
        standardised={"a": 1 / 3},
        verdict="fine",
        promotion=PROMOTION,
        train_mse={"trained": 1 / 3},
        train_profile=PROFILE.profile(),
    ),
    REFERENCE,
    facts.ChosenModel(uri="models:/m/1", run_id="0" * 32, target=None, inputs=("a", "b"), reference=REFERENCE),
    facts.Observed(profile=PROFILE.profile(), score=SCORE, bad_rows=1, bad_rows_file="bad.csv"),
    facts.Predicted(model="models:/m/1", rows=3, shards=2, seconds=0.1, bad_rows=0, bad_rows_file=None, rmse=None),
]


@pytest.mark.parametrize("fact", EXAMPLES, ids=lambda fact: type(fact).__name__)
def test_a_fact_is_read_back_from_json_as_it_was(fact):
    serializer = JSONSerializer()
    again = serializer.loads(serializer.dumps(fact))
    assert again == fact
    assert [type(getattr(again, each.name)) for each in fields(fact)] == [
        type(getattr(fact, each.name)) for each in fields(fact)
    ]


def test_every_fact_is_frozen_keyword_only_and_tried_here():
    defined = [each for each in vars(facts).values() if is_dataclass(each) and each.__module__ == facts.__name__]
    assert set(defined) == {type(fact) for fact in EXAMPLES}
    for each in defined:
        assert vars(each)["__dataclass_params__"].frozen
        assert all(field.kw_only for field in fields(each))


def test_facts_bring_nothing_heavy():
    script = """
import sys, tasks.facts
sys.exit(f"{sorted({'torch', 'mlflow', 'pyarrow', 'pandas', 'prefect', 'numpy', 'boto3'} & set(sys.modules))}")
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=Path(__file__).parents[1], capture_output=True, text=True)
    assert done.stderr.strip() == "[]"
