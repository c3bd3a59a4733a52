"""From a glob to a manifest: what is listed, in which order, with which counts, and what cannot be brought together."""

import functools
import json
import os
import random
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch

from tasks.errors import ConfigurationError, RowCountError, RowError, ShardsNotFoundError
from tasks.streaming import Manifest, ObjectStorageDataset, Shard, locate
from tests.fuzz_listing import fuzz
from tests.shards import COLUMNS, draw_rows, to_csv, write_metadata, write_shards

FUZZ_SECONDS = float(os.environ.get("SHARDLINE_FUZZ_SECONDS", "60"))


def names(manifest):
    return [shard.uri.rsplit("/", 1)[1] for shard in manifest.shards]


def write(folder, name, rows):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(to_csv(draw_rows(rows)) if rows else b"")


def test_shards_come_in_natural_order(tmp_path):
    for number in (10, 9, 2, 100, 1):
        write(tmp_path, f"part-{number}.csv", number)
    manifest = locate(f"{tmp_path}/part-*.csv")
    assert names(manifest) == ["part-1.csv", "part-2.csv", "part-9.csv", "part-10.csv", "part-100.csv"]
    assert manifest.counts == (1, 2, 9, 10, 100)


def test_several_globs_come_in_the_order_given_and_once_each(tmp_path):
    for name in ("train.csv", "valid.csv", "test.csv"):
        write(tmp_path, name, 3)
    manifest = locate([f"{tmp_path}/v*.csv", f"{tmp_path}/t*.csv", f"{tmp_path}/test.csv"])
    assert names(manifest) == ["valid.csv", "test.csv", "train.csv"]


def test_by_products_and_empty_shards_are_skipped_and_noted(tmp_path):
    write_shards(tmp_path, [3, 4])
    for name in ("_SUCCESS", ".part-00000.csv.crc", "part-00000.csv.crc", "part-00007.csv", ".meta/shards/x.txt"):
        write(tmp_path, name, 0)
    (tmp_path / "part-00008.csv").write_bytes(",".join(COLUMNS).encode() + b"\n")
    manifest = locate(f"{tmp_path}/**")
    assert names(manifest) == ["part-00000.csv", "part-00001.csv"]
    assert "2 shards without rows skipped" in manifest.notes
    assert any("by-products (_SUCCESS, .crc, .meta) skipped" in note for note in manifest.notes)


def test_counts_come_from_the_metadata_without_reading_the_shards(tmp_path):
    write_shards(tmp_path, [3, 4])
    write_metadata(tmp_path, {0: 30, 1: 40})
    manifest = locate(f"{tmp_path}/part*.csv")
    assert manifest.counts == (30, 40)
    assert manifest.notes == (f"rows counted by file://{tmp_path}/.meta/shards/part-00000.csv",)


def test_ids_are_partition_numbers_with_none_for_an_empty_partition(tmp_path):
    write_shards(tmp_path, [3, 0, 5, 0, 7])
    (tmp_path / "part-00003.csv").write_bytes(b"")
    write_metadata(tmp_path, {0: 3, 2: 5, 4: 7})
    manifest = locate(f"{tmp_path}/part*.csv")
    assert names(manifest) == ["part-00000.csv", "part-00002.csv", "part-00004.csv"]
    assert manifest.counts == (3, 5, 7)


def test_ids_that_do_not_match_names_are_paired_in_order_and_that_is_noted(tmp_path):
    for name, rows in (("a-2.csv", 2), ("a-10.csv", 10), ("a-3.csv", 0)):
        write(tmp_path, name, rows)
    write_metadata(tmp_path, {5: 2, 9: 10})
    manifest = locate(f"{tmp_path}/a*.csv")
    assert (names(manifest), manifest.counts) == (["a-2.csv", "a-10.csv"], (2, 10))
    assert any(note.startswith("ids and names do not match") for note in manifest.notes)


def test_a_glob_over_some_of_the_partitions_takes_their_counts(tmp_path):
    write_shards(tmp_path, [1, 2, 3, 4] * 4, metadata=True)
    assert locate(f"{tmp_path}/part-0001*.csv").counts == (3, 4, 1, 2, 3, 4)


