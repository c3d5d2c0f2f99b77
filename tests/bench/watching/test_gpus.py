from types import SimpleNamespace

import pytest

from mlserve.bench.watching.gpus import GpuReading, Gpus, load_nvml


class Refused(Exception):
    """NVML's own kind of error."""


def two_devices(driver=True):
    """The calls of `pynvml` that are made, on a machine with two devices, of which the second hides its energy."""
    nvml = SimpleNamespace(NVMLError=Refused, is_open=False)

    def start():
        if not driver:
            raise Refused
        nvml.is_open = True

    def shut_down():
        nvml.is_open = False

    def energy_mj(handle):
        if handle:
            raise Refused
        return 1_250

    nvml.nvmlInit, nvml.nvmlShutdown = start, shut_down
    nvml.nvmlDeviceGetCount = lambda: 2
    nvml.nvmlDeviceGetHandleByIndex = lambda number: number
    nvml.nvmlDeviceGetName = lambda handle: b"NVIDIA L4" if handle else "NVIDIA H200"
    nvml.nvmlDeviceGetUtilizationRates = lambda _: SimpleNamespace(gpu=40)
    nvml.nvmlDeviceGetMemoryInfo = lambda _: SimpleNamespace(used=3_000_000_000)
    nvml.nvmlDeviceGetPowerUsage = lambda _: 70_500
    nvml.nvmlDeviceGetTotalEnergyConsumption = energy_mj
    return nvml


def test_devices_are_read_in_our_units_and_what_one_hides_is_unknown():
    nvml = two_devices()
    gpus = Gpus(nvml)
    assert nvml.is_open
    first = GpuReading(
        number=0, name="NVIDIA H200", utilization=0.4, memory_bytes=3_000_000_000, power_w=70.5, energy_j=1.25
    )
    second = GpuReading(
        number=1, name="NVIDIA L4", utilization=0.4, memory_bytes=3_000_000_000, power_w=70.5, energy_j=None
    )
    assert gpus.read() == [first, second]
    gpus.close()
    assert not nvml.is_open
    assert gpus.read() == []


@pytest.mark.parametrize("nvml", [None, two_devices(driver=False)])
def test_without_a_driver_there_are_no_devices(nvml):
    gpus = Gpus(nvml)
    assert gpus.read() == []
    gpus.close()


def test_the_real_library_is_asked_where_it_is_installed():
    gpus = Gpus(load_nvml())
    assert all(reading.name for reading in gpus.read())
    gpus.close()
