"""POST /invocations, SageMaker's one route, which goes to a dialect by the shape of the body."""

from collections.abc import Mapping

import msgspec
from starlette.types import ASGIApp, Receive, Scope, Send

from textmill_router.errors import RequestError, ValidationFailed
from textmill_router.http.call import call_of
from textmill_router.http.inner_calls import replay
from textmill_router.http.json_body import ClientLeft, decode_json, read_body
from textmill_router.http.path_style import PathStyle
from textmill_router.http.replies import send_error
from textmill_router.serving.service import Service

_ABSENT = msgspec.Raw(b"null")


class _Shape(msgspec.Struct, gc=False):
    """The fields that tell the dialect. The first field that a body has decides."""

    inputs: msgspec.Raw = _ABSENT
    messages: msgspec.Raw = _ABSENT
    prompt: msgspec.Raw = _ABSENT


_DECODER = msgspec.json.Decoder(_Shape)


class InvocationsRoute:
    """An ASGI endpoint. `endpoints` are those for `inputs`, `messages` and `prompt`, with the styles of their paths."""

    def __init__(self, service: Service, endpoints: Mapping[str, tuple[ASGIApp, PathStyle]]) -> None:
        self._service = service
        self._endpoints = endpoints

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            body = await read_body(scope, receive, self._service.payload_limit)
            name = self._pick(decode_json(body, _DECODER))
        except ClientLeft:
            return
        except RequestError as error:
            await send_error(scope, send, error)
            return
        endpoint, style = self._endpoints[name]
        call_of(scope).error_style = style.errors
        await endpoint(scope, replay(body, receive), send)

    def _pick(self, shape: _Shape) -> str:
        for name in self._endpoints:
            if bytes(getattr(shape, name)).strip() != b"null":
                return name
        wanted = ", ".join(f"`{name}`" for name in self._endpoints)
        raise ValidationFailed(f"the body must have one of the fields {wanted}")
