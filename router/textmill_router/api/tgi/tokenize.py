"""POST /tokenize, which shows the tokens of a text and their places in the text."""

import asyncio

import msgspec
from starlette.types import Receive, Scope, Send

from textmill_router.api.tgi.types import NO_OPTIONS, TokenizeBody, TokenizedToken
from textmill_router.errors import RequestError
from textmill_router.http.json_body import ClientLeft, read_json
from textmill_router.http.replies import send_error, send_reply
from textmill_router.serving.call_options import ready_backend
from textmill_router.serving.service import Service
from textmill_router.text.tokenization import INLINE_CHARACTERS, Encoding

_DECODER = msgspec.json.Decoder(TokenizeBody)


class TokenizeRoute:
    """An ASGI endpoint for generate bodies, of which only `inputs` counts."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            body = await read_json(scope, receive, _DECODER, self._service.settings.payload_limit)
            backend = await ready_backend(
                self._service, scope, receive, wait_for_model=(body.options or NO_OPTIONS).wait_for_model
            )
            encoding = await backend.tokenizer.encode(body.inputs, wants_offsets=True)
            if len(body.inputs) <= INLINE_CHARACTERS:
                answer = _encode_answer(body.inputs, encoding)
            else:
                answer = await asyncio.to_thread(_encode_answer, body.inputs, encoding)
            await send_reply(scope, send, 200, answer)
        except ClientLeft:
            return
        except RequestError as error:
            await send_error(scope, send, error)


def _encode_answer(text: str, encoding: Encoding) -> bytes:
    data = text.encode()
    tokens = [
        TokenizedToken(token_id, data[start:stop].decode("utf-8", "replace"), start, stop)
        for token_id, (start, stop) in zip(encoding.ids, encoding.byte_offsets, strict=True)
    ]
    return msgspec.json.encode(tokens)
