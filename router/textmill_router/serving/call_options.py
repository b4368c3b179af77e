"""Whether a call waits for the model and uses the response cache, by its headers, or else by its body."""

import asyncio

from starlette.types import Receive, Scope

from textmill_router.errors import ValidationFailed
from textmill_router.http.disconnect import UntilClientLeaves
from textmill_router.serving.service import Backend, Service

_TRUE, _FALSE = frozenset({b"true", b"1"}), frozenset({b"false", b"0"})


def wants_cache(scope: Scope, use_cache: bool | None) -> bool:
    """Return the value of the header `x-use-cache`, else the body's `use_cache`; true where neither is given."""
    asked = _header_truth(scope, b"x-use-cache")
    return (use_cache if asked is None else asked) is not False


async def ready_backend(
    service: Service, scope: Scope, receive: Receive, *, wait_for_model: bool | None = None
) -> Backend:
    """Return the backend, and wait for it while it loads if the header `x-wait-for-model`, else the body, says so.

    The body has been read before.

    Raises ModelLoading, ShuttingDown, ClientLeft, and Overloaded when too many calls wait.
    """
    await wait_if_asked(service, scope, receive, wait_for_model)
    return service.open_backend()


async def wait_if_asked(service: Service, scope: Scope, receive: Receive, wait_for_model: bool | None) -> None:
    """Wait while the model loads, if the header `x-wait-for-model`, else the body, says so.

    A client that would repeat its call without a pause waits for a second.

    Raises ShuttingDown, ClientLeft, and Overloaded when too many calls wait.
    """
    asked = _header_truth(scope, b"x-wait-for-model")
    if (wait_for_model if asked is None else asked) and service.is_loading:
        async with UntilClientLeaves(receive, service.metrics.on_abort):
            with service.permits.hold(1):
                await _wait(service)
    elif service.is_loading and (pause_s := service.loading_pace.pause_s(scope)):
        async with UntilClientLeaves(receive, service.metrics.on_abort):
            await asyncio.sleep(pause_s)


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
