"""An hour of somebody who wants to break the stream: a state machine that lists, streams, replaces, deletes, truncates,
kills, fills the disk, spoils the cache and resumes elsewhere, in any order.

It holds one invariant: every row that is handed out is a row of the manifest, in its place, or the pass ended with an
error of tasks/errors.py. Rows say what they are: their shard, their line and the shard's version are their cells. Where
nothing was disturbed, a pass may not fail either.
"""

import contextlib
import multiprocessing
import os
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tasks.errors import ShardlineError
from tasks.streaming import dataset, locate
from tests.passes import (
    HEADER,
    NAMES,
    RETRY,
    SPOILING,
    Bucket,
    Folder,
    How,
    Listing,
    Pass,
    compose,
    parse,
    run_in_child,
)
from tests.servers import BUCKET, make_client, serve_rclone
from tests.shards import write_metadata

hypothesis = pytest.importorskip("hypothesis")
stateful = pytest.importorskip("hypothesis.stateful")
HealthCheck, settings, st = hypothesis.HealthCheck, hypothesis.settings, hypothesis.strategies
EXAMPLES = int(os.environ.get("SHARDLINE_MACHINE_EXAMPLES", "50"))  # of each machine that `make test-all` draws
initialize, precondition, rule = stateful.initialize, stateful.precondition, stateful.rule

hows = st.builds(
    How,
    batch_size=st.integers(1, 9),
    epochs=st.integers(1, 3),
    world_size=st.integers(1, 3),
    shuffle=st.booleans(),
    quarantine=st.sampled_from([False, False, False, True]),
    cached=st.sampled_from([True, True, True, False]),
    limit=st.sampled_from([None, None, 0, 9000]),
    in_memory=st.sampled_from([dataset.IN_MEMORY, 0]),
)


