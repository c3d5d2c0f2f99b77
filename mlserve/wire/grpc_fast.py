"""V2 over gRPC at less cost: protobuf reads and writes only what is new in a message.

A request that differs from one before in its tensors' bytes alone is not parsed again, and a response is put together
around what is the same in all of its shape.

protobuf makes an object of every tensor, shape and name, which takes longer than to run a small model.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from mlserve.model.tensors import Tensors
from mlserve.wire import grpc
from mlserve.wire.raw import from_raw, to_raw
from mlserve.wire.signature import Field, InferRequest, Signature

__all__ = ["Received", "decode_request", "encode_response", "parse_request"]

# So many requests are remembered, each by at most so many bytes before its first raw tensor.
_MOST_FORMS, _LONGEST_BYTES = 1024, 1024
# Requests of one length, but of different models or names.
_MOST_STARTS = 4
# Tags of length-delimited fields (protobuf's "Encoding"): number << 3 | 2.
_RAW_INPUT, _RAW_OUTPUT, _OUTPUT = b"\x3a", b"\x32", b"\x2a"
_MODEL_NAME, _MODEL_VERSION, _ID = b"\x0a", b"\x12", b"\x1a"
_TENSOR_NAME, _TENSOR_DATATYPE, _TENSOR_SHAPE = b"\x0a", b"\x12", b"\x1a"


class _Cut(NamedTuple):
    """One raw tensor of a payload: its bytes from `start` to `stop`, and the bytes between it and the one before."""

    field: Field
    shape: list[int]
    between: bytes
    start: int
    stop: int


class _Form(NamedTuple):
    """What a request says beside its tensors' bytes, as found for `signature`."""

    model_name: str
    model_version: str
    signature: Signature
    request: InferRequest
    cuts: tuple[_Cut, ...]


class Received:
    """A request that has been parsed now, or whose like was parsed before."""

    __slots__ = ("form", "message", "model_name", "model_version", "payload")

    def __init__(self, payload: bytes, form: _Form | None) -> None:
        self.payload, self.form = payload, form
        self.message: Any = None
        if form is None:
            self.message = grpc.parse_request(payload)
            self.model_name, self.model_version = self.message.model_name, self.message.model_version
        else:
            self.model_name, self.model_version = form.model_name, form.model_version


def parse_request(payload: bytes) -> Received:
    """The ModelInferRequest that `payload` holds. Raises InvalidRequest when it is none."""
    return Received(payload, _memory.find(payload))


def decode_request(received: Received, signature: Signature) -> InferRequest:
    """The same as `grpc.decode_request`, of the message and the payload it came in."""
    form, payload = received.form, received.payload
    if form is None or form.signature is not signature:
        message = received.message or grpc.parse_request(payload)
        request = grpc.decode_request(message, signature)
        if not request.id:  # one with an id of its own will not come again
            _memory.keep(payload, message, signature, request)
        return request
    known = form.request
    inputs = {
        cut.field.name: from_raw(payload[cut.start : cut.stop], cut.field, cut.shape, signature.name)
        for cut in form.cuts
    }
    return InferRequest(
        inputs, known.rows, "", known.outputs, known.binary, known.classes, known.timeout_s, known.priority,
        known.timing,
    )  # fmt: skip


def encode_response(signature: Signature, request: InferRequest, outputs: Tensors) -> bytes:
    """The same bytes as `grpc.encode_response` gives."""
    names = tuple(request.outputs or signature.outputs)
    before, after = _around_id(signature, names, tuple([outputs[name].shape for name in names]))
    parts = [before, _delimited(_ID, request.id.encode()), after] if request.id else [before, after]
    for name in names:
        raw = to_raw(outputs[name])
        parts += (_RAW_OUTPUT, _varint(len(raw)), raw)
    return b"".join(parts)


class _Memory:
    """Forms by the bytes before their first raw tensor, which hold all but the tensors' bytes.

    The bytes before are the same, and with them the length of the first tensor, then the bytes between, and so on to
    the payload's end: so protobuf would read the same message again, but for the raw bytes.
    """

    def __init__(self) -> None:
        self._starts: dict[int, tuple[int, ...]] = {}
        self._forms: dict[tuple[int, bytes], _Form] = {}

    def find(self, payload: bytes) -> _Form | None:
        length = len(payload)
        for start in self._starts.get(length, ()):
            form = self._forms.get((length, payload[:start]))
            if form is not None:
                for cut in form.cuts[1:]:
                    if payload[cut.start - len(cut.between) : cut.start] != cut.between:
                        return None
                return form
        return None

    def keep(self, payload: bytes, message: Any, signature: Signature, request: InferRequest) -> None:
        """Remembers a request that was decoded, if its raw tensors are the last that it holds."""
        raw = list(message.raw_input_contents)
        betweens = [_RAW_INPUT + _varint(len(each)) for each in raw]
        start = len(payload) - sum(map(len, raw)) - sum(map(len, betweens[1:]))
        if not raw or start > _LONGEST_BYTES:
            return
        cuts: list[_Cut] = []
        position = start - len(betweens[0])
        for tensor, between, each in zip(message.inputs, betweens, raw, strict=True):
            begin = position + len(between)
            position = begin + len(each)
            if payload[begin - len(between) : position] != between + each:
                return
            cuts.append(_Cut(signature.inputs[tensor.name], list(tensor.shape), between, begin, position))
        form = _Form(message.model_name, message.model_version, signature, _without_inputs(request), tuple(cuts))
        self._add(payload, start, form)

    def _add(self, payload: bytes, start: int, form: _Form) -> None:
        length = len(payload)
        starts = self._starts.get(length, ())
        if len(self._forms) >= _MOST_FORMS or len(starts) >= _MOST_STARTS:
            self._forms.clear()
            self._starts.clear()
            starts = ()
        self._forms[length, payload[:start]] = form
        self._starts[length] = (*(each for each in starts if each != start), start)


_memory = _Memory()


def _without_inputs(request: InferRequest) -> InferRequest:
    return InferRequest(
        {}, request.rows, "", request.outputs, request.binary, request.classes, request.timeout_s, request.priority,
        request.timing,
    )  # fmt: skip


@lru_cache(maxsize=1024)
def _around_id(signature: Signature, names: Sequence[str], shapes: Sequence[tuple[int, ...]]) -> tuple[bytes, bytes]:
    """The bytes of a ModelInferResponse before its id, and those between its id and its raw tensors."""
    before = _text(_MODEL_NAME, signature.name) + _text(_MODEL_VERSION, signature.version)
    tensors = []
    for name, shape in zip(names, shapes, strict=True):
        sizes = b"".join(map(_varint, shape))
        field = signature.outputs[name]
        tensor = _text(_TENSOR_NAME, name) + _text(_TENSOR_DATATYPE, field.datatype)
        tensors.append(_delimited(_OUTPUT, tensor + (_delimited(_TENSOR_SHAPE, sizes) if sizes else b"")))
    return before, b"".join(tensors)


def _text(tag: bytes, text: str) -> bytes:
    """A text field; an empty one is left out."""
    return _delimited(tag, text.encode()) if text else b""


def _delimited(tag: bytes, content: bytes) -> bytes:
    return tag + _varint(len(content)) + content


def _varint(number: int) -> bytes:
    """Protobuf's form of a number that is not negative: seven bits a byte, the lowest first."""
    if number < 128:
        return _SMALL[number]
    content = bytearray()
    while number > 127:
        content.append(number & 127 | 128)
        number >>= 7
    content.append(number)
    return bytes(content)


_SMALL = tuple(bytes((number,)) for number in range(128))
