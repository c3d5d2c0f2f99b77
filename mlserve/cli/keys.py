"""`mlserve keys`: who may ask a server, and for what."""

import re
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

__all__ = ["app", "create", "list_keys", "revoke"]

app = typer.Typer(
    help="Create, list and revoke the API keys of a server.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

FileOption = Annotated[Path, typer.Option("--file", help="The keys file that the server reads.", show_default=True)]

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
    json: JsonFlag = False,
) -> None:
    """Make a key and print it, this once: only its hash is kept.

    [bold]Examples[/]

      mlserve keys create --name ci --scope infer --scope metadata --expires 90d
    """
    from mlserve.serve.keys import add_key, new_key

    made = new_key(name, scope, _expiry(expires, datetime.now(UTC)))
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
    """Every key: its name, scopes and expiry."""
    from mlserve.serve.keys import read_keys

    keys = read_keys(file)
    if json:
        print_json([_facts(key) for key in keys])
        return
    if not keys:
        out.print(f"{file} holds no key; make one with: mlserve keys create --name NAME --scope infer", markup=False)
        return
    table = Table("name", "scopes", "expires")
    for key in keys:
        expires = key.expires_at or "never"
        table.add_row(key.name, ", ".join(sorted(key.scopes)), f"{expires} (expired)" if _expired(key) else expires)
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


def _expired(key: "Key") -> bool:
    return bool(key.expires_at) and datetime.fromisoformat(key.expires_at) <= datetime.now(UTC)


def _facts(key: "Key") -> dict[str, object]:
    """What may be told of a key: all but its hash."""
    return {
        "name": key.name,
        "scopes": sorted(key.scopes),
        "expires_at": key.expires_at,
        "expired": _expired(key),
    }
