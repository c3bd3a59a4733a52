"""Small shards with known rows: made here, read by the tests as an array too."""

import gzip
import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

COLUMNS = ("fare", "latitude", "hour")
DCTAXI = Path(__file__).parents[2] / "shared" / "data" / "dctaxi"  # the real rows that the project has
SMALL = 298  # so many


def draw_rows(rows: int, *, seed: int = 0) -> np.ndarray:
    """[rows, 3] numbers, no two rows alike: the first cell counts them."""
    random = np.random.default_rng(seed)
    return np.column_stack(
        [np.arange(rows) + 0.25, random.normal(38.9, 0.1, rows).round(6), random.integers(0, 24, rows)]
    )


def to_csv(rows, columns: Sequence[str] | None = COLUMNS, *, end="\n") -> bytes:
    """The rows as CSV, with a header line unless columns is None."""
    lines = [] if columns is None else [",".join(columns)]
    lines += [",".join(repr(float(cell)) for cell in row) for row in rows]
    return "".join(line + end for line in lines).encode()


def write_shards(folder: Path, counts: Iterable[int], *, seed=0, metadata=False) -> np.ndarray:
    """part-00000.csv, … of so many rows each under `folder`, with `.meta/shards` if asked; all their rows."""
    counts = list(counts)
    rows = draw_rows(sum(counts), seed=seed)
    folder.mkdir(parents=True, exist_ok=True)
    first = 0
    for number, count in enumerate(counts):
        (folder / f"part-{number:05d}.csv").write_bytes(to_csv(rows[first : first + count]))
        first += count
    if metadata:
        write_metadata(folder, {number: count for number, count in enumerate(counts) if count})
    return rows


def write_metadata(folder: Path, counts: dict[int, int]) -> None:
    meta = folder / ".meta" / "shards"
    meta.mkdir(parents=True, exist_ok=True)
    lines = ["id,count", *(f"{number},{count}" for number, count in counts.items())]
    (meta / "part-00000.csv").write_text("\n".join(lines) + "\n")


def write_kinds(folder: Path, counts: Sequence[int]) -> None:
    """The same rows below `csv` (with metadata), `gzip`, `parquet`, and `bad`, where each shard has a bad row more."""
    from pyarrow import csv, parquet

    write_shards(folder / "csv", counts, metadata=True)
    for kind in ("gzip", "parquet", "bad"):
        (folder / kind).mkdir()
    for path in sorted((folder / "csv").glob("part-*.csv")):
        (folder / "gzip" / f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
        parquet.write_table(csv.read_csv(path), folder / "parquet" / f"{path.stem}.parquet")
        (folder / "bad" / path.name).write_bytes(path.read_bytes().replace(b"\n", b"\nbad,1,2\n", 1))


def hash_rows(batches) -> str:
    """SHA-256 over the rows of all batches, in order; the same however they are cut into batches."""
    digest = hashlib.sha256()
    for batch in batches:
        digest.update(np.ascontiguousarray(batch.numpy()).tobytes())
    return digest.hexdigest()


def write_small_set(folder: Path) -> Path:
    """Cut 298 rows of the generator's into three files like the real ones."""
    from deployments.generator import write_data

    write_data(folder, SMALL)
    texts = [path.read_text() for path in sorted((folder / "csv" / "dev").glob("part*.csv"))]
    header, rows = texts[0].split("\n", 1)[0], [row for text in texts for row in text.splitlines()[1:]]
    assert len(rows) == SMALL
    for name, part in {"train": rows[:100], "valid": rows[100:193], "test": rows[193:]}.items():
        (folder / f"{name}.csv").write_text("\n".join([header, *part, ""]))
    return folder
