"""One row of the table of the routes."""

from collections.abc import Callable
from dataclasses import dataclass

from starlette.types import ASGIApp

from textmill_router.api.openapi.operation import Operation
from textmill_router.serving.service import Service


@dataclass(frozen=True, slots=True)
class RouteRow:
    """One route. `make` makes the endpoint of the operation's path and method.

    Monitoring needs no API key, and neither do pages, which hold no secret and on which the key is typed in.
    `is_playground` marks the routes that `--disable-playground` takes away, and `writes` those that need a model that
    writes text.
    """

    make: Callable[[Service], ASGIApp]
    operation: Operation
    needs_key: bool = True
    is_playground: bool = False
    writes: bool = False
