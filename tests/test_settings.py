"""Where the shards are: parameter, else environment, else the file BUCKET_ID."""

import pytest

from tasks.errors import ConfigurationError, ShardlineError
from tasks.parameters import TrainingParameters
from tasks.sources import resolve_sources

ID = "0123456789abcdef0123456789abcdef"
OTHER = "f" * 32


@pytest.fixture(autouse=True)
def nothing_configured(monkeypatch, tmp_path):
    for name in ("BUCKET_ID", "AWS_DEFAULT_REGION", "AWS_REGION", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)


def resolved(**given):
    return resolve_sources(TrainingParameters(**given))


def test_a_bucket_id_names_training_and_test_shards():
    sources = resolved(bucket_id=ID, region="eu-west-1")
    assert sources.shards == f"s3://dc-taxi-{ID}-eu-west-1/csv/dev/part*.csv"
    assert sources.test_shards == f"s3://dc-taxi-{ID}-eu-west-1/csv/test/part*.csv"


def test_the_parameter_wins_over_the_environment_and_that_over_the_file(monkeypatch, tmp_path):
    (tmp_path / "BUCKET_ID").write_text(f"{ID}\n")
    assert ID in resolved(region="us-east-1").shards
    monkeypatch.setenv("BUCKET_ID", OTHER)
    assert OTHER in resolved(region="us-east-1").shards
    assert ID in resolved(region="us-east-1", bucket_id=ID).shards


@pytest.mark.parametrize("name", ["AWS_DEFAULT_REGION", "AWS_REGION"])
def test_the_region_comes_from_the_environment(name, monkeypatch):
    monkeypatch.setenv(name, "ap-southeast-2")
    assert resolved(bucket_id=ID).region == "ap-southeast-2"


def test_the_region_comes_from_the_profile(monkeypatch, tmp_path):
    (tmp_path / "config").write_text("[profile taxi]\nregion = ca-central-1\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_PROFILE", "taxi")
    assert resolved(bucket_id=ID).region == "ca-central-1"


def test_any_shards_at_all_have_no_test_shards_unless_named(tmp_path):
    sources = resolved(shards="some/part*.csv")
    assert (sources.shards, sources.test_shards) == (str(tmp_path / "some/part*.csv"), None)
    assert resolved(shards="s3://b/x*.csv", test_shards="s3://b/y*.csv").test_shards == "s3://b/y*.csv"


def test_a_profile_that_is_not_there_is_named_without_its_keys(monkeypatch):
    monkeypatch.setenv("AWS_PROFILE", "absent")
    with pytest.raises(ShardlineError, match="absent"):
        resolved(bucket_id=ID)


def test_nothing_configured_names_every_remedy(tmp_path):
    with pytest.raises(ConfigurationError) as raised:
        resolved(region="us-east-1")
    assert str(raised.value) == (
        "no shards to read: give --shards 's3://bucket/path/part*.csv', or --bucket-id (or BUCKET_ID in the "
        f"environment, or a file BUCKET_ID in {tmp_path}); "
        "`make train` runs on generated shards with nothing configured"
    )


def test_no_region_is_named():
    with pytest.raises(ConfigurationError) as raised:
        resolved(bucket_id=ID)
    assert str(raised.value) == f"no region for the bucket dc-taxi-{ID}-…: give --region, or set AWS_DEFAULT_REGION"


def test_a_malformed_bucket_id_is_shown_with_its_place(tmp_path):
    (tmp_path / "BUCKET_ID").write_text("not hexadecimal")
    with pytest.raises(ConfigurationError) as raised:
        resolved(region="us-east-1")
    assert (
        str(raised.value)
        == f"{tmp_path}/BUCKET_ID says 'not hexadecimal': a BUCKET_ID is 32 hexadecimal digits (0-9, a-f)"
    )


def test_storage_options_hold_the_region_and_no_credentials():
    sources = resolved(bucket_id=ID, region="eu-west-1", anonymous=True)
    assert sources.storage_options(sources.shards) == {"anon": True, "client_kwargs": {"region_name": "eu-west-1"}}
    assert sources.storage_options("file:///x") == {}
