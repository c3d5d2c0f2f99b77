"""A folder of many runs that belong together: one file says what was asked, so that it can go on where it stopped."""

from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

from mlserve.errors import UsageError
from mlserve.runs.run import RUN_FILE
from mlserve.tuning.differing import differing

__all__ = ["check_place", "is_finished", "make_room", "open_campaign"]

_MOST_SET_ASIDE = 1000


def open_campaign(directory: Path, file: str, asked: msgspec.Struct) -> bool:
    """Makes `directory` the place of what is `asked`, which is written to `file` in it; whether it was that already.

    Raises UsageError when it cannot be written, or is the place of something else.
    """
    path = directory / file
    try:
        if path.exists():
            _check_same(path, asked)
            return True
        check_place(directory, file)
        directory.mkdir(parents=True, exist_ok=True)
        partial = directory / f"{file}.partial"
        partial.write_bytes(msgspec.json.format(msgspec.json.encode(asked), indent=2) + b"\n")
        partial.rename(path)
    except OSError as error:
        raise UsageError(f"--out {directory} cannot be written: {error.strerror}; choose another folder") from error
    return False


def check_place(directory: Path, file: str) -> None:
    """Raises UsageError where `directory` is the place of nothing that `file` could tell of, and not empty."""
    if directory.is_dir() and any(directory.iterdir()) and not (directory / file).exists():
        raise UsageError(f"--out {directory} holds something else; choose another folder, or an empty one")


def is_finished(folder: Path) -> bool:
    """Whether `folder` holds a finished run."""
    return (folder / RUN_FILE).is_file()


def make_room(folder: Path) -> None:
    """Makes `folder` an empty one for a run; what an interrupted run left there is set aside, and kept."""
    if folder.exists() and any(folder.iterdir()):
        aside = next(
            path
            for number in range(1, _MOST_SET_ASIDE)
            if not (path := folder.with_name(f"{folder.name}.interrupted-{number}")).exists()
        )
        folder.rename(aside)
    folder.mkdir(parents=True, exist_ok=True)


def _check_same(path: Path, asked: msgspec.Struct) -> None:
    content = path.read_bytes()
    try:
        held = msgspec.json.decode(content)
    except msgspec.DecodeError as error:
        raise UsageError(f"{path} is damaged: {error}; choose another folder for --out") from error
    with suppress(msgspec.ValidationError):  # of another form altogether: what differs is said below
        held = _completed(held, _document(msgspec.json.decode(content, type=type(asked))))
    unlike = differing(held, _document(asked))
    if unlike:
        raise UsageError(
            f"--out {path.parent} holds another {path.stem}: {'; '.join(unlike[:3])}; ask for the same again to go on "
            "with it, or choose another folder"
        )


def _document(asked: msgspec.Struct) -> Any:
    return msgspec.json.decode(msgspec.json.encode(asked))


def _completed(held: Any, whole: Any) -> Any:
    """`held` with what only `whole`, the same with its defaults, has: an older mlserve did not know of every field."""
    match held, whole:
        case dict(), dict():
            return whole | {key: _completed(value, whole.get(key)) for key, value in held.items()}
        case list(), list() if len(held) == len(whole):
            return [_completed(*pair) for pair in zip(held, whole, strict=True)]
    return held
