"""One path for several dialects: a body goes to the endpoint of that dialect whose field it has."""

from collections.abc import Mapping
from typing import Any

import msgspec
from starlette.types import ASGIApp, Receive, Scope, Send

from textmill_router.api.platforms.sagemaker import replay
from textmill_router.errors import RequestError
from textmill_router.http.json_body import ClientLeft, decode_json, read_body
from textmill_router.http.replies import send_error
from textmill_router.serving.service import Service

_ABSENT = msgspec.Raw(b"null")


class ByShape:
    """An ASGI endpoint. `endpoints` maps the fields that tell a dialect; the first field that a body has decides.

    A body that has none of the fields goes to the first endpoint, which refuses the body.
    """

    def __init__(self, service: Service, endpoints: Mapping[str, ASGIApp]) -> None:
        self._service = service
        self._endpoints = endpoints
        fields = [(name, msgspec.Raw, _ABSENT) for name in endpoints]
        self._decoder: msgspec.json.Decoder[Any] = msgspec.json.Decoder(msgspec.defstruct("Shape", fields, gc=False))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            body = await read_body(scope, receive, self._service.settings.payload_limit)
            shape = decode_json(body, self._decoder)
        except ClientLeft:
            return
        except RequestError as error:
            await send_error(scope, send, error)
            return
        given = [name for name in self._endpoints if bytes(getattr(shape, name)).strip() != b"null"]
        name = given[0] if given else next(iter(self._endpoints))
        await self._endpoints[name](scope, replay(body, receive), send)
