"""Bodies only: what fetches the shards' bytes fastest, and at which cost in CPU time.

    python -m tests.benchmarks.stream_bodies [ROUNDS]        236 MB in 16 shards from rclone on loopback

Nothing is hashed or decoded. Each client reads 4 shards at a time; CPU seconds are those of the client's process.
"""

import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from tests.benchmarks.stream_setting import Candidate, describe_machine, provide_peers, run_in_turns, serve_shards

KEYS = [f"csv/part-{number:05d}.csv" for number in range(16)]
CONNECTIONS = 4
READ_SIZE = 2**18
CLIENTS = ("botocore", "s3fs", "obstore", "pyarrow", "crt")


def botocore() -> Callable[[str], int]:
    """As the stream itself opens and drains a body."""
    from tasks.streaming.objects.retrying import RetryPolicy
    from tasks.streaming.objects.schemes import open_store
    from tasks.streaming.objects.store import Listed

    store = open_store("s3://taxi/csv", None, RetryPolicy())
    listed = {each.uri: each for each in store.list("s3://taxi/csv/part-*.csv")}

    def read(key: str) -> int:
        object_: Listed = listed[f"s3://taxi/{key}"]
        body, count = store.open(object_.uri, offset=0, stop=object_.size, size=object_.size, etag=object_.etag), 0
        while data := body.read(READ_SIZE):
            count += len(data)
        body.close()
        return count

    return read


def s3fs() -> Callable[[str], int]:
    """Whole objects, on s3fs's one event loop."""
    import s3fs

    system = s3fs.S3FileSystem(endpoint_url=os.environ["AWS_ENDPOINT_URL"])
    return lambda key: len(system.cat_file(f"taxi/{key}"))


def obstore() -> Callable[[str], int]:
    """Streamed."""
    from obstore.store import S3Store

    store = S3Store(
        "taxi",
        endpoint=os.environ["AWS_ENDPOINT_URL"],
        region="us-east-1",
        access_key_id=os.environ["AWS_ACCESS_KEY_ID"],
        secret_access_key=os.environ["AWS_SECRET_ACCESS_KEY"],
        client_options={"allow_http": True},
    )
    return lambda key: sum(len(part) for part in store.get(key).stream(min_chunk_size=READ_SIZE))


def pyarrow() -> Callable[[str], int]:
    """Whole objects, in one request each."""
    from pyarrow import fs

    system = fs.S3FileSystem(
        endpoint_override=os.environ["AWS_ENDPOINT_URL"].removeprefix("http://"), scheme="http", region="us-east-1"
    )

    def read(key: str) -> int:
        with system.open_input_file(f"taxi/{key}") as body:
            return len(body.read())

    return read


def crt() -> Callable[[str], int]:
    """AWS's C runtime, in ranges of its own choice, on its own threads."""
    from awscrt.auth import AwsCredentialsProvider
    from awscrt.http import HttpHeaders, HttpRequest
    from awscrt.s3 import S3Client, S3RequestTlsMode, S3RequestType

    host = os.environ["AWS_ENDPOINT_URL"].removeprefix("http://")
    keys = os.environ["AWS_ACCESS_KEY_ID"], os.environ["AWS_SECRET_ACCESS_KEY"]
    client = S3Client(
        region="us-east-1",
        tls_mode=S3RequestTlsMode.DISABLED,
        credential_provider=AwsCredentialsProvider.new_static(*keys),
        throughput_target_gbps=10,
    )

    def read(key: str) -> int:
        parts: list[int] = []
        request = HttpRequest("GET", f"/taxi/{key}", HttpHeaders([("host", host)]))
        client.make_request(
            type=S3RequestType.GET_OBJECT, request=request, on_body=lambda chunk, **_: parts.append(len(chunk))
        ).finished_future.result(60)
        return sum(parts)

    return read


def main() -> None:
    if len(sys.argv) > 1 and sys.argv[1] in CLIENTS:
        read = globals()[sys.argv[1]]()
        with ThreadPoolExecutor(CONNECTIONS) as threads:
            for _ in sys.stdin:
                wall, busy = time.perf_counter(), time.process_time()
                size = sum(threads.map(read, KEYS))
                print(json.dumps([size / (time.perf_counter() - wall), time.process_time() - busy]), flush=True)
        return
    rounds, peers = int(sys.argv[1]) if len(sys.argv) > 1 else 9, provide_peers()
    with serve_shards() as environment:
        module = "tests.benchmarks.stream_bodies"
        candidates = [Candidate(name, module=module, environment=environment, python=peers) for name in CLIENTS]
        measured = run_in_turns(candidates, rounds)
    print("\n| bodies by | median MB/s | most MB/s | median CPU s |\n|---|---:|---:|---:|")
    for name, found in zip(CLIENTS, measured, strict=True):
        rates, cpu = zip(*found, strict=True)
        print(
            f"| {name} | {statistics.median(rates) / 1e6:.0f} | {max(rates) / 1e6:.0f} | {statistics.median(cpu):.2f} |"
        )
    print(f"\n{describe_machine()}; {rounds} rounds in turn.")


if __name__ == "__main__":
    main()
