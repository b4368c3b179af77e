"""POST /vertex, Vertex AI's predictions. Each instance is a call of its own, and all instances run side by side."""

import asyncio
from typing import Any

import msgspec
from starlette.types import ASGIApp, Receive, Scope, Send

from textmill_router.api.tgi.types import VertexAnswer, VertexBody
from textmill_router.errors import RequestError, ValidationFailed
from textmill_router.exact_json import encode_exactly, exact_decoder
from textmill_router.http.call import call_of, open_call
from textmill_router.http.inner_calls import InnerAnswer, name_instance, replay
from textmill_router.http.json_body import ClientLeft, read_json
from textmill_router.http.replies import send_error, send_reply
from textmill_router.serving.service import Service

_DECODER = exact_decoder(VertexBody)
_KEPT_HEADERS = frozenset({b"retry-after", b"connection"})


class _InstanceFailed(Exception):
    def __init__(self, answer: InnerAnswer, index: int) -> None:
        self.answer = answer
        self.index = index


class VertexRoute:
    """An ASGI endpoint. `generate` answers instances with texts as `inputs`, `chat` those with `messages`.

    Both give the text alone. `task` is the endpoint of `POST /`, whose whole answer is the prediction of a
    conversation, and of each instance with `inputs` where there is no `generate`.
    """

    def __init__(self, service: Service, *, generate: ASGIApp | None, task: ASGIApp, chat: ASGIApp) -> None:
        self._service = service
        self._generate = generate
        self._task = task
        self._chat = chat

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            body = await read_json(scope, receive, _DECODER, self._service.payload_limit)
            calls = _calls_of(body)
        except ClientLeft:
            return
        except RequestError as error:
            await send_error(scope, send, error)
            return
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [
                    group.create_task(self._predict(scope, receive, fields, index))
                    for index, fields in enumerate(calls)
                ]
        except ExceptionGroup as failed:
            first = failed.exceptions[0]
            if not isinstance(first, _InstanceFailed):
                raise first from None
            if first.answer.status:
                kept = [header for header in first.answer.headers if header[0] in _KEPT_HEADERS]
                instance = body.instances[first.index]
                own = instance.keys() if isinstance(instance, dict) else ()
                named = name_instance(first.answer.body, first.index, own)
                await send_reply(scope, send, first.answer.status, named, headers=kept)
            return
        answer = VertexAnswer([task.result() for task in tasks])
        await send_reply(scope, send, 200, msgspec.json.encode(answer))

    async def _predict(self, scope: Scope, receive: Receive, fields: dict[str, Any], index: int) -> Any:
        """Return the prediction of one instance, whose call has these fields. Raises _InstanceFailed."""
        is_chat = fields.get("inputs") is None
        generate = None if isinstance(fields.get("inputs"), dict) else self._generate
        part = {**scope, "extensions": {}}
        call = call_of(scope)
        inner = open_call(part, f"{call.request_id}-{index}")
        inner.route, inner.trace_id, inner.arrival_s = call.route, call.trace_id, call.arrival_s
        inner.caller = call.caller
        answer = InnerAnswer()
        content = encode_exactly({**fields, "stream": False})
        part["headers"] = [header for header in scope["headers"] if header[0] not in (b"content-length", b"expect")]
        endpoint = self._chat if is_chat else generate or self._task
        await endpoint(part, replay(content, receive), answer.send)
        if answer.status != 200:
            raise _InstanceFailed(answer, index)
        found = msgspec.json.decode(answer.body)
        return _text_of(found) if is_chat or generate is not None else found


def _calls_of(body: VertexBody) -> list[dict[str, Any]]:
    """Return the fields of the call of each instance. Raises ValidationFailed for an instance that is none."""
    if not body.instances:
        raise ValidationFailed("`instances` must hold at least one instance", field="instances")
    calls = []
    for index, instance in enumerate(body.instances):
        fields: dict[str, Any] = {"inputs": instance}
        if isinstance(instance, dict):
            if _has_any(instance, "inputs", "messages"):
                fields = dict(instance)
            elif not _has_any(instance, "text"):
                name = f"instances[{index}]"
                raise ValidationFailed(
                    f"`{name}` must be a text, or have `inputs`, `messages`, or the `text` of a conversation",
                    field=name,
                )
        if fields.get("inputs") is not None and fields.get("parameters") is None:
            fields["parameters"] = body.parameters
        calls.append(fields)
    return calls


def _has_any(instance: dict[str, Any], *names: str) -> bool:
    return any(instance.get(name) is not None for name in names)


def _text_of(answer: Any) -> Any:
    """Return the text of an answer of either dialect, or a list for an instance that asked for several texts."""
    if isinstance(answer, list):
        return [_text_of(one) for one in answer]
    if "generated_text" in answer:
        return answer["generated_text"]
    texts = [choice["message"]["content"] for choice in answer["choices"]]
    return texts[0] if len(texts) == 1 else texts
