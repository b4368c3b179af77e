"""The wrappers around every route: the last net for errors, request ids, CORS, the API key. None touches an event."""

import logging
import re
import time
from collections.abc import Callable, Set
from dataclasses import dataclass

from starlette.types import ASGIApp, Receive, Scope, Send

from textmill_router.errors import InternalError, Unauthorized
from textmill_router.http.api_keys import Caller, KeyRing
from textmill_router.http.call import NO_ROUTE, Call, call_of, open_call, refusal_of, request_id_in
from textmill_router.http.error_responses import CLOSE, error_kind
from textmill_router.http.key_headers import shown_keys
from textmill_router.http.path_style import AUTHORIZATION, X_API_KEY, PathStyles
from textmill_router.http.replies import send_error, send_reply
from textmill_router.tracing.call_trace import CLIENT_LEFT, CallTrace, CallTracer, EndedCall, new_trace_id

log = logging.getLogger(__name__)

CLIENT_LEFT_STATUS = 499
INTERNAL = error_kind(InternalError("")).error_type
_READ_HEADERS = (
    b"content-type,authorization,x-api-key,x-request-id,traceparent,x-wait-for-model,x-use-cache,x-priority,"
    b"x-request-timeout-ms"
)
_SHOWN_HEADERS = b"retry-after,x-request-id"
_HEADER_NAMES = re.compile(rb"[\w!#$%&'*+.^`|~, -]{1,4096}", re.ASCII)
KNOWN_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
# W3C trace context: version, trace id, parent id, flags. A malformed header is no parent, as the standard says.
_TRACE_PARENT = re.compile(rb"(?!ff)[0-9a-f]{2}-((?!0{32})[0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(?:-.*)?")


class FrontDoor:
    """The outermost wrapper, which opens the call, answers 500 for mistakes of the server, and counts statuses.

    `on_answer` is called with route, method and status of each call that has ended. `styles` say how errors look on a
    path, also where no route is found. While `is_leaving`, each answer ends its connection, so that the client goes
    elsewhere with its next call and no connection is cut when the server goes. `tracer` makes the spans of each POST.
    """

    def __init__(
        self,
        app: ASGIApp,
        on_answer: Callable[[str, str, int], None],
        styles: PathStyles,
        is_leaving: Callable[[], bool] = lambda: False,
        tracer: CallTracer | None = None,
    ) -> None:
        self._app = app
        self._on_answer = on_answer
        self.styles = styles
        self._is_leaving = is_leaving
        self._tracer = tracer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        assert scope["type"] == "http", scope["type"]  # neither websockets nor lifespan are switched on
        request_id = request_id_in(scope["headers"])
        call = open_call(scope, request_id)
        call.error_style = self.styles.of(scope["path"]).errors
        call.reply_headers.append((b"x-request-id", request_id.encode()))
        if self._is_leaving():
            call.reply_headers.append(CLOSE)
        trace = _TRACE_PARENT.fullmatch(_header(scope, b"traceparent") or b"")
        call.trace_id = None if trace is None else trace[1].decode()
        if self._tracer is not None and scope["method"] == "POST":
            call.trace_id = call.trace_id or new_trace_id()
            call.trace = CallTrace(call.trace_id, _parent_in(scope))
        try:
            await self._app(scope, receive, send)
        except Exception:
            log.exception("a call failed by our own mistake", extra={"request": request_id, "route": call.route})
            if call.status:
                call.error_type = INTERNAL
                raise  # an answer has begun: uvicorn cuts the connection
            await send_error(scope, send, InternalError(f"an internal error ended request {request_id}"))
        finally:
            method = scope["method"] if scope["method"] in KNOWN_METHODS else "other"
            status = call.status or refusal_of(scope)
            self._on_answer(call.route, method, status or CLIENT_LEFT_STATUS)
            if self._tracer is not None and call.trace is not None:
                self._tracer.end(call.trace, _ended(scope, call, status))


@dataclass(frozen=True, slots=True)
class CorsRules:
    """What pages of other origins may do.

    Without `origins` every origin is allowed. Without `headers` a page may send every header that it asks for, because
    SDKs in browsers add headers of their own, which no route reads; with `headers` those and the ones that the server
    reads.
    """

    origins: tuple[str, ...] = ()
    headers: tuple[str, ...] = ()
    allows_credentials: bool = False
    max_age_s: int = 600


