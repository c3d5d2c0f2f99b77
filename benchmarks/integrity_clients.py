"""The clients of `integrity.py`: every protocol that is asked over, as plainly as it can be asked."""

import http.client
import json
from collections.abc import Callable, Mapping
from typing import NamedTuple

import grpc
import numpy as np
from integrity_questions import INPUT, OUTPUT, Answer, Question

from mlserve.model.tensors import Array, TensorSpec
from mlserve.wire import grpc as v2
from mlserve.wire import rest
from mlserve.wire import tensorflow_messages as tensorflow
from mlserve.wire.messages import ModelInferResponse
from mlserve.wire.signature import Signature
from mlserve.wire.tensorflow import from_tensor, to_tensor

__all__ = ["WAYS", "Client", "Endpoints", "ask"]


class Endpoints(NamedTuple):
    """Where a server listens, `host:port` each."""

    http: str
    grpc: str


class Client:
    """One client, with a connection of its own over HTTP and one over gRPC."""

    def __init__(self, endpoints: Endpoints) -> None:
        self._http = http.client.HTTPConnection(endpoints.http, timeout=60)
        self._channel = grpc.insecure_channel(endpoints.grpc, options=[("grpc.use_local_subchannel_pool", 1)])
        self._calls: dict[str, Callable[..., bytes]] = {}

    def post(self, path: str, body: bytes, headers: Mapping[str, str] | None = None) -> tuple[bytes, str | None]:
        """The body of the answer, and how much of it is JSON. Raises Refused or Lost."""
        self._http.request("POST", path, body, dict(headers or {}))
        reply = self._http.getresponse()
        answer = reply.read()
        if reply.status == http.client.BAD_REQUEST:
            raise Refused
        if reply.status != http.client.OK:
            raise Lost(f"status {reply.status}: {answer[:200]!r}")
        return answer, reply.getheader("inference-header-content-length")

    def call(self, path: str, message: bytes) -> bytes:
        """The bytes of the response. Raises Refused or Lost."""
        call = self._calls.get(path)
        if call is None:
            call = self._calls[path] = self._channel.unary_unary(path)
        try:
            return call(message, timeout=60)
        except grpc.RpcError as error:
            if error.code() is grpc.StatusCode.INVALID_ARGUMENT:
                raise Refused from error
            raise Lost(f"{error.code().name}: {error.details()}") from error

    def close(self) -> None:
        """Closes both connections."""
        self._http.close()
        self._channel.close()


class Refused(Exception):
    """The server says that the request is wrong."""


class Lost(Exception):
    """There is no answer."""


def v2_json(client: Client, question: Question) -> Answer:
    """V2 over REST, JSON tensors."""
    body, headers = rest.encode_request(*_tensors(question))
    answer, _ = client.post(_v2_path(question), body, headers)
    document = json.loads(answer)
    (output,) = document["outputs"]
    return Answer(np.array(output["data"], _dtype(question)).reshape(output["shape"]), document["model_version"])


def v2_binary(client: Client, question: Question) -> Answer:
    """V2 over REST, tensors as raw bytes."""
    body, headers = rest.encode_request(*_tensors(question), binary=True)
    answer, length = client.post(_v2_path(question), body, headers)
    assert length is not None
    spec = OUTPUT[question.model]
    found = rest.decode_response(answer, {spec.name: spec}, int(length))
    return Answer(found[spec.name], json.loads(answer[: int(length)])["model_version"])


def v2_grpc(client: Client, question: Question) -> Answer:
    """V2 over gRPC."""
    message = v2.encode_request(question.model, question.version, *_tensors(question))
    payload = client.call("/inference.GRPCInferenceService/ModelInfer", message)
    spec = OUTPUT[question.model]
    version = ModelInferResponse.FromString(payload).model_version
    return Answer(v2.decode_response(payload, {spec.name: spec})[spec.name], version)


def tensorflow_rows(client: Client, question: Question) -> Answer:
    """TensorFlow Serving over REST, by row."""
    return _tensorflow_rest(client, question, "instances", "predictions")


def tensorflow_columns(client: Client, question: Question) -> Answer:
    """TensorFlow Serving over REST, by column."""
    return _tensorflow_rest(client, question, "inputs", "outputs")


def tensorflow_grpc(client: Client, question: Question) -> Answer:
    """TensorFlow Serving over gRPC."""
    given, wanted = INPUT[question.model], OUTPUT[question.model]
    message = tensorflow.PredictRequest(model_spec={"name": question.model})
    if question.version:
        message.model_spec.version.value = int(question.version)
    message.inputs[given.name].CopyFrom(to_tensor(question.values, given.datatype))
    payload = client.call(f"/{tensorflow.PREDICTION_SERVICE}/Predict", message.SerializeToString())
    response = tensorflow.PredictResponse.FromString(payload)
    signature = Signature(question.model, "", [wanted], [])
    found = from_tensor(response.outputs[wanted.name], wanted.name, signature)
    return Answer(found, str(response.model_spec.version.value))


WAYS = (v2_json, v2_binary, v2_grpc, tensorflow_rows, tensorflow_columns, tensorflow_grpc)


def _tensorflow_rest(client: Client, question: Question, asked: str, answered: str) -> Answer:
    version = f"/versions/{question.version}" if question.version else ""
    body = json.dumps({asked: question.values.tolist()}).encode()
    answer, _ = client.post(f"/v1/models/{question.model}{version}:predict", body)
    return Answer(np.array(json.loads(answer)[answered], _dtype(question)))


def _tensors(question: Question) -> tuple[dict[str, Array], list[TensorSpec]]:
    spec = INPUT[question.model]
    return {spec.name: question.values}, [spec]


def _v2_path(question: Question) -> str:
    version = f"/versions/{question.version}" if question.version else ""
    return f"/v2/models/{question.model}{version}/infer"


def _dtype(question: Question) -> str:
    return OUTPUT[question.model].dtype


def ask(client: Client, way: Callable[[Client, Question], Answer], question: Question) -> Answer:
    """What comes back when `client` asks that way."""
    try:
        return way(client, question)
    except Refused:
        return Answer(refused=True)
    except (Lost, OSError, http.client.HTTPException) as error:
        return Answer(fault=f"{type(error).__name__}: {error}")
