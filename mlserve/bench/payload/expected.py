"""Answers under load, compared with those that are expected.

A request sent alone is answered with the same bytes again and again. Those that were found right are known by their
hash, so that under load most answers cost no more than hashing them.
"""

from collections.abc import Callable, Sequence

import msgspec
import numpy as np

from mlserve.bench.dialects.find import find_dialect
from mlserve.bench.payload.payload import Payload
from mlserve.bench.probe import ask_once
from mlserve.bench.target import Target
from mlserve.errors import BenchError, MlserveError
from mlserve.model.tensors import Array, Tensors, TensorSpec
from mlserve.runs.load import Protocol

__all__ = ["WRONG_ANSWER", "ask_expected", "encode_expected", "open_expected"]

WRONG_ANSWER = "wrong answer"
"""The status of a request that was answered, but not with what was expected."""

_TOLERANCE = 1e-2
# A server that runs requests together rounds a sum differently for each company; one that puts a number or a time into
# its answers never says the same twice.
_REMEMBERED = 64


class _Tensor(msgspec.Struct, frozen=True, array_like=True):
    """One tensor: its values are raw bytes, or one text or bytes each."""

    dtype: str
    shape: tuple[int, ...]
    values: bytes | list[bytes]


_ENCODED = msgspec.msgpack.Decoder(dict[str, _Tensor])


def ask_expected(target: Target, payload: Payload, outputs: Sequence[TensorSpec]) -> tuple[Tensors, ...]:
    """What the server answers to each request of `payload` while nothing else is asked: the reference for a load.

    Requests with the same body are asked once. Raises BenchError where one is not answered, or not readably.
    """
    dialect, specs = find_dialect(target.protocol, target.answer), {spec.name: spec for spec in outputs}
    answers: dict[bytes, Tensors] = {}
    for request in payload.requests:
        if request.body not in answers:
            content = ask_once(target, request)
            try:
                answers[request.body] = dialect.decode(content, specs)
            except MlserveError as error:
                raise BenchError(f"{target.url} gave an answer that cannot be checked: {error}") from error
    return tuple(answers[request.body] for request in payload.requests)


def encode_expected(tensors: Tensors) -> bytes:
    """`tensors` as `open_expected` reads them."""
    return msgspec.msgpack.encode({name: _to_wire(array) for name, array in tensors.items()})


def open_expected(
    protocol: Protocol,
    outputs: Sequence[TensorSpec],
    encoded: Sequence[bytes],
    answer: str = "",
    tolerance: float = _TOLERANCE,
) -> Callable[[int, bytes], bool]:
    """(request's number, answer) -> whether the answer holds the tensors of `encoded[number]`.

    `answer` is the target's, for answers of no protocol. Every tensor that is expected must be there, in the same
    shape; others may be too. Where a float is expected it is right within `tolerance` of it or of the largest
    magnitude in its tensor: sums depend on what else was in the batch, and where they nearly cancel out their own
    size says nothing. Everything else is right when it is the same.
    """
    decode, specs = find_dialect(protocol, answer).decode, {spec.name: spec for spec in outputs}
    known: list[dict[int, bool]] = [{} for _ in encoded]

    def right(number: int, content: bytes) -> bool:
        seen, digest = known[number], hash(content)
        verdict = seen.get(digest)
        if verdict is None:
            try:
                answer = decode(content, specs)
            except MlserveError:  # an answer that cannot be read is a wrong one
                answer = {}
            verdict = _same(answer, _from_wire(encoded[number]), tolerance)
            if len(seen) < _REMEMBERED:
                seen[digest] = verdict
        return verdict

    return right


def _same(answer: Tensors, expected: Tensors, tolerance: float) -> bool:
    return all(name in answer and _close(answer[name], wanted, tolerance) for name, wanted in expected.items())


def _close(found: Array, wanted: Array, tolerance: float) -> bool:
    if found.shape != wanted.shape:
        return False
    if wanted.dtype.kind not in "fV":
        return np.array_equal(_plain(found), _plain(wanted))
    if found.dtype.kind == "O":
        return False
    found, wanted = found.astype(np.float64), wanted.astype(np.float64)
    finite = np.abs(wanted[np.isfinite(wanted)])
    return np.allclose(found, wanted, rtol=tolerance, atol=tolerance * float(finite.max(initial=0.0)), equal_nan=True)


def _plain(array: Array) -> Array:
    """Text as bytes, in which it is written differently by no protocol."""
    if array.dtype.kind != "O":
        return array
    return np.array([_as_bytes(value) for value in array.ravel()], object).reshape(array.shape)


def _as_bytes(value: object) -> bytes:
    return value if isinstance(value, bytes) else str(value).encode()


def _to_wire(array: Array) -> _Tensor:
    if array.dtype.kind == "O":
        return _Tensor("object", array.shape, [_as_bytes(value) for value in array.ravel()])
    if array.dtype.kind == "V":  # bfloat16, which numpy alone cannot name
        array = array.astype(np.float32)
    return _Tensor(array.dtype.name, array.shape, np.ascontiguousarray(array).tobytes())


def _from_wire(content: bytes) -> Tensors:
    return {
        name: np.array(tensor.values, object).reshape(tensor.shape)
        if isinstance(tensor.values, list)
        else np.frombuffer(tensor.values, tensor.dtype).reshape(tensor.shape)
        for name, tensor in _ENCODED.decode(content).items()
    }
