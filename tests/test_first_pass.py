"""Nothing is fetched twice for one purpose: what the exact model needs is taken on the way to training."""

import itertools
import json
from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from mlflow import MlflowClient

from flows.training import train
from tasks.learning.features import Features
from tasks.learning.first_pass import FirstPass
from tasks.learning.reduction import slice_rows
from tasks.learning.sums import MomentSums
from tasks.streaming.formats.native import describe_decoder
from tasks.tracking import client as record
from tests.awsproxy import AwsProxy
from tests.flowruns import ended
from tests.profiles import assert_is_numpys
from tests.servers import BUCKET, serve_rclone
from tests.shards import COLUMNS, draw_rows, write_shards

FEATURES = Features.choose(COLUMNS)
ROWS = torch.from_numpy(draw_rows(5003))


def endless(size, first=0):
    """Batches of the rows in their order, wrapping, from batch `first` on."""
    for number in itertools.count(first):
        yield ROWS[torch.arange(number * size, (number + 1) * size) % len(ROWS)]


def finite(size):
    return list(ROWS.split(size))


def passed(batches, size):
    first_pass = FirstPass(FEATURES, len(ROWS), size)
    for batch in batches:
        first_pass.take(batch)
    return first_pass


def weights(moments):
    model = moments.exact()
    return [*model.w.flatten().tolist(), model.b.item(), moments.mse(model)]


