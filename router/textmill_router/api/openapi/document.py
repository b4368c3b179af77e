"""The OpenAPI document: made from the structs that parse requests and describe answers, and a table of the routes."""

from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import msgspec

from textmill_router.api.openai.chat_types import ChatBody, DeclaredTool
from textmill_router.api.openai.completion_answers import Completion
from textmill_router.api.openai.completion_types import CompletionBody
from textmill_router.api.openapi import answer_types as answers
from textmill_router.api.tgi.types import (
    CompatBody,
    DetokenizeAnswer,
    DetokenizeBody,
    GenerateAnswer,
    GenerateBody,
    InfoAnswer,
    TokenizeBody,
    TokenizedToken,
    VertexAnswer,
    VertexBody,
)

# Names of TGI's document, for those who generate clients from it.
COMPONENT_NAMES = {
    "CalledFunction": "CalledFunction",
    "CalledTool": "ToolCall",
    "ChatBody": "ChatRequest",
    "ChatMessage": "Message",
    "CompatBody": "CompatGenerateRequest",
    "Completion": "CompletionFinal",
    "CompletionBody": "CompletionRequest",
    "CompletionChoice": "CompletionComplete",
    "CompletionChunk": "Chunk",
    "ContentPart": "MessageChunk",
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
_REFUSALS = (400, 401, 413, 415, 422)
_GENERATE_ERRORS = (*_REFUSALS, 408, 424, 429, 500, 503)
_REF = "#/components/schemas/{name}"
_DESCRIPTIONS = {
    200: "The answer",
    400: "The body is not JSON",
    401: "The API key is missing or wrong",
    404: "There is no such thing",
    408: "The body came too slowly",
    413: "The body is too long",
    415: "The body is not said to be JSON",
    422: "The request breaks a rule",
    424: "The model failed this request",
    429: "The server is overloaded; Retry-After tells when to try again",
    500: "A mistake of the server",
    503: "The model is loading, or the server leaves",
}


@dataclass(frozen=True, slots=True)
class Operation:
    """One method of one path. `events` is the type of one event of a stream, `text` says that the answer is text.

    Types are what msgspec describes, or a tuple of such of which one holds.
    """

    path: str
    method: str
    summary: str
    body: Any = None
    answer: Any = None
    events: Any = None
    text: bool = False
    errors: tuple[int, ...] = ()
    example: Any = None
    error: Any = answers.ErrorResponse
    operation_id: str = ""
    parameters: tuple[str, ...] = ()  # in the path


_EXAMPLE = {"inputs": "My name is Olivier and I", "parameters": {"max_new_tokens": 20, "details": True}}
_CHAT_EXAMPLE = {"messages": [{"role": "user", "content": "What is deep learning?"}], "max_tokens": 20}

OPERATIONS: list[Operation] = [
    Operation(
        path="/",
        method="post",
        summary="Generate tokens if `stream` is false, else a stream of tokens",
        body=CompatBody,
        answer=list[GenerateAnswer],
        events=answers.StreamResponse,
        errors=_GENERATE_ERRORS,
        example={**_EXAMPLE, "stream": False},
        operation_id="compat_generate",
    ),
    Operation(
        path="/generate",
        method="post",
        summary="Generate tokens; several inputs or sequences are answered by a list",
        body=GenerateBody,
        answer=(GenerateAnswer, list[GenerateAnswer]),
        errors=_GENERATE_ERRORS,
        example=_EXAMPLE,
        operation_id="generate",
    ),
    Operation(
        path="/generate_stream",
        method="post",
        summary="Generate a stream of tokens",
        body=GenerateBody,
        events=answers.StreamResponse,
        errors=_GENERATE_ERRORS,
        example=_EXAMPLE,
        operation_id="generate_stream",
    ),
    Operation(
        path="/v1/chat/completions",
        method="post",
        summary="Answer a conversation",
        body=ChatBody,
        answer=answers.ChatCompletion,
        events=answers.ChatCompletionChunk,
        errors=(*_GENERATE_ERRORS, 404),
        error=answers.OpenAIErrorResponse,
        example=_CHAT_EXAMPLE,
        operation_id="chat_completions",
    ),
    Operation(
        path="/v1/completions",
        method="post",
        summary="Continue texts",
        body=CompletionBody,
        answer=Completion,
        events=answers.CompletionChunk,
        errors=(*_GENERATE_ERRORS, 404),
        error=answers.OpenAIErrorResponse,
        example={"prompt": "What is deep learning?", "max_tokens": 20},
        operation_id="completions",
    ),
    Operation(
        path="/v1/models",
        method="get",
        summary="The models that are served",
        answer=answers.ModelList,
        errors=(401, 404),
        error=answers.OpenAIErrorResponse,
        operation_id="openai_get_model_info",
    ),
    Operation(
        path="/v1/models/{model}",
        method="get",
        summary="One model",
        answer=answers.ModelInfo,
        errors=(401, 404),
        error=answers.OpenAIErrorResponse,
        operation_id="openai_get_one_model",
        parameters=("model",),
    ),
    Operation(
        path="/tokenize",
        method="post",
        summary="Tokens of a text and the bytes where they stand",
        body=TokenizeBody,
        answer=list[TokenizedToken],
        errors=(*_REFUSALS, 404, 408, 429, 503),
        example={"inputs": "My name is Olivier and I"},
        operation_id="tokenize",
    ),
    Operation(
        path="/chat_tokenize",
        method="post",
        summary="The prompt that a conversation makes, and its tokens",
        body=ChatBody,
        answer=answers.ChatTokenizeResponse,
        errors=(*_REFUSALS, 404, 408, 500, 503),
        example=_CHAT_EXAMPLE,
        operation_id="get_chat_tokenize",
    ),
    Operation(
        path="/detokenize",
        method="post",
        summary="The text of token ids",
        body=DetokenizeBody,
        answer=DetokenizeAnswer,
        errors=(*_REFUSALS, 408, 429, 503),
        example={"ids": [1, 2, 3]},
        operation_id="detokenize",
    ),
    Operation(
        path="/invocations",
        method="post",
        summary="SageMaker: generate by `inputs`, chat by `messages`, or continue a `prompt`",
        body=(CompatBody, ChatBody, CompletionBody),
        answer=(list[GenerateAnswer], answers.ChatCompletion, Completion),
        events=(answers.StreamResponse, answers.ChatCompletionChunk, answers.CompletionChunk),
        errors=(*_GENERATE_ERRORS, 404),
        error=(answers.ErrorResponse, answers.OpenAIErrorResponse),
        example=_EXAMPLE,
        operation_id="sagemaker_compatibility",
    ),
    Operation(
        path="/vertex",
        method="post",
        summary="Vertex AI: one text for each instance",
        body=VertexBody,
        answer=VertexAnswer,
        errors=(*_GENERATE_ERRORS, 404),
        example={"instances": [_EXAMPLE]},
        operation_id="vertex_compatibility",
    ),
    Operation(
        path="/info",
        method="get",
        summary="The model and the limits",
        answer=InfoAnswer,
        errors=(401, 503),
        operation_id="get_model_info",
    ),
    Operation(
        path="/health", method="get", summary="200 while requests are served", errors=(503,), operation_id="health"
    ),
    Operation(path="/ping", method="get", summary="The same as /health", errors=(503,), operation_id="ping"),
    Operation(path="/", method="get", summary="The same as /health", errors=(503,), operation_id="root"),
    Operation(path="/metrics", method="get", summary="Prometheus text", text=True, operation_id="metrics"),
]


def build_document() -> dict[str, Any]:
    """The whole document, OpenAPI 3.1."""
    types = _types_of(OPERATIONS)
    schemas, components = msgspec.json.schema_components(types, ref_template=_REF)
    schema_of = _Schemas(types, schemas)
    paths: dict[str, dict[str, Any]] = {}
    for operation in OPERATIONS:
        paths.setdefault(operation.path, {})[operation.method] = _operation(operation, schema_of)
    components["TgiParameters"]["properties"]["grammar"] = {
        "anyOf": [*({"$ref": _REF.format(name=kind.__name__)} for kind in _GRAMMARS), {"type": "null"}],
        "default": None,
    }
    components["ChatBody"]["properties"]["tools"] = {
        "anyOf": [{"type": "array", "items": {"$ref": _REF.format(name="DeclaredTool")}}, {"type": "null"}],
        "default": None,
    }
    document = {
        "openapi": "3.1.0",
        "info": {
            "title": "Textmill",
            "description": "Text generation over HTTP: TGI's native dialect and OpenAI's.",
            "license": {"name": "Apache 2.0", "url": "https://www.apache.org/licenses/LICENSE-2.0"},
            "version": version("textmill"),
        },
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {"api_key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{}, {"api_key": []}],
    }
    renamed: dict[str, Any] = _rename(document)
    return renamed


class _Schemas:
    """The schema of each type, or of a tuple of types."""

    def __init__(self, types: list[Any], schemas: tuple[dict[str, Any], ...]) -> None:
        self._known = list(zip(types, schemas, strict=True))

    def __getitem__(self, kind: Any) -> dict[str, Any]:
        if isinstance(kind, tuple):
            return {"anyOf": [self[one] for one in kind]}
        return next(schema for known, schema in self._known if known == kind)


def _types_of(operations: list[Operation]) -> list[Any]:
    types: list[Any] = [*_GRAMMARS, DeclaredTool]
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
            {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
            for name in operation.parameters
        ]
    if operation.body is not None:
        body: dict[str, Any] = {"schema": schema_of[operation.body]}
        if operation.example is not None:
            body["example"] = operation.example
        described["requestBody"] = {"required": True, "content": {_JSON: body}}
    return described


def _rename(value: Any) -> Any:
    """The same with the names of the components as TGI has them."""
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
