"""The head of a Ray cluster of this machine's own: a program that lives until its standard input ends."""

import sys

import ray

STORE_BYTES = 80 * 2**20  # Ray takes no less; batches never pass through it


def hold(folder: str, ranks: int, gpus: int) -> None:
    """Start a cluster that has room for so many ranks, print its address, and end it with the input."""
    context = ray.init(
        address="local",
        num_cpus=ranks,
        num_gpus=gpus,
        include_dashboard=False,
        object_store_memory=STORE_BYTES,
        log_to_driver=False,
        configure_logging=False,
        _node_ip_address="127.0.0.1",
        _temp_dir=folder,
    )
    print(context.address_info["address"], flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    hold(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
