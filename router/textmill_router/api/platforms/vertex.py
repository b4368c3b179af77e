"""POST /vertex, Vertex AI's predictions. Each instance is a call of its own, and all instances run side by side."""

import asyncio
from typing import Any

import msgspec
from starlette.types import ASGIApp, Receive, Scope, Send

from textmill_router.api.tgi.types import VertexAnswer, VertexBody
from textmill_router.errors import RequestError, ValidationFailed
from textmill_router.exact_json import encode_exactly, exact_decoder
from textmill_router.http.call import call_of, open_call
from textmill_router.http.inner_calls import InnerAnswer, replay
from textmill_router.http.json_body import ClientLeft, read_json
from textmill_router.http.replies import send_error, send_reply
from textmill_router.serving.service import Service

_DECODER = exact_decoder(VertexBody)
_KEPT_HEADERS = frozenset({b"retry-after", b"connection"})


class _InstanceFailed(Exception):
    def __init__(self, answer: InnerAnswer) -> None:
        self.answer = answer


class VertexRoute:
    """An ASGI endpoint. `generate` answers instances with `inputs`, `chat` those with `messages`."""

    def __init__(self, service: Service, *, generate: ASGIApp, chat: ASGIApp) -> None:
        self._service = service
        self._generate = generate
        self._chat = chat

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            body = await read_json(scope, receive, _DECODER, self._service.payload_limit)
            _check_instances(body.instances)
        except ClientLeft:
            return
        except RequestError as error:
            await send_error(scope, send, error)
            return
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [
                    group.create_task(self._predict(scope, receive, instance, index))
                    for index, instance in enumerate(body.instances)
                ]
        except ExceptionGroup as failed:
            first = failed.exceptions[0]
            if not isinstance(first, _InstanceFailed):
                raise first from None
            if first.answer.status:
                kept = [header for header in first.answer.headers if header[0] in _KEPT_HEADERS]
                await send_reply(scope, send, first.answer.status, first.answer.body, headers=kept)
            return
        answer = VertexAnswer([task.result() for task in tasks])
        await send_reply(scope, send, 200, msgspec.json.encode(answer))

    async def _predict(self, scope: Scope, receive: Receive, instance: dict[str, Any], index: int) -> Any:
        """Return the text of one instance. Raises _InstanceFailed."""
        is_chat = instance.get("inputs") is None
        part = {**scope, "extensions": {}}
        call = call_of(scope)
        inner = open_call(part, f"{call.request_id}-{index}")
        inner.route, inner.trace_id, inner.arrival_s = call.route, call.trace_id, call.arrival_s
        inner.caller = call.caller
        answer = InnerAnswer()
        content = encode_exactly({**instance, "stream": False})
        part["headers"] = [header for header in scope["headers"] if header[0] not in (b"content-length", b"expect")]
        endpoint = self._chat if is_chat else self._generate
        await endpoint(part, replay(content, receive), answer.send)
        if answer.status != 200:
            raise _InstanceFailed(answer)
        return _text_of(msgspec.json.decode(answer.body))


def _check_instances(instances: list[dict[str, Any]]) -> None:
    if not instances:
        raise ValidationFailed("`instances` must hold at least one instance", field="instances")
    for index, instance in enumerate(instances):
        if instance.get("inputs") is None and instance.get("messages") is None:
            name = f"instances[{index}]"
            raise ValidationFailed(f"`{name}` must have `inputs` or `messages`", field=name)


def _text_of(answer: Any) -> Any:
    """Return the text of an answer of either dialect, or a list for an instance that asked for several texts."""
    if isinstance(answer, list):
        return [_text_of(one) for one in answer]
    if "generated_text" in answer:
        return answer["generated_text"]
    texts = [choice["message"]["content"] for choice in answer["choices"]]
    return texts[0] if len(texts) == 1 else texts
