"""How near a highest rate must be sought for its limit to be decided at all. Pure.

Where within the last step of its search a rate lies is known of neither side, and no number of searches tells
(`rate_floor`). A candidate that is as good as the base passes only where that doubt leaves room below the limit, for
the noise of the runs too.
"""

import math
from collections.abc import Sequence

from mlserve.errors import UsageError
from mlserve.report.gating.estimate import CERTAIN, Estimate
from mlserve.report.gating.evidence import limit_value, place_of
from mlserve.report.gating.limits import Limit
from mlserve.report.gating.looks import ERROR, LOOKS, spent_over
from mlserve.report.gating.tracks import rate_floor

__all__ = ["coarsest_resolution", "resolution_for"]

USUAL = 0.05
"""Where no limit needs a finer one."""

# A search takes a step more for each halving, and the noise of its runs is soon what hides a change.
_FINEST = 0.002
# Of what is tolerated, how much the doubt may take at most, and how much where nobody says.
_MOST, _CHOSEN = 0.5, 0.25


def resolution_for(limits: Sequence[Limit], said: float | None = None) -> float:
    """How near to seek the highest rate: as near as `said`, else as the tightest of `limits` on its change wants.

    Raises UsageError where `said` is so coarse that not even the same server would pass.
    """
    changes = [limit for limit in limits if limit.metric == "max_rate" and not limit.absolute]
    if said is None:
        return min([USUAL, *(max(_FINEST, coarsest_resolution(limit, _CHOSEN)) for limit in changes)])
    for limit in changes:
        most = max(_FINEST, coarsest_resolution(limit, _MOST))
        if said > most:
            raise UsageError(
                f"max_rate={_percent(limit.tolerance)} needs --resolution {_percent(most)} or finer: where the highest "
                f"rate lies within the last step of a search nobody knows, and steps of {_percent(said)} hide more "
                "than half of what is tolerated; leave --resolution out, and it follows from the limit"
            )
    return said


def coarsest_resolution(limit: Limit, share: float = 1.0) -> float:
    """The widest step that takes at most `share` of what `limit` tolerates, where runs have no noise and both sides are
    equal. With 1.0 a pass is just possible, at the level of one limit over all looks of a live gate; 0.0 for no
    tolerance.

    The doubt grows as log(1 + step), so that it is measured at one step and scaled.
    """
    from scipy.special import ndtri

    unit = Estimate(0.0, CERTAIN, lasting=rate_floor(limit, math.e - 1)).deviation
    reach = -float(ndtri(spent_over(LOOKS, ERROR)(1))) * unit
    return math.expm1(share * place_of(limit, limit_value(limit)) / reach)


def _percent(share: float) -> str:
    """Rounded down to three digits: what is said to be enough must be."""
    digits = 2 - math.floor(math.log10(100 * share)) if share else 0
    return f"{math.floor(100 * share * 10**digits + 1e-6) / 10**digits:g}%"
