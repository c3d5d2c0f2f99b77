"""What NVIDIA GPUs say of themselves, by their driver's own library (NVML)."""

from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import msgspec

__all__ = ["GpuReading", "Gpus", "load_nvml"]

_Answer = TypeVar("_Answer")


class GpuReading(msgspec.Struct, frozen=True, kw_only=True):
    """One GPU at one instant. `utilization` is the share of the driver's last period in which a kernel ran; `energy_j`
    counts since the driver was loaded. None where the device does not tell.
    """

    number: int
    name: str
    utilization: float | None = None
    memory_bytes: int | None = None
    power_w: float | None = None
    energy_j: float | None = None


def load_nvml() -> Any | None:
    """The module `pynvml` (package nvidia-ml-py); None where it is not installed."""
    try:
        import pynvml
    except ImportError:
        return None
    return pynvml


class Gpus:
    """The machine's GPUs, to be read again and again; none where there is no driver. `nvml` comes from `load_nvml`."""

    def __init__(self, nvml: Any | None) -> None:
        self._nvml = nvml
        self._handles: list[Any] = []
        if nvml is None:
            return
        try:
            nvml.nvmlInit()
        except nvml.NVMLError:  # no driver, or none that may be asked
            self._nvml = None
            return
        count = self._ask(nvml.nvmlDeviceGetCount) or 0
        handles = [self._ask(partial(nvml.nvmlDeviceGetHandleByIndex, number)) for number in range(count)]
        self._handles = [handle for handle in handles if handle is not None]

    def read(self) -> list[GpuReading]:
        """Every GPU as of now."""
        return [self._read(number, handle) for number, handle in enumerate(self._handles)]

    def close(self) -> None:
        """Lets go of the driver. There are no GPUs afterwards."""
        self._handles = []
        if self._nvml is not None:
            self._ask(self._nvml.nvmlShutdown)
            self._nvml = None

    def _read(self, number: int, handle: Any) -> GpuReading:
        nvml = self._nvml
        assert nvml is not None
        name = self._ask(lambda: nvml.nvmlDeviceGetName(handle))
        return GpuReading(
            number=number,
            name=name.decode() if isinstance(name, bytes) else name or "",
            utilization=self._ask(lambda: nvml.nvmlDeviceGetUtilizationRates(handle).gpu / 100),
            memory_bytes=self._ask(lambda: int(nvml.nvmlDeviceGetMemoryInfo(handle).used)),
            power_w=self._ask(lambda: nvml.nvmlDeviceGetPowerUsage(handle) / 1e3),
            energy_j=self._ask(lambda: nvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1e3),
        )

    def _ask(self, question: Callable[[], _Answer]) -> _Answer | None:
        assert self._nvml is not None
        try:
            return question()
        except self._nvml.NVMLError:  # a device, or its driver, does not tell everything
            return None
