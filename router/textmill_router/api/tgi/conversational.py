"""POST / with a conversation as inputs: the turns become a chat, and the answer has the form of the Inference API."""

import re
from typing import Any

import msgspec
from starlette.types import ASGIApp, Receive, Scope, Send

from textmill_router.bounds import MAX_U32, shown_number
from textmill_router.errors import RequestError, ValidationFailed
from textmill_router.http.inner_calls import InnerAnswer, replay
from textmill_router.http.json_body import ClientLeft, decode_json, read_body
from textmill_router.http.replies import send_reply
from textmill_router.serving.call import refuse
from textmill_router.serving.service import Service

# Bodies with an object as inputs; all others go on as they are.
_HAS_OBJECT = re.compile(rb'"inputs"\s*:\s*\{')


class Conversation(msgspec.Struct, gc=False):
    """The new turn of the user, and the turns before it."""

    text: str
    image: Any = None  # refused, because a turn of a conversation is a text
    past_user_inputs: list[str] | None = None
    generated_responses: list[str] | None = None

    def turns(self) -> list[tuple[str, str]]:
        """Return the turns before, each a text of the user with its response. There are equally many of both."""
        return list(zip(self.past_user_inputs or [], self.generated_responses or [], strict=True))


class ConversationParameters(msgspec.Struct, gc=False):
    """How the answer is written. `max_length` is read as the most tokens of the answer."""

    max_new_tokens: int | None = None
    max_length: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    repetition_penalty: float | None = None
    do_sample: bool | None = None


class ConversationBody(msgspec.Struct, gc=False):
    """The body of a conversational call."""

    inputs: Conversation
    parameters: ConversationParameters | None = None


class ConversationTurns(msgspec.Struct, gc=False):
    """All turns, in the order in which they were said."""

    past_user_inputs: list[str]
    generated_responses: list[str]


class ConversationAnswer(msgspec.Struct, gc=False):
    """The answer of a conversational call. `warnings` is empty, and is there because clients of the page read it."""

    generated_text: str
    conversation: ConversationTurns
    warnings: list[str]


_DECODER = msgspec.json.Decoder(ConversationBody)


class ConversationalRoute:
    """An ASGI endpoint. `text` answers bodies whose inputs are texts, and `chat` the chats of conversations."""

    def __init__(self, service: Service, *, text: ASGIApp, chat: ASGIApp) -> None:
        self._service = service
        self._text = text
        self._chat = chat

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            self._service.permits.check_open()
            data = await read_body(scope, receive, self._service.payload_limit)
            body = decode_json(data, _DECODER) if _HAS_OBJECT.search(data) else None
            chat = None if body is None else _chat_of(body)
            joined = None if body is None else self._joined_turns(body)
        except (ClientLeft, RequestError) as error:
            await refuse(self._service, scope, send, error)
            return
        if body is None:
            await self._text(scope, replay(data, receive), send)
            return
        part = {**scope, "extensions": {}}
        part["headers"] = [header for header in scope["headers"] if header[0] not in (b"content-length", b"expect")]
        answer = InnerAnswer()
        if joined is None:
            await self._chat(part, replay(msgspec.json.encode(chat), receive), answer.send)
        else:
            await self._text(part, replay(msgspec.json.encode(joined), receive), answer.send)
        if answer.status != 200:
            if answer.status:
                kept = [header for header in answer.headers if header[0] in (b"retry-after", b"connection")]
                await send_reply(scope, send, answer.status, answer.body, headers=kept)
            return
        found = msgspec.json.decode(answer.body)
        # A task of texts answers with a list, under a key that follows the task.
        text = next(iter(found[0].values())) if joined is not None else found["choices"][0]["message"]["content"] or ""
        inputs = body.inputs
        turns = ConversationTurns(
            past_user_inputs=[*(inputs.past_user_inputs or []), inputs.text],
            generated_responses=[*(inputs.generated_responses or []), text],
        )
        content = ConversationAnswer(generated_text=text, conversation=turns, warnings=[])
        headers = [header for header in answer.headers if header[0].startswith(b"x-compute") or header[0] == b"vary"]
        await send_reply(scope, send, 200, msgspec.json.encode(content), headers=headers)

    def _joined_turns(self, body: ConversationBody) -> dict[str, Any] | None:
        """Return the body of a text for a model without a template: the turns, each with the end of text behind it.

        None for a model with a template, while the model loads, and where the tokenizer has no end of text.
        """
        if self._service.is_loading:
            return None
        backend = self._service.open_backend()
        if backend.chat_templates.usable or backend.tokenizer.eos_token is None:
            return None
        inputs = body.inputs
        turns = [turn for pair in inputs.turns() for turn in pair]
        end = backend.tokenizer.eos_token
        parameters = msgspec.to_builtins(body.parameters or ConversationParameters())
        given = {name: value for name, value in parameters.items() if value is not None}
        # As in a chat, `max_length` is of the answer, and 0 switches these numbers off.
        longest = given.pop("max_length", None)
        if longest is not None:
            given.setdefault("max_new_tokens", longest)
        for name in ("top_k", "repetition_penalty"):
            if not given.get(name, 1):
                del given[name]
        if not backend.facts.has_encoder:
            given["return_full_text"] = False
        return {"inputs": "".join(turn + end for turn in (*turns, inputs.text)), "parameters": given}


def _chat_of(body: ConversationBody) -> dict[str, Any]:
    """Return the body of the chat. Raises ValidationFailed for turns that do not alternate."""
    inputs, parameters = body.inputs, body.parameters or ConversationParameters()
    num_texts, num_responses = len(inputs.past_user_inputs or []), len(inputs.generated_responses or [])
    if num_texts != num_responses:
        raise ValidationFailed(
            f"`inputs.past_user_inputs` has {num_texts} turns and `inputs.generated_responses` {num_responses}; they "
            "must be equally many",
            field="inputs.generated_responses",
        )
    if inputs.image is not None:
        raise ValidationFailed(
            "`inputs.image` is not taken beside `inputs.text`: send a chat to /v1/chat/completions, or write the image "
            "as ![](data:...) into a text in `inputs`",
            field="inputs.image",
        )
    if not inputs.text:
        raise ValidationFailed("`inputs.text` must not be empty", field="inputs.text")
    messages: list[dict[str, str]] = []
    for question, response in inputs.turns():
        messages += [{"role": "user", "content": question}, {"role": "assistant", "content": response}]
    messages.append({"role": "user", "content": inputs.text})
    chat: dict[str, Any] = {"messages": messages}
    name = "max_length" if parameters.max_new_tokens is None else "max_new_tokens"
    longest: int | None = getattr(parameters, name)
    if longest is not None and not 1 <= longest <= MAX_U32:  # the chat has another name for both fields
        path = f"parameters.{name}"
        raise ValidationFailed(f"`{path}` must be 1 to {MAX_U32}, found {shown_number(longest)}", field=path)
    for field, value in (
        ("max_tokens", longest),
        ("temperature", parameters.temperature if parameters.do_sample is not False else 0.0),
        ("top_p", parameters.top_p),
        ("top_k", parameters.top_k or None),
        ("repetition_penalty", parameters.repetition_penalty or None),
    ):
        if value is not None:
            chat[field] = value
    return chat
