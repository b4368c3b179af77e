"""/tokenize and /detokenize in the shapes that vLLM and llama.cpp have beside OpenAI's API."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Generic, TypeVar

import msgspec
from starlette.types import Receive, Scope, Send

from textmill_router.api.openai.chat_messages import chat_request
from textmill_router.api.openai.chat_tools import tool_choice_of
from textmill_router.api.openai.chat_types import ChatBody
from textmill_router.api.openai.model_names import check_model
from textmill_router.api.openai.refused_fields import check_refused_of_chat
from textmill_router.errors import RequestError, ValidationFailed
from textmill_router.exact_json import exact_decoder
from textmill_router.http.call import call_of
from textmill_router.http.json_body import ClientLeft, read_json
from textmill_router.http.replies import send_error, send_reply
from textmill_router.request import token_array
from textmill_router.serving.call_options import ready_backend
from textmill_router.serving.call_terms import salt_of
from textmill_router.serving.chat_prompts import show_chat
from textmill_router.serving.service import Backend, Service
from textmill_router.text.tokenization import Tokenizer

INLINE_IDS = 500  # spelt out and decoded at once; more go to a thread


class VllmTokenizeBody(msgspec.Struct, frozen=True, gc=False):
    """The body of /tokenize with a prompt, as vLLM has it."""

    prompt: str
    model: str | None = None
    add_special_tokens: bool | None = None  # true unless said otherwise
    return_token_strs: bool | None = None


class VllmChatTokenizeBody(ChatBody, frozen=True, kw_only=True):
    """The body of /tokenize with a conversation, as vLLM has it. The fields that make the prompt count."""

    return_token_strs: bool | None = None


class VllmTokens(msgspec.Struct, frozen=True, gc=False):
    """The answer of /tokenize to vLLM's bodies.

    `token_strs` has the tokens as the vocabulary writes them, and is null unless the body asks for them.
    """

    count: int
    max_model_len: int | None
    tokens: list[int]
    token_strs: list[str] | None


class LlamaTokenizeBody(msgspec.Struct, frozen=True, gc=False):
    """The body of /tokenize as llama.cpp has it."""

    content: str
    add_special: bool | None = None  # false unless said otherwise
    parse_special: bool | None = None  # true unless said otherwise
    with_pieces: bool | None = None


class LlamaPiece(msgspec.Struct, frozen=True, gc=False):
    """A token with its text, or with its bytes where they are part of a character."""

    id: int
    piece: str | list[int]


class LlamaTokens(msgspec.Struct, frozen=True, gc=False):
    """The answer of /tokenize to llama.cpp's body."""

    tokens: list[int | LlamaPiece]


class TokensBody(msgspec.Struct, frozen=True, gc=False):
    """The body of /detokenize as vLLM and llama.cpp have it."""

    tokens: list[int]
    model: str | None = None


class TokensText(msgspec.Struct, frozen=True, gc=False):
    """The answer of /detokenize to the body that vLLM and llama.cpp share.

    Both fields hold the text, with special tokens literally: `prompt` is vLLM's name, `content` that of llama.cpp.
    """

    prompt: str
    content: str


Body = TypeVar("Body")
# Returns the answer to a body; the bytes are the caller's cache salt. Raises RequestError.
Answer = Callable[[Body, Service, Backend, bytes], Awaitable[Any]]


class TokensRoute(Generic[Body]):
    """An ASGI endpoint for bodies of one shape."""

    def __init__(self, service: Service, body_type: type[Body], answer: Answer[Body]) -> None:
        self._service = service
        self._decoder = exact_decoder(body_type)
        self._answer = answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        service = self._service
        try:
            body = await read_json(scope, receive, self._decoder, service.payload_limit)
            backend = await ready_backend(service, scope, receive)
            salt = salt_of(call_of(scope).caller, shares_prefixes=service.settings.shared_prefix_cache)
            answer = await self._answer(body, service, backend, salt)
            await send_reply(scope, send, 200, msgspec.json.encode(answer))
        except ClientLeft:
            return
        except RequestError as error:
            await send_error(scope, send, error)


def vllm_tokenize_route(service: Service) -> TokensRoute[VllmTokenizeBody]:
    """Return the ASGI endpoint of /tokenize for bodies with `prompt`."""
    return TokensRoute(service, VllmTokenizeBody, _tokenize_prompt)


