"""Flows over ranks as processes, the ranks of a process, and clusters of several nodes on this machine."""

import contextlib
import os
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

import psutil

from tasks.ranks.cluster import OWN, PATIENT, own_token

ROOT = Path(__file__).parents[1]


def read_until(process, text):
    printed = []
    for line in process.stdout:
        printed.append(line)
        if text in line:
            return "".join(printed)
    raise AssertionError(f"{text!r} was not printed: {''.join(printed)}")


def finish(process):
    printed, _ = process.communicate(timeout=300)
    assert process.returncode == 0, f"exit code {process.returncode}\n{printed}"
    return printed


def ranks_of(process):
    return [each for each in psutil.Process(process.pid).children(recursive=True) if "RayTrainWorker" in name(each)]


def kill_tree(process):
    kill_kin(process)
    process.kill()


def kill_kin(process):
    for each in psutil.Process(process.pid).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            each.kill()


def name(process):
    try:
        return " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return ""


def stop(process, number):
    """Send a signal to a process and all of its group, as Prefect's worker does.

    Returns how long the process then took to end, and which of its descendants were there 5 s later.
    """
    kin = psutil.Process(process.pid).children(recursive=True)
    os.killpg(process.pid, number)
    began = time.monotonic()
    process.communicate(timeout=60)
    seconds = time.monotonic() - began
    _, left = psutil.wait_procs(kin, timeout=5)
    return seconds, [name(each) for each in left]


CLUSTER = """
import sys
import ray._private.utils
from ray.cluster_utils import Cluster
ray._private.utils.write_ray_address = lambda *_, **__: None  # into a folder that all of a machine's clusters share
small = {"object_store_memory": 80 * 2**20, "include_dashboard": False, "node_ip_address": "127.0.0.1"}
folder, head, *others = sys.argv[1:]
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": int(head), "temp_dir": folder, **small})
for cpus in others:
    cluster.add_node(num_cpus=int(cpus), **small)
print(cluster.address, flush=True)
for cpus in sys.stdin:
    cluster.add_node(num_cpus=int(cpus), **small)
cluster.shutdown()
"""


@contextmanager
def start_cluster(*cpus):
    """A process that has a cluster of so many nodes of so many CPUs, its head first; and what leads there.

    A number of CPUs that it is told in a line adds a node.
    """
    with tempfile.TemporaryDirectory() as folder:  # Ray's sockets want a short one
        token = Path(folder) / "token"
        token.write_text(own_token())
        variables = PATIENT | OWN | {"RAY_AUTH_TOKEN_PATH": str(token), "GLOO_SOCKET_IFNAME": "lo"}
        process = subprocess.Popen(
            [sys.executable, "-c", CLUSTER, folder, *map(str, cpus)],
            env={**os.environ, **variables, "PYTHONPATH": str(ROOT)},
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        try:
            assert process.stdout
            address = process.stdout.readline().strip()
            assert address, "the cluster did not start"
            yield process, {**variables, "RAY_ADDRESS": address}
        finally:
            kin = psutil.Process(process.pid).children(recursive=True)
            process.communicate(timeout=60)
            for each in psutil.wait_procs(kin, timeout=5)[1]:
                each.kill()
