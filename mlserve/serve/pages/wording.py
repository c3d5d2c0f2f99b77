"""A JSON schema as people read it: a list of fields, each with its type in words."""

from collections.abc import Iterator
from typing import Any

import msgspec

__all__ = ["Told", "fields_of", "type_of"]

# Deeper parts of a body are told by their type alone.
_MOST_DEPTH = 4
_MOST_CHOICES = 12
_LIST = "[]"

Schema = dict[str, Any]


class Told(msgspec.Struct, frozen=True):
    """One field; `name` is its way from the top, `inputs[].name`, with `[]` for each element of a list."""

    name: str
    type: str
    needed: bool
    description: str


def fields_of(schema: Schema | None) -> list[Told]:
    """The fields of what `schema` describes, in its order; none for what is no object and no list of objects."""
    return [] if schema is None else list(_fields(schema, schema.get("$defs", {}), "", _MOST_DEPTH))


def type_of(schema: Schema | None) -> str:
    """`text`, `list of number`, `text or list of text`; empty for no body."""
    return "" if schema is None else _words(schema, schema.get("$defs", {}))


def _fields(schema: Schema, known: Schema, way: str, depth: int) -> Iterator[Told]:
    schema = _resolved(schema, known)
    if depth == 0:
        return
    if isinstance(schema.get("items"), dict):
        yield from _fields(schema["items"], known, f"{way}{_LIST}", depth)
    needed = schema.get("required", ())
    for name, inner in schema.get("properties", {}).items():
        place = f"{way}.{name}" if way else name
        yield Told(place, _words(inner, known), name in needed, _resolved(inner, known).get("description", ""))
        yield from _fields(inner, known, place, depth - 1)
    if isinstance(schema.get("additionalProperties"), dict):
        yield from _fields(schema["additionalProperties"], known, f"{way}.*" if way else "*", depth - 1)


def _words(schema: Schema, known: Schema) -> str:
    schema = _resolved(schema, known)
    either = schema.get("oneOf") or schema.get("anyOf")
    if "enum" in schema or "const" in schema:
        values = schema.get("enum") or [schema["const"]]
        return "one of " + ", ".join(map(str, values[:_MOST_CHOICES])) if len(values) > 1 else str(values[0])
    if either and "type" not in schema:
        return " or ".join(dict.fromkeys(_words(each, known) for each in either))
    kinds = schema.get("type", "any value")
    return " or ".join(_kind(kind, schema, known) for kind in ([kinds] if isinstance(kinds, str) else kinds))


def _kind(kind: str, schema: Schema, known: Schema) -> str:
    if kind == "array":
        items = schema.get("items")
        return f"list of {_words(items, known)}" if isinstance(items, dict) and items else "list"
    if kind == "string" and schema.get("contentEncoding") == "base64":
        return "base64"
    return {"string": "text", "integer": "whole number", "boolean": "true or false"}.get(kind, kind)


def _resolved(schema: Schema, known: Schema) -> Schema:
    """What a reference of the schema's own means; a reference to itself is not followed further than fields go."""
    name = schema.get("$ref", "").removeprefix("#/$defs/")
    found: Schema = known.get(name, {}) if name else schema
    return found
