"""V2 over gRPC, by grpcio on gevent's event loop."""

import itertools

import grpc
from grpc.experimental.gevent import init_gevent

from mlserve.bench.clients.client import Reply
from mlserve.bench.target import Target
from mlserve.runs.samples import OK
from mlserve.wire.messages import SERVICE

__all__ = ["GrpcClient", "model_version"]

# One connection's flow control and ordering would couple requests that have nothing to do with each other.
_CHANNELS = 4
_OPTIONS = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_receive_message_length", -1)]


class GrpcClient:
    """Spreads requests over a few channels. grpcio does not tell when an answer began.

    The first one hands gRPC over to gevent for the rest of the process, so that a waiting call lets other greenlets
    run; `gevent.monkey` must have patched the process before.
    """

    def __init__(self, target: Target, timeout_s: float) -> None:
        init_gevent()
        self._timeout_s = timeout_s
        self._channels = [grpc.insecure_channel(target.authority, options=_OPTIONS) for _ in range(_CHANNELS)]
        # No serializers: bodies go out, and answers come in, as the bytes they are.
        self._calls = itertools.cycle([channel.unary_unary(f"/{SERVICE}/ModelInfer") for channel in self._channels])

    def send(self, body: bytes) -> Reply:
        try:
            return Reply(OK, model_version(next(self._calls)(body, timeout=self._timeout_s)), None)
        except grpc.RpcError as error:
            return Reply(error.code().name, "", None)

    def close(self) -> None:
        for channel in self._channels:
            channel.close()


def model_version(answer: bytes) -> str:
    """The version that a ModelInferResponse names, read without parsing the tensors behind it.

    Fields 1 and 2, `model_name` and `model_version`, come first and are short; "" where they do not or are not.
    """
    name_end = _text_end(answer, 0, b"\x0a")
    end = _text_end(answer, name_end, b"\x12")
    return answer[name_end + 2 : end].decode("utf-8", "replace")


def _text_end(message: bytes, start: int, tag: bytes) -> int:
    """Where the text field with `tag` that begins at `start` ends; `start` itself when none begins there.

    Field: tag, length (one byte up to 127), text. https://protobuf.dev/programming-guides/encoding/
    """
    length = message[start + 1 : start + 2]
    if message[start : start + 1] != tag or not b"\x00" < length < b"\x80":
        return start
    return start + 2 + length[0]