@pytest.mark.parametrize("size", [64, 1000, 5003, 4999, 7000])
def test_batches_that_wrap_or_are_short_at_the_end_give_the_same_bits(size):
    needed = -(-len(ROWS) // size)
    whole = passed(finite(size), size)
    assert whole.is_complete
    assert whole.sums() == passed(itertools.islice(endless(size), needed), size).sums()
    assert whole.sums() == passed(itertools.islice(endless(size), needed + 5), size).sums()
    assert whole.sums().is_complete and whole.sums().batches == needed


@pytest.mark.parametrize("size", [64, 1000, 7000])
def test_the_exact_model_is_numpys(size):
    design = np.column_stack([ROWS[:, 1:], np.ones(len(ROWS))])
    expected, residual, *_ = np.linalg.lstsq(design, ROWS[:, 0].numpy(), rcond=None)
    assert weights(passed(finite(size), size).moments) == pytest.approx([*expected, residual[0] / len(ROWS)], rel=1e-7)


@pytest.mark.parametrize("stop", range(1, 9))
def test_stopped_and_gone_on_with_it_gives_the_same_bits(stop):
    """Through JSON, as a checkpoint keeps it; the batch after the last step had been taken in already."""
    stopped = passed(itertools.islice(endless(1000), stop + 1), 1000)
    kept = json.loads(json.dumps(asdict(stopped.sums(stop))))
    again = FirstPass(FEATURES, len(ROWS), 1000, edges={COLUMNS[0]: (0.0, 1.0)})  # of another champion since
    again.restore(MomentSums.from_dict(kept))
    for batch in itertools.islice(endless(1000, stop), 9):
        again.take(batch)
    assert again.sums() == passed(finite(1000), 1000).sums()
    assert weights(again.moments) == weights(passed(finite(1000), 1000).moments)


def test_what_it_was_before_the_last_batch_is_still_known_and_no_more():
    first_pass = passed(finite(1000)[:3], 1000)
    assert first_pass.sums(2) == passed(finite(1000)[:2], 1000).sums()
    assert first_pass.sums(1) is None
    assert FirstPass(FEATURES, 10, 5).sums() is None
    assert not first_pass.sums().is_complete


def test_moments_of_part_and_rest_are_those_of_the_whole():
    part = passed(itertools.islice(endless(1000), 2), 1000).sums()
    rest = FirstPass(FEATURES, len(ROWS), 1000)
    rest.restore(part)
    for batch in finite(1000)[2:]:
        rest.take(batch)
    assert rest.sums() == passed(finite(1000), 1000).sums()


class Noting:
    """The reduction of one process, which notes what slices from `half` on add, and what was counted in all."""

    gather_seconds = 0.0

    def __init__(self, batch_size, half):
        self.batch_size: int | None = batch_size
        self.half, self.noted, self.counted = half, [], []

    def gather(self, partial):
        self.noted.append(partial[self.half :])
        return partial

    def total(self, counts):
        self.counted.append(counts)
        return counts


class Part:
    """A rank's reduction, as if the other ranks' slices were those that were noted."""

    gather_seconds = 0.0

    def __init__(self, noting):
        self.batch_size: int | None = noting.batch_size
        self.noting = noting

    def gather(self, partial):
        return torch.cat([partial, self.noting.noted.pop(0)])

    def total(self, counts):
        whole = self.noting.counted.pop(0)
        assert (counts <= whole).all()
        return whole


def test_ranks_take_in_what_one_process_does_and_a_wrapped_batch_is_cut_for_each():
    """Rank 0 of 2: what rank 1's slices would add is noted first, with the same arithmetic."""
    size = 4096
    rows, half = slice_rows(size), 2048
    assert half % rows == 0
    alone = passed(itertools.islice(endless(size), 2), size)
    noting = Noting(size, half // rows)
    whole = FirstPass(FEATURES, len(ROWS), size, reduction=noting)
    rank = FirstPass(FEATURES, len(ROWS), size, reduction=Part(noting))
    for batch in itertools.islice(endless(size), 2):
        whole.take(batch)
        if len(noting.counted) == 2:
            assert noting.counted[1].sum() == (len(ROWS) - size) * len(COLUMNS)
    for batch in itertools.islice(endless(size), 2):
        rank.take(batch[:half])
    assert rank.sums() == alone.sums() == whole.sums()


def test_a_pass_from_before_there_were_profiles_goes_on_without():
    before = {name: value for name, value in asdict(passed(finite(1000)[:2], 1000).sums()).items() if name != "profile"}
    again = FirstPass(FEATURES, len(ROWS), 1000)
    again.restore(MomentSums.from_dict(before))
    for batch in finite(1000)[2:]:
        again.take(batch)
    assert again.sums() == replace(passed(finite(1000), 1000).sums(), profile=None)


def test_the_profile_is_numpys_between_the_edges_that_are_given():
    edges = {COLUMNS[0]: (0.0, 10.0, 20.0)}
    first_pass = FirstPass(FEATURES, len(ROWS), 1000, edges=edges)
    for batch in finite(1000):
        first_pass.take(batch)
    sums = first_pass.sums()
    assert sums and sums.profile
    profile = sums.profile.profile()
    assert profile.columns[0].edges == edges[COLUMNS[0]]
    for column, values in zip(profile.columns, ROWS.numpy().T, strict=True):
        assert_is_numpys(column, values)


# On the real engine, before a real S3 server: what is asked for, and how many bytes come

COUNTS = (400, 400, 400, 300)  # the last one is held out
PARTS = [f"GET /{BUCKET}/part-{number:05d}.csv" for number in range(len(COUNTS))]


@pytest.fixture(scope="module")
def bucket(tmp_path_factory):
    """A folder with a bucket of shards, and the URL of a server of them."""
    folder = tmp_path_factory.mktemp("s3")
    write_shards(folder / BUCKET, COUNTS, metadata=True)
    with serve_rclone(folder) as url:
        yield folder / BUCKET, url


@pytest.fixture(scope="module")
def learn(bucket, prefect_api, workplace):
    """A function that runs the flow without cache and room in memory; bytes of shards that came, and how it read."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", "key")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")

        def run(**given):
            with AwsProxy(upstream=bucket[1]) as proxy:
                patch.setenv("AWS_ENDPOINT_URL", proxy.url)
                given = {"cache": False, "resident_bytes": 0, "prefetch": 1, "resume": "never"} | given
                state = ended(train, shards=f"s3://{BUCKET}/part*.csv", verify_identity=False, **given)
            assert state.is_completed(), state.message
            client = MlflowClient(tracking_uri=record.tracking_uri())
            found = f"tags.`prefect.flow_run_id` = '{state.state_details.flow_run_id}'"
            run = client.search_runs([client.get_experiment_by_name("shardline").experiment_id], found)[0]
            reading = json.loads(Path(client.download_artifacts(run.info.run_id, "data/reading.json")).read_text())
            return [(asked, size) for asked, size in proxy.sent if asked in PARTS and size], reading

        yield run


def sizes(bucket, times):
    """What is to come: each shard so often, whole."""
    folder, _ = bucket
    return Counter(
        {
            (part, (folder / f"part-{number:05d}.csv").stat().st_size): count
            for number, (part, count) in enumerate(zip(PARTS, times, strict=True))
        }
    )


@pytest.mark.parametrize(
    ("given", "times"),
    [
        ({"iterations": 6}, (4, 3, 3, 1)),  # two epochs of three batches, the preview, and the first one's header line
        # training saw two batches of three: evaluation streams the third
        pytest.param({"iterations": 2}, (3, 2, 2, 1), marks=pytest.mark.long),
        # what the preview read is in the cache
        pytest.param({"iterations": 6, "cache": True}, (2, 1, 1, 1), marks=pytest.mark.long),
        pytest.param({"solver": "exact"}, (3, 2, 2, 1), marks=pytest.mark.long),
    ],
)
def test_shards_are_read_as_often_as_there_are_epochs_and_once_for_the_preview(learn, bucket, given, times):
    sent, reading = learn(batch_size=400, **given)
    assert Counter(sent) == sizes(bucket, times)
    assert reading["checks"] == {"cache" if given.get("cache") else "MD5": 2 if given.get("iterations") == 2 else 3}
    assert reading["decoder"] == describe_decoder()
