"""What attempts come to, whatever is sought: which settings are out, which run is to be made again, who is confirmed.
Pure.
"""

from collections.abc import Sequence

import msgspec

from mlserve.tuning.choosing.attempt import Attempt, Trial

__all__ = ["Settled", "blamed", "confirming", "out_of_contest", "spoilt"]

_MOST_CONFIRMATIONS = 2
_MOST_CONFIRMATIONS_IN_ALL = 4


class Settled(msgspec.Struct, frozen=True, kw_only=True):
    """The search is over: setting `number`, None where there is none, and why. `confirmed`: its last run says so."""

    number: int | None
    rate_per_s: float = 0.0
    confirmed: bool = False
    why: str = ""


def out_of_contest(attempts: Sequence[Attempt]) -> set[int]:
    """The settings that could not be served, or whose server takes more memory than it may."""
    return {one.number for one in attempts if one.failure or one.why == "memory"}


def blamed(attempts: Sequence[Attempt]) -> Trial | None:
    """The last run once more, where it showed the generator and not the server, and was the first to do so."""
    if not attempts or not attempts[-1].blame:
        return None
    last = attempts[-1].trial
    earlier = [one for one in attempts[:-1] if (one.number, one.rate_per_s) == (last.number, last.rate_per_s)]
    return None if any(one.blame for one in earlier) else last


def spoilt(number: int, attempts: Sequence[Attempt]) -> bool:
    """Whether two runs of a setting showed the generator."""
    return sum(bool(one.blame) for one in attempts if one.number == number) > 1


def confirming(number: int, rate_per_s: float, attempts: Sequence[Attempt], *, hurry: bool) -> Trial | Settled:
    """The run that confirms setting `number` at `rate_per_s`, or what it came to.

    A confirmation that met the objective but is INVALID is made again once, and then stands as it is.
    """
    every = [one for one in attempts if one.trial.fidelity == "confirm"]
    mine = [one for one in every if (one.number, one.rate_per_s) == (number, rate_per_s)]
    kept = [one for one in mine if one.met]
    if any(one.valid for one in kept) or (kept and (len(mine) >= _MOST_CONFIRMATIONS or hurry)):
        return Settled(number=number, rate_per_s=rate_per_s, confirmed=True, why="confirmed by a fresh run")
    if len(mine) >= _MOST_CONFIRMATIONS or (hurry and len(every) >= _MOST_CONFIRMATIONS_IN_ALL):
        return Settled(number=number, rate_per_s=rate_per_s, why="no fresh run confirmed it")
    return Trial(number=number, rate_per_s=rate_per_s, fidelity="confirm", why="confirming the best")
