"""`mlserve plan`: how many replicas a load takes, and what they cost, by what was measured of one."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer
from rich.table import Table

from mlserve.cli.price import Price, parse_price
from mlserve.cli.terminal import JsonFlag, ending_well, out, print_json
from mlserve.errors import UsageError
from mlserve.units import format_rate

if TYPE_CHECKING:
    from mlserve.report.capacity import Capacity, Demand
    from mlserve.tuning.bearing import Replica
    from mlserve.tuning.evidence import Objective

__all__ = ["plan"]

_MOST_PER_S = 1e9


class _Plan(msgspec.Struct, frozen=True):
    """A way to serve, and what it takes."""

    replica: "Replica"
    capacity: "Capacity"
    demand: "Demand"


@ending_well
def plan(
    report: Annotated[
        Path,
        typer.Option(
            metavar="FIND-MAX | SWEEP | TUNE | report.json | production.toml",
            help="What was measured: runs of one replica at several rates.",
        ),
    ],
    rps: Annotated[float, typer.Option(help="Requests a second to be borne, at the peak.")],
    slo: Annotated[str, typer.Option(help="What each replica has to keep: p99=50ms.")],
    mean_rps: Annotated[
        float | None, typer.Option(help="On average, for cost and energy.", show_default="the peak, all the time")
    ] = None,
    price: Annotated[
        str,
        typer.Option(
            help="Of one whole machine like the one that was measured, on which one replica runs: 1.20/h, $1.20/h, "
            "1.20EUR/h."
        ),
    ] = "",
    spare: Annotated[
        int | None,
        typer.Option(min=0, max=1000, help="Replicas that may be lost at the peak.", show_default="1; 0 with --zones"),
    ] = None,
    zones: Annotated[
        int, typer.Option(min=0, max=100, help="Zones that replicas are spread over, of which one may be lost.")
    ] = 0,
    errors: Annotated[str, typer.Option(help="The share of failed requests that is accepted.")] = "0.1%",
    json: JsonFlag = False,
) -> None:
    """Say how many replicas bear a load within an objective, what they cost, and how sure that is.

    A replica is a server like the one that was measured, alone on a whole machine like that one, which is what is paid
    for. Fewest replicas come first.

    [bold]Examples[/]

      mlserve plan --report runs/max-20260731 --rps 12000 --slo p99=50ms --price 1.20/h

      mlserve plan --report production.toml --rps 12000 --mean-rps 5000 --slo p99=50ms --zones 3 --json
    """
    from mlserve.tuning.bearing import replicas_of
    from mlserve.tuning.evidence import parse_slo

    objective = parse_slo(slo, errors)
    asked = _demand(rps, mean_rps, zones, spare)
    cost = parse_price(price) if price else None
    found = replicas_of(report, objective)
    plans = _plans(found, msgspec.structs.replace(asked, price_per_h=cost.per_h if cost else None))
    if not plans:
        raise UsageError(
            f"{report} does not say how many replicas keep {objective.words}. {_reasons(found, objective)}"
        )
    if json:
        print_json(_document(plans, found, objective))
    else:
        _print(plans, found, objective, cost)


def _demand(rps: float, mean_rps: float | None, zones: int, spare: int | None) -> "Demand":
    from mlserve.report.capacity import Demand

    mean_per_s = rps if mean_rps is None else mean_rps
    for flag, rate in (("--rps", rps), ("--mean-rps", mean_per_s)):
        if not 0 < rate <= _MOST_PER_S:  # not NaN either
            raise UsageError(f"{flag} {rate:g} is no load; give a number above 0, and at most {_MOST_PER_S:g}")
    if mean_per_s > rps:
        raise UsageError(f"--mean-rps {mean_per_s:g} is above --rps {rps:g}, which is the peak; give at most that")
    if zones == 1:
        raise UsageError("--zones 1 cannot lose one and go on; give 2 or more, or leave it out")
    lost = spare if spare is not None else 0 if zones else 1
    return Demand(peak_per_s=rps, mean_per_s=mean_per_s, spare=lost, zones=zones)


def _plans(found: "tuple[Replica, ...]", demand: "Demand") -> list[_Plan]:
    """Fewest replicas first."""
    from mlserve.report.capacity import capacity

    plans = []
    for replica in found:
        if replica.bears is not None:
            own = msgspec.structs.replace(demand, rows=replica.rows)
            plans.append(_Plan(replica, capacity(replica.bears, own), own))
    return sorted(plans, key=lambda one: (one.capacity.safe.replicas, one.capacity.likely.replicas))


def _reasons(found: "tuple[Replica, ...]", objective: "Objective") -> str:
    """Each reason once, with what it holds for."""
    names: dict[str, list[str]] = {}
    for replica in found:
        names.setdefault(replica.lacking, []).append(replica.what)
    reasons = [f"{' and '.join(whats)}: {lacking}" for lacking, whats in names.items()]
    more = f"; and {len(reasons) - 3} more reasons" if len(reasons) > 3 else ""
    return (
        f"{'; '.join(reasons[:3])}{more}. Find what one replica bears with: mlserve bench NAME --find-max "
        f"--slo {objective.text}"
    )


def _print(plans: list[_Plan], found: "tuple[Replica, ...]", objective: "Objective", cost: Price | None) -> None:
    best = plans[0]
    total, borne, safe = best.capacity, best.capacity.bears, best.capacity.safe
    out.print(
        f"[bold]{safe.replicas:,} replica{'' if safe.replicas == 1 else 's'}[/] for "
        f"{format_rate(best.demand.peak_per_s)}, {objective.words}",
        highlight=False,
    )
    _say("replica", f"{best.replica.what}; {best.replica.how}")
    missed = "nothing faster was missed" if borne.missed_per_s is None else f"{format_rate(borne.missed_per_s)} missed"
    proven = f"{format_rate(borne.safe_per_s)} proven, " if borne.proven else ""
    _say("bears", f"{proven}{format_rate(borne.met_per_s)} met, {missed}")
    if not borne.proven:
        out.print(
            f"{'not proven':<12}its VALID runs meet it, but are too short to exclude chance (1%): measure longer with "
            f"mlserve bench NAME --find-max --slo {objective.text}",
            style="yellow",
            highlight=False,
            markup=False,
            soft_wrap=True,
        )
    _say("replicas", f"{safe.bearing:,} bear the peak, {_spared(best.demand)}; {_range(total)}")
    _say("load", f"{format_rate(safe.share_per_s)} each at the peak, {safe.share_per_s / borne.safe_per_s:.0%} of it")
    if cost is not None and safe.cost_per_h is not None:
        machines = f"{safe.replicas:,} whole machine{'' if safe.replicas == 1 else 's'} at {cost.shown(cost.per_h)}"
        _say(
            "cost",
            f"{cost.shown(safe.cost_per_h)} an hour, {machines}; {_cost_of_1000(total, cost)} for 1,000 inferences",
        )
    joules = total.joules_per_1000
    if joules is None:
        _say("energy", "not known: the runs have no power, for which a machine needs RAPL or NVML")
    else:
        _say("energy", f"{joules.mean:,.3g} J for 1,000 inferences ({joules.low:,.3g} to {joules.high:,.3g})")
    for assumption in (*best.replica.caveats, *_assumptions(best)):
        _say("assumed", assumption)
    if len(plans) > 1:
        out.print(_table(plans, cost))
    for replica in found:
        if replica.bears is None:
            out.print(f"{replica.what}: {replica.lacking}", style="dim", highlight=False, markup=False, soft_wrap=True)


def _say(name: str, text: str) -> None:
    out.print(f"{name:<12}{text}", highlight=False, markup=False, soft_wrap=True)


def _spared(demand: "Demand") -> str:
    parts = [f"one of {demand.zones} zones"] if demand.zones > 1 else []
    parts += [f"{demand.spare} more" if parts else f"{demand.spare}"] if demand.spare else []
    return f"{' and '.join(parts)} may be lost" if parts else "none may be lost"


def _range(total: "Capacity") -> str:
    if total.least is None:
        return (
            f"fewer may do, perhaps by far: {format_rate(total.bears.met_per_s)} is only a lower bound of what one "
            "bears, for no run shows a rate that it misses. Find it with: mlserve bench NAME --find-max"
        )
    if total.least.replicas == total.safe.replicas:
        return "whatever in its interval a replica bears"
    return f"{total.likely.replicas:,} likely do, fewer than {total.least.replicas:,} cannot"


def _cost_of_1000(total: "Capacity", cost: Price) -> str:
    safe = total.safe.cost_per_1000 or 0.0
    low = (total.least or total.likely).cost_per_1000 or 0.0
    return cost.shown(safe) if low == safe else f"{cost.shown(safe)} ({cost.shown(low)} to {cost.shown(safe)})"


def _assumptions(best: _Plan) -> list[str]:
    demand = best.demand
    mean = (
        f"{format_rate(demand.peak_per_s)} all the time, for no --mean-rps was given: with quieter hours an inference "
        "costs more"
        if demand.mean_per_s == demand.peak_per_s
        else f"{format_rate(demand.mean_per_s)} on average, with all replicas there all the time"
    )
    words = [
        f"the peak, {format_rate(demand.peak_per_s)}, is the highest rate of any second, evenly shared among replicas",
        mean,
        "each replica has a whole machine of its own, and requests like those that were sent",
    ]
    if best.capacity.joules_per_1000 is not None:
        words.append("energy is that of the whole machine, the load generator on it included")
    return words


def _table(plans: list[_Plan], cost: Price | None) -> Table:
    table = Table(box=None, pad_edge=False)
    for heading in ("replicas", "likely", "bears", "missed", *(["1,000 cost"] if cost else []), "of"):
        table.add_column(heading, justify="left" if heading == "of" else "right")
    for one in plans:
        total = one.capacity
        missed = total.bears.missed_per_s
        table.add_row(
            f"{total.safe.replicas:,}",
            f"{total.likely.replicas:,}",
            format_rate(total.bears.safe_per_s),
            "-" if missed is None else format_rate(missed),
            *([cost.shown(total.safe.cost_per_1000 or 0.0)] if cost else []),
            f"{one.replica.what}; {one.replica.how}",
        )
    return table


def _document(plans: list[_Plan], found: "tuple[Replica, ...]", objective: "Objective") -> dict[str, Any]:
    return {
        "format_version": 1,
        "objective": msgspec.to_builtins(objective),
        "plans": [
            {
                "what": one.replica.what,
                "how": one.replica.how,
                "demand": msgspec.to_builtins(one.demand),
                **msgspec.to_builtins(one.capacity),
                "lower_bound": one.capacity.lower_bound,
                "assumptions": [*one.replica.caveats, *_assumptions(one)],
                "runs": list(one.replica.runs),
            }
            for one in plans
        ],
        "lacking": [{"what": each.what, "why": each.lacking} for each in found if each.bears is None],
    }