def test_a_partition_that_is_counted_but_not_listed_is_missed(tmp_path):
    write_shards(tmp_path, [3, 4, 5], metadata=True)
    (tmp_path / "part-00001.csv").unlink()
    with pytest.raises(RowCountError, match=r"counts 4 rows in partition 1, but no such shard was listed .*part-00001"):
        locate(f"{tmp_path}/part*.csv")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected 'id,count'"),
        ("partition,rows\n0,3\n", "the header is 'partition,rows', expected 'id,count'"),
        ("id,count\n0,three\n", "line 2: '0,three' is not two whole numbers"),
        (f"id,count\n{'1' * 5000},3\n", "line 2: '1+' is not two whole numbers"),
        (f"id,count\n0,{'x' * 140_000}\n", "is no CSV with the header id,count: field larger than field limit"),
        ("id,count\n0,3\n0,4\n", "line 3: id 0 is there more than once"),
        ("id,count\n0,3\n", "counts 1 partitions with rows, but 2 of 2 shards have rows"),
        ("id,count\n0,3\n1,0\n", "counts 1 partitions with rows, but 2 of 2 shards have rows"),
    ],
)
def test_metadata_that_do_not_fit_are_named(text, message, tmp_path):
    write_shards(tmp_path, [3, 4])
    write_metadata(tmp_path, {})
    path = tmp_path / ".meta" / "shards" / "part-00000.csv"
    path.write_text(text or "\n")
    with pytest.raises(RowCountError, match=message) as caught:
        locate(f"{tmp_path}/part*.csv")
    assert f"file://{path}" in str(caught.value)


def test_a_counted_shard_of_zero_bytes_is_named(tmp_path):
    write_shards(tmp_path, [3, 4], metadata=True)
    (tmp_path / "part-00001.csv").write_bytes(b"")
    with pytest.raises(RowCountError, match=r"part-00001.csv is empty, but .* counts 4 rows"):
        locate(f"{tmp_path}/part*.csv")


def test_explicit_metadata_are_used_and_must_be_there(tmp_path):
    write_shards(tmp_path / "data", [3, 4])
    write_metadata(tmp_path / "other", {0: 3, 1: 4})
    pattern = f"{tmp_path}/other/.meta/shards/part-*.csv"
    assert "other/.meta" in locate(f"{tmp_path}/data/part*.csv", meta_shards=pattern).notes[0]
    with pytest.raises(ShardsNotFoundError, match="meta_shards='nowhere"):
        locate(f"{tmp_path}/data/part*.csv", meta_shards="nowhere/*.csv")


@pytest.mark.parametrize("metadata", [True, False])
def test_max_shards_takes_the_first_with_rows(metadata, tmp_path):
    write_shards(tmp_path, [0, 3, 0, 4, 5], metadata=metadata)
    assert locate(f"{tmp_path}/part*.csv", max_shards=2).counts == (3, 4)


@pytest.mark.parametrize("end", ["\n", "\r\n", "\n\n", "\r\n\r\n"])
@pytest.mark.parametrize("final", [True, False])
def test_rows_are_counted_however_lines_end(end, final, tmp_path):
    data = to_csv(draw_rows(70_000), end=end)
    (tmp_path / "part.csv").write_bytes(data if final else data.rstrip())
    assert locate(f"{tmp_path}/part.csv").counts == (70_000,)


def test_nothing_that_matches_is_named(tmp_path):
    write(tmp_path, "_SUCCESS", 0)
    with pytest.raises(ShardsNotFoundError, match=r"part\*.csv matches nothing: check path and pattern"):
        locate(f"{tmp_path}/part*.csv")
    with pytest.raises(ShardsNotFoundError, match="matches nothing but by-products such as"):
        locate(f"{tmp_path}/*")


def test_shards_without_any_row_are_named(tmp_path):
    write_shards(tmp_path, [0, 0])
    with pytest.raises(ShardsNotFoundError, match="matches 2 shards, but none of them has rows"):
        locate(f"{tmp_path}/part*.csv")


def test_columns_that_no_shard_has_are_named(tmp_path):
    write_shards(tmp_path, [3])
    with pytest.raises(RowError, match="column 'tip' is missing; found fare, latitude, hour"):
        locate(f"{tmp_path}/part*.csv", columns=["fare", "tip"])


@pytest.mark.parametrize(("shards", "message"), [([], "empty list"), ("nosuch://x/y", "scheme nosuch://")])
def test_what_cannot_be_listed_is_refused(shards, message):
    with pytest.raises(ConfigurationError, match=message):
        locate(shards)


