"""What attempts come to, whatever is sought: which settings are out, which run is to be made again, who is confirmed.
Pure.
"""

import math
from collections.abc import Sequence
from typing import Literal

import msgspec

from mlserve.tuning.choosing.attempt import Attempt, Trial

__all__ = [
    "SPENT",
    "Settled",
    "Voice",
    "blamed",
    "confirming",
    "died",
    "is_confirmed",
    "out_of_contest",
    "proof_of",
    "refuted",
    "spoilt",
    "unconfirmed",
    "voice_of",
]

SPENT = "the budget is spent"

_MOST_CONFIRMATIONS = 3
"""Of one setting at one rate: a run that came to nothing is made again, twice at most; as often again by a search that
goes on after it had ended without a proof.
"""
_MOST_DEATHS = 2

Voice = Literal["met", "missed", "nothing"]
"""What a run that confirms says. Only a VALID one says that the objective is met, and none that shows the generator or
other work says that it is missed.
"""


class Settled(msgspec.Struct, frozen=True, kw_only=True):
    """The search is over: setting `number`, None where there is none, and why. `confirmed`: VALID fresh runs say so."""

    number: int | None
    rate_per_s: float = 0.0
    confirmed: bool = False
    why: str = ""


def out_of_contest(attempts: Sequence[Attempt]) -> set[int]:
    """The settings that could not be served, whose server died twice, or takes more memory than it may."""
    dead = {one.number for one in attempts if one.died and _deaths(one.number, attempts) >= _MOST_DEATHS}
    return dead | {one.number for one in attempts if (one.failure and not one.died) or one.why == "memory"}


def died(attempts: Sequence[Attempt]) -> Trial | None:
    """The last run once more, on a fresh server, where its server died, the first of that setting to do so."""
    if not attempts or not attempts[-1].died:
        return None
    return attempts[-1].trial if _deaths(attempts[-1].number, attempts) < _MOST_DEATHS else None


def blamed(attempts: Sequence[Attempt]) -> Trial | None:
    """The last run once more, where it showed the generator and not the server, and was the first to do so. What
    confirms is made again by `confirming`.
    """
    if not attempts or not attempts[-1].blame or attempts[-1].trial.fidelity == "confirm":
        return None
    last = attempts[-1].trial
    earlier = [one for one in attempts[:-1] if (one.number, one.rate_per_s) == (last.number, last.rate_per_s)]
    return None if any(one.blame for one in earlier) else last


def spoilt(number: int, attempts: Sequence[Attempt]) -> bool:
    """Whether two runs of a setting showed the generator."""
    return sum(bool(one.blame) for one in attempts if one.number == number) > 1


def voice_of(one: Attempt) -> Voice:
    """What a run that confirms says of its rate."""
    if one.met:
        return "met" if one.valid else "nothing"
    return "nothing" if one.blame or one.failure else "missed"


def refuted(number: int, attempts: Sequence[Attempt]) -> float:
    """The lowest rate at which runs that were to confirm setting `number` say that it misses; infinite for none."""
    rates = {one.rate_per_s for one in _confirmations(attempts) if one.number == number}
    return min((rate for rate in rates if _balance(number, rate, attempts) < 0), default=math.inf)


def proof_of(attempts: Sequence[Attempt], number: int | None) -> list[Attempt]:
    """The runs of a setting that met the objective at rates that nothing refuted, the best proof last: what confirms
    stands behind the others, and of that what is VALID; what had the machine to itself stands behind what shared it.
    """
    below_per_s = math.inf if number is None else refuted(number, attempts)
    met = [one for one in attempts if one.number == number and one.met and one.rate_per_s < below_per_s]
    return sorted(met, key=_weight)


def _weight(one: Attempt) -> tuple[bool, bool, bool]:
    confirms = one.trial.fidelity == "confirm"
    return confirms, confirms and one.valid, not one.in_turns


def confirming(number: int, rate_per_s: float, attempts: Sequence[Attempt]) -> Trial | Settled:
    """The run that confirms setting `number` at `rate_per_s`, or what it came to.

    More VALID runs must meet the objective than miss it. One that came to nothing, as other work spoilt it, is made
    again; at last the setting stands as not confirmed.
    """
    mine = [one for one in _confirmations(attempts) if (one.number, one.rate_per_s) == (number, rate_per_s)]
    if _balance(number, rate_per_s, attempts) > 0:
        return Settled(number=number, rate_per_s=rate_per_s, confirmed=True, why="confirmed by a fresh run")
    if _may_confirm(mine):
        return Trial(number=number, rate_per_s=rate_per_s, fidelity="confirm", why="confirming the best")
    return unconfirmed(number, rate_per_s, attempts)


def is_confirmed(number: int, rate_per_s: float, attempts: Sequence[Attempt]) -> bool:
    """Whether VALID fresh runs say that the setting meets the objective there."""
    found = confirming(number, rate_per_s, attempts)
    return isinstance(found, Settled) and found.confirmed


def unconfirmed(number: int, rate_per_s: float, attempts: Sequence[Attempt]) -> Settled:
    """The setting as it stands, and what became of the runs that were to confirm it."""
    mine = [one for one in _confirmations(attempts) if (one.number, one.rate_per_s) == (number, rate_per_s)]
    if not mine:
        return Settled(number=number, rate_per_s=rate_per_s, why=SPENT)
    faults = list(dict.fromkeys(fault for one in mine for fault in one.faults if voice_of(one) == "nothing"))
    missed = sum(voice_of(one) == "missed" for one in mine)
    words = [f"{missed} of {len(mine)} fresh runs missed the objective"] if missed else []
    if faults:
        which = "its fresh run was" if len(mine) == 1 else f"its {len(mine)} fresh runs were"
        words.append(f"{'others were' if missed else which} INVALID: {', '.join(faults)}")
    words += [SPENT] if _may_confirm(mine) else []
    return Settled(number=number, rate_per_s=rate_per_s, why="; ".join(words) or "no fresh run confirmed it")


def _may_confirm(mine: Sequence[Attempt]) -> bool:
    """Whether one more run may confirm what `mine` were to confirm."""
    return sum(not one.past for one in mine) < _MOST_CONFIRMATIONS


def _confirmations(attempts: Sequence[Attempt]) -> list[Attempt]:
    return [one for one in attempts if one.trial.fidelity == "confirm" and not one.died]


def _balance(number: int, rate_per_s: float, attempts: Sequence[Attempt]) -> int:
    """How many runs that were to confirm it say that it meets the objective, less those that say that it does not."""
    said = [voice_of(one) for one in _confirmations(attempts) if (one.number, one.rate_per_s) == (number, rate_per_s)]
    return said.count("met") - said.count("missed")


def _deaths(number: int, attempts: Sequence[Attempt]) -> int:
    return sum(one.died for one in attempts if one.number == number)
