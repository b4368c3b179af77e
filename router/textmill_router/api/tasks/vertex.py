"""POST /vertex for models without generation: each instance is the body of a call, or the inputs of one."""

import asyncio

import msgspec
from starlette.types import ASGIApp, Receive, Scope, Send

from textmill_router.errors import RequestError, ValidationFailed
from textmill_router.http.call import call_of, open_call
from textmill_router.http.inner_calls import InnerAnswer, name_instance, replay
from textmill_router.http.json_body import ClientLeft, decode_json, read_body
from textmill_router.http.replies import JSON, send_error, send_reply
from textmill_router.serving.service import Service
from textmill_router.tasks.forms import family_of
from textmill_router.tasks.rerank import TASK as RERANK

_KEPT_HEADERS = frozenset({b"retry-after", b"connection"})
_ABSENT = msgspec.Raw(b"null")


class _Body(msgspec.Struct, gc=False):
    """The instances, and the parameters of those that have none of their own."""

    instances: list[msgspec.Raw]
    parameters: msgspec.Raw = _ABSENT


_BODY = msgspec.json.Decoder(_Body)
_FIELDS = msgspec.json.Decoder(dict[str, msgspec.Raw])


class VertexTaskRoute:
    """An ASGI endpoint. `task` answers the calls that the instances make, side by side."""

    def __init__(self, service: Service, task: ASGIApp) -> None:
        self._service = service
        self._task = task

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            data = await read_body(scope, receive, self._service.task_payload_limit)
            body = decode_json(data, _BODY)
            if not body.instances:
                raise ValidationFailed("`instances` must hold at least one instance", field="instances")
        except ClientLeft:
            return
        except RequestError as error:
            await send_error(scope, send, error)
            return
        takes_query = RERANK in family_of(self._service.settings.task or "")
        contents = [_call_body(instance, body.parameters, takes_query=takes_query) for instance in body.instances]
        found = await asyncio.gather(
            *(self._predict(scope, receive, content, index) for index, content in enumerate(contents))
        )
        index, failed = next(((index, answer) for index, answer in enumerate(found) if answer.status != 200), (0, None))
        if failed is None:
            predictions = [_prediction(answer) for answer in found]
            await send_reply(scope, send, 200, msgspec.json.encode({"predictions": predictions}))
        elif failed.status:
            kept = [header for header in failed.headers if header[0] in _KEPT_HEADERS]
            own = _own_fields(body.instances[index])
            await send_reply(scope, send, failed.status, name_instance(failed.body, index, own), headers=kept)

    async def _predict(self, scope: Scope, receive: Receive, content: bytes, index: int) -> InnerAnswer:
        part = {**scope, "extensions": {}}
        call = call_of(scope)
        inner = open_call(part, f"{call.request_id}-{index}")
        inner.route, inner.trace_id, inner.arrival_s = call.route, call.trace_id, call.arrival_s
        inner.caller = call.caller
        part["headers"] = [header for header in scope["headers"] if header[0] not in (b"content-length", b"expect")]
        answer = InnerAnswer()
        await self._task(part, replay(content, receive), answer.send)
        return answer


def _call_body(instance: msgspec.Raw, parameters: msgspec.Raw, *, takes_query: bool) -> bytes:
    """Return the body of the call of an instance, which is a body itself if it has `inputs`, or `query` of rerank."""
    body = _own_fields(instance)
    names = ("inputs", "query") if takes_query else ("inputs",)
    if all(bytes(body.get(name, _ABSENT)) == b"null" for name in names):
        body = {"inputs": instance}
    if bytes(body.get("parameters", _ABSENT)) == b"null":
        body["parameters"] = parameters
    return msgspec.json.encode(body)


def _own_fields(instance: msgspec.Raw) -> dict[str, msgspec.Raw]:
    return _FIELDS.decode(instance) if bytes(instance).lstrip()[:1] == b"{" else {}


def _prediction(answer: InnerAnswer) -> msgspec.Raw | bytes:
    """Return an answer as a part of JSON: JSON itself, and a file as bytes, which are written in base64."""
    is_json = (b"content-type", JSON) in answer.headers
    return msgspec.Raw(answer.body) if is_json else answer.body
