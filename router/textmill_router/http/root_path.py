"""Takes the prefix off the paths of calls, where a proxy passes on the path that the client sent."""

from starlette.types import ASGIApp, Receive, Scope, Send


class RootPath:
    """Serves the routes under `prefix` too. A path without the prefix is taken as it is.

    A proxy may pass the prefix on or take the prefix off, so both forms of a path reach the same route.
    """

    def __init__(self, app: ASGIApp, prefix: str) -> None:
        self._app = app
        self._prefix = prefix  # such as /llm, without a slash at its end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path: str = scope["path"]
        if path == self._prefix or path.startswith(self._prefix + "/"):
            # The scope is changed in place, because the connection reads what the call leaves in this scope.
            scope["path"] = path[len(self._prefix) :] or "/"
        await self._app(scope, receive, send)
