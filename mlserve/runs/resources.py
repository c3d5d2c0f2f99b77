"""What processes and devices used while a run was measured. The readings themselves lie in `RESOURCES_FILE`."""

import msgspec

__all__ = ["RESOURCES_FILE", "DeviceUse", "ProcessUse", "Resources"]

RESOURCES_FILE = "resources.parquet"


class ProcessUse(msgspec.Struct, frozen=True, kw_only=True):
    """One process over the measured part. `role` is "server", "generator", "bench", "beside" for those of a run that
    took turns with this one, or "other" for the busiest that belong to none of them; `cpu` is in cores, of user and
    system time, for others over the whole run; `cpus` are the cores it was held to, empty for any. `name` is what the
    system calls it, where that was asked.
    """

    role: str
    pid: int
    cpu: float
    rss_max_bytes: int
    cpus: tuple[int, ...] = ()
    name: str = ""


class DeviceUse(msgspec.Struct, frozen=True, kw_only=True):
    """One GPU over the measured part, by its driver (NVML): means, and the most memory in use."""

    name: str
    utilization: float
    memory_max_bytes: int
    power_w: float | None = None


class Resources(msgspec.Struct, frozen=True, kw_only=True):
    """What was seen. None, or empty, where the machine does not tell, the server is elsewhere, or too little time was
    measured.

    `cores_in_use` is how many cores server and generators may run on. `steal` is the share of their time that a
    hypervisor gave to others, `others_cpu` what processes that belong to neither server nor bench, nor to a run
    beside this one, used of them, and `shared_cpu` what anything but generators used of the generators' cores, both in
    cores.

    `clock_step_s` is by how much the wall clock moved against the monotonic one, and `clock_rate` how much faster than
    the hardware's counter the monotonic clock ran, as a share. `energy_j` is the energy of all of `energy_of`: "cpu",
    the packages (RAPL), and "gpu", the devices (NVML).
    """

    processes: tuple[ProcessUse, ...] = ()
    devices: tuple[DeviceUse, ...] = ()
    cores_in_use: int = 0
    steal: float | None = None
    others_cpu: float | None = None
    shared_cpu: float | None = None
    clock_step_s: float | None = None
    clock_rate: float | None = None
    energy_j: float | None = None
    energy_of: tuple[str, ...] = ()
    governor: str = ""
