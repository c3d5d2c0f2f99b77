"""Models as management pages name and list them: by name in the store that the server follows, never by path or URL.

So no caller makes the server fetch or read anything of the caller's choice.
"""

import re
from collections.abc import Sequence
from typing import NamedTuple

from starlette.requests import Request

from mlserve.errors import InvalidRequest
from mlserve.serve.service import ServedModel

__all__ = ["ListPage", "Reference", "parse_reference", "reference_of", "whole_number"]

_REFERENCE = re.compile(r"(?P<name>[A-Za-z0-9_][A-Za-z0-9._-]{0,127})(@(?P<version>[A-Za-z0-9_][A-Za-z0-9._-]{0,63}))?")
_USUAL_LIMIT, _MOST = 100, 10**9


class Reference(NamedTuple):
    """A model of the store; an empty `version` means its default one. It may be an alias."""

    name: str
    version: str


def parse_reference(text: str) -> Reference:
    """`NAME` or `NAME@VERSION`. Raises InvalidRequest for everything else: URLs and paths above all."""
    match = _REFERENCE.fullmatch(text)
    if match is None:
        raise InvalidRequest(
            "models are loaded from the server's own store: send NAME or NAME@VERSION, no URL and no path"
        )
    return Reference(match["name"], match["version"] or "")


def reference_of(model: ServedModel) -> str:
    """What `parse_reference` would find `model` by."""
    return f"{model.signature.name}@{model.signature.version}"


class ListPage(NamedTuple):
    """Some of a long list: from `start` on, `next_token` for the page after it, empty for the last."""

    models: Sequence[ServedModel]
    next_token: str

    @classmethod
    def of(cls, models: Sequence[ServedModel], request: Request) -> "ListPage":
        """What the query's `limit` and `next_page_token` ask for. Raises InvalidRequest when they are no numbers."""
        limit = whole_number(request, "limit", _USUAL_LIMIT, least=1)
        start = whole_number(request, "next_page_token", 0)
        end = start + limit
        return cls(models[start:end], str(end) if end < len(models) else "")


def whole_number(request: Request, name: str, default: int, *, least: int = 0) -> int:
    """The query's parameter `name`. Raises InvalidRequest unless it is a whole number of at least `least`."""
    text = request.query_params.get(name, "")
    if not text:
        return default
    if not (text.isascii() and text.isdigit() and len(text) <= 9 and least <= int(text) <= _MOST):
        raise InvalidRequest(f"'{name}' is {text[:32]!r}; write a whole number of at least {least}")
    return int(text)
