"""What the hardware is and how fast: a library that knows nothing of Prefect or MLflow.

`describe` says what there is.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tasks.devices.description import Cpu, CudaDevice, Hardware, Memory, Torch, describe

__all__ = ["Cpu", "CudaDevice", "Hardware", "Memory", "Torch", "describe"]

_HOMES = {
    "description": ("Cpu", "CudaDevice", "Hardware", "Memory", "Torch", "describe"),
}


def __getattr__(name: str) -> Any:
    """Import a name's module on its first use, so that importing the package costs nothing (PEP 562)."""
    for module, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
