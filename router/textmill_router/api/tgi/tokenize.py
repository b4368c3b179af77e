"""POST /tokenize, which shows the tokens of a text and their places in the text."""

import asyncio
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate

import msgspec
from starlette.types import Receive, Scope, Send

from textmill_router.api.tgi.types import NO_OPTIONS, TokenizeBody, TokenizedToken
from textmill_router.errors import RequestError
from textmill_router.http.call import call_of
from textmill_router.http.json_body import ClientLeft, read_json
from textmill_router.http.replies import send_error, send_reply
from textmill_router.serving.call_options import ready_backend
from textmill_router.serving.call_terms import salt_of
from textmill_router.serving.prompt_images import PromptImages
from textmill_router.serving.service import Backend, Service
from textmill_router.text.tokenization import INLINE_CHARACTERS, Encoding

_DECODER = msgspec.json.Decoder(TokenizeBody)


class TokenizeRoute:
    """An ASGI endpoint for generate bodies, of which only `inputs` counts."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            body = await read_json(scope, receive, _DECODER, self._service.payload_limit)
            backend = await ready_backend(
                self._service, scope, receive, wait_for_model=(body.options or NO_OPTIONS).wait_for_model
            )
            if backend.images is not None:
                salt = salt_of(call_of(scope).caller, shares_prefixes=self._service.settings.shared_prefix_cache)
                await send_reply(scope, send, 200, await _with_images(backend, backend.images, body.inputs, salt))
                return
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


async def _with_images(backend: Backend, prompt_images: PromptImages, text: str, salt: bytes) -> bytes:
    """Return the answer for a text with `![](URL)`. The tokens of an image have the place of the whole `![](URL)`."""
    found = await prompt_images.in_text(text, field="inputs", salt=salt)
    parts = [part.encode() for part in prompt_images.parts(found, has_all_rows=True)]
    whole = b"".join(parts)
    encoding = await backend.tokenizer.encode(whole.decode(), found.adds_special_tokens, wants_offsets=True)
    sources = [source.encode() for source in found.marked.sources]
    return await asyncio.to_thread(_encode_placed, whole, parts, sources, encoding)


def _encode_placed(whole: bytes, parts: Sequence[bytes], sources: Sequence[bytes], encoding: Encoding) -> bytes:
    """Return the tokens of `parts` with their places in `sources`, of which each second one is an image."""
    starts = list(accumulate(map(len, parts), initial=0))[:-1]
    source_starts = list(accumulate(map(len, sources), initial=0))[:-1]
    tokens = []
    for token_id, (start, stop) in zip(encoding.ids, encoding.byte_offsets, strict=True):
        first, last = bisect_right(starts, start) - 1, bisect_right(starts, max(start, stop - 1)) - 1
        size = len(sources[first])
        begin = source_starts[first] + (0 if first % 2 else min(start - starts[first], size))
        size = len(sources[last])
        end = source_starts[last] + (size if last % 2 else min(stop - starts[last], size))
        shown = whole[start:stop].decode("utf-8", "replace")
        tokens.append(TokenizedToken(token_id, shown, begin, end if stop > start else begin))
    return msgspec.json.encode(tokens)
