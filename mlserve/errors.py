"""Every error mlserve raises on purpose, in one tree.

    MlserveError                  exit code 2: the user can mend it
    |- UsageError                 a flag or an argument that cannot be used as given
    |- ModelFileError             a file that is no model, is damaged, or may not be loaded
    |  `- UnknownInputError       a model whose inputs could not be inferred: names the flag to use
    |- DataFileError              a data file that cannot be read as rows for this model
    |- StoreError                 the store: unknown model or version, not writable, damaged
    |- EngineError                a model that loads badly, fails while running, or a device that is not there
    |- BenchError                 a target that cannot be reached or a generator that broke down
    |- RunFileError               a run directory that is no run, or of a format this version does not read
    |- Refused (exit 1)           the work was done and the answer is no: outputs differ, nothing was published
    `- RequestError               one request to a server; carries what each protocol answers
       |- InvalidRequest          400 / INVALID_ARGUMENT
       |- Unauthenticated         401 / UNAUTHENTICATED
       |- Forbidden               403 / PERMISSION_DENIED
       |- UnknownModelError       404 / NOT_FOUND
       |- PayloadTooLarge         413 / RESOURCE_EXHAUSTED
       |- UnsupportedContent      415 / UNIMPLEMENTED
       |- TooManyRequests         429 / RESOURCE_EXHAUSTED
       |- Overloaded              503 / RESOURCE_EXHAUSTED
       |- NotServing              503 / UNAVAILABLE
       |- DeadlineExceeded        504 / DEADLINE_EXCEEDED
       |- NoSpace                 507 / RESOURCE_EXHAUSTED
       `- ModelFailed             500 / INTERNAL

A message names the thing, the value received and the next step. Anything else that reaches the terminal is a bug and
shows its traceback.
"""

from typing import ClassVar

__all__ = [
    "BenchError",
    "DataFileError",
    "DeadlineExceeded",
    "EngineError",
    "Forbidden",
    "InvalidRequest",
    "MlserveError",
    "ModelFailed",
    "ModelFileError",
    "NoSpace",
    "NotServing",
    "Overloaded",
    "PayloadTooLarge",
    "Refused",
    "RequestError",
    "RunFileError",
    "StoreError",
    "TooManyRequests",
    "Unauthenticated",
    "UnknownInputError",
    "UnknownModelError",
    "UnsupportedContent",
    "UsageError",
]


class MlserveError(Exception):
    """Something the user can mend; the message says how."""

    exit_code: ClassVar[int] = 2


class UsageError(MlserveError):
    """A flag or an argument cannot be used as given."""


class ModelFileError(MlserveError):
    """A file is no model, is damaged, or may not be loaded."""


class UnknownInputError(ModelFileError):
    """The model's inputs could not be inferred; the message names the flag that states them."""


class DataFileError(MlserveError):
    """A data file cannot be read as rows for this model."""


class StoreError(MlserveError):
    """The store has no such model or version, cannot be written, or holds a damaged version."""


class EngineError(MlserveError):
    """A model fails to load or to run, or the device asked for is not really used."""


class BenchError(MlserveError):
    """The target cannot be reached, or the load generator broke down."""


class RunFileError(MlserveError):
    """A directory is no run, or of a format this version does not read."""


class Refused(MlserveError):
    """The work was done and the answer is no; nothing was published."""

    exit_code: ClassVar[int] = 1


class RequestError(MlserveError):
    """One request to a server cannot be answered. `http_status` and `grpc_code` are what the protocols say.

    `retry_after_s` says when the same request may succeed, where that is known.
    """

    http_status: ClassVar[int] = 500
    grpc_code: ClassVar[int] = 13
    retry_after_s: float | None = None


class InvalidRequest(RequestError):
    """The request contradicts the protocol or the model's inputs."""

    http_status: ClassVar[int] = 400
    grpc_code: ClassVar[int] = 3


class Unauthenticated(RequestError):
    """The request carries no key, or one that the server does not know."""

    http_status: ClassVar[int] = 401
    grpc_code: ClassVar[int] = 16


class Forbidden(RequestError):
    """The request's key does not allow this, or this server does not do it."""

    http_status: ClassVar[int] = 403
    grpc_code: ClassVar[int] = 7


class UnknownModelError(RequestError):
    """No such model, or no such version of it, is served."""

    http_status: ClassVar[int] = 404
    grpc_code: ClassVar[int] = 5


class PayloadTooLarge(RequestError):
    """The request is larger than the server accepts."""

    http_status: ClassVar[int] = 413
    grpc_code: ClassVar[int] = 8


class UnsupportedContent(RequestError):
    """The body is of a type, or in an encoding, that this server does not read."""

    http_status: ClassVar[int] = 415
    grpc_code: ClassVar[int] = 12


class TooManyRequests(RequestError):
    """The request's key has used up its rate or its quota."""

    http_status: ClassVar[int] = 429
    grpc_code: ClassVar[int] = 8

    def __init__(self, message: str, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class Overloaded(RequestError):
    """The queue is full; the same request may succeed later. A server may answer 429 in its stead."""

    http_status: ClassVar[int] = 503
    grpc_code: ClassVar[int] = 8

    def __init__(self, message: str, retry_after_s: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class NotServing(RequestError):
    """The server is starting or draining; the same request may succeed elsewhere or later."""

    http_status: ClassVar[int] = 503
    grpc_code: ClassVar[int] = 14


class DeadlineExceeded(RequestError):
    """The request's own time limit passed before its run could start."""

    http_status: ClassVar[int] = 504
    grpc_code: ClassVar[int] = 4


class NoSpace(RequestError):
    """The server's disk is full, or it may write no more."""

    http_status: ClassVar[int] = 507
    grpc_code: ClassVar[int] = 8


class ModelFailed(RequestError):
    """The model raised while running this request."""
