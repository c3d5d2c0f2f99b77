"""The landing page at `/`: what is served, what it takes and gives, and how to call it."""

from typing import Any
from urllib.parse import quote

import msgspec
from starlette.responses import Response

from mlserve import __version__
from mlserve.errors import RequestError
from mlserve.serve.catalog import Catalog
from mlserve.serve.pages.description import ModelDescription, describe_models
from mlserve.serve.pages.sheet import sheet
from mlserve.serve.pages.snippets import Address, Snippet, snippets
from mlserve.serve.service import Service

__all__ = ["landing_page", "landing_summary"]

# With more names than this the page lists them all and tells the details of one.
_MOST_TOLD = 6

LINKS = {
    "documentation": "/docs",
    "openapi": "/openapi.json",
    "models": "/v1/models",
    "predict": "/v1/predict",
    "metrics": "/metrics",
    "health": "/health",
    "ready": "/ready",
}


class _Told(msgspec.Struct, frozen=True):
    """One model with all its details. `snippets` is empty for one that is not served or has no example."""

    model: ModelDescription
    snippets: list[Snippet]
    example_page: str


def landing_summary(service: Service) -> dict[str, Any]:
    """The page for programs, as JSON values: which names are served, and where to read on."""
    return {
        "server": service.name,
        "version": __version__,
        "ready": service.ready,
        "models": service.catalog.names,
        "links": LINKS,
    }


def landing_page(service: Service, address: Address, chosen: str) -> Response:
    """The page for people. `chosen` is the name whose details are told where there are too many to tell them all."""
    models = describe_models(service.catalog)["models"]
    crowded = len(models) > _MOST_TOLD
    told = [model for model in models if model.name == chosen] or ([] if crowded else models)
    return sheet(
        "landing.html",
        server=service.name,
        version=__version__,
        ready=service.ready,
        keyed=address.keyed,
        address=address,
        models=models,
        crowded=crowded,
        versions=sum(len(model.versions) for model in models),
        told=[_tell(model, service.catalog, address) for model in told],
        told_names={model.name for model in told},
        unknown=chosen if chosen and not any(model.name == chosen for model in models) else "",
        quoted=lambda name: quote(name, safe=""),
    )


def _tell(model: ModelDescription, catalog: Catalog, address: Address) -> _Told:
    try:
        ways = snippets(catalog.find(model.name), address)
    except RequestError:  # not served, or its inputs are too large to make some up
        ways = []
    return _Told(model, ways, f"/v1/models/{quote(model.name, safe='')}/example")
