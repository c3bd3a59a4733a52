"""Addresses in what is shown and stored: no user, no password, no signature; what they name stays told apart."""

import pickle

import pytest

from tasks.errors import ConfigurationError, TransferError
from tasks.parameters import Source
from tasks.redaction import identify, label, name_of, redact, redact_text
from tasks.sources import resolve_sources
from tasks.streaming.manifest import Manifest, Shard

AMZ = "X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential=AKIA%2F20261124&X-Amz-Expires=60&X-Amz-Signature=5ec2e7"
GOOG = "X-Goog-Algorithm=GOOG4&X-Goog-Credential=me%40x&X-Goog-Signature=5ec2e7"
SAS = "sv=2024-11-04&ss=b&srt=o&sp=r&se=2026-11-25T00%3A00%3A00Z&sig=5ec2e7%3D"
V2 = "AWSAccessKeyId=AKIA&Signature=5ec2e7%3D&Expires=1764000000"
PLAIN = "https://host/a/part-1.csv"


@pytest.mark.parametrize(
    ("uri", "shown", "named"),
    [
        (PLAIN, PLAIN, PLAIN),
        *((f"{PLAIN}?{query}", None, PLAIN) for query in (AMZ, GOOG, SAS, V2)),
        (f"{PLAIN}?{AMZ}&versionId=7", None, f"{PLAIN}?versionId=7"),
        (f"{PLAIN}?id=1", f"{PLAIN}?id=***", f"{PLAIN}?id=1"),
        (f"{PLAIN}?se=5&st=2", f"{PLAIN}?se=***&st=***", f"{PLAIN}?se=5&st=2"),  # no SAS without sig
        (f"{PLAIN}?Expires=5", f"{PLAIN}?Expires=***", f"{PLAIN}?Expires=5"),
        ("https://user:pass@host/x.csv", "https://***@host/x.csv", "https://host/x.csv"),
        ("https://user:p%40s%2Fs@host:81/x.csv", "https://***@host:81/x.csv", "https://host:81/x.csv"),
        ("https://user:p@ss@host/x.csv", "https://***@host/x.csv", "https://host/x.csv"),
        ("https://user:p/a@ss@host/x.csv", "https://***@host/x.csv", "https://host/x.csv"),
        ("https://user:p?a#ss@host/x.csv", "https://***@host/x.csv", "https://host/x.csv"),
        ("s3://key:secret@bucket/x.csv", "s3://***@bucket/x.csv", "s3://bucket/x.csv"),
        *((same, same, same) for same in (
            "s3://bucket/a@b/part-?.csv", "s3://bucket/year=?/month=1/x.csv", "/data/x?a=b.csv", "file:///a@b/c.csv",
            "abfs://container@account.dfs.core.windows.net/x.csv", "memory://a/x.csv", "https://host/a@b.csv",
            "part*.csv", f"{PLAIN}?", f"{PLAIN}?flag",
        )),
    ],
)  # fmt: skip
def test_what_an_address_shows_and_names(uri, shown, named):
    assert identify(uri) == named
    assert redact(uri) == (shown or redact(uri))
    assert "5ec2e7" not in redact(uri)
    assert "AKIA" not in redact(uri)
    assert redact(redact(uri)) == redact(uri)
    assert label(label(uri)) == label(uri)


def test_an_object_signed_anew_is_the_same_and_another_id_is_another():
    def manifest(*uris):
        return Manifest(tuple(Shard(uri, 1, "e", 2) for uri in uris), ("a",))

    plain = manifest(PLAIN)
    for query in (AMZ, GOOG, SAS, V2):
        assert manifest(f"{PLAIN}?{query}").fingerprint == plain.fingerprint
        assert manifest(f"{PLAIN}?{query}").etags == plain.etags
    two = manifest(f"{PLAIN}?id=1", f"{PLAIN}?id=2")
    assert len(two.etags) == 2
    assert not [uri for uri in two.etags if "id=1" in uri or "id=2" in uri]
    assert two.fingerprint not in (plain.fingerprint, manifest(f"{PLAIN}?id=1", f"{PLAIN}?id=3").fingerprint)


def test_the_fingerprint_of_other_addresses_is_what_it_was():
    shards = (Shard("s3://b/part-1.csv", 10, "abc", 2), Shard("https://h/x.csv?id=1", 11, "def", 3))
    assert Manifest(shards, ("a",)).fingerprint == "f954a6baf1eced21c6939ab3c63a3ff52c85b9a2981788338d8ace9ace13c8c2"


def test_a_manifest_is_kept_without_secrets_and_says_so_where_it_cannot_be_read_again():
    kept = Manifest((Shard(f"{PLAIN}?{AMZ}", 1, "e", 2),), ("a",)).to_dict()
    assert "5ec2e7" not in str(kept)
    assert Manifest.from_dict(kept).fingerprint == kept["fingerprint"]
    with pytest.raises(ConfigurationError, match=r"keeps https://host/a/part-1.csv\?id=\*\*\* without the values"):
        Manifest.from_dict(Manifest((Shard(f"{PLAIN}?id=1", 1, "e", 2),), ("a",)).to_dict())


@pytest.mark.parametrize("error", [ConfigurationError, TransferError])
def test_no_error_says_a_secret(error):
    told = error(f"{PLAIN}?{AMZ}: gone (see 'https://u:5ec2e7@h/x').")
    assert str(told) == (
        f"{PLAIN}?X-Amz-Algorithm=***&X-Amz-Credential=***&X-Amz-Expires=***&X-Amz-Signature=***: gone "
        "(see 'https://***@h/x')."
    )
    assert str(pickle.loads(pickle.dumps(told))) == str(told)


def test_a_text_without_secrets_stays_as_it_is():
    text = "see http://127.0.0.1:5000/#/experiments/1/runs/2?workflowType=machine_learning and s3://b/part*.csv?"
    assert redact_text(text) == text


def test_a_shard_is_named_without_its_signature():
    assert [name_of(f"{PLAIN}?X-Amz-Credential=a/b"), name_of("s3://b/c/part?.csv")] == ["part-1.csv", "part?.csv"]


@pytest.mark.parametrize("password", ["p@ss", "p/ss", "p?ss", "p#ss", 'p"ss', "p ss"])
def test_an_address_whose_password_parsers_would_cut_is_refused_without_showing_it(password):
    with pytest.raises(ConfigurationError, match="write @ as %40") as raised:
        resolve_sources(Source(shards=f"https://user:{password}@host/x.csv"))
    assert "ss@" not in str(raised.value)
    assert "user" not in str(raised.value).partition("in its")[0]