def vllm_chat_tokenize_route(service: Service) -> TokensRoute[VllmChatTokenizeBody]:
    """Return the ASGI endpoint of /tokenize for bodies with `messages`."""
    return TokensRoute(service, VllmChatTokenizeBody, _tokenize_messages)


def llama_tokenize_route(service: Service) -> TokensRoute[LlamaTokenizeBody]:
    """Return the ASGI endpoint of /tokenize for bodies with `content`."""
    return TokensRoute(service, LlamaTokenizeBody, _tokenize_content)


def tokens_detokenize_route(service: Service) -> TokensRoute[TokensBody]:
    """Return the ASGI endpoint of /detokenize for bodies with `tokens`."""
    return TokensRoute(service, TokensBody, _detokenize)


async def _tokenize_prompt(body: VllmTokenizeBody, service: Service, backend: Backend, salt: bytes) -> VllmTokens:
    check_model(body.model, service)
    encoding = await backend.tokenizer.encode(body.prompt, add_special_tokens=body.add_special_tokens is not False)
    return await _vllm_tokens(list(encoding.ids), body.return_token_strs, service, backend)


async def _tokenize_messages(body: VllmChatTokenizeBody, service: Service, backend: Backend, salt: bytes) -> VllmTokens:
    check_model(body.model, service)
    check_refused_of_chat(body)
    chat = chat_request(body, takes_images=backend.takes_images)
    shown = await show_chat(backend, chat, tool_choice_of(body), cache_salt=salt)
    ids = token_array(())
    for encoding in await backend.tokenizer.encode_pieces(shown.pieces):
        ids.extend(encoding.ids)
    if shown.adds_special_tokens if body.add_special_tokens is None else body.add_special_tokens:
        before, after = backend.tokenizer.edge_ids()
        ids = before + ids + after
    if backend.images is not None:
        ids = backend.images.place(ids, shown.images).ids
    return await _vllm_tokens(list(ids), body.return_token_strs, service, backend)


async def _vllm_tokens(
    ids: list[int], return_token_strs: bool | None, service: Service, backend: Backend
) -> VllmTokens:
    entries = None
    if return_token_strs:
        entries = await _in_thread_if_long(ids, lambda: [backend.tokenizer.id_to_token(one) for one in ids])
    return VllmTokens(len(ids), service.max_model_tokens, ids, entries)


async def _tokenize_content(body: LlamaTokenizeBody, service: Service, backend: Backend, salt: bytes) -> LlamaTokens:
    tokenizer, safety = backend.tokenizer, backend.role_safety
    if body.parse_special is False:
        encodings = await tokenizer.encode_pieces(safety.cut(safety.guard(body.content, keeps_markup=True)))
        before, after = tokenizer.edge_ids() if body.add_special else ([], [])
        ids = [*before, *(one for encoding in encodings for one in encoding.ids), *after]
    else:
        ids = list((await tokenizer.encode(body.content, add_special_tokens=bool(body.add_special))).ids)
    if not body.with_pieces:
        return LlamaTokens([*ids])
    return LlamaTokens([*await _in_thread_if_long(ids, lambda: [_piece(tokenizer, one) for one in ids])])


def _piece(tokenizer: Tokenizer, token_id: int) -> LlamaPiece:
    data = tokenizer.id_to_bytes(token_id)
    try:
        return LlamaPiece(token_id, data.decode())
    except UnicodeDecodeError:
        return LlamaPiece(token_id, list(data))


async def _detokenize(body: TokensBody, service: Service, backend: Backend, salt: bytes) -> TokensText:
    check_model(body.model, service)
    size = backend.tokenizer.vocab_size
    for index, token_id in enumerate(body.tokens):
        if not 0 <= token_id < size:
            path = f"tokens[{index}]"
            raise ValidationFailed(f"`{path}` must be 0 to {size - 1}, found {token_id}", field=path)
    text = await _in_thread_if_long(body.tokens, lambda: backend.tokenizer.decode(body.tokens, False))
    return TokensText(text, text)


Found = TypeVar("Found")


async def _in_thread_if_long(ids: Sequence[int], work: Callable[[], Found]) -> Found:
    return work() if len(ids) <= INLINE_IDS else await asyncio.to_thread(work)
