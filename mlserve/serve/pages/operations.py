"""Every page of every dialect as one list, filled in for the model at hand: what `/openapi.json` and `/docs` tell."""

import re
from collections.abc import Callable, Sequence
from typing import Any
from urllib.parse import quote

import msgspec

from mlserve.errors import RequestError
from mlserve.serve.access import Scope
from mlserve.serve.catalog import Catalog, ServedModel
from mlserve.serve.pages.example import example_elements
from mlserve.serve.protocols.dialect import Dialect, Documentation, InferPage, Page

__all__ = ["Operation", "operations"]

# What is larger is an example for nobody: an image in numbers would make the document megabytes long.
_MOST_ELEMENTS, _MOST_BYTES = 4096, 16384

# Starlette's path parameters may name a converter: {rest:path}.
_PARAMETER = re.compile(r"\{(\w+)(?::\w+)?\}")


class Operation(msgspec.Struct, frozen=True):
    """One method of one page.

    `path` is a template as OpenAPI writes it and `parameters` its names; `filled` is the path for the model at hand,
    empty where it has a parameter of which no value is known. `example` is a body for that model, None where there is
    none that is short. `infers`: it is answered by inference.
    """

    dialect: str
    method: str
    path: str
    parameters: dict[str, str]
    filled: str
    summary: str
    scope: Scope | None
    documentation: Documentation
    error: Callable[[int, str], bytes]
    infers: bool
    example: Any = None

    @property
    def refuses(self) -> bool:
        """Whether it only ever says why it does not do what it is asked: it documents errors, and no answer."""
        return self.documentation.response is None and bool(self.documentation.statuses)

    @property
    def reads_body(self) -> bool:
        """Whether a request has a body."""
        asked = self.documentation.request is not None or self.example is not None
        return self.method != "GET" and (asked or self.infers)


def operations(
    dialects: Sequence[Dialect], catalog: Catalog, model: ServedModel | None, *, management: bool
) -> list[Operation]:
    """The operations of the management port, or of all other pages, in the order of the dialects.

    Of two pages with one path and method the first is the one that answers.
    """
    known = _known(catalog, model)
    found: dict[tuple[str, str], Operation] = {}
    shapes: dict[str, str] = {}
    for dialect in dialects:
        for page in dialect.pages:
            if (isinstance(page, Page) and page.admin) != management:
                continue
            # OpenAPI holds two templates that differ in their parameters' names for one and the same path.
            path = _PARAMETER.sub(r"{\1}", page.path)
            path = shapes.setdefault(_PARAMETER.sub("{}", path), path)
            for method in page.methods if isinstance(page, Page) else ("POST",):
                if (path, method) not in found:
                    found[path, method] = _operation(dialect, page, method, path, known, model)
    return list(found.values())


def _operation(
    dialect: Dialect,
    page: Page | InferPage,
    method: str,
    path: str,
    known: dict[str, str],
    model: ServedModel | None,
) -> Operation:
    parameters = {name: known.get(name, "") for name in _PARAMETER.findall(path)}
    filled = path.format(**{name: quote(value, safe="") for name, value in parameters.items()})
    return Operation(
        dialect.name,
        method,
        path,
        parameters,
        filled if all(parameters.values()) else "",
        page.summary,
        page.scope if isinstance(page, Page) else "infer",
        page.documentation,
        dialect.error if isinstance(page, Page) else page.inference.error,
        isinstance(page, InferPage) or page.scope == "infer",
        _example(page.documentation, model),
    )


def _known(catalog: Catalog, model: ServedModel | None) -> dict[str, str]:
    """What a path's parameters are for the model at hand."""
    if model is None:
        return {}
    name, version = model.signature.name, model.signature.version
    aliases = [alias for alias, meant in catalog.aliases.get(name, {}).items() if meant == version]
    alias = aliases[0] if aliases else ""
    return {"name": name, "model": name, "version": version, "alias": alias, "label": alias}


def _example(documentation: Documentation, model: ServedModel | None) -> Any:
    if model is None or documentation.example is None:
        return None
    if model.task is None and example_elements(model) > _MOST_ELEMENTS:
        return None
    try:
        made = documentation.example(model)
    except RequestError:  # this model has none in this dialect
        return None
    return made if len(msgspec.json.encode(made)) <= _MOST_BYTES else None
