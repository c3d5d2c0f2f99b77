"""gRPC server reflection: lets grpcurl and its likes call every service without a .proto file."""

from collections.abc import AsyncIterator, Iterable, Sequence
from functools import partial
from typing import Any

from google.protobuf import descriptor_pb2

from mlserve.serve.answering import Answering
from mlserve.serve.protocols.dialect import StreamCall
from mlserve.serve.service import Service
from mlserve.wire.messages import parse_message

__all__ = ["reflection_calls"]

_NAME = "grpc.reflection.{}.ServerReflection"
_NOT_FOUND = 5


def reflection_calls(paths: Iterable[str], messages: Iterable[Any]) -> tuple[StreamCall, ...]:
    """Reflection of the services that the calls at `paths` belong to.

    `messages` are classes of messages, one of each descriptor pool in which services are described. There are two
    versions of reflection, which differ in nothing but their names.
    """
    described = _Described({path.split("/")[1] for path in paths}, [kind.DESCRIPTOR.file.pool for kind in messages])
    return tuple(
        StreamCall(f"/{_NAME.format(version)}/ServerReflectionInfo", "metadata", partial(_answer_all, described))
        for version in ("v1", "v1alpha")
    )


class _Described:
    """The services, and the files that describe them, by name, each with those it imports."""

    def __init__(self, services: Iterable[str], pools: Sequence[Any]) -> None:
        self.services = sorted(services)
        self._pools = pools
        self._files: dict[str, Any] = {}
        for service in self.services:
            found = self._find(service)
            if found is not None:
                self._add(found)

    def file(self, name: str) -> Any:
        """The file of that name, None for one that describes none of the services."""
        return self._files.get(name)

    def file_of(self, symbol: str) -> Any:
        """The file that defines `symbol`, None for one that none of the services uses."""
        found = self._find(symbol)
        return found if found is not None and found.name in self._files else None

    def _find(self, symbol: str) -> Any:
        for pool in self._pools:
            try:
                return pool.FindFileContainingSymbol(symbol)
            except KeyError:
                continue
        return None

    def _add(self, file: Any) -> None:
        if file.name not in self._files:
            self._files[file.name] = file
            for imported in file.dependencies:
                self._add(imported)


async def _answer_all(
    described: _Described, _: Service, __: Answering, requests: AsyncIterator[bytes]
) -> AsyncIterator[bytes]:
    from grpc_reflection.v1alpha import reflection_pb2

    async for payload in requests:
        request = parse_message(reflection_pb2.ServerReflectionRequest, payload)
        response = reflection_pb2.ServerReflectionResponse(valid_host=request.host, original_request=request)
        if request.HasField("list_services"):
            listed = [{"name": name} for name in described.services]
            response.list_services_response.CopyFrom(reflection_pb2.ListServiceResponse(service=listed))
        else:
            _describe(response, described, request)
        yield response.SerializeToString()


def _describe(response: Any, described: _Described, request: Any) -> None:
    """Fills in the file that is asked for, with all that it imports, or that there is none."""
    file = None
    if request.HasField("file_by_filename"):
        file = described.file(request.file_by_filename)
    elif request.HasField("file_containing_symbol"):
        file = described.file_of(request.file_containing_symbol)
    if file is None:
        response.error_response.error_code = _NOT_FOUND
        response.error_response.error_message = "no service of this server uses it"
        return
    response.file_descriptor_response.file_descriptor_proto.extend(_serialized(file, {}).values())


def _serialized(file: Any, found: dict[str, bytes]) -> dict[str, bytes]:
    if file.name not in found:
        written = descriptor_pb2.FileDescriptorProto()
        file.CopyToProto(written)
        found[file.name] = written.SerializeToString()
        for imported in file.dependencies:
            _serialized(imported, found)
    return found
