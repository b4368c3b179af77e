"""The table of the routes as one ASGI application."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from starlette.routing import Route, Router
from starlette.types import ASGIApp, Receive, Scope, Send

from textmill_router.api.near_routes import MAX_PATH_CHARACTERS, near_route
from textmill_router.api.route_table import aliases_of, rows_of, vertex_route
from textmill_router.api.status import HealthRoute
from textmill_router.api.tasks.route import TaskRoute
from textmill_router.api.tasks.wrong_task import WrongTaskRoute
from textmill_router.errors import MethodNotAllowed, RouteNotFound
from textmill_router.http.call import call_of
from textmill_router.http.middleware import ApiKey, Cors, CorsRules, FrontDoor
from textmill_router.http.path_style import PathStyles
from textmill_router.http.replies import send_error, send_reply
from textmill_router.http.root_path import RootPath
from textmill_router.serving.route import GeneratingRoute
from textmill_router.serving.service import Service


def build_app(service: Service) -> FrontDoor:
    """Return one application with all routes of the service behind the middlewares."""
    settings = service.settings
    routes: dict[str, dict[str, ASGIApp]] = {}
    rows = [row for row in rows_of(settings.task) if not (row.is_playground and settings.disable_playground)]
    for row in rows:
        routes.setdefault(row.operation.path, {})[row.operation.method.upper()] = row.make(service)
    aliases = aliases_of(settings.task)
    for alias, path in aliases.items():
        routes[alias] = {**routes[path], **routes.get(alias, {})}
    if settings.aip_predict_route is not None:
        routes.setdefault(settings.aip_predict_route, {})["POST"] = vertex_route(service)
    if settings.aip_health_route is not None:
        routes.setdefault(settings.aip_health_route, {})["GET"] = HealthRoute(service)
    endpoints = [endpoint for of_path in routes.values() for endpoint in of_path.values()]
    known = [
        endpoint.style for endpoint in endpoints if isinstance(endpoint, GeneratingRoute | TaskRoute | WrongTaskRoute)
    ]
    style_of = PathStyles(known).of
    known += [replace(style_of(path), prefix=alias.partition("/{")[0]) for alias, path in aliases.items()]
    styles = PathStyles(known, settings.root_path)
    app: ASGIApp = Router(
        [Route(path, _Methods(path, endpoints)) for path, endpoints in routes.items()],
        redirect_slashes=False,
        default=_NotFound(
            sorted({row.operation.path for row in rows if row.operation.is_shown and "{" not in row.operation.path})
        ),
    )
    if service.access.keys is not None:
        open_paths = {row.operation.path for row in rows if not row.needs_key}
        if settings.aip_health_route is not None:
            open_paths.add(settings.aip_health_route)
        if settings.api_key_metrics:
            open_paths.discard("/metrics")
        app = ApiKey(app, service.access.keys, styles, open_paths)
    cors = CorsRules(
        origins=settings.cors_allow_origin,
        headers=settings.cors_allow_header,
        allows_credentials=settings.cors_allow_credentials,
        max_age_s=settings.cors_max_age,
    )
    app = Cors(app, cors)
    if settings.root_path:
        app = RootPath(app, settings.root_path)
    return FrontDoor(app, service.metrics.on_http, styles, lambda: service.is_leaving, service.tracer)


class _Methods:
    """The endpoints of one path by method. HEAD is GET without a body, and OPTIONS names the methods."""

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
            message = f"{scope['path'][:200]} takes {', '.join(self._allowed)}, found {method}"
            await send_error(scope, send, MethodNotAllowed(message, allowed=self._allowed))


class _NotFound:
    """The answer at all other paths, which names the nearest of the `known` routes."""

    def __init__(self, known: Sequence[str]) -> None:
        self._known = known

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"]
        near = near_route(path, self._known)
        meant = "GET /docs lists the routes" if near is None else f"did you mean {near}?"
        await send_error(scope, send, RouteNotFound(f"there is no route {path[:MAX_PATH_CHARACTERS]!r}: {meant}"))
