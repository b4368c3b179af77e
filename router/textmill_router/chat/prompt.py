"""Makes the prompt of a conversation: roles that the template knows, a message to continue, protection from forgery."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from textmill_router.chat.conversation import Conversation, Message
from textmill_router.chat.marked_text import MARK
from textmill_router.chat.message_content import IMAGE_PART, last_text, text_of, with_more_text
from textmill_router.chat.role_safety import RoleSafety
from textmill_router.chat.template import ChatTemplate
from textmill_router.errors import TemplateFailed, ValidationFailed
from textmill_router.media.image_source import ImageSource

# Roles that templates and clients are made for. Any other role must not look like a part of a special token.
KNOWN_ROLES = frozenset({"system", "developer", "user", "assistant", "tool", "function", "ipython", "model"})
# The roles whose texts may hold the model's own markup: the model itself, and whoever instructs the model.
_MARKUP_ROLES = frozenset({"assistant", "model", "system", "developer"})
_MARKUP_FIELDS = ("content", "reasoning_content", "thinking")
# Appended to the message that the model continues. The trailing space shows whether the template trims the message.
_GOES_ON = "\ufdd1goes-on\ufdd1 "


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """A conversation to render. For `add_generation_prompt` and `continue_final_message` None is the default."""

    messages: list[Message]  # without nulls; a content is a text or a list of parts
    tools: list[dict[str, Any]] | None = None
    documents: list[dict[str, Any]] | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    variables: Mapping[str, Any] = field(default_factory=dict)
    images: tuple[ImageSource, ...] = ()  # in the order of the messages' image parts

    @property
    def goes_on(self) -> bool:
        """Whether the model continues the final message.

        It does if the call says so, and by default if the final message is the assistant's and the call does not ask
        for a new message.
        """
        if self.continue_final_message is not None:
            return self.continue_final_message
        last = self.messages[-1]
        return last["role"] == "assistant" and "content" in last and not self.add_generation_prompt


@dataclass(frozen=True, slots=True)
class ChatPrompt:
    """A rendered prompt. The tokenizer encodes each of the `pieces` alone.

    `begun` is the answer's part of the prompt, where the prompt shows the last message as it is: the text behind the
    message, or the message and what follows it where the model goes on with the message.
    """

    pieces: tuple[str, ...]
    begun: str = ""

    @property
    def text(self) -> str:
        return "".join(self.pieces)


def make_prompt(template: ChatTemplate, chat: ChatRequest, safety: RoleSafety) -> ChatPrompt:
    """Render a conversation.

    Raises ValidationFailed for a call that contradicts itself or holds what the template leaves out, and TemplateFailed
    where the template or one of its operations fails.
    """
    if not chat.messages:
        raise ValidationFailed("`messages` must not be empty", field="messages")
    goes_on = chat.goes_on
    if goes_on and chat.add_generation_prompt:
        raise ValidationFailed(
            "`continue_final_message` and `add_generation_prompt` exclude each other: one goes on with the last "
            "message, the other begins a new one",
            field="continue_final_message",
        )
    for index, message in enumerate(chat.messages):
        _check_role(message["role"], index, safety)
    messages = [_guarded(message, safety) for message in chat.messages]
    tools, documents, variables = safety.guard([chat.tools, chat.documents, dict(chat.variables)])
    messages = [_known_to(template, message, index) for index, message in enumerate(messages)]
    last_said = str(last_text(messages[-1].get("content") or "")).strip()
    if goes_on:
        last = messages[-1]
        if "content" not in last:
            raise ValidationFailed("the last message has no text to go on with", field="continue_final_message")
        messages[-1] = {**last, "content": with_more_text(last["content"], _GOES_ON)}
    conversation = Conversation(
        messages=messages,
        tools=tools,
        documents=documents,
        add_generation_prompt=not goes_on and chat.add_generation_prompt is not False,
        variables=variables,
    )
    rendered = template.render(conversation)
    prompt = _cut_open(rendered) if goes_on else rendered
    return ChatPrompt(safety.cut(prompt), _begun(str(prompt), last_said, goes_on=goes_on))


def _check_role(role: str, index: int, safety: RoleSafety) -> None:
    if not role:
        path = f"messages[{index}].role"
        raise ValidationFailed(f"`{path}` must not be empty", field=path)
    if role not in KNOWN_ROLES and safety.forges(role):
        raise ValidationFailed(
            f"`messages[{index}].role` {role!r} is part of a special token's text: it could end the message",
            field=f"messages[{index}].role",
        )


def _guarded(message: Message, safety: RoleSafety) -> Message:
    """Return the message with marks in all texts but known roles and the names of fields, which no client chooses."""
    role = message["role"]
    guarded = {"role": role if role in KNOWN_ROLES else safety.guard(role)}
    for name, value in message.items():
        if name != "role":
            keeps_markup = role in _MARKUP_ROLES and name in _MARKUP_FIELDS
            if name == "content" and isinstance(value, list):
                guarded[name] = [
                    part
                    if part is IMAGE_PART
                    else {**part, "text": safety.guard(part["text"], keeps_markup=keeps_markup)}
                    for part in value
                ]
            else:
                guarded[name] = safety.guard(value, keeps_markup=keeps_markup)
    return guarded


def _known_to(template: ChatTemplate, message: Message, index: int) -> Message:
    """Return the message in the form that the template reads; `developer` is `system` where that is the known role."""
    role = message["role"]
    if role == "developer" and not template.mentions("developer"):
        role = "system"
    if text_of(message.get("content") or "") and not template.forms.content(role).is_read:
        raise ValidationFailed(
            f"the chat template of this model leaves the content of {message['role']!r} messages out",
            field=f"messages[{index}].content",
        )
    return template.forms.fit({**message, "role": role})


def _begun(prompt: str, last_said: str, *, goes_on: bool) -> str:
    """The answer's part of the prompt; empty where the text of the last message is not found."""
    found = prompt.rfind(last_said) if last_said else -1
    if found < 0:
        return ""
    return prompt[found if goes_on else found + len(last_said) :].replace(MARK, "")


def _cut_open(rendered: str) -> str:
    """Return the prompt up to the end of the final message, without trailing space where the template trims texts."""
    end = rendered.rfind(_GOES_ON.rstrip())
    if end < 0:
        raise TemplateFailed("the template leaves the final message out, so it cannot be continued")
    prompt = rendered[:end]
    return prompt if rendered.startswith(_GOES_ON, end) else prompt.rstrip(MARK).rstrip()
