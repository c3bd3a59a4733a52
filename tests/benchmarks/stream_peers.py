"""Beside libraries that want the data in a format of their own first, and beside AWS's connector with pandas.

    python -m tests.benchmarks.stream_peers [ROUNDS]

Each peer is installed, when first asked for, into an environment of its own below .shardline/benchmarks. How long it
takes to convert the shards is a line of its own: ours and the connector read CSV as it lies there. First passes fetch
everything from S3, later ones find it on local disk, as each of them keeps it.
"""

import subprocess
import sys
import time
from pathlib import Path

from tests.benchmarks.stream_setting import (
    HOME,
    ROOT,
    ROWS,
    Candidate,
    print_table,
    provide_environment,
    run_in_turns,
    serve_shards,
)

MODULE = "tests.benchmarks.stream_peers_candidates"
# without obstore, which refuses a server without TLS: LitData then fetches by boto3
OVER_OURS = ("litdata==0.2.76", "lightning-utilities==0.15.3", "tifffile==2026.3.3")
CONNECTOR = ("s3torchconnector==1.5.0", "s3torchconnectorclient==1.5.0")
MOSAIC = ("mosaicml-streaming==0.13.0", "pandas", "torch==2.13.0")  # with versions that ours exclude


def convert(name: str, python: Path) -> float | None:
    """Seconds that it takes to write the shards in the format of a peer, where S3 will have them; done once.

    None where the peer cannot be used here: why it cannot is on the screen.
    """
    target = HOME / "s3" / "taxi" / name
    note = HOME / f"{name}-seconds"
    if not note.exists():
        began = time.perf_counter()
        command = [str(python), "-m", MODULE, f"convert_to_{name}", str(HOME / "s3" / "taxi" / "csv"), str(target)]
        if subprocess.run(command, cwd=ROOT, stdout=subprocess.DEVNULL).returncode:
            return None
        note.write_text(str(time.perf_counter() - began))
    return float(note.read_text())


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 7
    light = provide_environment("light", (*OVER_OURS, *CONNECTOR))
    heavy = provide_environment("mosaic", MOSAIC, alone=True)
    with serve_shards() as environment:
        environment["BENCHMARK_CACHE"] = str(HOME)
        converted = {"LitData": convert("litdata", light), "MosaicML Streaming": convert("mosaic", heavy)}

        def of(python: Path, *arguments: str) -> Candidate:
            return Candidate(*arguments, environment=environment, python=python, module=MODULE)

        first = {
            "ours": Candidate("ours", "cold", environment=environment),
            "LitData": of(light, "litdata", "fresh"),
            "s3torchconnector + pandas": of(light, "s3torchconnector"),
        }
        later = {"ours": Candidate("ours", "warm", environment=environment), "LitData": of(light, "litdata", "kept")}
        if converted["MosaicML Streaming"]:
            first["MosaicML Streaming"] = of(heavy, "mosaic", "fresh")
            later["MosaicML Streaming"] = of(heavy, "mosaic", "kept")
        candidates = [*first.values(), *later.values()]
        measured = run_in_turns(candidates, rounds)
    print_table("First pass from S3, what comes being kept", dict(zip(first, measured, strict=False)), ROWS, "ours")
    print_table("Later passes", dict(zip(later, measured[len(first) :], strict=True)), ROWS, "ours")
    print("\n| conversion before the first pass | s |\n|---|---:|")
    for name, seconds in converted.items():
        print(f"| {name} | {f'{seconds:.1f}' if seconds else 'it cannot be used here, and is left out: see above'} |")


if __name__ == "__main__":
    main()
