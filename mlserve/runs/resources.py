"""What processes and devices used while a run was measured. The readings themselves lie in `resources.parquet`."""

import msgspec

__all__ = ["DeviceUse", "ProcessUse", "Resources"]


class ProcessUse(msgspec.Struct, frozen=True, kw_only=True):
    """One process over the measured part. `role` is "server", "generator" or "bench"; `cpu` is in cores, of user and
    system time; `cpus` are the cores it was held to, empty for any.
    """

    role: str
    pid: int
    cpu: float
    rss_max_bytes: int
    cpus: tuple[int, ...] = ()


class DeviceUse(msgspec.Struct, frozen=True, kw_only=True):
    """One GPU over the measured part, by its driver (NVML): means, and the most memory in use."""

    name: str
    utilization: float
    memory_max_bytes: int
    power_w: float | None = None


class Resources(msgspec.Struct, frozen=True, kw_only=True):
    """What was seen. None, or empty, where the machine does not tell or the server is elsewhere.

    `steal` is the share of the time of all cores that a hypervisor gave to others. `others_cpu` is what processes that
    belong to neither server nor generators used of the cores that those run on, in cores. `clock_step_s` is by how much
    the wall clock moved against the monotonic one. `energy_j` is the energy of CPU packages (RAPL) and GPUs (NVML).
    """

    processes: tuple[ProcessUse, ...] = ()
    devices: tuple[DeviceUse, ...] = ()
    steal: float | None = None
    others_cpu: float | None = None
    clock_step_s: float | None = None
    energy_j: float | None = None
    governor: str = ""
