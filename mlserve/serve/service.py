"""The one thing behind every dialect: what is served, who may ask for it, and whether the server is ready."""

from collections.abc import Callable
from typing import Any

from mlserve.errors import Forbidden, NotServing, Overloaded
from mlserve.serve.access import Access
from mlserve.serve.audit import Audit
from mlserve.serve.catalog import Catalog, ServedModel
from mlserve.serve.control import Control

__all__ = ["EXTENSIONS", "SERVER_NAME", "ServedModel", "Service"]

SERVER_NAME = "mlserve"
EXTENSIONS = [
    "binary_tensor_data",
    "classification",
    "model_configuration",
    "model_repository",
    "schedule_policy",
    "statistics",
]
"""V2's extensions that the server speaks, as Triton names them."""


class Service:
    """One worker's view of the server. A server is live from start to end; it is ready until it drains.

    `catalog` is replaced whole when what is served changes; a request keeps the model it found.
    """

    def __init__(
        self, catalog: Catalog, access: Access | None = None, name: str = SERVER_NAME, audit: Audit | None = None
    ) -> None:
        self.catalog = catalog
        self.access = access or Access()
        self.audit = audit or Audit()
        self.name = name
        self.leaving = False
        """It is about to stop, and says so, but still takes what comes."""
        self.draining = False
        self.short_of_memory = False
        self.retiring: list[ServedModel] = []
        """Served no more, but with requests that are still to be answered."""
        self._control: Control | None = None
        self._routes_of: Callable[[Catalog], dict[bytes, Any]] | None = None

    @property
    def ready(self) -> bool:
        return not (self.leaving or self.draining)

    @property
    def control(self) -> Control:
        """What loads and unloads. Raises Forbidden where nothing may."""
        if self._control is None:
            raise Forbidden("explicit model load / unload is not allowed; start with --model-control explicit")
        return self._control

    @control.setter
    def control(self, control: Control) -> None:
        self._control = control

    @property
    def models(self) -> list[ServedModel]:
        """Every served version, by name and then by age."""
        return self.catalog.served

    def versions(self, name: str) -> list[str]:
        """The served versions of `name`, oldest first."""
        return self.catalog.versions(name)

    def find(self, name: str, version: str = "") -> ServedModel:
        """The served version or alias; an empty `version` means the default one. Raises UnknownModelError."""
        return self.catalog.find(name, version)

    def install(self, catalog: Catalog) -> Catalog:
        """Serves `catalog` from the next request on; returns the one before."""
        before = self.catalog
        if self._routes_of is not None:
            catalog.routes.update(self._routes_of(catalog))
        self.catalog = catalog
        return before

    def plan_routes(self, routes_of: Callable[[Catalog], dict[bytes, Any]]) -> None:
        """Lets `routes_of` say what the plain paths of every catalog mean, the present one's too."""
        self._routes_of = routes_of
        self.install(self.catalog)

    def check_serving(self) -> None:
        """Raises NotServing while the server drains, and Overloaded while its memory is short: what was accepted before
        is still answered.
        """
        if self.draining:
            raise NotServing("the server is shutting down; send the request again, it will reach another one")
        if self.short_of_memory:
            raise Overloaded("the server has no memory left for further requests; send it again later")

    @property
    def queues(self) -> bool:
        """Whether requests may wait in a queue at present."""
        return any(model.batcher.queues for model in self.catalog.models.values())

    @property
    def idle(self) -> bool:
        """Whether every accepted request has been run."""
        return all(model.idle for model in [*self.catalog.models.values(), *self.retiring])

    def close(self) -> None:
        """Runs what still waits, then stops every model."""
        for model in [*self.catalog.models.values(), *self.retiring]:
            model.close()