def test_local_paths_uris_and_relative_paths_name_the_same_shards(tmp_path, monkeypatch):
    write_shards(tmp_path, [3, 4])
    monkeypatch.chdir(tmp_path)
    manifests = [locate(shards) for shards in (f"{tmp_path}/part*.csv", f"file://{tmp_path}/part*.csv", "part*.csv")]
    assert len({manifest.fingerprint for manifest in manifests}) == 1


def test_memory_urls_are_read():
    import fsspec

    rows = draw_rows(10)
    with fsspec.open("memory://shards/part-0.csv", "wb") as file:
        file.write(to_csv(rows))
    assert torch.cat(list(ObjectStorageDataset("memory://shards/part*.csv", epochs=1))).tolist() == rows.tolist()


@pytest.fixture
def http(tmp_path):
    """The URL of a web server of a folder with three shards, and their rows."""
    rows = write_shards(tmp_path, (5, 7, 300))
    handler = functools.partial(QuietHandler, directory=str(tmp_path))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", rows
        server.shutdown()


class QuietHandler(SimpleHTTPRequestHandler):
    sized = True

    def log_message(self, *_):
        pass

    def send_header(self, keyword, value):
        if keyword != "Content-Length" or self.sized:
            super().send_header(keyword, value)


def test_a_web_server_is_read_by_its_links_and_by_the_shards_addresses(http):
    url, rows = http
    by_links = ObjectStorageDataset(f"{url}/part*.csv", epochs=1)
    assert torch.cat(list(by_links)).tolist() == rows.tolist()
    addresses = [f"{url}/part-{number:05d}.csv" for number in (0, 2)]
    chosen = torch.cat(list(ObjectStorageDataset(addresses, epochs=1)))
    assert chosen.tolist() == [*rows[:5].tolist(), *rows[12:].tolist()]


def test_a_web_server_that_states_no_size_is_refused(http, monkeypatch):
    monkeypatch.setattr(QuietHandler, "sized", False)
    with pytest.raises(ConfigurationError, match=r"part-00000.csv: its server states no size"):
        ObjectStorageDataset(f"{http[0]}/part*.csv", epochs=1)


class TestManifest:
    shard = Shard("s3://bucket/part-0.csv", 10, "abc", 3)
    manifest = Manifest((shard,), COLUMNS, ("a note",), COLUMNS)

    def test_survives_json(self):
        assert Manifest.from_dict(json.loads(json.dumps(self.manifest.to_dict()))) == self.manifest

    def test_changed_by_hand_is_refused(self):
        facts = self.manifest.to_dict()
        facts["shards"][0]["rows"] = 4
        with pytest.raises(ConfigurationError, match="fingerprint"):
            Manifest.from_dict(facts)

    @pytest.mark.parametrize(
        "facts", [{}, [], {"shards": None}, {"shards": [{"uri": "u"}], "columns": []}, {"shards": [], "columns": 1}]
    )
    def test_what_is_no_manifest_is_refused(self, facts):
        with pytest.raises(ConfigurationError, match=r"This is no manifest .*locate the shards again"):
            Manifest.from_dict(facts)

    @pytest.mark.parametrize("change", [{"uri": "x"}, {"size": 11}, {"etag": "abd"}, {"rows": 4}])
    def test_fingerprint_changes_with_every_fact_of_a_shard(self, change):
        other = Manifest((Shard(**(vars(self.shard) | change)),), COLUMNS)
        assert other.fingerprint != self.manifest.fingerprint

    def test_fingerprint_is_of_content_not_of_times_or_notes(self, tmp_path):
        write_shards(tmp_path, [3, 4])
        counted = locate(f"{tmp_path}/part*.csv")
        write_metadata(tmp_path, {0: 3, 1: 4})
        os.utime(tmp_path / "part-00000.csv", (1, 1))
        stated = locate(f"{tmp_path}/part*.csv")
        assert counted.notes != stated.notes
        assert counted.fingerprint == stated.fingerprint


def test_folders_of_any_shape_are_listed_or_refused_by_name():
    tried, listed = fuzz(2, seed=5)
    assert tried > listed > 0


@pytest.mark.long
@pytest.mark.timeout(FUZZ_SECONDS + 300)
def test_folders_without_end_are_listed_or_refused_by_name():
    seed = random.SystemRandom().getrandbits(32)
    print("seed", seed)
    assert fuzz(FUZZ_SECONDS, seed)[1] > 0