class Machine(stateful.RuleBasedStateMachine):  # type: ignore[misc, name-defined]
    """Shards, listings of them, a cache, and passes that are under way."""

    def __init__(self) -> None:
        super().__init__()
        self.home = tempfile.TemporaryDirectory(prefix="shardline-machine-")
        self.cache = Path(self.home.name) / "cache"
        self.store = self.make_store(Path(self.home.name))
        self.data: dict[str, bytes] = {}
        self.revision, self.version = 0, 100
        self.stale = False
        self.listing: Listing | None = None
        self.open: list[tuple[Pass, Listing]] = []

    def make_store(self, folder: Path) -> Folder:
        return Folder(folder / "data")

    def teardown(self) -> None:
        for passed, _ in self.open:
            passed.close()
        self.store.clear()
        self.home.cleanup()
        assert [thread.name for thread in threading.enumerate() if thread.name.startswith("shardline")] == []

    @contextlib.contextmanager
    def ending(self, may_fail: bool) -> Iterator[None]:
        """Let errors of tasks/errors.py end a pass; AssertionError where nothing gave cause for one."""
        try:
            yield
        except ShardlineError as error:
            if not may_fail:
                raise AssertionError(f"nothing was disturbed, and yet: {error!r}") from error

    @property
    def listed(self) -> Listing:
        assert self.listing is not None
        return self.listing

    def may_fail(self, listing: Listing, how: How) -> bool:
        """Whether a pass has cause to end with an error: what it reads is spoilt, or no longer what was listed."""
        return self.revision != listing.revision or listing.may_fail(how.quarantine)

    def change(self, name: str, data: bytes | None) -> None:
        self.revision += 1
        if data is None:
            self.data.pop(name, None)
            self.store.remove(name)
        else:
            self.data[name] = data
            self.store.put(name, data)

    # What happens to the store

    @initialize(rows=st.lists(st.integers(0, 9), min_size=1, max_size=4))
    def fill(self, rows):
        for name, count in zip(NAMES, rows, strict=False):
            self.replace(name, count)
        self.locate()

    @rule(name=st.sampled_from(NAMES), rows=st.integers(0, 9))
    def replace(self, name, rows):
        self.version += 1
        self.change(name, compose(NAMES.index(name), rows, self.version))

    @precondition(lambda self: self.data)
    @rule(draw=st.data())
    def replace_by_as_many_bytes(self, draw):
        name = draw.draw(st.sampled_from(sorted(self.data)))
        self.replace(name, len(parse(self.data[name]) or []))

    @precondition(lambda self: self.data)
    @rule(draw=st.data())
    def delete(self, draw):
        self.change(draw.draw(st.sampled_from(sorted(self.data))), None)

    @precondition(lambda self: any(self.data.values()))
    @rule(draw=st.data())
    def truncate(self, draw):
        name = draw.draw(st.sampled_from(sorted(name for name, data in self.data.items() if data)))
        self.change(name, self.data[name][: draw.draw(st.integers(0, len(self.data[name]) - 1))])

    @precondition(lambda self: any(len(data) > len(HEADER) for data in self.data.values()))
    @rule(draw=st.data(), byte=st.sampled_from(SPOILING))
    def spoil_a_byte(self, draw, byte):
        name = draw.draw(st.sampled_from(sorted(name for name, data in self.data.items() if len(data) > len(HEADER))))
        at = draw.draw(st.integers(len(HEADER), len(self.data[name]) - 1))
        self.change(name, self.data[name][:at] + bytes([byte]) + self.data[name][at + 1 :])

    # What is done with it

    @rule()
    def locate(self):
        self.listing = None
        parsed = [parse(data) for data in self.data.values()]
        may_fail = self.stale or not any(parsed) or None in parsed
        with self.ending(may_fail):
            manifest = locate(f"{self.store.url}/part*.csv", storage_options=self.store.options, retry=RETRY)
            self.listing = Listing(manifest, dict(self.data), -1 if self.stale else self.revision)

    @precondition(lambda self: self.listing)
    @rule(how=hows, batches=st.integers(0, 12), workers=st.sampled_from([False] * 7 + [True]), anew=st.booleans())
    def stream_on(self, how, batches, workers, anew):
        """Go on, on every rank, where the last pass over this listing stopped, in whatever shape; or over a new one."""
        if anew:
            self.locate()
        if self.listing is None:
            return
        with self.ending(self.may_fail(self.listed, how)):
            for rank in range(how.world_size):
                passed = Pass(self.store, self.cache, self.listed, how, rank)
                try:
                    if workers:
                        passed.through_workers()
                    passed.take(batches)
                finally:
                    passed.close()
            self.listed.reached = passed.iteration if passed.left > 0 else 0
            return
        self.listed.reached = 0

    # How many passes are open is chance too: whether one has read ahead what was spoilt since. So it decides no draw.

    @precondition(lambda self: self.listing)
    @rule(how=hows)
    def begin(self, how):
        if len(self.open) == 3:
            return
        with self.ending(self.may_fail(self.listed, how)):
            self.open.append((Pass(self.store, self.cache, self.listed, how, 0), self.listed))

    @rule(which=st.integers(0, 99), batches=st.integers(1, 6), close=st.booleans())
    def go_on(self, which, batches, close):
        """Take more of a pass that began before whatever happened since."""
        if not self.open:
            return
        at = which % len(self.open)
        passed, listing = self.open[at]
        try:
            passed.take(batches)
        except ShardlineError:
            assert self.may_fail(listing, passed.how)
            close = True
        if close:
            passed.close()
            del self.open[at]

    @precondition(lambda self: self.listing)
    @rule(
        how=hows,
        killed_after=st.none() | st.integers(0, 6),
        file_size=st.sampled_from([None, 0, 100, 4200]),
    )
    def stream_in_a_process_that_is_killed_or_finds_the_disk_full(self, how, killed_after, file_size):
        full = file_size is not None and (how.in_memory == 0 or how.quarantine)
        with self.ending(self.may_fail(self.listed, how) or full):
            passed = Pass(self.store, self.cache, self.listed, how, 0)
            context = multiprocessing.get_context("fork")
            here, there = context.Pipe(duplex=False)
            child = context.Process(target=run_in_child, args=(passed, there, file_size))
            child.start()
            there.close()
            try:
                self.receive(passed, here, child, killed_after)
            finally:
                child.kill()
                child.join()
                here.close()

    def receive(self, passed, here, child, killed_after):
        """Hold what a process hands out against the manifest, until it is killed or ends."""
        while killed_after is None or passed.iteration - self.listed.reached < killed_after:
            assert here.poll(60), "the process hangs"
            found = here.recv()  # EOFError: it ended without a word
            if found is None:
                assert passed.left == 0
                return
            if isinstance(found, Exception):
                raise found
            passed.check(found)
        time.sleep(0.002 * killed_after)
        child.kill()

    # What happens to the cache

    # Files there are named after their folder, and whether a killed process wrote them is chance: drawn by number.

    @rule(which=st.integers(0, 99), byte=st.integers(0, 255), behind=st.integers(0, 300), cut=st.booleans())
    def damage_the_cache(self, which, byte, behind, cut):
        for path in self.cached(which):
            data = path.read_bytes()
            at = max(0, len(data) - 1 - behind)
            path.write_bytes(data[:at] if cut else data[:at] + bytes([byte]) + data[at + 1 :])

    @rule(which=st.integers(0, 99))
    def evict_from_the_cache(self, which):
        for path in self.cached(which):
            path.unlink()

    def cached(self, which: int) -> list[Path]:
        """One of the cached shards; none where there are none."""
        found = sorted(self.cache.glob("*.rows"))
        return [found[which % len(found)]] if found else []


