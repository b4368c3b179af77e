"""POST /v1/load_lora_adapter and /v1/unload_lora_adapter: vLLM's bodies and texts, behind a flag and a key."""

from urllib.parse import parse_qs

import msgspec
from starlette.types import Receive, Scope, Send

from textmill_router.errors import RequestError, ValidationFailed
from textmill_router.exact_json import exact_decoder
from textmill_router.http.call import call_of
from textmill_router.http.disconnect import UntilClientLeaves
from textmill_router.http.json_body import ClientLeft, decode_json, read_body
from textmill_router.http.replies import send_error, send_reply
from textmill_router.http.unknown_fields import UnknownFields
from textmill_router.serving.adapter_changes import AdapterChanges
from textmill_router.serving.service import Service

TEXT = b"text/plain; charset=utf-8"


class LoadAdapterBody(msgspec.Struct, frozen=True, gc=False):
    """The body of /v1/load_lora_adapter, in which name and path must be given."""

    lora_name: str | None = None
    lora_path: str | None = None
    load_inplace: bool | None = None


class UnloadAdapterBody(msgspec.Struct, frozen=True, gc=False):
    """The body of /v1/unload_lora_adapter. The number that vLLM gives an adapter changes nothing."""

    lora_name: str | None = None
    lora_int_id: int | None = None


_LOAD, _UNLOAD = exact_decoder(LoadAdapterBody), exact_decoder(UnloadAdapterBody)


class LoadAdapterRoute:
    """An ASGI endpoint. A load goes on when its client leaves, because other clients may wait for the name."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._changes = AdapterChanges(service)
        refused = {"is_3d_lora_weight": "adapters of experts are not loaded"}
        self._unknown_fields = UnknownFields(LoadAdapterBody, refused)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            self._changes.check_allowed()
            data = await read_body(scope, receive, self._service.payload_limit)
            body = decode_json(data, _LOAD)
            self._unknown_fields.note(data, call_of(scope).route)
            await self._changes.load(body.lora_name, body.lora_path, in_place=bool(body.load_inplace))
            text = f"Success: LoRA adapter '{body.lora_name}' added successfully."
            await send_reply(scope, send, 200, text.encode(), content_type=TEXT)
        except ClientLeft:
            return
        except RequestError as error:
            await send_error(scope, send, error)


class UnloadAdapterRoute:
    """An ASGI endpoint, which with `?wait=true` answers when the last call of the adapter has ended."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._changes = AdapterChanges(service)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            self._changes.check_allowed()
            body = decode_json(await read_body(scope, receive, self._service.payload_limit), _UNLOAD)
            waits = _waits(scope)
            async with UntilClientLeaves(receive, self._service.metrics.on_abort):
                await self._changes.unload(body.lora_name, waits=waits)
            text = f"Success: LoRA adapter '{body.lora_name}' removed successfully."
            await send_reply(scope, send, 200, text.encode(), content_type=TEXT)
        except ClientLeft:
            return
        except RequestError as error:
            await send_error(scope, send, error)


def _waits(scope: Scope) -> bool:
    """Return the value of `wait` in the query. Raises ValidationFailed for a value that is neither true nor false."""
    given = parse_qs(scope["query_string"].decode("latin-1"), keep_blank_values=True).get("wait", ["false"])[-1]
    if given.lower() in ("true", "1"):
        return True
    if given.lower() in ("false", "0"):
        return False
    raise ValidationFailed(f"`wait` must be true or false, found {given[:64]!r}", field="wait")
