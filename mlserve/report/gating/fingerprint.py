"""Whether two sessions were on machines that are alike enough for their figures to be compared. Pure."""

from collections.abc import Collection

from mlserve.errors import UsageError
from mlserve.report.conditions import shown, words
from mlserve.runs.machine import Machine

__all__ = ["HARDWARE", "PACKAGES", "check_names", "fingerprint_differences"]

HARDWARE = ("cpu", "cpu_flags", "cores", "gpus", "governor", "turbo", "clocksource", "system")
"""What the machine is: its cores and how their clocks are set, its devices with their drivers, and its kernel. Memory
is not among it, for virtual machines of one kind report a little more or less of it.
"""
PACKAGES = (
    "mlserve",
    "onnxruntime",
    "onnxruntime-gpu",
    "openvino",
    "torch",
    "numpy",
    "uvicorn",
    "grpcio",
    "pygrpc-native",
    "locust",
)
"""What computes, serves, and sends."""


def fingerprint_differences(
    one: Machine, other: Machine, *, ignoring: Collection[str] = (), software: bool = True
) -> list[str]:
    """`["cores 2 against 64", "onnxruntime 1.23.0 against 1.24.1"]`: in what two machines differ that moves latency.

    Names in `ignoring`, of fields or packages, are not held against them: whoever gates a new version of onnxruntime
    knows that it differs. Without `software`, only the machine itself counts.
    """
    pairs = [(words(field), getattr(one, field), getattr(other, field)) for field in HARDWARE if field not in ignoring]
    if software:
        pairs += [("python", one.python, other.python)] if "python" not in ignoring else []
        pairs += [
            (name, one.packages.get(name, "none"), other.packages.get(name, "none"))
            for name in PACKAGES
            if name not in ignoring
        ]
    return [f"{name} {_shown(ours)} against {_shown(theirs)}" for name, ours, theirs in pairs if ours != theirs]


def check_names(names: Collection[str], said_by: str) -> None:
    """Raises UsageError for one of `names` that no fingerprint holds; `said_by` is the flag or key that the message
    names.
    """
    known = (*HARDWARE, "python", *PACKAGES)
    unknown = [name for name in names if name not in known]
    if unknown:
        raise UsageError(f"{said_by} {unknown[0]!r} is nothing that is compared; choose from {', '.join(known)}")


def _shown(value: object) -> str:
    return "unknown" if value == "" else shown(value)
