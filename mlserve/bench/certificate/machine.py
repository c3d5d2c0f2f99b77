"""Whether the machine's clocks were steady, and whether it is known which machine it was."""

from mlserve.bench.certificate.facts import Facts
from mlserve.runs.run import Check
from mlserve.units import format_duration

__all__ = ["clocks_steady", "machine_known"]

_MOST_STEP_S = 5e-3
_MOST_RATE = 2e-3


def clocks_steady(facts: Facts) -> Check | None:
    """While the run lasted nobody set the clock, the machine did not sleep, and NTP bent time by no more than 0.2%.

    Durations are measured with the monotonic clock, which a step does not touch; but it does touch deadlines, logs and
    the server's own measurements, and a machine that slept served nobody. By itself NTP bends time by 0.05% at most.
    """
    step_s, rate = facts.resources.clock_step_s, facts.resources.clock_rate
    if step_s is None:
        return None
    bent = abs(rate) if rate is not None else 0.0
    return Check(
        name="clock",
        ok=step_s <= _MOST_STEP_S and bent <= _MOST_RATE,
        found=f"the wall clock stepped by {format_duration(step_s)}"
        + (f", the monotonic one ran {bent:.2%} off the hardware's" if rate is not None else ""),
        limit=f"at most {format_duration(_MOST_STEP_S)} and {_MOST_RATE:.1%}",
        advice="Keep the machine awake, let its clock settle (`timedatectl timesync-status`), and repeat the run.",
    )


def machine_known(facts: Facts) -> Check | None:
    """The run says on which processor, cores, GPUs and versions it was made, and of a model of ours, which file it was:
    without those nobody can tell whether two runs may be compared.
    """
    machine = facts.machine
    if machine is None:
        return None
    known = {
        "processor": machine.cpu,
        "cores": machine.cores,
        "memory": machine.memory_bytes,
        "system": machine.system,
        "versions": machine.packages,
        **({"model file": facts.sha256} if facts.device and facts.variant else {}),
    }
    missing = [name for name, value in known.items() if not value]
    found = [machine.cpu, f"{machine.cores} cores", *(gpu.name for gpu in machine.gpus)]
    found += [f"governor {machine.governor}"] if machine.governor else []
    found += [f"model {facts.sha256[:12]}"] if facts.sha256 else []
    return Check(
        name="machine known",
        ok=not missing,
        found=", ".join(found) if not missing else f"unknown: {', '.join(missing)}",
        limit="processor, cores, versions and model on record",
        advice="Run the bench where the system tells what it runs on (/proc/cpuinfo), or publish the model anew.",
    )
