"""What the hardware is: processor, memory, torch, CUDA devices, in plain dataclasses that become JSON by `asdict`.

How fast it is stands in measurement; how much of it the process may use is read in cgroups.
"""

import os
import platform
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.devices import cgroups
from tasks.devices.nvml import Nvml, open_nvml

# Usable bytes/s of one PCI Express lane, one way, by generation, after line coding (PCI-SIG base specifications).
PCIE_LANE = {1: 0.25e9, 2: 0.5e9, 3: 0.985e9, 4: 1.969e9, 5: 3.938e9, 6: 7.563e9}


@dataclass(frozen=True, kw_only=True)
class Cpu:
    """The processor. `usable` is what this process gets: the smaller of its affinity and its control group's quota."""

    model: str
    logical_cores: int
    affinity: int
    quota: float | None
    usable: float


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Main memory in bytes. `usable` is the smaller of the machine's memory and the control group's limit."""

    total: int
    available: int
    limit: int | None
    usable: int


@dataclass(frozen=True, kw_only=True)
class Torch:
    """The torch that computes: its threads, instruction set, and where and as what a new tensor is made."""

    version: str
    threads: int
    interop_threads: int
    cpu_capability: str
    cuda_version: str | None
    default_dtype: str
    default_device: str


@dataclass(frozen=True, kw_only=True)
class CudaDevice:
    """A CUDA device, in bytes, MHz and bits. None stands for what neither torch nor NVML tells.

    `bandwidth_limit` (its memory) and `link_limit` (PCI Express, one way) are in bytes/s.
    """

    index: int
    name: str
    capability: str
    memory: int
    multiprocessors: int
    clock: float | None
    memory_clock: float | None
    memory_bus: int | None
    bandwidth_limit: float | None
    link_generation: int | None
    link_width: int | None
    link_limit: float | None
    driver: str | None


@dataclass(frozen=True, kw_only=True)
class Hardware:
    """All of it. `left_out` says, a sentence each, what could not be described and why."""

    platform: str
    python: str
    cpu: Cpu
    memory: Memory
    torch: Torch
    cuda: tuple[CudaDevice, ...]
    nvidia_smi: str | None
    left_out: tuple[str, ...]

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> "Hardware":
        """Return the hardware that plain JSON types were made of by `asdict`."""
        parts = {
            "cpu": Cpu(**plain["cpu"]),
            "memory": Memory(**plain["memory"]),
            "torch": Torch(**plain["torch"]),
            "cuda": tuple(CudaDevice(**device) for device in plain["cuda"]),
            "left_out": tuple(plain["left_out"]),
        }
        return cls(**{**plain, **parts})

    def get_name(self, device: str) -> str:
        """Return the name of `cpu`, `cuda` or `cuda:1` as people know it."""
        if device == "cpu":
            return f"{self.cpu.model} ({self.cpu.usable:g} cores, {self.torch.threads} threads)"
        return self.get_cuda(device).name

    def get_cuda(self, device: str) -> CudaDevice:
        """Return the CUDA device that a torch device string means (`cuda` is number 0)."""
        return self.cuda[int(device.partition(":")[2] or 0)]


def describe(root: Path = Path("/")) -> Hardware:
    """Look at this machine and return what is there; nothing is measured and nothing but torch is started.

    `root` is where /proc and /sys are read. A machine without a GPU, NVML or nvidia-smi is described without them.
    """
    left_out: list[str] = []
    devices = _describe_cuda(left_out)
    return Hardware(
        platform=platform.platform(),
        python=platform.python_version(),
        cpu=describe_cpu(root),
        memory=describe_memory(root),
        torch=_describe_torch(),
        cuda=devices,
        nvidia_smi=_run_nvidia_smi(left_out),
        left_out=tuple(left_out),
    )


def describe_cpu(root: Path = Path("/")) -> Cpu:
    """Return the processor, and what this process gets of it."""
    logical = os.cpu_count() or 1
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else logical
    quota = cgroups.read_cpu_quota(root)
    usable = affinity if quota is None else min(affinity, quota)
    return Cpu(model=_read_model(root), logical_cores=logical, affinity=affinity, quota=quota, usable=usable)


def _read_model(root: Path) -> str:
    """Return the processor's name; /proc/cpuinfo has none on some Arm machines, and macOS has no such file."""
    try:
        lines = (root / "proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def describe_memory(root: Path = Path("/")) -> Memory:
    """Return main memory as the machine and this process's control group leave it; `root` as in `describe`."""
    import psutil

    memory = psutil.virtual_memory()
    limit = cgroups.read_memory_limit(root)
    usable = memory.total if limit is None else min(memory.total, limit)
    return Memory(total=memory.total, available=min(memory.available, usable), limit=limit, usable=usable)


def _describe_torch() -> Torch:
    import torch

    tensor = torch.empty(0)
    return Torch(
        version=str(torch.__version__),
        threads=torch.get_num_threads(),
        interop_threads=torch.get_num_interop_threads(),
        cpu_capability=torch.backends.cpu.get_cpu_capability(),
        cuda_version=torch.version.cuda,
        default_dtype=str(tensor.dtype).removeprefix("torch."),
        default_device=str(tensor.device),
    )


def _describe_cuda(left_out: list[str]) -> tuple[CudaDevice, ...]:
    import torch

    if not torch.cuda.is_available():
        build = "built without CUDA" if torch.version.cuda is None else f"built for CUDA {torch.version.cuda}"
        left_out.append(f"CUDA devices: torch {torch.__version__} ({build}) finds none.")
        return ()
    with open_nvml(left_out) as nvml:
        return tuple(
            describe_device(index, torch.cuda.get_device_properties(index), nvml)
            for index in range(torch.cuda.device_count())
        )


def describe_device(index: int, properties: Any, nvml: Nvml) -> CudaDevice:
    """Put together what torch (its `properties` of the device) and NVML tell; for clocks NVML has the first word."""
    handle = nvml.find(properties)
    memory_clock = nvml.ask(handle, "nvmlDeviceGetMaxClockInfo", "NVML_CLOCK_MEM") or _as_mhz(
        getattr(properties, "memory_clock_rate", None)
    )
    clock = nvml.ask(handle, "nvmlDeviceGetMaxClockInfo", "NVML_CLOCK_SM") or _as_mhz(
        getattr(properties, "clock_rate", None)
    )
    bus = nvml.ask(handle, "nvmlDeviceGetMemoryBusWidth") or getattr(properties, "memory_bus_width", None)
    generation = nvml.ask(handle, "nvmlDeviceGetMaxPcieLinkGeneration")
    width = nvml.ask(handle, "nvmlDeviceGetMaxPcieLinkWidth")
    return CudaDevice(
        index=index,
        name=properties.name,
        capability=f"{properties.major}.{properties.minor}",
        memory=properties.total_memory,
        multiprocessors=properties.multi_processor_count,
        clock=clock,
        memory_clock=memory_clock,
        memory_bus=bus,
        # Two transfers a clock on a bus of so many bits: H100 SXM 2 x 2619 MHz x 5120 / 8 = 3.35 TB/s, as published.
        bandwidth_limit=2 * memory_clock * 1e6 * bus / 8 if memory_clock and bus else None,
        link_generation=generation,
        link_width=width,
        link_limit=PCIE_LANE[generation] * width if generation in PCIE_LANE and width else None,
        driver=nvml.driver,
    )


def _as_mhz(kilohertz: int | None) -> float | None:
    return kilohertz / 1000 if kilohertz else None


def _run_nvidia_smi(left_out: list[str]) -> str | None:
    """Return nvidia-smi's own table, or None."""
    program = shutil.which("nvidia-smi")
    if program is None:
        left_out.append("nvidia-smi: not on the PATH.")
        return None
    try:
        return subprocess.run([program], capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError) as error:
        left_out.append(f"nvidia-smi: {error}.")
        return None
