"""`/openapi.json`: OpenAPI 3.1 of every page of every dialect."""

from collections.abc import Sequence
from http import HTTPStatus
from typing import Any

import msgspec

from mlserve import __version__
from mlserve.serve.pages.operations import Operation

__all__ = ["openapi"]

_SCHEMAS = "#/components/schemas/"
_SECURITY = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "The header `authorization: Bearer KEY`."},
    "apiKey": {"type": "apiKey", "in": "header", "name": "x-api-key"},
}
_ABOUT = (
    "Every page of every dialect that this server speaks. The same models answer in all of them. "
    "A page that needs a scope is refused with 401 without a key and with 403 for a key without that scope, "
    "where the server was started with keys."
)


def openapi(pages: Sequence[Operation], title: str, *, keyed: bool) -> dict[str, Any]:
    """The document, as JSON values. `keyed`: requests need keys."""
    document = _Document(keyed=keyed)
    paths: dict[str, dict[str, Any]] = {}
    for page in pages:
        paths.setdefault(page.path, {})[page.method.lower()] = document.operation(page)
    return {
        "openapi": "3.1.0",
        "info": {"title": title, "version": __version__, "description": _ABOUT},
        "servers": [{"url": "/"}],
        "tags": [{"name": name} for name in dict.fromkeys(page.dialect for page in pages)],
        "paths": paths,
        "components": {
            "schemas": document.schemas,
            "responses": document.responses,
            "securitySchemes": _SECURITY,
        },
    }


class _Document:
    """Collects what operations share: schemas and error responses."""

    def __init__(self, *, keyed: bool) -> None:
        self._keyed = keyed
        self.schemas: dict[str, Any] = {}
        self.responses: dict[str, Any] = {}
        self._named: set[str] = set()

    def operation(self, page: Operation) -> dict[str, Any]:
        told = page.documentation
        written: dict[str, Any] = {
            "operationId": self._operation_id(page),
            "tags": [page.dialect],
            "summary": page.summary,
            "description": f"Needs the scope `{page.scope}`." if page.scope else "Open to everybody.",
            "security": self._security(page),
            "responses": {**self._success(page), **self._failures(page)},
        }
        parameters = [_path_parameter(name, value) for name, value in page.parameters.items()]
        parameters += [{"name": name, "in": "query", "schema": schema} for name, schema in told.query.items()]
        if parameters:
            written["parameters"] = parameters
        if page.reads_body:
            written["requestBody"] = self._request(page)
        return written

    def _operation_id(self, page: Operation) -> str:
        """A name for it that no other has: paths may differ in a last slash alone."""
        name = f"{_word(page.dialect)}_{page.method.lower()}{_word(page.path)}"
        while name in self._named:
            name += "_"
        self._named.add(name)
        return name

    def _security(self, page: Operation) -> list[dict[str, list[str]]]:
        if page.scope is None:
            return []
        needed: list[dict[str, list[str]]] = [{name: []} for name in _SECURITY]
        return needed if self._keyed else [{}, *needed]

    def _request(self, page: Operation) -> dict[str, Any]:
        content: dict[str, Any] = {}
        for media in page.documentation.media:
            if _is_json(media):
                content[media] = {"schema": self._schema(page.documentation.request or {}, page)}
                if page.example is not None:
                    content[media]["examples"] = {"model": {"summary": "For a model at hand", "value": page.example}}
            elif media.startswith("text/"):
                content[media] = {"schema": {"type": "string"}}
            else:
                content[media] = {"schema": {"type": "string", "format": "binary"}}
        return {"required": True, "content": content}

    def _success(self, page: Operation) -> dict[str, Any]:
        schema = page.documentation.response
        if schema is None:
            return {} if page.refuses else {"200": {"description": "Done"}}
        # A bare string is plain text, if it is not said to be something else; JSON answers hold more.
        media = schema.get("contentMediaType", "text/plain") if schema.get("type") == "string" else "application/json"
        return {"200": {"description": "Done", "content": {media: {"schema": self._schema(schema, page)}}}}

    def _failures(self, page: Operation) -> dict[str, Any]:
        return {str(status): self._failure(page, status) for status in _statuses(page)}

    def _failure(self, page: Operation, status: int) -> dict[str, str]:
        """A reference to the dialect's response for `status`, in the words its errors have."""
        name = f"{_word(page.dialect)}_{status}"
        if name not in self.responses:
            phrase = HTTPStatus(status).phrase
            body = page.error(status, phrase)
            self.responses[name] = {
                "description": phrase,
                "content": {"application/json": {"schema": _schema_of(msgspec.json.decode(body))}},
            }
        return {"$ref": f"#/components/responses/{name}"}

    def _schema(self, schema: dict[str, Any], page: Operation) -> dict[str, Any]:
        """`schema` with its own definitions moved to where the whole document finds them."""
        definitions = schema.get("$defs", {})
        moved = {f"#/$defs/{name}": f"{_word(page.dialect)}_{_word(name)}" for name in definitions}
        for name, definition in definitions.items():
            self.schemas[moved[f"#/$defs/{name}"]] = _repointed(definition, moved)
        written: dict[str, Any] = _repointed({key: value for key, value in schema.items() if key != "$defs"}, moved)
        return written


def _statuses(page: Operation) -> list[int]:
    """Which errors a page may answer with."""
    found = {*page.documentation.statuses, 500, 503}
    if page.scope is not None:
        found |= {401, 403}
    if page.parameters or page.infers:
        found |= {404}
    if page.documentation.query or page.method != "GET":
        found |= {400}
    if page.method != "GET":
        found |= {413}
    if page.infers:
        found |= {415, 504}
    return sorted(found - {200})


def _repointed(value: Any, moved: dict[str, str]) -> Any:
    if isinstance(value, dict):
        return {
            key: _SCHEMAS + moved[inner] if key == "$ref" and inner in moved else _repointed(inner, moved)
            for key, inner in value.items()
        }
    return [_repointed(inner, moved) for inner in value] if isinstance(value, list) else value


def _schema_of(value: Any) -> dict[str, Any]:
    """What values like `value` look like."""
    if isinstance(value, dict):
        properties = {name: _schema_of(inner) for name, inner in value.items()}
        return {"type": "object", "properties": properties, "required": list(properties)}
    if isinstance(value, list):
        return {"type": "array", "items": _schema_of(value[0]) if value else {}}
    named = {bool: "boolean", int: "integer", float: "number", str: "string"}.get(type(value))
    return {"type": named} if named else {}


def _path_parameter(name: str, value: str) -> dict[str, Any]:
    parameter: dict[str, Any] = {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
    return {**parameter, "example": value} if value else parameter


def _word(text: str) -> str:
    return "".join(letter if letter.isalnum() and letter.isascii() else "_" for letter in text).rstrip("_")


def _is_json(media: str) -> bool:
    return media == "application/json" or media.endswith("+json")
