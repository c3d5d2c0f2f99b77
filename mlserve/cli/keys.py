"""`mlserve keys`: who may ask a server, and for what."""

import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from mlserve.cli.terminal import JsonFlag, ending_well, err, out, print_json
from mlserve.errors import UsageError
from mlserve.units import parse_duration_s

if TYPE_CHECKING:
    from mlserve.serve.access import Key
    from mlserve.serve.allowance import Allowance

__all__ = ["app", "create", "list_keys", "revoke"]

app = typer.Typer(
    help="Create, list and revoke the API keys of a server.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

FileOption = Annotated[Path, typer.Option("--file", help="The keys file that the server reads.", show_default=True)]

_RATE = re.compile(r"([0-9]{1,12}(?:\.[0-9]{1,6})?)\s*/\s*([a-z]+)")
_DAYS = re.compile(r"(0*[1-9][0-9]{0,8})\s*d")


@app.command()
@ending_well
def create(
    name: Annotated[str, typer.Option(help="What the key is called, in lists and when it is revoked.")],
    scope: Annotated[
        list[str],
        typer.Option(help="What it may do: infer, metadata, admin, metrics. Repeatable.", show_default=False),
    ],
    file: FileOption = Path("keys.json"),
    expires: Annotated[
        str, typer.Option(help="How long it is good for, such as 90d or 12h; for ever if omitted.")
    ] = "",
    rate: Annotated[
        str, typer.Option(help="Requests it may ask in the long run, such as 100/s or 600/min; any if omitted.")
    ] = "",
    burst: Annotated[
        int | None, typer.Option(min=1, max=1_000_000, help="Requests of --rate at once.", show_default="one second's")
    ] = None,
    quota: Annotated[
        str, typer.Option(help="Requests it may ask from midnight to midnight UTC, such as 100000/day.")
    ] = "",
    json: JsonFlag = False,
) -> None:
    """Make a key and print it, this once: only its hash is kept.

    [bold]Examples[/]

      mlserve keys create --name ci --scope infer --scope metadata --expires 90d

      mlserve keys create --name partner --scope infer --rate 100/s --burst 200 --quota 100000/day
    """
    from mlserve.serve.keys import add_key, new_key

    made = new_key(name, scope, _expiry(expires, datetime.now(UTC)), _allowance(rate, burst, quota))
    add_key(file, made.key)
    if json:
        print_json({**_facts(made.key), "key": made.secret, "file": str(file)})
        return
    out.print(made.secret, markup=False, highlight=False, soft_wrap=True)
    err.print(
        f"This is key {name}; it is shown only now. Send it as 'authorization: Bearer KEY'.",
        highlight=False,
        markup=False,
    )


@app.command("list")
@ending_well
def list_keys(file: FileOption = Path("keys.json"), json: JsonFlag = False) -> None:
    """Every key: its name, scopes and expiry, and how much may be asked with it."""
    from mlserve.serve.keys import read_keys

    keys = read_keys(file)
    if json:
        print_json([_facts(key) for key in keys])
        return
    if not keys:
        out.print(f"{file} holds no key; make one with: mlserve keys create --name NAME --scope infer", markup=False)
        return
    table = Table("name", "scopes", "expires", "may ask")
    for key in keys:
        expires = key.expires_at or "never"
        shown = f"{expires} (expired)" if _expired(key) else expires
        table.add_row(key.name, ", ".join(sorted(key.scopes)), shown, _limits(key))
    out.print(table)


@app.command()
@ending_well
def revoke(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The key's name.", show_default=False)],
    file: FileOption = Path("keys.json"),
    json: JsonFlag = False,
) -> None:
    """Take a key away; servers that read the file refuse it from then on."""
    from mlserve.serve.keys import remove_key

    removed = remove_key(file, name)
    if json:
        print_json(_facts(removed))
    else:
        out.print(f"key {removed.name} is revoked", highlight=False, markup=False)


def _expiry(text: str, now: datetime) -> str:
    """When a key made `now` ends, in ISO 8601; empty for an empty `text`. Raises UsageError for no duration."""
    if not text:
        return ""
    days = _DAYS.fullmatch(text.strip())
    try:
        lasts = timedelta(days=int(days[1])) if days else timedelta(seconds=parse_duration_s(text))
        return (now + lasts).isoformat(timespec="seconds")
    except OverflowError as error:
        raise UsageError(f"--expires {text!r} is beyond the calendar; leave it out for a key without an end") from error


def _allowance(rate: str, burst: int | None, quota: str) -> "Allowance | None":
    """How much may be asked; None where nothing limits it. Raises UsageError for what is no rate or quota."""
    from mlserve.serve.allowance import Allowance

    if burst is not None and not rate:
        raise UsageError("--burst says how many requests of --rate may come at once; give that, too")
    if not rate and not quota:
        return None
    per_s = _number("--rate", rate, {"s": 1.0, "min": 60.0, "h": 3600.0}) if rate else 0.0
    per_day = int(_number("--quota", quota, {"day": 1.0})) if quota else 0
    return Allowance(per_s, burst or 0, per_day)


def _number(flag: str, text: str, units: Mapping[str, float]) -> float:
    """`100/s` -> 100.0: requests by the unit's number of seconds."""
    found = _RATE.fullmatch(text.strip())
    if found is None or found[2] not in units or not float(found[1]):
        raise UsageError(f"{flag} {text!r} is no number of requests; write it like 100/{' or 100/'.join(units)}")
    return float(found[1]) / units[found[2]]


def _limits(key: "Key") -> str:
    parts = [f"{key.rate_per_s:g}/s, {key.burst} at once"] if key.rate_per_s else []
    parts += [f"{key.quota_per_day}/day"] if key.quota_per_day else []
    return "; ".join(parts) or "any"


def _expired(key: "Key") -> bool:
    return bool(key.expires_at) and datetime.fromisoformat(key.expires_at) <= datetime.now(UTC)


def _facts(key: "Key") -> dict[str, object]:
    """What may be told of a key: all but its hash."""
    return {
        "name": key.name,
        "scopes": sorted(key.scopes),
        "expires_at": key.expires_at,
        "expired": _expired(key),
        "rate_per_s": key.rate_per_s,
        "burst": key.burst,
        "quota_per_day": key.quota_per_day,
    }