class MachineOverMetadata(Machine):
    """Counts come from Spark's metadata, which may be missing, of what lies there now, or older than that."""

    @rule(right=st.booleans(), spoilt=st.integers(0, 3))
    def count(self, right, spoilt):
        counts = {NAMES.index(name): len(parse(data) or []) for name, data in self.data.items()}
        if not right:
            counts[spoilt] = counts.get(spoilt, 0) + 1
        write_metadata(self.store.path, {number: rows for number, rows in counts.items() if rows})
        self.revision += 1
        self.stale = not right
        self.locate()

    def change(self, name, data):
        super().change(name, data)
        self.stale = (self.store.path / ".meta").exists()


class MachineOverS3(Machine):
    """Shards lie on a real S3 server: ranges, If-Match, ETags."""

    endpoint = ""

    def make_store(self, folder):
        return Bucket(self.endpoint)


@pytest.fixture(scope="module")
def s3(tmp_path_factory):
    """Where an S3 server listens."""
    with pytest.MonkeyPatch.context() as patch, serve_rclone(tmp_path_factory.mktemp("s3")) as url:
        for name, value in (("ACCESS_KEY_ID", "key"), ("SECRET_ACCESS_KEY", "secret"), ("DEFAULT_REGION", "us-east-1")):
            patch.setenv(f"AWS_{name}", value)
        patch.setattr(MachineOverS3, "endpoint", url)
        make_client(url).create_bucket(Bucket=BUCKET)
        yield url


def run(machine, examples, steps, **chosen):
    chosen |= {"max_examples": examples, "stateful_step_count": steps, "deadline": None}
    stateful.run_state_machine_as_test(machine, settings=settings(**chosen, suppress_health_check=list(HealthCheck)))


@pytest.mark.parametrize("machine", [Machine, MachineOverMetadata])
def test_what_is_handed_out_stands_in_the_manifest(machine):
    run(machine, 10, 15, derandomize=True)


def test_what_is_handed_out_of_s3_stands_in_the_manifest(s3):
    run(MachineOverS3, 4, 12, derandomize=True)


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("machine", [Machine, MachineOverMetadata])
def test_what_is_handed_out_stands_in_the_manifest_whatever_is_drawn(machine):
    run(machine, EXAMPLES, 40)


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_what_is_handed_out_of_s3_stands_in_the_manifest_whatever_is_drawn(s3):
    run(MachineOverS3, EXAMPLES // 4, 30)
