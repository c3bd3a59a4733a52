"""Seeded shards of the taxi data's shape, as Spark would leave them; a set is made once and then reused.

    FOLDER/csv/dev/part-00000-….csv, _SUCCESS, .meta/shards/part-….csv, .meta/stats/part-….csv
    FOLDER/csv/test/…               the same for a tenth as many rows more
    FOLDER/complete.json            written last: what was made, and the size of each file

The same number of rows and the same seed give the same bytes. Shards are made one at a time on each core, so that the
set may be larger than memory. `python -m deployments.generator --rows 1000000 --out FOLDER` makes a set by hand.
"""

import argparse
import hashlib
import json
import math
import os
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING

from tasks.errors import ConfigurationError
from tasks.state import STATE

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

COLUMNS = (
    "fareamount_double",
    "origin_block_latitude_double",
    "origin_block_longitude_double",
    "destination_block_latitude_double",
    "destination_block_longitude_double",
    "year_integer",
    "month_integer",
    "dow_integer",
    "hour_integer",
)
LATITUDES = (38.81138, 38.994909)
LONGITUDES = (-77.113633, -76.910012)
YEARS = (2015, 2019)
FLAG_DROP = 3.25  # dollars; DC's taxi tariff, as is the price of each eighth of a mile
EIGHTH_OF_A_MILE = 0.27
KM_PER_DEGREE = (111.195, 86.53)  # of latitude; of longitude, at the box's middle: 111.195 · cos 38.903°
MILES_PER_KM = 0.621371

ROWS = 4_000_000
ROWS_PER_SHARD = 250_000  # at most
SHARDS = 8  # at least, where there are as many rows
BLOCKS = 4096
VERSION = 1  # of the bytes written: raise it when they change
MARKER = "complete.json"
EMPTY_PARTITION = 1  # the partition that Spark leaves as a zero-byte part

ShowProgress = Callable[[int, int], None]


@dataclass(frozen=True)
class ColumnMoments:
    """Count, mean, sum of squared deviations, least and greatest value of each column, as arrays of [columns]."""

    count: int
    mean: "NDArray[np.float64]"
    squares: "NDArray[np.float64]"
    least: "NDArray[np.float64]"
    greatest: "NDArray[np.float64]"

    def __add__(self, other: "ColumnMoments") -> "ColumnMoments":
        """Both together (Chan, Golub and LeVeque 1979, equation 2.1)."""
        import numpy as np

        count = self.count + other.count
        gap = other.mean - self.mean
        return ColumnMoments(
            count,
            self.mean + gap * other.count / count,
            self.squares + other.squares + gap**2 * self.count * other.count / count,
            np.minimum(self.least, other.least),
            np.maximum(self.greatest, other.greatest),
        )


def provide_data(
    home: Path, rows: int = ROWS, seed: int = 0, progress: ShowProgress | None = None
) -> tuple[Path, bool]:
    """A complete set under `home`, made now unless it is there already.

    Returns its folder, and whether it had to be made. `progress` is called with rows done and rows in all.
    """
    folder = home / f"{rows}-rows-seed-{seed}-v{VERSION}"
    if is_complete(folder):
        return folder, False
    home.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=f"{folder.name}.unfinished-", dir=home))
    try:
        write_data(unfinished, rows, seed, progress)
        shutil.rmtree(folder, ignore_errors=True)
        try:
            unfinished.rename(folder)
        except OSError:
            if not is_complete(folder):  # another process may have been faster
                raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return folder, True


