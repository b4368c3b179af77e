"""Messages and tools of a chat body as chat templates take them: plain JSON values, no nulls, content text or parts."""

from collections.abc import Iterable
from typing import Any

import msgspec

from textmill_router.api.openai.chat_types import CalledTool, ChatBody, ChatMessage, ContentPart
from textmill_router.chat.conversation import Message
from textmill_router.chat.message_content import IMAGE_PART, Content
from textmill_router.chat.message_forms import SENT_ARGUMENTS
from textmill_router.chat.prompt import ChatRequest
from textmill_router.errors import ValidationFailed
from textmill_router.http.json_depth import is_too_deep
from textmill_router.media.image_source import DETAILS, ImageSource

_OWN_VARIABLES = ("messages", "tools", "documents", "add_generation_prompt")
_SPEAKERS = frozenset({"user", "system", "developer"})  # roles whose messages are nothing but their content
TEXT_PARTS = frozenset({"text", "input_text", "output_text", "refusal", None})
IMAGE_PARTS = frozenset({"image_url", "input_image"})


def chat_request(body: ChatBody, *, takes_images: bool = False) -> ChatRequest:
    """The conversation without its tools. Raises ValidationFailed."""
    images = tuple(_images(body.messages))
    if images and not takes_images:
        raise ValidationFailed(
            f"`{images[0].field}`: this model takes no images; leave the part out", field=images[0].field
        )
    return ChatRequest(
        images=images,
        messages=[_message(message, f"messages[{index}]") for index, message in enumerate(body.messages)],
        documents=body.documents,
        add_generation_prompt=body.add_generation_prompt,
        continue_final_message=body.continue_final_message,
        variables=_variables(body),
    )


def _variables(body: ChatBody) -> dict[str, Any]:
    """Return the variables that the body sets for the template. Raises ValidationFailed for one of the server's."""
    variables = body.chat_template_kwargs or {}
    for name in _OWN_VARIABLES:
        if name in variables:
            path = f"chat_template_kwargs.{name}"
            raise ValidationFailed(f"`{path}` must not be set: use the field `{name}`", field=path)
    return variables if body.reasoning_effort is None else {"reasoning_effort": body.reasoning_effort, **variables}


def _message(message: ChatMessage, path: str) -> Message:
    # A function's answer in the deprecated form is a tool's.
    shown: Message = {"role": "tool" if message.role == "function" else message.role}
    calls = message.tool_calls
    if message.function_call is not None:  # the deprecated form of one call
        calls = [*(calls or ()), CalledTool(message.function_call)]
    said = message.content
    if not said and message.refusal and message.role not in _SPEAKERS:
        said = message.refusal
    content = _content(said, f"{path}.content")
    if content is None and message.role in _SPEAKERS:
        raise ValidationFailed(
            f"`{path}.content` is missing: a message of the role `{message.role}` needs text", field=f"{path}.content"
        )
    if content is not None or not calls:
        shown["content"] = content if content is not None else ""
    if message.name is not None:
        shown["name"] = message.name
    if calls:
        shown["tool_calls"] = [_tool_call(call) for call in calls]
    if message.tool_call_id is not None:
        shown["tool_call_id"] = message.tool_call_id
    reasoning = message.reasoning_content if message.reasoning_content is not None else message.reasoning
    if reasoning is not None:
        shown["reasoning_content"] = reasoning
    return shown


def _content(content: str | list[str | ContentPart] | None, path: str) -> Content | None:
    """Of parts their text; a refusal is what the assistant said."""
    if content is None or isinstance(content, str):
        return content
    parts: list[dict[str, Any]] = []
    for index, part in enumerate(content):
        if isinstance(part, str):
            parts.append(_text_part(part))
        elif part.type in IMAGE_PARTS:
            parts.append(IMAGE_PART)
        elif part.type not in TEXT_PARTS:
            raise ValidationFailed(
                f"`{path}[{index}]` has type {part.type!r}: this server takes text and images only; leave the part out",
                field=f"{path}[{index}]",
            )
        elif part.text is None and part.refusal is None:
            raise ValidationFailed(f"`{path}[{index}]` has no `text`", field=f"{path}[{index}]")
        else:
            parts.append(_text_part(part.text or part.refusal or ""))
    return parts


def _text_part(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


def _images(messages: Iterable[ChatMessage]) -> Iterable[ImageSource]:
    """Return the images of a conversation in order. Raises ValidationFailed for an image part without an image."""
    for number, message in enumerate(messages):
        for index, part in enumerate(message.content or ()):
            if not isinstance(part, str) and part.type in IMAGE_PARTS:
                yield _image(part, f"messages[{number}].content[{index}]")


def _image(part: ContentPart, path: str) -> ImageSource:
    image = part.image_url
    if image is None:
        raise ValidationFailed(f"`{path}` has no `image_url`", field=f"{path}.image_url")
    url, detail = (image, part.detail) if isinstance(image, str) else (image.url, image.detail)
    chosen = DETAILS.get(detail or "auto")
    if chosen is None:
        field = f"{path}.image_url.detail" if not isinstance(image, str) else f"{path}.detail"
        raise ValidationFailed(f"`{field}` must be {', '.join(DETAILS)}, found {detail!r}", field=field)
    return ImageSource(url, f"{path}.image_url", chosen)


def _tool_call(call: CalledTool) -> dict[str, Any]:
    """Return the call with its arguments as an object, and the text that the client sent for them; other text stays."""
    arguments = call.function.arguments if call.function.arguments is not None else call.function.parameters
    function: dict[str, Any] = {"name": call.function.name, "arguments": {} if arguments is None else arguments}
    if isinstance(arguments, str):
        try:
            parsed = None if is_too_deep(arguments.encode()) else msgspec.json.decode(arguments)
        except msgspec.DecodeError:
            parsed = None
        if isinstance(parsed, dict):
            function |= {"arguments": parsed, SENT_ARGUMENTS: arguments}
    shown: dict[str, Any] = {"type": call.type or "function", "function": function}
    return {"id": call.id, **shown} if call.id is not None else shown
