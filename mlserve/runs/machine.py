"""Where something was measured: two runs are comparable only on machines that are alike."""

import os
import platform
import subprocess
from collections.abc import Collection
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from shutil import which

import msgspec

from mlserve import __version__

__all__ = ["SYS", "Gpu", "Machine", "package_version", "read_governor", "read_machine", "usable_cores"]

SYS = Path("/sys")

_PACKAGES = (
    "numpy",
    "onnxruntime-gpu",
    "onnxruntime",
    "openvino",
    "nncf",
    "torch",
    "locust",
    "uvicorn",
    "pygrpc-native",
    "grpcio",
)
# What the int8, bf16 and fp16 kernels of onnxruntime and OpenVINO look for.
_CPU_FLAGS = (
    "avx2",
    "fma",
    "f16c",
    "avx_vnni",
    "avx512f",
    "avx512_vnni",
    "avx512_bf16",
    "amx_tile",
    "amx_int8",
    "amx_bf16",
)
_ARM_FLAGS = ("asimd", "asimddp", "i8mm", "bf16", "sve")


class Gpu(msgspec.Struct, frozen=True):
    """One NVIDIA device as its driver names it."""

    name: str
    memory_bytes: int
    driver: str


class Machine(msgspec.Struct, frozen=True, kw_only=True):
    """The machine and the software on it. `cores` are those this process may use.

    `governor` is how the cores' clocks are chosen (`performance`, or several names where cores differ), and `turbo`
    whether they may go beyond what they keep up; `clocksource` is what the kernel counts time by. "", and None, where
    the system does not tell, as in most virtual machines.
    """

    cpu: str
    cpu_flags: tuple[str, ...]
    cores: int
    memory_bytes: int
    system: str
    python: str
    packages: dict[str, str]
    gpus: tuple[Gpu, ...] = ()
    governor: str = ""
    turbo: bool | None = None
    clocksource: str = ""


def read_machine(sys: Path = SYS) -> Machine:
    """This machine, now. What it says of its devices lies in the folder `sys`."""
    cpu, flags = _cpu()
    return Machine(
        cpu=cpu,
        cpu_flags=tuple(flag for flag in (*_CPU_FLAGS, *_ARM_FLAGS) if flag in flags),
        cores=usable_cores(),
        memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        python=platform.python_version(),
        packages={"mlserve": __version__} | {name: found for name in _PACKAGES if (found := package_version(name))},
        gpus=_gpus(),
        governor=read_governor(_own_cores(), sys),
        turbo=_turbo(sys),
        clocksource=_read(sys / "devices/system/clocksource/clocksource0/current_clocksource"),
    )


def read_governor(cpus: Collection[int] = (), sys: Path = SYS) -> str:
    """How the clocks of the cores `cpus`, or of all, are chosen: see `Machine`."""
    found = {
        _read(path)
        for path in (sys / "devices/system/cpu").glob("cpu[0-9]*/cpufreq/scaling_governor")
        if not cpus or int(path.parts[-3].removeprefix("cpu")) in cpus
    }
    return ", ".join(sorted(found - {""}))


def usable_cores() -> int:
    """How many cores this process may use; all there are where only Linux would tell."""
    return len(_own_cores()) or os.cpu_count() or 1


def package_version(name: str) -> str:
    """The installed version of a package, "" when it is not installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def _own_cores() -> set[int]:
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()


def _turbo(sys: Path) -> bool | None:
    """Intel's driver says when turbo is off, the others when it is on."""
    cpus = sys / "devices/system/cpu"
    on = {"0": True, "1": False}.get(_read(cpus / "intel_pstate/no_turbo"))
    return {"1": True, "0": False}.get(_read(cpus / "cpufreq/boost")) if on is None else on


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def _cpu() -> tuple[str, set[str]]:
    """Model name and instruction sets; only Linux tells the latter in one readable place."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor() or platform.machine(), set()
    facts = dict(line.split(":", 1) for line in text.partition("\n\n")[0].splitlines() if ":" in line)
    named = {key.strip(): value.strip() for key, value in facts.items()}
    return named.get("model name", platform.machine()), set(named.get("flags", named.get("Features", "")).split())


def _gpus() -> tuple[Gpu, ...]:
    tool = which("nvidia-smi")
    if tool is None:
        return ()
    query = [tool, "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, errors="replace", timeout=10, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return ()
    rows = [[part.strip() for part in line.split(",")] for line in answer.splitlines() if line.count(",") == 2]
    return tuple(Gpu(name, int(memory) << 20, driver) for name, memory, driver in rows if memory.isdecimal())
