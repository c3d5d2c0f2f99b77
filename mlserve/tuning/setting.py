"""One way to serve a model, as a search sees it."""

import msgspec

from mlserve.runs.load import Protocol
from mlserve.tuning.serving import ServerOptions

__all__ = ["Setting"]


class Setting(msgspec.Struct, frozen=True, kw_only=True):
    """A version of a model (`name@version`, or a file), how its server is told to run it, and the protocol it is asked
    over. `variant` is what people call it: `fp32`, `int8`.
    """

    model: str
    variant: str
    options: ServerOptions
    protocol: Protocol = "rest"
