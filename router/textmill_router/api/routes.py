"""The routes, as one ASGI application."""

from collections.abc import Mapping
from typing import Any

from starlette.routing import Route, Router
from starlette.types import ASGIApp, Receive, Scope, Send

from textmill_router.api.openai.chat import chat_route
from textmill_router.api.openai.completions import completions_route
from textmill_router.api.openai.models import ModelsRoute
from textmill_router.api.openapi.page import DocsRoute, OpenApiRoute
from textmill_router.api.platforms.sagemaker import InvocationsRoute
from textmill_router.api.platforms.vertex import VertexRoute
from textmill_router.api.status import HealthRoute, InfoRoute, MetricsRoute
from textmill_router.api.tgi.chat_tokenize import ChatTokenizeRoute
from textmill_router.api.tgi.detokenize import DetokenizeRoute
from textmill_router.api.tgi.generate import generate_route
from textmill_router.api.tgi.tokenize import TokenizeRoute
from textmill_router.api.tgi.work import GenerateMode
from textmill_router.errors import MethodNotAllowed, RouteNotFound
from textmill_router.http.call import call_of
from textmill_router.http.middleware import OPEN_PATHS, ApiKey, Cors, FrontDoor
from textmill_router.http.path_style import PathStyles
from textmill_router.http.replies import send_error, send_reply
from textmill_router.serving.route import GeneratingRoute
from textmill_router.serving.service import Service


def build_app(service: Service) -> ASGIApp:
    """All routes of the service behind the middlewares."""
    health = HealthRoute(service)
    models = ModelsRoute(service)
    openapi = OpenApiRoute()
    compat, generate = generate_route(service, GenerateMode.COMPAT), generate_route(service, GenerateMode.WHOLE)
    chat, completions = chat_route(service), completions_route(service)
    routes: dict[str, dict[str, ASGIApp]] = {
        "/": {"GET": health, "POST": compat},
        "/generate": {"POST": generate},
        "/generate_stream": {"POST": generate_route(service, GenerateMode.STREAM)},
        "/v1/chat/completions": {"POST": chat},
        "/v1/completions": {"POST": completions},
        "/v1/models": {"GET": models},
        "/v1/models/{model:path}": {"GET": models},
        "/chat_tokenize": {"POST": ChatTokenizeRoute(service)},
        "/tokenize": {"POST": TokenizeRoute(service)},
        "/detokenize": {"POST": DetokenizeRoute(service)},
        "/health": {"GET": health},
        "/ping": {"GET": health},
        "/info": {"GET": InfoRoute(service)},
        "/metrics": {"GET": MetricsRoute(service)},
        "/docs": {"GET": DocsRoute()},
        "/openapi.json": {"GET": openapi},
        "/api-doc/openapi.json": {"GET": openapi},
    }
    by_shape: dict[str, GeneratingRoute[Any]] = {"inputs": compat, "messages": chat, "prompt": completions}
    routes["/invocations"] = {"POST": InvocationsRoute(service, by_shape)}
    vertex = VertexRoute(service, generate=generate, chat=chat)
    settings = service.settings
    for path, method, endpoint in (
        ("/vertex", "POST", vertex),
        (settings.aip_predict_route, "POST", vertex),
        (settings.aip_health_route, "GET", health),
    ):
        if path is not None:
            routes[path] = {**routes.get(path, {}), method: endpoint}
    endpoints = [endpoint for of_path in routes.values() for endpoint in of_path.values()]
    styles = PathStyles(endpoint.style for endpoint in endpoints if isinstance(endpoint, GeneratingRoute))
    app: ASGIApp = Router(
        [Route(path, _Methods(path, endpoints)) for path, endpoints in routes.items()],
        redirect_slashes=False,
        default=_not_found,
    )
    if settings.api_key is not None:
        open_paths = OPEN_PATHS if settings.aip_health_route is None else OPEN_PATHS | {settings.aip_health_route}
        app = ApiKey(app, settings.api_key, styles, open_paths)
    app = Cors(app, settings.cors_allow_origin)
    return FrontDoor(app, service.metrics.on_http, styles)


class _Methods:
    """One path: picks the endpoint by method. HEAD is GET without a body, OPTIONS tells the methods."""

    def __init__(self, path: str, endpoints: Mapping[str, ASGIApp]) -> None:
        self._path = path
        self._endpoints = dict(endpoints)
        if "GET" in endpoints:
            self._endpoints["HEAD"] = endpoints["GET"]
        self._allowed = (*sorted(self._endpoints), "OPTIONS")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        call_of(scope).route = self._path
        method = scope["method"]
        endpoint = self._endpoints.get(method)
        if endpoint is not None:
            await endpoint(scope, receive, send)
        elif method == "OPTIONS":
            await send_reply(scope, send, 200, b"", headers=[(b"allow", ", ".join(self._allowed).encode())])
        else:
            message = f"{self._path} takes {', '.join(self._allowed)}, found {method}"
            await send_error(scope, send, MethodNotAllowed(message, allowed=self._allowed))


async def _not_found(scope: Scope, receive: Receive, send: Send) -> None:
    await send_error(scope, send, RouteNotFound(f"there is no route {scope['path'][:200]!r}"))
