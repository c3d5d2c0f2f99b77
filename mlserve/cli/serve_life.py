"""Flags of `mlserve serve` about how a server lives and ends, and what they come to."""

from typing import TYPE_CHECKING, Annotated

import typer

from mlserve.errors import UsageError
from mlserve.runs.production import ServeChoice
from mlserve.units import parse_bytes, parse_duration_s, parse_fraction

if TYPE_CHECKING:
    from mlserve.serve.settings import LifeSettings

__all__ = ["HangAfter", "LameDuck", "LogKeep", "LogMaxBytes", "MemoryGuard", "life_settings", "most_bytes"]

_OFF = "off"
# What is behind a port that other machines reach takes a moment to hear of a server that is not ready.
_LAME_DUCK_S = 5.0

LameDuck = Annotated[
    str,
    typer.Option(
        help="After SIGTERM, how long the server still takes what comes while it says it is not ready; or off.",
        show_default="off on this machine alone, else 5s",
    ),
]
HangAfter = Annotated[
    str, typer.Option(help="A worker whose event loop stands still for so long is killed and replaced; or off.")
]
MemoryGuard = Annotated[
    str, typer.Option(help="Share of the memory it may use at which the server refuses new requests; or off.")
]
LogMaxBytes = Annotated[
    str,
    typer.Option(
        metavar="SIZE", help="Size (100MB) at which --log-file makes room for a new one.", show_default="it grows"
    ),
]
LogKeep = Annotated[int, typer.Option(min=1, max=1000, help="How many older files --log-max-bytes keeps.")]


def life_settings(choice: ServeChoice, address: str) -> "LifeSettings":
    """What the flags come to for a server at `address`. Raises UsageError, naming the flag's value."""
    from mlserve.serve.settings import LifeSettings

    return LifeSettings(
        lame_duck_s=_lame_duck_s(choice.lame_duck, address),
        hang_after_s=0.0 if choice.hang_after == _OFF else parse_duration_s(choice.hang_after),
        memory_share=0.0 if choice.memory_guard == _OFF else _share(choice.memory_guard),
    )


def most_bytes(choice: ServeChoice) -> int:
    """At how many bytes the log makes room, 0 for never. Raises UsageError where there is no file that could."""
    if not choice.log_max_bytes:
        return 0
    if not choice.log_file:
        raise UsageError(f"--log-max-bytes {choice.log_max_bytes} says something of --log-file; give that too")
    return parse_bytes(choice.log_max_bytes)


def _lame_duck_s(text: str, address: str) -> float:
    import ipaddress

    from mlserve.serve.supervisor import resolve_host

    if text:
        return 0.0 if text == _OFF else parse_duration_s(text)
    return 0.0 if ipaddress.ip_address(resolve_host(address).partition("%")[0]).is_loopback else _LAME_DUCK_S


def _share(text: str) -> float:
    share = parse_fraction(text, most_bare=1.0)
    if not 0.0 < share <= 1.0:
        raise UsageError(f"--memory-guard {text!r} is no share of the memory; write 95%, or off")
    return share