def is_complete(folder: Path) -> bool:
    """Whether every file of the set is there with the size that its marker states."""
    try:
        sizes: dict[str, int] = json.loads((folder / MARKER).read_text())["sizes"]
        return all((folder / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError, KeyError):
        return False


def list_files(folder: Path) -> Iterator[tuple[str, Path]]:
    """Every file of a set with its key in a bucket, `csv/dev/part-…` and so on, in the order of the keys."""
    for name in sorted(json.loads((folder / MARKER).read_text())["sizes"]):
        yield name, folder / name


def write_data(folder: Path, rows: int, seed: int = 0, progress: ShowProgress | None = None) -> None:
    """Write a development set of `rows` rows, a test set of a tenth as many, and the marker, into an empty folder."""
    if rows < 1:
        raise ConfigurationError(f"ROWS is {rows}: ask for at least one row.")
    tests = max(1, rows // 10)
    done = 0

    def count(shard_rows: int) -> None:
        nonlocal done
        done += shard_rows
        if progress:
            progress(done, rows + tests)

    write_shards(folder / "csv" / "dev", rows, (seed, 0), count)
    write_shards(folder / "csv" / "test", tests, (seed, 1), count)
    sizes = {str(path.relative_to(folder)): path.stat().st_size for path in folder.rglob("*") if path.is_file()}
    marker = {"rows": rows, "test_rows": tests, "seed": seed, "version": VERSION, "sizes": sizes}
    (folder / MARKER).write_text(json.dumps(marker, indent=1) + "\n")


def write_shards(folder: Path, rows: int, seed: tuple[int, int], count: Callable[[int], None]) -> None:
    """Write one set as Spark does: shards and an empty one, _SUCCESS, and metadata of the rows and the columns."""
    name = uuid.UUID(bytes=hashlib.sha256(repr((rows, *seed, VERSION)).encode()).digest()[:16], version=4)
    size = min(ROWS_PER_SHARD, math.ceil(rows / SHARDS))
    counts = [min(size, rows - first) for first in range(0, rows, size)]
    counts.insert(EMPTY_PARTITION, 0)
    folder.mkdir(parents=True)

    def write(partition: int) -> ColumnMoments | None:
        path = folder / f"part-{partition:05d}-{name}-c000.csv"
        if not counts[partition]:
            path.touch()
            return None
        shard = draw_trips(counts[partition], [*seed, partition])
        _write_csv(path, shard)
        return _measure(shard)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        moments = []
        for partition, measured in enumerate(pool.map(write, range(len(counts)))):
            count(counts[partition])
            if measured:
                moments.append(measured)
    (folder / "_SUCCESS").touch()
    by_partition = "".join(f"{partition},{n}\n" for partition, n in enumerate(counts) if n)
    _write_metadata(folder / ".meta" / "shards" / f"part-00000-{name}-c000.csv", "id,count\n" + by_partition)
    statistics = _summarise(reduce(ColumnMoments.__add__, moments))
    _write_metadata(folder / ".meta" / "stats" / f"part-00000-{name}-c000.csv", statistics)


def draw_trips(rows: int, seed: list[int]) -> "list[NDArray[np.float64] | NDArray[np.int64]]":
    """Trips as nine columns of [rows], in the order of COLUMNS: fare and coordinates float64, the others int64.

    The fare follows the tariff on a distance by road that is a quarter longer than the straight one, more or less, and
    on waiting, which is longest in the weekdays' rush hours. Blocks lie symmetrically about the middle of the city, so
    that a linear model finds next to nothing in the raw columns, and most of the fare in the distance.
    """
    import numpy as np

    random = np.random.default_rng(seed)
    latitudes, longitudes = _draw_blocks()
    origin, destination = random.integers(0, BLOCKS, (2, rows))
    destination = np.where(random.random(rows) < 0.03, origin, destination)  # round trips
    year = random.integers(YEARS[0], YEARS[1] + 1, rows)
    month = random.integers(1, 13, rows)
    weekday = random.integers(1, 8, rows)  # 1 is Sunday, as in Spark
    hour = random.integers(0, 24, rows)

    north = (latitudes[destination] - latitudes[origin]) * KM_PER_DEGREE[0]
    east = (longitudes[destination] - longitudes[origin]) * KM_PER_DEGREE[1]
    miles = (
        np.sqrt(north**2 + east**2) * MILES_PER_KM * 1.25 * (1 + 0.15 * random.standard_normal(rows)).clip(0.8, None)
    )
    rush = ((hour // 3 == 2) | (hour // 3 == 5) | (hour == 18)) & (weekday % 7 > 1)
    waiting = random.exponential(1.0, rows) * np.where(rush, 2.2, 0.8) * np.sqrt(miles)
    fare = FLAG_DROP + EIGHTH_OF_A_MILE * np.floor(8 * miles) + waiting
    return [
        np.round(fare, 2),
        latitudes[origin],
        longitudes[origin],
        latitudes[destination],
        longitudes[destination],
        year,
        month,
        weekday,
        hour,
    ]


def _draw_blocks() -> "tuple[NDArray[np.float64], NDArray[np.float64]]":
    """Latitudes and longitudes of the city's blocks, the same ones for every seed: densest in the middle of the box."""
    import numpy as np

    random = np.random.default_rng(2015)
    scatter = random.standard_normal((2, BLOCKS // 2)).clip(-3.6, 3.6)
    scatter = np.concatenate([scatter, -scatter], axis=1)
    middle = [(low + high) / 2 for low, high in (LATITUDES, LONGITUDES)]
    spread = [(high - low) / 7.4 for low, high in (LATITUDES, LONGITUDES)]
    return np.round(middle[0] + spread[0] * scatter[0], 6), np.round(middle[1] + spread[1] * scatter[1], 6)


def _write_csv(path: Path, columns: "list[NDArray[np.float64] | NDArray[np.int64]]") -> None:
    import pyarrow
    import pyarrow.csv

    table = pyarrow.table(dict(zip(COLUMNS, columns, strict=True)))
    options = pyarrow.csv.WriteOptions(quoting_style="none", quoting_header="none")
    pyarrow.csv.write_csv(table, str(path), options)


def _measure(columns: "list[NDArray[np.float64] | NDArray[np.int64]]") -> ColumnMoments:
    import numpy as np

    values = np.stack([column.astype(np.float64) for column in columns])
    mean = values.mean(axis=1)
    squares = ((values - mean[:, None]) ** 2).sum(axis=1)
    return ColumnMoments(values.shape[1], mean, squares, values.min(axis=1), values.max(axis=1))


def _summarise(moments: ColumnMoments) -> str:
    """The statistics as Spark's `summary` writes them; its stddev is the sample's."""
    import numpy as np

    rows: dict[str, list[object]] = {
        "count": [moments.count] * len(COLUMNS),
        "mean": moments.mean.tolist(),
        "stddev": np.sqrt(moments.squares / max(1, moments.count - 1)).tolist(),
        "min": moments.least.tolist(),
        "max": moments.greatest.tolist(),
    }
    lines = [["summary", *COLUMNS], *([name, *map(str, values)] for name, values in rows.items())]
    return "".join(",".join(line) + "\n" for line in lines)


def _write_metadata(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True)
    path.write_text(text)
    (path.parent / "_SUCCESS").touch()


def main() -> None:
    """Make a set by hand."""
    parser = argparse.ArgumentParser(prog="python -m deployments.generator", description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=ROWS, help="rows of the development set (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the rows (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=STATE / "generated", help="default: %(default)s")
    options = parser.parse_args()
    folder, made = provide_data(options.out, options.rows, options.seed)
    print(f"{folder}: {'made' if made else 'was there already'}.")


if __name__ == "__main__":
    main()
