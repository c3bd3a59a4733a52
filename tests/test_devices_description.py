"""The description is right about limits, and whole on machines without a GPU, NVML or nvidia-smi."""

# ruff: noqa: N802

import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import pytest

from tasks.devices import cgroups, describe
from tasks.devices.description import describe_device
from tasks.devices.nvml import Nvml


class FakeNvml:
    """NVML as it answers for an H100 SXM, whose memory bandwidth is published as 3.35 TB/s."""

    NVML_CLOCK_MEM, NVML_CLOCK_SM = 2, 1

    class NVMLError(Exception):
        pass

    def nvmlSystemGetDriverVersion(self):
        return "580.65.06"

    def nvmlDeviceGetHandleByUUID(self, uuid):
        if uuid != "GPU-1234":
            raise self.NVMLError
        return "handle"

    def nvmlDeviceGetMaxClockInfo(self, _, clock):
        return {self.NVML_CLOCK_MEM: 2619, self.NVML_CLOCK_SM: 1980}[clock]

    def nvmlDeviceGetMemoryBusWidth(self, _):
        return 5120

    def nvmlDeviceGetMaxPcieLinkGeneration(self, _):
        return 5

    def nvmlDeviceGetMaxPcieLinkWidth(self, _):
        return 16

    def nvmlShutdown(self):
        pass


def make_properties(uuid):
    return SimpleNamespace(
        name="NVIDIA H100", uuid=uuid, major=9, minor=0, total_memory=80 * 2**30, multi_processor_count=132
    )


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


V2 = {"proc/self/cgroup": "0::/a/b\n"}
V1 = {"proc/self/cgroup": "5:memory:/docker/1\n4:cpu,cpuacct:/docker/1\n0::/\n"}
HYBRID = {"proc/self/cgroup": "1:name=systemd:/\n0::/a\n"}


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({}, None),
        (V2, None),
        (V2 | {"sys/fs/cgroup/a/b/cpu.max": "max 100000\n"}, None),
        (V2 | {"sys/fs/cgroup/a/b/cpu.max": "150000 100000\n"}, 1.5),
        (V2 | {"sys/fs/cgroup/a/b/cpu.max": "400000 100000", "sys/fs/cgroup/a/cpu.max": "50000 100000"}, 0.5),
        (HYBRID | {"sys/fs/cgroup/unified/a/cpu.max": "300000 100000"}, 3.0),
        (V1 | {"sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1", "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000"}, None),
        (V1 | {"sys/fs/cgroup/cpu/cpu.cfs_quota_us": "200000", "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000"}, 2.0),
        (
            V1
            | {
                "sys/fs/cgroup/cpu,cpuacct/docker/1/cpu.cfs_quota_us": "250000",
                "sys/fs/cgroup/cpu,cpuacct/docker/1/cpu.cfs_period_us": "100000",
            },
            2.5,
        ),
    ],
)
def test_the_tightest_control_group_limits_the_cores(tmp_path, files, cores):
    assert cgroups.read_cpu_quota(write(tmp_path, files)) == cores


@pytest.mark.parametrize(
    ("files", "limit"),
    [
        ({}, None),
        (V2 | {"sys/fs/cgroup/a/b/memory.max": "max\n"}, None),
        (V2 | {"sys/fs/cgroup/a/b/memory.max": "max", "sys/fs/cgroup/a/memory.max": "1073741824"}, 2**30),
        (V1 | {"sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712"}, None),
        (V1 | {"sys/fs/cgroup/memory/docker/1/memory.limit_in_bytes": "536870912"}, 2**29),
    ],
)
def test_the_tightest_control_group_limits_the_memory(tmp_path, files, limit):
    assert cgroups.read_memory_limit(write(tmp_path, files)) == limit


def test_limits_narrow_what_is_usable_and_not_what_the_machine_has(tmp_path):
    files = V2 | {
        "sys/fs/cgroup/a/b/cpu.max": "50000 100000",
        "sys/fs/cgroup/a/b/memory.max": str(2**26),
        "proc/cpuinfo": "processor : 0\nmodel name\t: Some Processor\n",
    }

    hardware = describe(write(tmp_path, files))

    assert hardware.cpu.model == "Some Processor"
    assert (hardware.cpu.usable, hardware.cpu.logical_cores) == (0.5, os.cpu_count())
    assert hardware.memory.usable == hardware.memory.limit == 2**26 < hardware.memory.total
    assert hardware.memory.available <= 2**26


def test_description_survives_json():
    description = asdict(describe())

    assert json.loads(json.dumps(description)) == description | {
        "cuda": list(description["cuda"]),
        "left_out": list(description["left_out"]),
    }


def test_the_default_dtype_and_device_are_those_of_a_new_tensor():
    import torch

    torch.set_default_dtype(torch.float64)
    try:
        assert (describe().torch.default_dtype, describe().torch.default_device) == ("float64", "cpu")
    finally:
        torch.set_default_dtype(torch.float32)


def test_a_device_is_described_by_torch_and_nvml_together():
    with Nvml(FakeNvml()) as nvml:
        device = describe_device(0, make_properties("1234"), nvml)

    assert (device.name, device.capability, device.driver) == ("NVIDIA H100", "9.0", "580.65.06")
    assert device.bandwidth_limit == pytest.approx(3.352e12, rel=1e-3)
    assert device.link_limit == pytest.approx(63e9, rel=1e-2)


@pytest.mark.parametrize("library", [None, FakeNvml()])
def test_what_nvml_cannot_tell_is_none(library):
    with Nvml(library) as nvml:
        device = describe_device(0, make_properties("unknown"), nvml)

    assert device.multiprocessors == 132
    assert device.bandwidth_limit is device.link_limit is device.clock is None


def test_nvidia_smi_is_shown_as_it_is(tmp_path, monkeypatch):
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho '| NVIDIA-SMI 580 |'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))

    assert describe().nvidia_smi == "| NVIDIA-SMI 580 |\n"


def test_a_broken_nvidia_smi_is_reported_and_left_out(tmp_path, monkeypatch):
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\nexit 9\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))

    hardware = describe()

    assert hardware.nvidia_smi is None
    assert any("exit status 9" in sentence for sentence in hardware.left_out)


def test_importing_the_package_imports_no_torch():
    code = (
        "import sys, tasks.devices; print([name for name in ('torch', 'matplotlib', 'psutil') if name in sys.modules])"
    )

    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"
