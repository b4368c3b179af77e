"""POST /chat_tokenize, which shows the prompt of a chat body and the tokens of that prompt."""

import asyncio
from collections.abc import Sequence

import msgspec
from starlette.types import Receive, Scope, Send

from textmill_router.api.openai.chat_messages import chat_request
from textmill_router.api.openai.chat_tools import tool_choice_of
from textmill_router.api.openai.chat_types import ChatBody
from textmill_router.api.tgi.types import TokenizedToken
from textmill_router.errors import RequestError
from textmill_router.exact_json import exact_decoder
from textmill_router.http.call import call_of
from textmill_router.http.json_body import ClientLeft, read_json
from textmill_router.http.replies import send_error, send_reply
from textmill_router.serving.call_options import ready_backend
from textmill_router.serving.call_terms import salt_of
from textmill_router.serving.chat_prompts import show_chat
from textmill_router.serving.service import Service
from textmill_router.text.tokenization import Encoding

_DECODER = exact_decoder(ChatBody)


class ChatTokenizeRoute:
    """An ASGI endpoint for chat bodies, of which the fields that make the prompt count."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            body = await read_json(scope, receive, _DECODER, self._service.payload_limit)
            backend = await ready_backend(self._service, scope, receive)
            salt = salt_of(call_of(scope).caller, shares_prefixes=self._service.settings.shared_prefix_cache)
            chat = chat_request(body, takes_images=backend.takes_images)
            shown = await show_chat(backend, chat, tool_choice_of(body), cache_salt=salt)
            pieces = shown.whole_pieces(backend)
            encodings = await backend.tokenizer.encode_pieces(pieces, wants_offsets=True)
            edges = backend.tokenizer.edge_ids() if shown.adds_special_tokens else ((), ())
            answer = await asyncio.to_thread(_encode_answer, pieces, encodings, *edges)
            await send_reply(scope, send, 200, answer)
        except ClientLeft:
            return
        except RequestError as error:
            await send_error(scope, send, error)


def _encode_answer(
    pieces: Sequence[str], encodings: Sequence[Encoding], before: Sequence[int], after: Sequence[int]
) -> bytes:
    """Return the answer, whose offsets are in bytes of the whole prompt.

    `before` and `after` are the tokens that the tokenizer adds, which stand for no text.
    """
    tokens = [TokenizedToken(token_id, "", 0, 0) for token_id in before]
    base = 0
    for piece, encoding in zip(pieces, encodings, strict=True):
        data = piece.encode("utf-8", "replace")
        for token_id, (start, stop) in zip(encoding.ids, encoding.byte_offsets, strict=True):
            text = data[start:stop].decode("utf-8", "replace")
            tokens.append(TokenizedToken(token_id, text, base + start, base + stop))
        base += len(data)
    tokens += [TokenizedToken(token_id, "", 0, 0) for token_id in after]
    return msgspec.json.encode({"tokenize_response": tokens, "templated_text": "".join(pieces)})
