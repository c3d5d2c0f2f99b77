"""Which model a request is for whose path names none: the only one there is, or the one a header names."""

from starlette.requests import Request

from mlserve.errors import InvalidRequest
from mlserve.serve.service import ServedModel, Service

__all__ = ["TARGET_MODEL", "find_only", "find_target"]

TARGET_MODEL = "x-amzn-sagemaker-target-model"

_ARCHIVE = ".tar.gz"
_MOST_NAMES = 20


def find_only(service: Service, _: Request | None = None) -> ServedModel:
    """The default version of the only model that is served.

    Raises UnknownModelError when none is, NotServing when it is held back, and InvalidRequest, naming them, when there
    are several.
    """
    service.catalog.check_any()
    names = service.catalog.names
    if len(names) > 1:
        listed = ", ".join(names[:_MOST_NAMES]) + (", ..." if len(names) > _MOST_NAMES else "")
        raise InvalidRequest(
            f"{len(names)} models are served ({listed}) and this path names none: use one that does, such as "
            f"/predictions/{names[0]}, or ask /invocations with the header {TARGET_MODEL}"
        )
    return service.find(names[0])


def find_target(service: Service, request: Request) -> ServedModel:
    """The model that SageMaker's header names (`NAME` or `NAME@VERSION`, `.tar.gz` after it or not), else the only one.

    SageMaker names a model by its archive, `spam.tar.gz`.
    """
    target = request.headers.get(TARGET_MODEL, "").removeprefix("/").removesuffix(_ARCHIVE)
    if not target:
        return find_only(service)
    name, _, version = target.partition("@")
    return service.find(name, version)
