"""How a call wants to be served: wait for the model, use the response cache. A header wins over the body."""

import asyncio

from starlette.types import Receive, Scope

from textmill_router.errors import ValidationFailed
from textmill_router.http.disconnect import UntilClientLeaves
from textmill_router.serving.service import Backend, Service

_TRUE, _FALSE = frozenset({b"true", b"1"}), frozenset({b"false", b"0"})


def wants_cache(scope: Scope, use_cache: bool | None) -> bool:
    """The header `x-use-cache`, else what the body says (`use_cache`); true without both."""
    asked = _header_truth(scope, b"x-use-cache")
    return (use_cache if asked is None else asked) is not False


async def ready_backend(
    service: Service, scope: Scope, receive: Receive, *, wait_for_model: bool | None = None
) -> Backend:
    """The backend, waited for while it loads if the header `x-wait-for-model`, else the body, wants that.

    The body has been read before.

    Raises ModelLoading, ShuttingDown, Overloaded when too many wait, ClientLeft.
    """
    asked = _header_truth(scope, b"x-wait-for-model")
    if (wait_for_model if asked is None else asked) and service.is_loading:
        async with UntilClientLeaves(receive, service.metrics.on_abort):
            with service.permits.hold(1):
                await _wait(service)
    return service.open_backend()


async def _wait(service: Service) -> None:
    try:
        async with asyncio.timeout(service.settings.wait_for_model_timeout):
            await service.wait_settled()
    except TimeoutError:
        return  # the caller finds the model still loading


def _header_truth(scope: Scope, name: bytes) -> bool | None:
    for key, value in scope["headers"]:
        if key == name:
            word = value.strip().lower()
            if word in _TRUE or word in _FALSE:
                return word in _TRUE
            raise ValidationFailed(
                f"the header {name.decode()} must be true or false, found {word.decode('latin-1')!r}",
                field=name.decode(),
            )
    return None
