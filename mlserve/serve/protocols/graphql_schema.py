"""What GraphQL can ask of the server: the schema, its answers, and limits on what one request may ask for."""

import logging
from collections.abc import Callable
from functools import cache
from inspect import isawaitable
from typing import Any, NamedTuple

import msgspec
from graphql import (
    DocumentNode,
    FieldNode,
    FragmentDefinitionNode,
    FragmentSpreadNode,
    GraphQLError,
    GraphQLResolveInfo,
    GraphQLSchema,
    OperationDefinitionNode,
    SelectionSetNode,
    build_schema,
    execute,
    parse,
    validate,
)

from mlserve.errors import InvalidRequest, RequestError
from mlserve.serve.access import Scope
from mlserve.serve.answering import Answering
from mlserve.serve.pages.description import ModelDescription, VersionDescription, describe_model, describe_models
from mlserve.serve.protocols.dialect import Headers
from mlserve.serve.protocols.friendly import Question, find_model, predict
from mlserve.serve.service import Service

__all__ = ["Asking", "ask"]

_PROTOCOL = "graphql"

# Checked before anything is validated or run. Tools' query for the whole schema has a depth of 13 and 270 fields.
_MOST_CHARACTERS = 20_000
_MOST_TOKENS = 1_000
_MOST_DEPTH = 16
_MOST_FIELDS = 400
_MOST_AT_THE_ROOT = 8
# A field of an answer takes 7 us, in which the event loop does nothing else.
_MOST_ANSWERED = 20_000
_MOST_ERRORS = 16
_MOST_ERROR_CHARACTERS = 300

_SDL = '''
"""Any JSON value."""
scalar JSON

type Query {
  "Every model that is served or known, by name."
  models: [Model!]!
  "One model; null when there is none of this name."
  model(name: String!): Model
  "The versions of one model, oldest first."
  versions(name: String!): [Version!]!
  """
  Asks a model. `model` may be left out where one name is served; `version` is a version or an alias. Send one of
  `text`, `image` (files in base64), `rows` and `inputs`.
  """
  predict(
    model: String, version: String, text: [String!], image: [String!], rows: [JSON!], inputs: JSON
  ): Prediction!
}

type Model {
  name: String!
  state: String!
  "The version that a request which names none is for."
  default: String!
  aliases: [Alias!]!
  "What it takes: text, image or tensors."
  task: String!
  inputs: [Tensor!]!
  outputs: [Tensor!]!
  labels: [String!]!
  versions: [Version!]!
}

type Version {
  version: String!
  state: String!
  "Why it is not ready."
  reason: String!
  aliases: [String!]!
  engine: String!
  device: String!
  variant: String!
  sizeBytes: Float!
  loadedAt: String!
}

"A word that means a version."
type Alias {
  name: String!
  version: String!
}

"An input or output; a word in its shape is a dimension of any size."
type Tensor {
  name: String!
  datatype: String!
  shape: [String!]!
}

type Prediction {
  model: String!
  version: String!
  "One answer for each text, image or row, in order."
  predictions: JSON
  "Every output by name, for `inputs`."
  outputs: JSON
}
'''

_log = logging.getLogger("mlserve.serve")


class Asking:
    """One request: whom it asks, the headers and the credential it came with, how many fields may still be answered."""

    def __init__(
        self, service: Service, answering: Answering, headers: Headers, credential: bytes | None = None
    ) -> None:
        self.service, self.answering, self.headers, self.credential = service, answering, headers, credential
        self.fields_left = _MOST_ANSWERED

    def allow(self, scope: Scope) -> None:
        """Raises what `Access.check` does for a credential without `scope`."""
        self.service.access.check(scope, self.credential)

    def count(self) -> None:
        """Counts one field of the answer: lists make many of one in the query. Raises InvalidRequest for too many."""
        self.fields_left -= 1
        if self.fields_left < 0:
            raise InvalidRequest(f"the answer has more than {_MOST_ANSWERED} fields; ask for fewer, or model by model")


async def ask(query: str, variables: dict[str, Any], operation_name: str | None, asking: Asking) -> dict[str, Any]:
    """The response to one request: `data`, unless it was not understood, and `errors`, unless there are none."""
    try:
        document = parse(query, no_location=True, max_lexical_tokens=_MOST_TOKENS, max_source_length=_MOST_CHARACTERS)
        _check_size(document)
        errors = validate(_schema(), document, max_errors=_MOST_ERRORS)
    except (GraphQLError, RecursionError) as error:
        errors = [error if isinstance(error, GraphQLError) else GraphQLError("the query is nested too deep")]
    if errors:
        return {"errors": [_written(error) for error in errors]}
    result = execute(
        _schema(),
        document,
        _Query(),
        asking,
        variables,
        operation_name,
        field_resolver=_field,
        max_coercion_errors=_MOST_ERRORS,
    )
    found = await result if isawaitable(result) else result
    written = {"errors": [_written(error) for error in found.errors]} if found.errors else {}
    # Without data it is the request that was at fault: a variable, the operation's name.
    refused = found.data is None and all(not error.path for error in found.errors or ())
    return written if refused else {**written, "data": found.data}


