"""The figures of a report as a reader sees them: the same words in every format."""

from collections.abc import Sequence
from datetime import UTC, datetime

import msgspec

from mlserve.report.choice import Choice
from mlserve.report.report import Report, Result, RunResult
from mlserve.report.summary import Percentile
from mlserve.runs.machine import Machine
from mlserve.runs.run import Check, ServerSettings
from mlserve.units import format_bytes, format_duration, format_rate, format_ratio

__all__ = [
    "METHOD",
    "Fault",
    "Highlight",
    "PercentileRow",
    "Row",
    "describe_machine",
    "describe_server",
    "faults",
    "highlights",
    "knob_shares",
    "moment",
    "overview",
    "percentile_rows",
    "rows",
    "title",
]

METHOD = (
    "Latency counts from the instant a request was due to its whole answer, so a late server cannot hide its queue. "
    "Service time, where shown, counts from sending. Percentiles are latencies that were observed; one with too few "
    "answers behind it is not shown. Intervals are 95%, by a bootstrap of stretches of a twentieth of a run; those of "
    "the comparisons hold together."
)

_LONG_NAME = 60
_MOST_NAMES = 6
_FEW_LABELS = 2
_LEAST_SHARE = 0.01
_KNOBS = {
    "compute_type": "compute type",
    "max_batch_rows": "largest batch",
    "max_delay_ms": "batching delay",
}


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One result, as texts. `interval` bounds p99, `loss` is what was lost of the accuracy."""

    load: str
    variant: str
    recommended: bool
    valid: bool
    p50: str
    p99: str
    interval: str
    answered: str
    errors: str
    failed: str
    size: str
    accuracy: str
    loss: str
    certificate: str


class Highlight(msgspec.Struct, frozen=True):
    """One figure of the variant that the verdict speaks of: what it is, its value, what to know beside it."""

    label: str
    value: str
    note: str


class Fault(msgspec.Struct, frozen=True):
    """What does not hold, in which runs: `3 of 8: a, b and 1 more`; what one of them shows, the limit, what to do."""

    name: str
    runs: str
    found: str
    limit: str
    advice: str


class PercentileRow(msgspec.Struct, frozen=True):
    """Every percentile of one result, each with its interval and its service time; `refused` is why some are not."""

    load: str
    variant: str
    latencies: tuple[str, ...]
    service: tuple[str, ...]
    refused: str


def rows(report: Report) -> list[Row]:
    """One row a result, loads together."""
    return [_row(result, report.counted(result)) for result in report.results]


def percentile_rows(report: Report) -> list[PercentileRow]:
    """One row a result, the percentiles in the order of `summary.PERCENTILES`."""
    return [
        PercentileRow(
            result.load,
            result.variant,
            tuple(_with_interval(one) for one in result.summary.percentiles),
            tuple(_duration(one.service_s) for one in result.summary.percentiles),
            "; ".join(one.refused for one in result.summary.percentiles if one.refused),
        )
        for result in report.results
    ]


def faults(report: Report) -> list[Fault]:
    """Every check that failed, the most frequent first."""
    runs = [run for result in report.results for run in result.runs]
    failed: dict[str, list[tuple[str, Check]]] = {}
    for run in runs:
        for check in run.certificate.faults:
            failed.setdefault(check.name, []).append((run.label, check))
    return [
        Fault(
            name,
            f"{len(found)} of {len(runs)}: {_some(list(dict.fromkeys(label for label, _ in found)))}",
            found[0][1].found,
            found[0][1].limit,
            found[0][1].advice,
        )
        for name, found in sorted(failed.items(), key=lambda item: -len(item[1]))
    ]


def highlights(report: Report) -> list[Highlight]:
    """The few figures to read first, under the verdict's load; none without a verdict, nor of INVALID runs."""
    verdict = report.verdict
    if verdict is None:
        return []
    result = next(one for one in report.results if (one.variant, one.load) == (verdict.variant, verdict.load))
    if not result.valid:
        return []
    found, model = result.summary.percentile(verdict.percentile), result.model
    known = found.latency_s is not None
    made = [Highlight(f"{found.name} latency", _duration(found.latency_s), _interval(found))] if known else []
    if verdict.ratio:
        bounds = f"{format_ratio(verdict.ratio.low)} to {format_ratio(verdict.ratio.high)}"
        made.append(Highlight(f"of {verdict.runner_up}'s", format_ratio(verdict.ratio.change), bounds))
    failed = f"{result.summary.error_rate:.2%} failed" if result.summary.error_rate else "none failed"
    made.append(Highlight("answered", format_rate(result.summary.answered_per_s), failed))
    if model.accuracy:
        made.append(Highlight(model.accuracy.metric, f"{model.accuracy.value:.4g}", f"loss {model.accuracy.loss:.2%}"))
    if model.size_bytes:
        made.append(Highlight("size", format_bytes(model.size_bytes), ""))
    return made


def knob_shares(choice: Choice) -> list[tuple[str, float]]:
    """What each knob of a search explains of the differences, as a reader names it, greatest first; none below 1%."""
    return [(_KNOBS.get(name, name), share) for name, share in choice.importance.items() if share >= _LEAST_SHARE]


