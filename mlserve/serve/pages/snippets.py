"""How to call a model, as lines to paste into a terminal or a Python file: each runs as it stands and is answered."""

import math
import shlex
from collections.abc import Sequence
from pprint import pformat
from typing import Any
from urllib.parse import quote

import msgspec

from mlserve.model.tensors import Array
from mlserve.serve.catalog import ServedModel
from mlserve.serve.pages.example import (
    example_elements,
    example_question,
    example_shapes,
    example_tensors,
    example_v2,
    example_values,
)
from mlserve.wire.signature import Field

__all__ = ["Address", "Snippet", "curl", "snippets"]

# A body of more characters is not read by a person; it is fetched or made up where it is needed.
_MOST_SHOWN = 1200
_MOST_SHOWN_ELEMENTS = 256
_WIDTH = 100
_JSON = "application/json"
_SHELL_KEY = '-H "authorization: Bearer $MLSERVE_KEY"'
_PYTHON_KEY = 'headers = {"authorization": "Bearer " + os.environ["MLSERVE_KEY"]}\n'


class Address(msgspec.Struct, frozen=True):
    """Where a client reaches the server: `http://host:port` without a path, and `host:port` of gRPC.

    `keyed`: requests need a key, which the lines take from the variable MLSERVE_KEY.
    """

    http: str
    grpc: str
    keyed: bool = False


class Snippet(msgspec.Struct, frozen=True):
    """Lines that run as they stand. `needs` is what they need installed, empty for nothing."""

    title: str
    language: str
    code: str
    needs: str = ""


def snippets(model: ServedModel, address: Address) -> list[Snippet]:
    """Every way to call `model`, the plainest first. Raises InvalidRequest for a model that has no example."""
    url = f"{address.http}/v1/models/{quote(model.signature.name, safe='')}"
    pasted = example_elements(model) <= _MOST_SHOWN_ELEMENTS
    body = _text(example_question(model)) if pasted or model.task is not None else ""
    shown = 0 < len(body) <= _MOST_SHOWN
    ways = [
        Snippet("curl", "shell", curl(f"{url}/predict", address, body) if shown else _piped(url, address)),
        Snippet("Python", "python", _requests(url, address, model, shown=shown), "pip install requests"),
    ]
    if model.signature.inputs:
        ways += [
            Snippet(
                "tritonclient, HTTP", "python", _triton(model, address, "http"), "pip install 'tritonclient[http]'"
            ),
            Snippet(
                "tritonclient, gRPC", "python", _triton(model, address, "grpc"), "pip install 'tritonclient[grpc]'"
            ),
        ]
    if model.signature.inputs and pasted:
        way = curl(_v2_url(model, address), address, _text(example_v2(model)))
        ways.insert(1, Snippet("curl, Open Inference Protocol", "shell", way))
    return ways


def curl(url: str, address: Address, body: str | None = None, *, method: str = "", media: str = _JSON) -> str:
    """A curl command that sends `body`, or asks for a page."""
    parts = [f"curl -s {shlex.quote(url)}"]
    if method:
        parts[0] = f"curl -s -X {method} {shlex.quote(url)}"
    if address.keyed:
        parts.append(_SHELL_KEY)
    if body is not None:
        parts += [f"-H {shlex.quote(f'content-type: {media}')}", f"--data-raw {shlex.quote(body)}"]
    return " \\\n  ".join(parts)


def _piped(url: str, address: Address) -> str:
    """For a body too long to paste: the server's own example, sent back to it."""
    send = curl(f"{url}/predict", address).replace("curl -s", f"curl -s -H 'content-type: {_JSON}' --data-binary @-", 1)
    return f"{curl(f'{url}/example', address)} |\n{send}"


def _requests(url: str, address: Address, model: ServedModel, *, shown: bool) -> str:
    keyed = ", headers=headers" if address.keyed else ""
    if shown:
        body = pformat(example_question(model), width=_WIDTH, compact=True, sort_dicts=False)
        body = f"body = {body}\n"
    else:
        body = f"body = requests.get({_literal(f'{url}/example')}{keyed}, timeout=30).json()\n"
    return (
        f"{'import os' + chr(10) if address.keyed else ''}import requests\n\n"
        f"{_PYTHON_KEY if address.keyed else ''}{body}"
        f"reply = requests.post({_literal(f'{url}/predict')}, json=body{keyed}, timeout=30)\n"
        "reply.raise_for_status()\n"
        "print(reply.json())"
    )


def _triton(model: ServedModel, address: Address, transport: str) -> str:
    where = address.http.partition("://")[2] if transport == "http" else address.grpc
    shapes = example_shapes(model)
    small = [name for name, shape in shapes.items() if math.prod(shape) <= _MOST_SHOWN_ELEMENTS]
    tensors = example_tensors(model, small)
    values = "".join(
        f"    {_literal(name)}: {_array(field, shapes[name], tensors.get(name))},\n"
        for name, field in model.signature.inputs.items()
    )
    keyed = ", headers=headers" if address.keyed else ""
    secure = ", ssl=True" if address.http.startswith("https") else ""
    name = _literal(model.signature.name)
    return (
        f"{'import os' + chr(10) if address.keyed else ''}"
        f"import numpy as np\nimport tritonclient.{transport} as triton\n"
        "from tritonclient.utils import np_to_triton_dtype\n\n"
        f"{_PYTHON_KEY if address.keyed else ''}"
        f"client = triton.InferenceServerClient({_literal(where)}{secure})\n"
        f"values = {{\n{values}}}\n"
        "inputs = []\n"
        "for name, value in values.items():\n"
        "    tensor = triton.InferInput(name, list(value.shape), np_to_triton_dtype(value.dtype))\n"
        "    tensor.set_data_from_numpy(value)\n"
        "    inputs.append(tensor)\n"
        f"result = client.infer({name}, inputs{keyed})\n"
        f"print({_printed([f'result.as_numpy({_literal(output)})' for output in model.signature.outputs])})"
    )


def _printed(parts: Sequence[str]) -> str:
    line = ", ".join(parts)
    return line if len(line) <= _WIDTH else "\n    " + ",\n    ".join(parts) + ",\n"


def _array(field: Field, shape: tuple[int, ...], array: Array | None) -> str:
    """An expression for an array of `shape`: the values of `array`, or how to make as many."""
    kind = field.dtype.kind
    dtype = {"O": "object", "b": "bool"}.get(kind, f"np.{field.dtype.name}")
    if array is not None:
        lines = pformat(example_values(array), width=_WIDTH - 8, compact=True)
        return f"np.array({lines.replace(chr(10), chr(10) + ' ' * 8)}, dtype={dtype})"
    if kind == "f":
        return f"np.random.default_rng(0).standard_normal({shape}).astype({dtype})"
    if kind == "O":
        return f"np.full({shape}, 'a text', dtype=object)"
    return f"np.ones({shape}, dtype={dtype})"


def _v2_url(model: ServedModel, address: Address) -> str:
    return f"{address.http}/v2/models/{quote(model.signature.name, safe='')}/infer"


def _text(value: Any) -> str:
    return msgspec.json.encode(value).decode()


def _literal(text: str) -> str:
    """`text` as Python writes it, in double quotes where it can."""
    return f'"{text}"' if text.isprintable() and '"' not in text and "\\" not in text else repr(text)
