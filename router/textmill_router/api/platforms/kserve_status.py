"""The routes under /v2 that read, and what all routes under /v2 share: the form of errors, and the model of a path."""

from importlib.metadata import version

import msgspec
from starlette.types import Receive, Scope, Send

from textmill_router.api.platforms.kserve_types import (
    BYTES,
    INPUT,
    OUTPUT,
    V2Error,
    V2Live,
    V2Model,
    V2ModelReady,
    V2Ready,
    V2Server,
    V2TensorInfo,
)
from textmill_router.errors import ModelNotFound, RequestError
from textmill_router.http.error_responses import ErrorStyle, error_event, error_kind
from textmill_router.http.path_style import PathStyle
from textmill_router.http.replies import send_error, send_reply
from textmill_router.serving.adapters import AskedAdapter
from textmill_router.serving.service import Service

MODEL_VERSION = "1"  # the one version that the model has


def _error_body(error: RequestError) -> bytes:
    return msgspec.json.encode(V2Error(str(error)))


STYLE = PathStyle(
    "/v2",
    ErrorStyle(
        status_of=lambda error: error_kind(error).status,
        body_of=_error_body,
        event_of=lambda error: error_event(_error_body(error)),
    ),
)


def check_path(scope: Scope, service: Service) -> None:
    """Raise ModelNotFound for a path whose model or version is not served. An adapter is a model of its own."""
    found = scope["path_params"]
    name, asked = found["model"], found.get("version", MODEL_VERSION)
    names = service.settings.model_names
    if name not in names and service.adapters.registry.find(name) is None:
        served = ", ".join(repr(served) for served in names)
        further = "" if service.adapters.registry.is_empty else f", and {service.adapters.shown_names()}"
        raise ModelNotFound(f"the model {name[:200]!r} does not exist: this server serves {served}{further}")
    if asked != MODEL_VERSION:
        raise ModelNotFound(f"the model {name!r} has the version {MODEL_VERSION!r}, found {asked[:64]!r} in the path")


def asked_adapter(scope: Scope, service: Service) -> AskedAdapter | None:
    """Return the adapter that a checked path names, or None for the base model."""
    name = scope["path_params"]["model"]
    return None if name in service.settings.model_names else AskedAdapter(name)


class V2LiveRoute:
    """An ASGI endpoint, which answers as /health/live does: 200, or 503 if only a new start of the server helps."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_live = self._service.health.look().live
        await send_reply(scope, send, 200 if is_live else 503, msgspec.json.encode(V2Live(is_live)))


class V2ReadyRoute:
    """An ASGI endpoint, which answers as /health/ready does: 200 if a load balancer should send calls here, or 503.

    A path with a model's name gets the answer for that model, or 404 for a model that is not served.
    """

    def __init__(self, service: Service) -> None:
        self._service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        row = self._service.health.look()
        name = scope.get("path_params", {}).get("model")
        if name is not None:
            try:
                check_path(scope, self._service)
            except RequestError as error:
                await send_error(scope, send, error)
                return
            adapter = self._service.adapters.registry.find(name)
            is_ready = row.ready and (adapter is None or adapter.facts is not None)
            status = 200 if is_ready else 503
            await send_reply(scope, send, status, msgspec.json.encode(V2ModelReady(name, is_ready)))
            return
        await send_reply(scope, send, 200 if row.ready else 503, msgspec.json.encode(V2Ready(row.live, row.ready)))


class V2ServerRoute:
    """An ASGI endpoint of the server's metadata. The extension `generate` is the one of Triton and KServe."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send_reply(scope, send, 200, msgspec.json.encode(V2Server("textmill", version("textmill"), ["generate"])))


class V2ModelRoute:
    """An ASGI endpoint of the model's metadata, also while the model loads."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            check_path(scope, self._service)
        except RequestError as error:
            await send_error(scope, send, error)
            return
        answer = V2Model(
            name=scope["path_params"]["model"],
            versions=[MODEL_VERSION],
            platform="textmill",
            inputs=[V2TensorInfo(INPUT, BYTES, [-1])],
            outputs=[V2TensorInfo(OUTPUT, BYTES, [-1])],
        )
        await send_reply(scope, send, 200, msgspec.json.encode(answer))
