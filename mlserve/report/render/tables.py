"""A report as two tables: one row a result, one row a run. Units are in the columns' names, as everywhere."""

import io
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec
import pandas as pd

from mlserve.report.report import Report, Result, RunResult
from mlserve.report.summary import Summary

__all__ = ["csv", "parquet", "result_table", "run_table"]

_SCALARS = (bool, int, float, str)
_TYPES = {bool: "boolean", int: "Int64", str: "string"}


def result_table(report: Report) -> pd.DataFrame:
    """One row a variant under a load; its figures are those of its VALID runs, or of all where `valid` is false. `runs`
    counts those that figures are taken of: of what a search picked, those that confirmed it.
    """
    return _table(_result_row(result, report.counted(result)) for result in report.results)


def run_table(report: Report) -> pd.DataFrame:
    """One row a run, with its plan (`plan_`), the server's settings (`server_`) and its machine (`machine_`)."""
    return _table(_run_row(report, result, run) for result in report.results for run in result.runs)


def csv(table: pd.DataFrame) -> bytes:
    """`table` as UTF-8 with a header; what is unknown is empty."""
    return table.to_csv(index=False, lineterminator="\n").encode()


def parquet(table: pd.DataFrame) -> bytes:
    """`table` as Parquet."""
    file = io.BytesIO()
    table.to_parquet(file, index=False)
    return file.getvalue()


def _result_row(result: Result, counted: Sequence[RunResult]) -> dict[str, Any]:
    return {
        "load": result.load,
        "protocol": result.protocol,
        "rate_per_s": result.rate_per_s,
        "variant": result.variant,
        "recommended": result.recommended,
        "valid": result.valid,
        "runs": len(counted),
        "valid_runs": sum(run.valid for run in counted),
        **_model(result),
        **_figures(result.summary),
    }


def _run_row(report: Report, result: Result, run: RunResult) -> dict[str, Any]:
    machine = report.machines[run.machine]
    return {
        "directory": run.directory,
        "label": run.label,
        "started_at": run.started_at,
        "load": result.load,
        "variant": result.variant,
        "valid": run.valid,
        "faults": "; ".join(check.name for check in run.certificate.faults),
        **_model(result),
        **_figures(run.summary),
        "generator_cpu": run.counts.generator_cpu,
        **_scalars("plan_", run.plan),
        **_scalars("server_", run.server),
        **_scalars("machine_", machine),
        "machine_gpus": "; ".join(gpu.name for gpu in machine.gpus),
        "command": run.command,
    }


def _model(result: Result) -> dict[str, Any]:
    accuracy = result.model.accuracy
    return {
        "model": result.model.name,
        "model_version": result.model.version,
        "model_sha256": result.model.sha256,
        "size_bytes": result.model.size_bytes,
        "accuracy_metric": accuracy.metric if accuracy else None,
        "accuracy": accuracy.value if accuracy else None,
        "accuracy_loss": accuracy.loss if accuracy else None,
    }


def _figures(summary: Summary) -> dict[str, Any]:
    """`p99.9` becomes `p99_9_s`, `p99_9_low_s`...: a dot in a column's name means something else to many readers."""
    figures = _scalars("", summary)
    for percentile in summary.percentiles:
        name = percentile.name.replace(".", "_")
        figures |= {
            f"{name}_s": percentile.latency_s,
            f"{name}_low_s": percentile.low_s,
            f"{name}_high_s": percentile.high_s,
            f"{name}_service_s": percentile.service_s,
        }
    return figures


def _scalars(prefix: str, value: msgspec.Struct | None) -> dict[str, Any]:
    """The fields that fit into one cell."""
    if value is None:
        return {}
    fields = msgspec.structs.asdict(value).items()
    return {f"{prefix}{name}": cell for name, cell in fields if cell is None or isinstance(cell, _SCALARS)}


def _table(lines: Iterable[dict[str, Any]]) -> pd.DataFrame:
    """Columns in the order in which they first appear. Their types are those of the values: a count with a gap in it
    stays a whole number.
    """
    every = list(lines)
    names = dict.fromkeys(name for line in every for name in line)
    return pd.DataFrame({name: _column([line.get(name) for line in every]) for name in names})


def _column(cells: list[Any]) -> "pd.Series[Any]":
    kinds = {type(cell) for cell in cells if cell is not None}
    kind = _TYPES.get(kinds.pop(), "float64") if len(kinds) == 1 else "float64"
    return pd.Series(cells, dtype=kind)
