"""What NVIDIA's management library tells of a device, and None for whatever it cannot tell.

NVML comes with the driver; nvidia-ml-py (imported as pynvml) only binds it, and imports where there is no driver.
"""

from typing import Any


class Nvml:
    """NVML for the length of a `with`; every question answers None where the library, driver or device cannot."""

    def __init__(self, library: Any = None) -> None:
        self.library = library
        self.driver: str | None = None

    def __enter__(self) -> "Nvml":
        if self.library:
            self.driver = self.library.nvmlSystemGetDriverVersion()
        return self

    def __exit__(self, *_: object) -> None:
        if self.library:
            self.library.nvmlShutdown()

    def find(self, properties: Any) -> Any:
        """Return the handle of torch's device: by UUID, for torch and NVML may number the devices differently."""
        if not self.library:
            return None
        try:
            return self.library.nvmlDeviceGetHandleByUUID(f"GPU-{properties.uuid}")
        except (self.library.NVMLError, AttributeError):
            return None

    def ask(self, handle: Any, function: str, *constants: str) -> Any:
        """Return the answer of an NVML function about a device; `constants` name its further arguments."""
        if not self.library or handle is None:
            return None
        try:
            return getattr(self.library, function)(handle, *(getattr(self.library, name) for name in constants))
        except self.library.NVMLError:
            return None


def open_nvml(left_out: list[str]) -> Nvml:
    """Start NVML, or say in `left_out` why not and return one that knows nothing."""
    try:
        import pynvml
    except ImportError:
        left_out.append("Clocks, driver and link of the CUDA devices: nvidia-ml-py is not installed.")
        return Nvml()
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        left_out.append(f"Clocks, driver and link of the CUDA devices: NVML does not start ({error}).")
        return Nvml()
    return Nvml(pynvml)
