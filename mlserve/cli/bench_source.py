"""From what was said on the command line to what is loaded and what it is fed."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import msgspec

from mlserve.errors import UsageError

if TYPE_CHECKING:
    from mlserve.bench.load.trace import Trace
    from mlserve.bench.trust import Trust
    from mlserve.tuning.locking import Moved
    from mlserve.tuning.opening import Contender, Source
    from mlserve.tuning.serving import ServerOptions

__all__ = ["PayloadFlags", "make_contenders", "make_moved", "make_source", "protocol_of", "with_trace"]


class PayloadFlags(msgspec.Struct, frozen=True, kw_only=True):
    """The flags that say what requests hold and how they are asked, as they were written."""

    data: Path | None
    lengths: str
    image_sizes: str
    expected: Path | None
    server_timing: str
    model: str
    inputs: str
    template: str
    answer: str
    headers: tuple[str, ...]
    ca_file: Path | None
    client_cert: Path | None
    client_key: Path | None
    metrics: str


def make_source(store: Path, flags: PayloadFlags) -> "Source":
    """Where models and rows come from. Raises UsageError, naming the flag."""
    from mlserve.bench.payload.payload import PayloadWish, Timed
    from mlserve.bench.payload.sizes import parse_image_sizes, parse_lengths
    from mlserve.bench.target import parse_header
    from mlserve.bench.trust import read_trust
    from mlserve.tuning.opening import Source

    for flag, path in (("--data", flags.data), ("--expected", flags.expected)):
        if path is not None and not path.exists():
            raise UsageError(f"{flag} {path}: there is no such file; check the path")
    if flags.server_timing not in get_args(Timed):
        raise UsageError(f"--server-timing {flags.server_timing!r} is unknown; use {', '.join(get_args(Timed))}")
    return Source(
        store=store,
        wish=PayloadWish(
            data=flags.data,
            expected=flags.expected,
            lengths=parse_lengths(flags.lengths) if flags.lengths else None,
            image_sizes=parse_image_sizes(flags.image_sizes) if flags.image_sizes else (),
            timed=flags.server_timing,  # type: ignore[arg-type]  # checked above; get_args tells no types
        ),
        model=flags.model,
        inputs=flags.inputs,
        template=_read_template(flags.template),
        answer=flags.answer,
        headers=tuple(map(parse_header, flags.headers)),
        trust=read_trust(flags.ca_file, flags.client_cert, flags.client_key),
        metrics=flags.metrics,
    )


def with_trace(source: "Source", trace: "Trace | None") -> "Source":
    """`source`, whose requests are those of `trace` if there is one."""
    return msgspec.structs.replace(source, wish=msgspec.structs.replace(source.wish, trace=trace))


def make_contenders(
    where: str | None, targets: list[str], source: "Source", options: "ServerOptions | None"
) -> "tuple[Contender, ...]":
    """What is loaded: `where` and the `targets`, or the store's only model.

    Raises UsageError where flags are for another kind of it.
    """
    from mlserve.tuning.opening import Contender, named_contender, settled

    named = [named_contender(text) for text in targets]
    if where is not None:
        named.insert(0, Contender(where, where))
    elif not named:
        only = _only_model(source.store)
        named.append(Contender(only, only))
    running = [one for one in named if one.running]
    if running and options is not None:
        raise UsageError(
            f"{running[0].where} runs already, and the server's settings (--server-workers to --compute-type) are for "
            "one that bench starts; set them where it was started, or give a model's name"
        )
    names = [one.name for one in named]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UsageError(f"--target {twice} is given twice; give each target a name of its own")
    if not running:
        for flag, said in (
            ("--model", source.model),
            ("--inputs", source.inputs),
            ("--template", source.template),
            ("--answer", source.answer),
            ("--header", source.headers),
            ("--ca-file", source.trust and source.trust.ca_file),
            ("--client-cert", source.trust),
            ("--metrics", source.metrics),
        ):
            if said:
                raise UsageError(f"{flag} is for a URL, whose server may not say it; {named[0].where} says it itself")
    return tuple(settled(one, source.store) for one in named)


def make_moved(
    where: str | None,
    store: Path | None,
    places: "Mapping[str, Path | str | None]",
    headers: list[str] | None,
    trust: "Trust | None",
) -> "Moved":
    """What of a run that is made again is elsewhere now; `places` are by the roles of files."""
    from mlserve.bench.target import parse_header
    from mlserve.tuning.locking import Moved

    files = {role: str(place) for role, place in places.items() if place}
    return Moved(
        where=where or "",
        store=store,
        files=files,  # type: ignore[arg-type]  # the roles are literals
        headers=tuple(map(parse_header, headers or ())),
        trust=trust,
    )


def protocol_of(contenders: "tuple[Contender, ...]", said: str | None) -> str:
    """What was `said`, else what the first URL says; REST for a model of our own.

    Raises UsageError for a protocol that no server of ours speaks.
    """
    from mlserve.tuning.opening import contender_protocol

    if said == "json" and not all(one.running for one in contenders):
        raise UsageError("--protocol json is for a URL, with --template; a model that bench serves is asked by others")
    return said or contender_protocol(contenders[0])


def _read_template(text: str) -> str:
    """The text itself, or what the file of that name holds."""
    if not text or "{" in text:
        return text
    try:
        return Path(text).read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--template {text} is no file that can be read, and holds no {{{{rows}}}}") from error


def _only_model(store: Path) -> str:
    from mlserve.model.store import Store

    names = Store(store).names()
    if len(names) != 1:
        held = f"holds {', '.join(names)}" if names else "holds no model"
        raise UsageError(f"nothing was named to load, and the store {store} {held}; give a NAME, a FILE.onnx or a URL")
    return names[0]
