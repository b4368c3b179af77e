"""Answers as `/openapi.json` describes them, where the code that writes them has no struct of its own."""

from typing import Any, Literal

import msgspec
from msgspec import UNSET, UnsetType

from textmill_router.api.openai.completion_answers import LegacyLogprobs
from textmill_router.api.openai.prompt_logprobs import PromptLogprobs
from textmill_router.api.openai.types import TokenLogprob, Usage
from textmill_router.api.tgi.types import StreamDetails, Token, TokenizedToken

OpenAIFinish = Literal["stop", "length", "tool_calls", "function_call"]


class ErrorResponse(msgspec.Struct):
    """An error of TGI's dialect."""

    error: str
    error_type: str
    phase: str | UnsetType = UNSET  # while loading
    estimated_time: float | UnsetType = UNSET  # seconds until the model is ready


class HealthAnswer(msgspec.Struct):
    """The 503 of /health. `percent` tells how much of the weights is read."""

    error: str
    error_type: str
    state: str
    phase: str
    percent: int | UnsetType = UNSET


class ProbeAnswer(msgspec.Struct):
    """The answer of /health/live, /health/ready and /health/startup. `since_s` are the seconds in the state."""

    state: str
    since_s: float
    phase: str
    percent: int | UnsetType = UNSET


class OpenAIErrorBody(msgspec.Struct):
    """The fields of an error that OpenAI's clients read."""

    message: str
    type: str
    param: str | None
    code: str | None


class OpenAIErrorResponse(msgspec.Struct):
    """An error on /v1, unless `--v1-errors tgi` is set."""

    error: OpenAIErrorBody
    error_type: str


class StreamResponse(msgspec.Struct):
    """One event of a stream of TGI's dialect."""

    index: int
    token: Token
    generated_text: str | None
    details: StreamDetails | None
    top_tokens: list[Token] | UnsetType = UNSET


class ChatTokenizeResponse(msgspec.Struct):
    """Answer of /chat_tokenize."""

    tokenize_response: list[TokenizedToken]
    templated_text: str


class ModelInfo(msgspec.Struct):
    """A model that is served."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    root: str
    parent: str | None
    max_model_len: int | None


class ModelList(msgspec.Struct):
    """Answer of GET /v1/models."""

    object: Literal["list"]
    data: list[ModelInfo]


class Function(msgspec.Struct):
    """A call as the model made it; `arguments` is JSON text."""

    name: str
    arguments: str


class OutputToolCall(msgspec.Struct):
    """A tool that the model calls."""

    id: str
    type: Literal["function"]
    function: Function


class OutputMessage(msgspec.Struct):
    """The message of the model."""

    role: Literal["assistant"]
    content: str | None
    reasoning_content: str | UnsetType = UNSET
    tool_calls: list[OutputToolCall] | UnsetType = UNSET
    function_call: Function | UnsetType = UNSET  # where `functions` were given


class ChatCompletionLogprobs(msgspec.Struct):
    """Log-probabilities of a choice."""

    content: list[TokenLogprob]
    refusal: Any = None


class ChatCompletionComplete(msgspec.Struct):
    """A complete choice."""

    index: int
    message: OutputMessage
    logprobs: ChatCompletionLogprobs | None
    finish_reason: OpenAIFinish
    token_ids: list[int] | UnsetType = UNSET  # with `return_token_ids`
    stop_reason: str | int | UnsetType | None = UNSET  # with `stop` or `stop_token_ids`


class ChatCompletion(msgspec.Struct):
    """Answer of /v1/chat/completions."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatCompletionComplete]
    usage: Usage
    prompt_token_ids: list[int] | UnsetType = UNSET  # with `return_token_ids`
    prompt_logprobs: PromptLogprobs | UnsetType = UNSET  # with `prompt_logprobs`


class DeltaFunction(msgspec.Struct):
    """A part of a call. The first part has the name, and further parts have pieces of the arguments."""

    arguments: str
    name: str | UnsetType = UNSET


class DeltaToolCall(msgspec.Struct):
    """A part of a tool call."""

    index: int
    function: DeltaFunction
    id: str | UnsetType = UNSET
    type: Literal["function"] | UnsetType = UNSET


class ChatCompletionDelta(msgspec.Struct):
    """The part of a message that a chunk adds to its choice."""

    role: Literal["assistant"] | UnsetType = UNSET
    content: str | UnsetType | None = UNSET
    reasoning_content: str | UnsetType = UNSET
    tool_calls: list[DeltaToolCall] | UnsetType = UNSET
    function_call: DeltaFunction | UnsetType = UNSET  # where `functions` were given


class ChatCompletionChoice(msgspec.Struct):
    """A choice of a chunk."""

    index: int
    delta: ChatCompletionDelta
    logprobs: ChatCompletionLogprobs | None
    finish_reason: OpenAIFinish | None
    token_ids: list[int] | UnsetType = UNSET  # with `return_token_ids`
    stop_reason: str | int | UnsetType | None = UNSET  # of the last chunk, with `stop` or `stop_token_ids`


class ChatCompletionChunk(msgspec.Struct):
    """One event of a chat stream."""

    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatCompletionChoice]
    usage: Usage | UnsetType | None = UNSET  # of a stream with `include_usage`
    prompt_token_ids: list[int] | UnsetType = UNSET  # of the first chunk of a choice, with `return_token_ids`


class CompletionChunkChoice(msgspec.Struct):
    """A choice of a chunk."""

    index: int
    text: str
    logprobs: LegacyLogprobs | None
    finish_reason: OpenAIFinish | None
    token_ids: list[int] | UnsetType = UNSET  # with `return_token_ids`
    prompt_token_ids: list[int] | UnsetType = UNSET  # of the first chunk with a token, with `return_token_ids`
    stop_reason: str | int | UnsetType | None = UNSET  # of the last chunk, with `stop` or `stop_token_ids`


class CompletionChunk(msgspec.Struct):
    """One event of a stream of /v1/completions."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[CompletionChunkChoice]
    usage: Usage | UnsetType | None = UNSET  # of a stream with `include_usage`


class JsonSchemaConfig(msgspec.Struct):
    """A schema, and a name that has no effect."""

    schema: dict[str, Any] | bool | str
    name: str | None = None


class JsonGrammar(msgspec.Struct):
    """The output matches a JSON schema, given as object or as a string that holds one."""

    type: Literal["json", "json_object"]
    value: dict[str, Any] | bool | str | None = None


class RegexGrammar(msgspec.Struct):
    """The whole output matches a regular expression."""

    type: Literal["regex"]
    value: str


class JsonSchemaGrammar(msgspec.Struct):
    """The output matches a JSON schema."""

    type: Literal["json_schema"]
    value: JsonSchemaConfig
