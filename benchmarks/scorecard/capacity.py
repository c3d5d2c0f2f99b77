"""How much a server can do: the most good answers a second that it gives steadily, with a p99 below ten times the p50
of a server that has nothing else to do.
"""

import msgspec
from scorecard.case import Form
from scorecard.driver import Driven, Load, drive
from scorecard.server import Endpoints

__all__ = ["Capacity", "find_capacity", "find_capacity_for"]

_TIMES_UNLOADED = 10.0
_QUIET_PER_S = 20.0
_FIRST_PER_S = 200.0
_GROWTH = 2.0
_HALVINGS = 3
# One quick second is no capacity: what was found has to hold for so many steps more, or a little less does.
_STEPS_HELD, _LESS, _MOST_TIMES_LESS = 3, 0.9, 10
# Below a millisecond the machine's own hiccups are ten times the p50.
_LEAST_BOUND_S = 0.01
# The driver itself falls behind from there on.
_DRIVER_FULL = 0.9
# What a few seconds find out of a capacity is a guess, and a rate far above the server's would test nothing.
_MOST_IN_SECONDS_PER_S = 800.0
# Beyond this the driver's own core, 80% full at 6,000/s, needs long to catch up after every stall of the machine; what
# it holds up it would call lost.
_MOST_STEADY_PER_S = 3000.0
_MOST_PER_S = 20_000.0


class Capacity(msgspec.Struct, frozen=True):
    """`per_s` good answers a second. `driver_bound`: the load generator's core was full before the server's.

    `p50_s` is of the unloaded server, `p99_s` at `per_s`, `driver_cpu` how much of its core the driver used there.
    """

    per_s: float
    p50_s: float
    p99_s: float
    driver_cpu: float
    driver_bound: bool = False

    def share(self, share: float, form: Form) -> float:
        """That share of the capacity, in requests a second, and not more than the driver can ask steadily."""
        return min(share * self.per_s, _most_asked_per_s(form))


def find_capacity_for(
    share: float, form: Form, endpoints: Endpoints, like: Load, step_s: float, *, first_per_s: float
) -> Capacity:
    """As `find_capacity`, as thoroughly as `form` is, and no further than `share` of it is asked for."""
    return find_capacity(
        endpoints,
        like,
        step_s,
        first_per_s=first_per_s,
        halvings=1 if form == "seconds" else 3,
        most_per_s=_most_asked_per_s(form) / share,
    )


def _most_asked_per_s(form: Form) -> float:
    return _MOST_IN_SECONDS_PER_S if form == "seconds" else _MOST_STEADY_PER_S


def find_capacity(
    endpoints: Endpoints,
    like: Load,
    step_s: float = 1.0,
    *,
    first_per_s: float = _FIRST_PER_S,
    halvings: int = _HALVINGS,
    most_per_s: float = _MOST_PER_S,
) -> Capacity:
    """Doubles the rate until the server does not keep up, then halves the gap `halvings` times, `step_s` at each rate;
    what it kept up with it has to keep up with for longer.

    `like` says how is asked; its rate and duration are not used. Raises ValueError when even the unloaded server does
    not answer everything rightly.
    """
    quiet = _at(endpoints, like, _QUIET_PER_S, max(step_s, 0.3))
    if quiet.count("ok") < quiet.count() or not quiet.count():
        raise ValueError(f"the unloaded server failed: {'; '.join(quiet.examples('lost', 'wrong', 'error', 'shed'))}")
    p50_s = quiet.quantile_s(0.5)
    bound_s = max(_TIMES_UNLOADED * p50_s, _LEAST_BOUND_S)
    best, held = quiet, _QUIET_PER_S
    rate, too_much = first_per_s, 0.0
    for _ in range(20):
        driven = _kept_up(endpoints, like, rate, step_s, bound_s)
        if driven is not None:
            best, held = driven, rate
        else:
            too_much = rate
        if rate >= most_per_s or (too_much and too_much / held < _GROWTH ** (1.01 / 2**halvings)):
            break
        rate = min(held * _GROWTH, most_per_s) if not too_much else (held * too_much) ** 0.5
    for _ in range(_MOST_TIMES_LESS):
        steady = _kept_up(endpoints, like, held, _STEPS_HELD * step_s, bound_s)
        if steady is not None:
            best = steady
            break
        held = max(_LESS * held, _QUIET_PER_S)
    else:
        best, held = quiet, _QUIET_PER_S
    return Capacity(held, p50_s, best.quantile_s(0.99), best.cpu_share, best.cpu_share > _DRIVER_FULL)


def _kept_up(endpoints: Endpoints, like: Load, per_s: float, seconds: float, bound_s: float) -> Driven | None:
    """The load that the server kept up with, None for none of two: other work on the machine disturbs, too."""
    for _ in range(2):
        driven = _at(endpoints, like, per_s, seconds)
        if keeps_up(driven, bound_s):
            return driven
    return None


def keeps_up(driven: Driven, bound_s: float) -> bool:
    """Whether everything was answered well, in time, and as fast as it came."""
    all_good = driven.count("ok") == driven.count() > 0
    in_step = driven.took_s < driven.load.seconds + max(0.25 * driven.load.seconds, 2 * bound_s, 0.1)
    return all_good and in_step and driven.quantile_s(0.99) < bound_s


def _at(endpoints: Endpoints, like: Load, per_s: float, seconds: float) -> Driven:
    return drive(endpoints, msgspec.structs.replace(like, per_s=per_s, seconds=seconds))
