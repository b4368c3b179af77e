"""POST /tokenize: the tokens of a text and where they stand in it."""

import msgspec
from starlette.types import Receive, Scope, Send

from textmill_router.api.json_body import ClientLeft, read_json
from textmill_router.api.native_types import GenerateBody, TokenizedToken
from textmill_router.api.replies import send_error, send_reply
from textmill_router.errors import RequestError
from textmill_router.service import Service

_DECODER = msgspec.json.Decoder(GenerateBody)


class TokenizeRoute:
    """An ASGI endpoint. Takes a generate body, of which only `inputs` counts."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            backend = self._service.open_backend()
            body = await read_json(scope, receive, _DECODER, self._service.settings.payload_limit)
            encoding = await backend.tokenizer.encode(body.inputs, wants_offsets=True)
            data = body.inputs.encode()
            tokens = [
                TokenizedToken(token_id, data[start:stop].decode("utf-8", "replace"), start, stop)
                for token_id, (start, stop) in zip(encoding.ids, encoding.byte_offsets, strict=True)
            ]
            await send_reply(scope, send, 200, msgspec.json.encode(tokens))
        except ClientLeft:
            return
        except RequestError as error:
            await send_error(scope, send, error)
