"""One path for several dialects: a body goes to the endpoint of that dialect whose field it has."""

from collections.abc import Mapping
from typing import Any

import msgspec
from starlette.types import ASGIApp, Receive, Scope, Send

from textmill_router.errors import RequestError, ValidationFailed
from textmill_router.http.inner_calls import replay
from textmill_router.http.json_body import ClientLeft, decode_json, read_body
from textmill_router.http.replies import send_error
from textmill_router.serving.service import Service

_ABSENT = msgspec.Raw(b"null")


class ByShape:
    """An ASGI endpoint. `endpoints` maps the fields that tell a dialect.

    A body that has none of the fields is refused, and one that has several, because only one could count.
    """

    def __init__(self, service: Service, endpoints: Mapping[str, ASGIApp]) -> None:
        self._service = service
        self._endpoints = endpoints
        fields = [(name, msgspec.Raw, _ABSENT) for name in endpoints]
        self._decoder: msgspec.json.Decoder[Any] = msgspec.json.Decoder(msgspec.defstruct("Shape", fields, gc=False))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            body = await read_body(scope, receive, self._service.payload_limit)
            shape = decode_json(body, self._decoder)
        except ClientLeft:
            return
        except RequestError as error:
            await send_error(scope, send, error)
            return
        given = [name for name in self._endpoints if bytes(getattr(shape, name)).strip() != b"null"]
        if not given:
            await send_error(scope, send, self._nothing_given())
            return
        if len(given) > 1:
            await send_error(scope, send, _several_given(given))
            return
        await self._endpoints[given[0]](scope, replay(body, receive), send)

    def _nothing_given(self) -> ValidationFailed:
        first, *others = self._endpoints
        wanted = " or ".join(f"`{name}`" for name in others)
        return ValidationFailed(
            f"`{first}` is missing; add the field, or {wanted} for other servers' form", field=first
        )


def _several_given(names: list[str]) -> ValidationFailed:
    shown = " and ".join(f"`{name}`" for name in names)
    return ValidationFailed(f"{shown} are the forms of different servers: send one of them", field=names[1])