@cache
def _schema() -> GraphQLSchema:
    return build_schema(_SDL)


class _Query:
    """The fields of Query; each is called with what graphql-core knows of the request, and its arguments."""

    def models(self, info: GraphQLResolveInfo) -> list[ModelDescription]:
        return describe_models(info.context.service.catalog)["models"]

    def model(self, info: GraphQLResolveInfo, name: str) -> ModelDescription | None:
        return describe_model(info.context.service.catalog, name)

    def versions(self, info: GraphQLResolveInfo, name: str) -> tuple[VersionDescription, ...]:
        model = describe_model(info.context.service.catalog, name)
        return model.versions if model is not None else ()

    async def predict(
        self, info: GraphQLResolveInfo, model: str | None = None, version: str | None = None, **sources: Any
    ) -> dict[str, Any]:
        asking: Asking = info.context
        asking.allow("infer")
        given = {name: value for name, value in sources.items() if value is not None}
        if not isinstance(given.get("inputs", {}), dict):
            raise InvalidRequest("'inputs' is an object with a value for each input")
        served = find_model(asking.service, model or "", version or "")
        content = await predict(asking.answering, served, Question(**given), _PROTOCOL, asking.headers)
        answer: dict[str, Any] = msgspec.json.decode(content.body)
        return answer


def _field(source: Any, info: GraphQLResolveInfo, **arguments: Any) -> Any:
    """What `source` has under a field's name, which GraphQL writes in camel case."""
    info.context.count()
    if isinstance(source, dict):
        return source.get(info.field_name)
    name = "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in info.field_name)
    value = getattr(source, name)
    if callable(value):
        return value(info, **arguments)
    if isinstance(value, dict):
        return [{"name": alias, "version": version} for alias, version in value.items()]
    return value


def _written(error: GraphQLError) -> dict[str, Any]:
    """An error as the response has it. One that nobody meant is a bug: the log tells it, the client does not."""
    written: dict[str, Any] = {"message": error.message[:_MOST_ERROR_CHARACTERS]}
    if error.path:
        written["path"] = error.path
    cause = error.original_error
    if isinstance(cause, RequestError):
        written["extensions"] = {"code": type(cause).__name__, "status": cause.http_status}
    elif cause is not None and not isinstance(cause, GraphQLError):
        _log.error("a GraphQL field could not be resolved", exc_info=cause)
        written["message"] = "the server made a mistake; its log says which"
    return written


def _check_size(document: DocumentNode) -> None:
    """Raises GraphQLError for a document whose operations are too deep, or too wide once fragments are written out."""
    fragments = {
        part.name.value: part.selection_set for part in document.definitions if isinstance(part, FragmentDefinitionNode)
    }
    size_of = _sizes(fragments)
    for part in document.definitions:
        if isinstance(part, OperationDefinitionNode):
            size = size_of(part.selection_set)
            for what, found, most in (
                ("levels", size.depth, _MOST_DEPTH),
                ("fields", size.fields, _MOST_FIELDS),
                ("fields at its root", size.at_the_root, _MOST_AT_THE_ROOT),
            ):
                if found > most:
                    raise GraphQLError(f"the query has more than {most} {what}; ask for less, or in more requests")


class _Size(NamedTuple):
    depth: int = 0
    fields: int = 0
    at_the_root: int = 0


def _sizes(fragments: dict[str, SelectionSetNode]) -> Callable[[SelectionSetNode | None], _Size]:
    """Measures selections; each fragment is measured once, however often it is spread."""
    known: dict[str, _Size] = {}

    def size_of(selections: SelectionSetNode | None) -> _Size:
        depth = fields = at_the_root = 0
        for part in selections.selections if selections is not None else ():
            if isinstance(part, FieldNode):
                inner = size_of(part.selection_set)
                inner = _Size(inner.depth + 1, inner.fields + 1, 1)
            elif isinstance(part, FragmentSpreadNode):
                inner = spread(part.name.value)
            else:
                inner = size_of(part.selection_set)
            depth = max(depth, inner.depth)
            fields += inner.fields
            at_the_root += inner.at_the_root
        return _Size(depth, fields, at_the_root)

    def spread(name: str) -> _Size:
        if name not in known:
            known[name] = _Size()  # for a fragment that spreads itself, which validation refuses
            known[name] = size_of(fragments.get(name))
        return known[name]

    return size_of