class Cors:
    """Answers the preflights of browsers, and names the allowed origin in all other answers."""

    def __init__(self, app: ASGIApp, rules: CorsRules) -> None:
        self._app = app
        self._origins = frozenset(origin.encode() for origin in rules.origins)  # empty if every origin is allowed
        self._allows_credentials = rules.allows_credentials
        self._max_age = b"%d" % rules.max_age_s
        self._own_headers = b",".join([_READ_HEADERS, *(name.encode() for name in rules.headers)])
        self._allows_all_headers = not rules.headers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        origin = _header(scope, b"origin")
        if origin is None:
            await self._app(scope, receive, send)
            return
        headers = call_of(scope).reply_headers
        if not self._origins:
            headers.append((b"access-control-allow-origin", b"*"))
        else:
            headers.append((b"vary", b"origin"))
            if origin in self._origins:
                headers.append((b"access-control-allow-origin", origin))
                if self._allows_credentials:
                    headers.append((b"access-control-allow-credentials", b"true"))
        if scope["method"] == "OPTIONS" and _header(scope, b"access-control-request-method") is not None:
            headers.append((b"access-control-allow-methods", b"GET,POST"))
            headers.append((b"access-control-allow-headers", self._allowed_headers(scope)))
            headers.append((b"access-control-max-age", self._max_age))
            await send_reply(scope, send, 200, b"")
            return
        # A star counts as a name where credentials are sent (Fetch, 3.2.5), so the names stand beside it.
        exposed = _SHOWN_HEADERS if self._allows_credentials else b"*"
        headers.append((b"access-control-expose-headers", exposed))
        await self._app(scope, receive, send)

    def _allowed_headers(self, scope: Scope) -> bytes:
        wanted = _header(scope, b"access-control-request-headers") or b""
        if self._allows_all_headers and _HEADER_NAMES.fullmatch(wanted):
            return b",".join([self._own_headers, wanted])
        return self._own_headers


class ApiKey:
    """Lets calls through that show one of the server's keys, and notes who calls. Made only where the server has keys.

    The key stands in `authorization`, in `x-api-key` or in the header that the style of the path names.

    `open_paths` may be read without a key. A path with a parameter at its end stands for all paths in its folder.
    """

    def __init__(self, app: ASGIApp, keys: KeyRing, styles: PathStyles, open_paths: Set[str] = frozenset()) -> None:
        self._app = app
        self._keys = keys
        self._styles = styles
        self._open_paths = open_paths
        self._open_folders = tuple(path.partition("{")[0] for path in open_paths if path.endswith("}"))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._is_open(scope):
            await self._app(scope, receive, send)
            return
        header = self._styles.of(scope["path"]).key_header
        shown = shown_keys(scope["headers"], header)
        caller = self._caller_of(shown)
        if caller is not None:
            call_of(scope).caller = caller
            await self._app(scope, receive, send)
            return
        wanted = ["Authorization: Bearer <key>", f"{X_API_KEY}: <key>"]
        if header not in (AUTHORIZATION, X_API_KEY):
            wanted = [f"{header}: <key>", *wanted]
        message = f"this server asks for its API key: send the header {' or '.join(f'`{one}`' for one in wanted)}"
        if len(shown) > 1:
            message += "; this call shows several keys, and all of them must be one key of the server"
        await send_error(scope, send, Unauthorized(message))

    def _is_open(self, scope: Scope) -> bool:
        method, path = scope["method"], scope["path"]
        is_read = method in ("GET", "HEAD")
        is_open_path = path in self._open_paths or path.startswith(self._open_folders)
        return method == "OPTIONS" or (is_read and is_open_path)

    def _caller_of(self, shown: list[bytes]) -> Caller | None:
        """Return the holder of the keys, or None where there is no key, a wrong key, or keys of several callers."""
        callers = [self._keys.find(key) for key in shown]
        return callers[0] if callers and all(caller is callers[0] for caller in callers) else None


def _parent_in(scope: Scope) -> dict[str, str]:
    """Return the headers of the caller's trace. A `tracestate` in several parts is one list, as the standard says."""
    parts: dict[str, list[str]] = {}
    for name, value in scope["headers"]:
        if name in (b"traceparent", b"tracestate"):
            parts.setdefault(name.decode(), []).append(value.decode("latin-1"))
    return {name: ",".join(values) for name, values in parts.items()}


def _ended(scope: Scope, call: Call, status: int) -> EndedCall:
    return EndedCall(
        method=scope["method"],
        path=scope["path"],
        route=None if call.route == NO_ROUTE else call.route,
        status=status,
        error_type=call.error_type or (None if status else CLIENT_LEFT),
        request_id=call.request_id,
        server=scope.get("server"),
        arrival_s=call.arrival_s,
        end_s=time.monotonic(),
    )


def _header(scope: Scope, name: bytes) -> bytes | None:
    for key, value in scope["headers"]:
        if key == name:
            found: bytes = value
            return found
    return None
