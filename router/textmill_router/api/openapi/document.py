"""The OpenAPI document, which is made from the table of the routes and the structs of bodies and answers."""

from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

import msgspec

from textmill_router.api.openai.chat_types import DeclaredTool
from textmill_router.api.openapi import answer_types as answers
from textmill_router.api.openapi.descriptions import PATH_PARAMETERS, describe, description_of
from textmill_router.api.openapi.operation import Operation
from textmill_router.api.openapi.ranges import add_ranges

# The names of TGI's document, because clients are generated from them.
COMPONENT_NAMES = {
    "CalledFunction": "CalledFunction",
    "CalledTool": "ToolCall",
    "ChatBody": "ChatRequest",
    "ChatMessage": "Message",
    "CompatBody": "CompatGenerateRequest",
    "CompatParameters": "CompatGenerateParameters",
    "Completion": "CompletionFinal",
    "CompletionBody": "CompletionRequest",
    "CompletionChoice": "CompletionComplete",
    "CompletionChunk": "Chunk",
    "ContentPart": "MessageChunk",
    "ImageUrl": "Url",
    "DeclaredFunction": "FunctionDefinition",
    "DeclaredTool": "Tool",
    "DetokenizeAnswer": "DetokenizeResponse",
    "DetokenizeBody": "DetokenizeRequest",
    "GenerateAnswer": "GenerateResponse",
    "GenerateBody": "GenerateRequest",
    "InfoAnswer": "Info",
    "TgiParameters": "GenerateParameters",
    "TokenLogprob": "ChatCompletionLogprob",
    "TokenizeBody": "TokenizeRequest",
    "TokenizedToken": "SimpleToken",
    "TopLogprob": "ChatCompletionTopLogprob",
    "VertexAnswer": "VertexResponse",
    "VertexBody": "VertexRequest",
}
_GRAMMARS = (answers.JsonGrammar, answers.RegexGrammar, answers.JsonSchemaGrammar)
_JSON, _EVENTS, _TEXT = "application/json", "text/event-stream", "text/plain"
_FORM = "multipart/form-data"
_FILE = "application/octet-stream"  # for which Swagger UI shows a field that takes a dropped file
_REF = "#/components/schemas/{name}"
_DESCRIPTIONS = {
    200: "The answer",
    400: "The body is not JSON",
    401: "The API key is missing or wrong",
    403: "The operator does not allow this",
    404: "There is no such thing",
    408: "The body came too slowly",
    413: "The body is too long",
    415: "The body is not said to be JSON",
    422: "The request breaks a rule",
    424: "The model failed this request",
    429: "The server is overloaded; Retry-After tells when to try again",
    500: "A mistake of the server",
    503: "The model is loading, or the server leaves",
    504: "The answer was not complete within x-request-timeout-ms",
}


def build_document(operations: Sequence[Operation], *, about: str) -> dict[str, Any]:
    """Return the whole document, in OpenAPI 3.1, of the operations that are shown.

    `about` says what the server does.
    """
    operations = [operation for operation in operations if operation.is_shown]
    types = _types_of(operations)
    schemas, components = msgspec.json.schema_components(types, ref_template=_REF)
    schema_of = _Schemas(types, schemas)
    paths: dict[str, dict[str, Any]] = {}
    for operation in operations:
        paths.setdefault(operation.path.replace(":path}", "}"), {})[operation.method] = _operation(operation, schema_of)
    for name in {"TgiParameters", "CompatParameters", "V2Parameters"} & components.keys():
        components[name]["properties"]["grammar"] = {
            "anyOf": [*({"$ref": _REF.format(name=kind.__name__)} for kind in _GRAMMARS), {"type": "null"}],
            "default": None,
        }
    if "ChatBody" in components:
        components["ChatBody"]["properties"]["tools"] = {
            "anyOf": [{"type": "array", "items": {"$ref": _REF.format(name="DeclaredTool")}}, {"type": "null"}],
            "default": None,
        }
    add_ranges(components)
    describe(components, _named_from([schema_of[one.body] for one in operations if one.body], components))
    document = {
        "openapi": "3.1.0",
        "info": {
            "title": "Textmill",
            "description": about,
            "license": {"name": "Apache 2.0", "url": "https://www.apache.org/licenses/LICENSE-2.0"},
            "version": version("textmill"),
        },
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {
                "api_key": {"type": "http", "scheme": "bearer"},
                "x_api_key": {"type": "apiKey", "in": "header", "name": "X-Api-Key"},
            },
        },
        "security": [{}, {"api_key": []}, {"x_api_key": []}],
    }
    renamed: dict[str, Any] = _rename(document)
    return renamed


class _Schemas:
    """The schemas of the document by type, or by a tuple of types of which one holds."""

    def __init__(self, types: list[Any], schemas: tuple[dict[str, Any], ...]) -> None:
        self._known = list(zip(types, schemas, strict=True))

    def __getitem__(self, kind: Any) -> dict[str, Any]:
        if isinstance(kind, tuple):
            return {"anyOf": [self[one] for one in kind]}
        return next(schema for known, schema in self._known if known == kind)


