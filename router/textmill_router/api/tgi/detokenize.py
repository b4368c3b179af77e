"""POST /detokenize, which turns token ids back into the text that /tokenize took."""

import asyncio

import msgspec
from starlette.types import Receive, Scope, Send

from textmill_router.api.tgi.types import DetokenizeAnswer, DetokenizeBody
from textmill_router.errors import RequestError, ValidationFailed
from textmill_router.http.json_body import ClientLeft, read_json
from textmill_router.http.replies import send_error, send_reply
from textmill_router.serving.call_options import ready_backend
from textmill_router.serving.service import Backend, Service

INLINE_IDS = 500  # decoded at once; more go to a thread
_DECODER = msgspec.json.Decoder(DetokenizeBody)


class DetokenizeRoute:
    """An ASGI endpoint for bodies with `ids`."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            body = await read_json(scope, receive, _DECODER, self._service.payload_limit)
            backend = await ready_backend(self._service, scope, receive)
            _check_ids(body.ids, backend)
            skips_special = body.skip_special_tokens is not False
            if len(body.ids) <= INLINE_IDS:
                text = backend.tokenizer.decode(body.ids, skips_special)
            else:
                text = await asyncio.to_thread(backend.tokenizer.decode, body.ids, skips_special)
            await send_reply(scope, send, 200, msgspec.json.encode(DetokenizeAnswer(text)))
        except ClientLeft:
            return
        except RequestError as error:
            await send_error(scope, send, error)


def _check_ids(ids: list[int], backend: Backend) -> None:
    """Raise ValidationFailed for ids that the tokenizer does not have."""
    size = backend.tokenizer.vocab_size
    for index, token_id in enumerate(ids):
        if not 0 <= token_id < size:
            raise ValidationFailed(f"`ids[{index}]` must be 0 to {size - 1}, found {token_id}", field=f"ids[{index}]")
