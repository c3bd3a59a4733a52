"""Where torch.distributed lets the ranks of a group meet: at rank 0's address in the cluster, and at no other.

Ray Train, as torch by itself, has rank 0 listen on every address of its machine, where torch asks for no password.
"""

from __future__ import annotations

import socket
from datetime import timedelta
from typing import Any

import ray.train
import ray.util
import torch.distributed
from ray.train.torch import TorchConfig
from ray.train.torch.config import _TorchBackend


class MeetingConfig(TorchConfig):  # type: ignore[misc]
    """As Ray's own, but for where the ranks meet."""

    @property
    def backend_cls(self) -> type[_TorchBackend]:
        """What Ray starts in the ranks."""
        return MeetingBackend


class MeetingBackend(_TorchBackend):  # type: ignore[misc]
    """As Ray's own, but for where the ranks meet."""

    def on_start(self, worker_group: Any, backend_config: TorchConfig) -> None:
        """Let all ranks of a group meet; raises what a rank raises that cannot."""
        host, port, listener = worker_group.execute_single(0, listen)
        seconds = timedelta(seconds=backend_config.timeout_s)
        worker_group.execute(meet, host, port, listener, backend=backend_config.backend, timeout=seconds)


def listen() -> tuple[str, int, int]:
    """Listen on this node's address in the cluster; return it, the port, and the descriptor of the socket."""
    host = ray.util.get_node_ip_address()
    listener = socket.create_server((host, 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    return host, listener.getsockname()[1], listener.detach()


def meet(host: str, port: int, listener: int, *, backend: str, timeout: timedelta) -> None:
    """Join the group as the rank that Ray has given this process; rank 0 is the one that listens."""
    context = ray.train.get_context()
    rank, size = context.get_world_rank(), context.get_world_size()
    store = torch.distributed.TCPStore(  # type: ignore[attr-defined]
        host, port, size, rank == 0, timeout=timeout, master_listen_fd=listener if rank == 0 else None
    )
    torch.distributed.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=timeout)
