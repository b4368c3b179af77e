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
from textmill_router.serving.service import Service
from textmill_router.settings import Settings

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


def check_path(scope: Scope, settings: Settings) -> None:
    """Raise ModelNotFound for a path whose model or version is not served."""
    found = scope["path_params"]
    name, asked = found["model"], found.get("version", MODEL_VERSION)
    if name not in settings.model_names:
        served = ", ".join(repr(served) for served in settings.model_names)
        raise ModelNotFound(f"the model {name[:200]!r} does not exist: this server serves {served}")
    if asked != MODEL_VERSION:
        raise ModelNotFound(f"the model {name!r} has the version {MODEL_VERSION!r}, found {asked[:64]!r} in the path")


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
        answer: V2Ready | V2ModelReady = V2Ready(row.live, row.ready)
        name = scope.get("path_params", {}).get("model")
        if name is not None:
            try:
                check_path(scope, self._service.settings)
            except RequestError as error:
                await send_error(scope, send, error)
                return
            answer = V2ModelReady(name, row.ready)
        await send_reply(scope, send, 200 if row.ready else 503, msgspec.json.encode(answer))


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
            check_path(scope, self._service.settings)
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
