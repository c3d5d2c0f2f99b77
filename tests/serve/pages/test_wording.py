"""Schemas in words: every field by its way from the top, and nothing endless."""

import msgspec

from mlserve.serve.pages.description import ModelDescription
from mlserve.serve.pages.wording import Told, fields_of, type_of


def test_types_are_said_in_words():
    words = {
        "text": {"type": "string"},
        "base64": {"type": "string", "contentEncoding": "base64"},
        "text or null": {"type": ["string", "null"]},
        "list of whole number": {"type": "array", "items": {"type": "integer"}},
        "list": {"type": "array", "items": {}},
        "text or list of text": {"oneOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]},
        "one of a, 2": {"enum": ["a", 2]},
        "FP32": {"const": "FP32"},
        "true or false": {"type": "boolean"},
        "any value": {},
        "": None,
    }
    assert {said: type_of(schema) for said, schema in words.items()} == {said: said for said in words}


def test_fields_are_named_by_their_way_from_the_top():
    schema = {
        "type": "object",
        "required": ["inputs"],
        "properties": {
            "inputs": {
                "type": "array",
                "description": "Tensors.",
                "items": {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]},
            },
            "id": {"type": "string"},
        },
    }
    assert fields_of(schema) == [
        Told("inputs", "list of object", True, "Tensors."),
        Told("inputs[].name", "text", True, ""),
        Told("id", "text", False, ""),
    ]
    assert fields_of(None) == fields_of({"type": "string"}) == fields_of({}) == []


def test_definitions_are_followed_and_one_of_itself_only_so_far():
    told = fields_of(msgspec.json.schema(dict[str, list[ModelDescription]]))
    names = [field.name for field in told]
    assert {"*[].name", "*[].inputs[].shape", "*[].versions[].state"} <= set(names)
    endless = {"$ref": "#/$defs/T", "$defs": {"T": {"type": "object", "properties": {"left": {"$ref": "#/$defs/T"}}}}}
    assert [field.name for field in fields_of(endless)] == [".".join(["left"] * n) for n in range(1, 5)]
