"""The body of a chat call. A field that is `null` counts as absent, and unknown fields are ignored."""

from collections.abc import Mapping
from typing import Any

import msgspec

from textmill_router.api.openai.types import OpenAIBody

# Fields that have another name in TGI's dialect, by that name.
CHAT_NAMES: Mapping[str, str] = {
    "max_new_tokens": "max_tokens",
    "min_new_tokens": "min_tokens",
    "top_n_tokens": "top_logprobs",
    "inputs": "messages",
    "truncate": "truncate_prompt_tokens",
}
_NEWER_CHAT_NAMES: Mapping[str, str] = {**CHAT_NAMES, "max_new_tokens": "max_completion_tokens"}


class ImageUrl(msgspec.Struct, frozen=True, gc=False):
    """The image of a part, which is a `data:` URL or one that the server may fetch."""

    url: str
    detail: str | None = None


class ContentPart(msgspec.Struct, frozen=True, gc=False):
    """A part of a message's content. `detail` beside a URL that is a text belongs to the part."""

    type: str | None = None
    text: str | None = None
    refusal: str | None = None
    image_url: ImageUrl | str | None = None
    detail: str | None = None


class CalledFunction(msgspec.Struct, frozen=True):
    """The function that an assistant message called.

    `arguments` is JSON text. An object, and the name `parameters`, are TGI's shape.
    """

    name: str
    arguments: Any = None
    parameters: Any = None


class CalledTool(msgspec.Struct, frozen=True):
    """A tool call of an assistant message."""

    function: CalledFunction
    id: str | None = None
    type: str | None = None


class ChatMessage(msgspec.Struct, frozen=True):
    """A message of the conversation. A client can send an answer of this server back as a message."""

    role: str
    content: str | list[str | ContentPart] | None = None
    refusal: str | None = None  # what the assistant said instead of a content
    name: str | None = None
    tool_calls: list[CalledTool] | None = None
    function_call: CalledFunction | None = None
    tool_call_id: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None


class DeclaredFunction(msgspec.Struct, frozen=True):
    """A function that the model may call. Its schema is in `parameters` or in `arguments`, or is absent."""

    name: str
    description: str | None = None
    parameters: Any = None
    arguments: Any = None
    strict: bool | None = None


class DeclaredTool(msgspec.Struct, frozen=True):
    """A tool that the model may call."""

    function: DeclaredFunction
    type: str | None = None


class ChatBody(OpenAIBody, frozen=True, kw_only=True):
    """The body of /v1/chat/completions and /chat_tokenize."""

    messages: list[ChatMessage]
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: Any = None
    tool_prompt: str | None = None
    parallel_tool_calls: bool | None = None

    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    reasoning_effort: str | None = None
    documents: list[dict[str, Any]] | None = None

    functions: list[dict[str, Any]] | None = None
    function_call: Any = None
    best_of: Any = None
    chat_template: Any = None
    echo: Any = None
    modalities: Any = None
    suffix: Any = None

    @property
    def names(self) -> Mapping[str, str]:
        return CHAT_NAMES if self.max_completion_tokens is None else _NEWER_CHAT_NAMES

    @property
    def has_functions(self) -> bool:
        """Whether the tools stand in the fields that `tools` and `tool_choice` have replaced."""
        return bool(self.functions)