def _named_from(schemas: list[Any], components: dict[str, Any]) -> set[str]:
    """Return the names of the components that the schemas use, directly or by way of other components."""
    found: set[str] = set()
    left = list(schemas)
    while left:
        value = left.pop()
        if isinstance(value, dict):
            reference = value.get("$ref")
            if reference is not None and (name := reference.removeprefix(_REF.format(name=""))) not in found:
                found.add(name)
                left.append(components[name])
            left += value.values()
        elif isinstance(value, list):
            left += value
    return found


def _types_of(operations: Sequence[Operation]) -> list[Any]:
    generates = any(operation.path == "/generate" for operation in operations)
    types: list[Any] = [*_GRAMMARS, DeclaredTool] if generates else []
    for operation in operations:
        for kind in (operation.body, operation.answer, operation.events, operation.error):
            for one in kind if isinstance(kind, tuple) else (kind,):
                if one is not None and one not in types:
                    types.append(one)
    return types


def _operation(operation: Operation, schema_of: _Schemas) -> dict[str, Any]:
    error = schema_of[operation.error]
    content = {}
    if operation.answer is not None:
        content[_JSON] = {"schema": schema_of[operation.answer]}
    if operation.events is not None:
        content[_EVENTS] = {"schema": schema_of[operation.events]}
    if operation.text:
        content[_TEXT] = {"schema": {"type": "string"}}
    for media_type in operation.answer_types:
        content[media_type] = {"schema": {"type": "string", "format": "binary"}}
    ok: dict[str, Any] = {"description": _DESCRIPTIONS[200]}
    if content:
        ok["content"] = content
    described: dict[str, Any] = {
        "operationId": operation.operation_id,
        "summary": operation.summary,
        "tags": ["Textmill"],
        "responses": {
            "200": ok,
            **{
                str(status): {"description": _DESCRIPTIONS[status], "content": {_JSON: {"schema": error}}}
                for status in sorted(operation.errors)
            },
        },
    }
    if operation.parameters:
        described["parameters"] = [
            {
                "name": name,
                "in": "path",
                "required": True,
                "description": PATH_PARAMETERS[name],
                "schema": {"type": "string"},
            }
            for name in operation.parameters
        ]
    if operation.body is not None:
        body: dict[str, Any] = {"schema": schema_of[operation.body]}
        if operation.example is not None:
            body["example"] = operation.example
        described["requestBody"] = {"required": True, "content": {_JSON: body}}
    if operation.form is not None:
        form = {"schema": _form_schema(operation.form, operation.form_file)}
        described["requestBody"] = {"required": True, "content": {_FORM: form}}
    if operation.query is not None:
        file = {_FILE: {"schema": {"type": "string", "format": "binary"}}}
        described["requestBody"]["content"] = {**file, **described["requestBody"]["content"]}
        described["parameters"] = [*described.get("parameters", []), *_query_parameters(operation.query)]
    return described


def _form_schema(struct: Any, file_field: str) -> dict[str, Any]:
    """Return the schema of a form whose fields are those of a struct, beside a file."""
    name = struct.__name__
    properties: dict[str, Any] = {
        file_field: {"type": "string", "format": "binary", "description": description_of(name, file_field)}
    }
    for field, schema in msgspec.json.schema(struct)["$defs"][name]["properties"].items():
        properties[field] = {**schema, "description": description_of(name, field)}
    return {"type": "object", "properties": properties, "required": [file_field]}


def _query_parameters(struct: Any) -> list[dict[str, Any]]:
    """Return the fields of a struct that may stand in the address: those that are no objects."""
    name = struct.__name__
    properties = msgspec.json.schema(struct)["$defs"][name]["properties"]
    return [
        {"name": field, "in": "query", "description": description_of(name, field), "schema": schema}
        for field, schema in properties.items()
        if "$ref" not in str(schema)
    ]


def _rename(value: Any) -> Any:
    """Return a part of the document with TGI's names of the components."""
    prefix = _REF.format(name="")
    if isinstance(value, list):
        return [_rename(one) for one in value]
    if not isinstance(value, dict):
        return value
    renamed = {key: _rename(one) for key, one in value.items()}
    if "$ref" in renamed:
        name = renamed["$ref"].removeprefix(prefix)
        renamed["$ref"] = prefix + COMPONENT_NAMES.get(name, name)
    if "schemas" in renamed and "securitySchemes" in renamed:
        renamed["schemas"] = {COMPONENT_NAMES.get(name, name): one for name, one in renamed["schemas"].items()}
    if renamed.get("title") in COMPONENT_NAMES:
        renamed["title"] = COMPONENT_NAMES[renamed["title"]]
    return renamed
