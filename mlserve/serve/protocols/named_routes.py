"""Paths of the user's own choice: `/spam/detect` for the model spam, by its alias production."""

import re
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import msgspec
from starlette.requests import Request
from starlette.routing import compile_path

from mlserve.errors import UnknownModelError, UsageError
from mlserve.serve.protocols.dialect import Dialect, Documentation, Inference, InferPage
from mlserve.serve.service import ServedModel, Service
from mlserve.serve.settings import NamedRoute

__all__ = ["Spoken", "dialect"]

_MOST_CHARACTERS = 256
_SEGMENT = r"(?!\.{1,2}(?:/|$))[A-Za-z0-9._~:@+=-]+"
_PLAIN_PATH = re.compile(f"(?:/{_SEGMENT})+")


class Spoken(NamedTuple):
    """How a route may be spoken with, and what `/openapi.json` says of it."""

    inference: Inference
    documentation: Documentation


def dialect(routes: Sequence[NamedRoute], others: Sequence[Dialect], spoken: Mapping[str, Spoken]) -> Dialect:
    """One page for each of `routes`, spoken with as `spoken` says of its dialect.

    Raises UsageError for a path that is no plain one, that another route or one of `others` has, and for a dialect
    that is not in `spoken`.
    """
    taken = [(page.path, each.name) for each in others for page in each.pages]
    pages = []
    for route in routes:
        _check_path(route.path, taken)
        taken.append((route.path, ""))
        pages.append(_page(route, spoken))
    return Dialect("named", tuple(pages))


def _page(route: NamedRoute, spoken: Mapping[str, Spoken]) -> InferPage:
    how = spoken.get(route.dialect)
    if how is None:
        known = ", ".join(sorted(spoken))
        raise UsageError(f"route {route.path}: there is no dialect '{route.dialect}' for routes; use one of {known}")
    summary = f"Model {route.model}" + (f", {route.version}" if route.version else "")
    return InferPage(route.path, how.inference, summary, _own(how.documentation, route), partial(_find, route))


def _own(documentation: Documentation, route: NamedRoute) -> Documentation:
    """The same, with examples for the route's own model alone."""
    made = documentation.example

    def example(model: ServedModel) -> Any:
        if model.signature.name != route.model:
            raise UnknownModelError(f"route {route.path} is for model '{route.model}'")
        return made(model) if made is not None else None

    return msgspec.structs.replace(documentation, example=example)


def _find(route: NamedRoute, service: Service, _: Request) -> ServedModel:
    return service.find(route.model, route.version)


def _check_path(path: str, taken: Sequence[tuple[str, str]]) -> None:
    """Raises UsageError unless `path` is plain and matches none of the templates that are `taken`."""
    if len(path) > _MOST_CHARACTERS or not _PLAIN_PATH.fullmatch(path):
        raise UsageError(
            f"route {path[:_MOST_CHARACTERS]!r} is no path for a model; write one like /spam/detect, "
            "with letters, digits and . _ ~ : @ + = - between slashes"
        )
    for template, owner in taken:
        if compile_path(template)[0].fullmatch(path):
            whose = "two routes have it" if not owner else f"it is {template} of the dialect '{owner}'"
            raise UsageError(f"route {path} cannot be served: {whose}; choose another path")
