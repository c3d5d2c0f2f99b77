"""V2's model configuration extension: what Triton's clients (perf_analyzer first of all) want to know of a model."""

from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from mlserve.serve.protocols.dialect import Call, Documentation, Page, find_by_path
from mlserve.serve.service import ServedModel, Service
from mlserve.wire import messages
from mlserve.wire.signature import Field

__all__ = ["CALLS", "configuration_pages"]

_DOCUMENTATION = Documentation(
    response={
        "type": "object",
        "required": ["name", "platform", "max_batch_size", "input", "output"],
        "properties": {
            "name": {"type": "string"},
            "platform": {"type": "string"},
            "max_batch_size": {"type": "integer"},
            "input": {"type": "array", "items": {"type": "object"}},
            "output": {"type": "array", "items": {"type": "object"}},
        },
    },
    statuses=(404,),
)


def configuration_pages(service: Service) -> tuple[Page, ...]:
    """The configuration of a model's default version, and of one that is named."""

    async def answer(request: Request) -> Response:
        document = _configuration(find_by_path(service, request), service)
        return Response(msgspec.json.encode(document), media_type="application/json")

    paths = ("/v2/models/{name}/config", "/v2/models/{name}/versions/{version}/config")
    summary = "How a model is run, as Triton's clients read it"
    return tuple(Page(path, ("GET",), "metadata", answer, summary, _DOCUMENTATION) for path in paths)


def _answer_call(service: Service, payload: bytes) -> Any:
    request = messages.parse_message(messages.ModelConfigRequest, payload)
    model = service.find(request.name, request.version)
    return messages.ModelConfigResponse(config=_configuration(model, service))


def _configuration(model: ServedModel, service: Service) -> dict[str, Any]:
    """Triton's ModelConfig, as JSON values; protobuf takes the same ones."""
    signature, facts = model.signature, model.facts
    batched = signature.together
    batching = {
        "default_queue_policy": {"timeout_action": "REJECT", "allow_timeout_override": True},
        "preserve_ordering": False,
    }
    versions = [int(version) for version in service.versions(signature.name) if version.isdecimal()]
    on_gpu = facts.device != "cpu"
    told = {
        "variant": facts.variant,
        "device": facts.device,
        "provider": facts.provider,
        "precision": facts.precision,
    }
    return {
        "name": signature.name,
        "platform": facts.platform,
        "backend": facts.engine,
        "version_policy": {"specific": {"versions": versions}},
        "max_batch_size": facts.max_rows if batched else 0,
        "input": [_input(field, batched=batched) for field in signature.inputs.values()],
        "output": [_tensor(field, batched=batched) for field in signature.outputs.values()],
        "instance_group": [
            {
                "name": f"{signature.name}_0",
                "kind": "KIND_GPU" if on_gpu else "KIND_CPU",
                "count": 1,
                "gpus": [_device_number(facts.device)] if on_gpu else [],
            }
        ],
        "parameters": {name: {"string_value": value} for name, value in told.items()},
        "model_transaction_policy": {"decoupled": False},
        **({"dynamic_batching": batching} if batched else {}),
    }


def _tensor(field: Field, *, batched: bool) -> dict[str, Any]:
    kind = "STRING" if field.datatype == "BYTES" else field.datatype
    # Triton leaves the rows out of the shape of what it batches.
    return {"name": field.name, "data_type": f"TYPE_{kind}", "dims": field.spec.wire_shape[batched:]}


def _input(field: Field, *, batched: bool) -> dict[str, Any]:
    return {**_tensor(field, batched=batched), "format": "FORMAT_NONE", "optional": False}


def _device_number(device: str) -> int:
    number = device.rpartition(":")[2]
    return int(number) if number.isdecimal() else 0


CALLS = (Call(f"/{messages.SERVICE}/ModelConfig", "metadata", _answer_call),)