def title(report: Report) -> str:
    """`minilm: fp32 and int8`; `minilm: 25 variants`."""
    models = list(dict.fromkeys(result.model.name for result in report.results))
    variants = list(dict.fromkeys(result.variant for result in report.results))
    names, found = _listed(models), _listed(variants)
    if len(variants) > _MOST_NAMES:
        found = _count(len(variants), "variant")
    return names if names == found else f"{names}: {found}"


def overview(report: Report) -> str:
    """`8 runs under 2 loads, 8 of them VALID; 2026-11-21 13:00 UTC`."""
    runs = sum(len(result.runs) for result in report.results)
    valid = sum(run.valid for result in report.results for run in result.runs)
    loads = len({result.load for result in report.results})
    return f"{_count(runs, 'run')} under {_count(loads, 'load')}, {valid} of them VALID; {moment(report.created_at)}"


def moment(text: str) -> str:
    """`2026-11-21 13:00 UTC` for an ISO 8601 instant; what is none stays as it is."""
    try:
        return f"{datetime.fromisoformat(text).astimezone(UTC):%Y-%m-%d %H:%M} UTC"
    except ValueError:
        return text


def describe_machine(machine: Machine) -> dict[str, str]:
    """Name -> value, in reading order."""
    return {
        "CPU": machine.cpu,
        "Cores": str(machine.cores),
        "Instruction sets": ", ".join(machine.cpu_flags) or "none that matter",
        "Memory": format_bytes(machine.memory_bytes),
        "GPU": "; ".join(f"{gpu.name}, {format_bytes(gpu.memory_bytes)}, driver {gpu.driver}" for gpu in machine.gpus)
        or "none",
        "System": machine.system,
        "Python": machine.python,
        "Packages": ", ".join(f"{name} {version}" for name, version in machine.packages.items()),
    }


def describe_server(server: ServerSettings | None) -> str:
    """`1 worker, 1 thread, at most 32 rows a batch, no delay, cpu, on core 0`."""
    if server is None:
        return "not started by the bench"
    delay = f"{server.max_delay_ms:g} ms delay" if server.max_delay_ms else "no delay"
    cpus = f", on core{'s' if len(server.cpus) > 1 else ''} {', '.join(map(str, server.cpus))}" if server.cpus else ""
    return (
        f"{_count(server.workers, 'worker')}, {_count(server.threads, 'thread')}, "
        f"at most {_count(server.max_batch_rows, 'row')} a batch, {delay}, {server.device}{cpus}"
    )


def _row(result: Result, counted: Sequence[RunResult]) -> Row:
    summary, accuracy = result.summary, result.model.accuracy
    p99 = summary.percentile("p99")
    failed = summary.scheduled - summary.answered
    without = "reference" if result.model.variant == "fp32" else "unknown"
    return Row(
        load=result.load,
        variant=result.variant,
        recommended=result.recommended and result.valid,
        valid=result.valid,
        p50=_duration(summary.percentile("p50").latency_s),
        p99=_duration(p99.latency_s),
        interval=_interval(p99),
        answered=f"{format_rate(summary.answered_per_s)} of {format_rate(summary.offered_per_s)}",
        errors=f"{summary.error_rate:.2%}" if failed else "none",
        failed=f"{failed:,} of {summary.scheduled:,}" if failed else "",
        size=format_bytes(result.model.size_bytes) if result.model.size_bytes else "unknown",
        accuracy=f"{accuracy.metric} {accuracy.value:.4g}" if accuracy else without,
        loss=f"loss {accuracy.loss:.2%}" if accuracy else "",
        certificate=_certificate([run.valid for run in counted]),
    )


def _certificate(valid: Sequence[bool]) -> str:
    if len(valid) == 1 or len(set(valid)) == 1:
        runs = f" ({len(valid)} runs)" if len(valid) > 1 else ""
        return f"{'VALID' if valid[0] else 'INVALID'}{runs}"
    return f"VALID ({sum(valid)} of {len(valid)} runs)"


def _interval(percentile: Percentile) -> str:
    if percentile.low_s is None or percentile.high_s is None:
        return ""
    return f"{format_duration(percentile.low_s)} to {format_duration(percentile.high_s)}"


def _with_interval(percentile: Percentile) -> str:
    interval = _interval(percentile)
    return f"{_duration(percentile.latency_s)} ({interval})" if interval else _duration(percentile.latency_s)


def _duration(seconds: float | None) -> str:
    return "-" if seconds is None else format_duration(seconds)


def _listed(names: Sequence[str]) -> str:
    short = [name if len(name) <= _LONG_NAME else f"{name[:_LONG_NAME]}…" for name in names]
    return short[0] if len(short) == 1 else f"{', '.join(short[:-1])} and {short[-1]}"


def _some(labels: Sequence[str]) -> str:
    more = len(labels) - _FEW_LABELS
    return ", ".join(labels[:_FEW_LABELS]) + (f" and {more} more" if more > 0 else "")


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
