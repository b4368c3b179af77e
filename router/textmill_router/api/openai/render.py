"""The two render routes, which answer a call of /v1 with the tokens of its prompts and generate nothing.

Routers between servers ask for these tokens before they choose a server. The routes and their answers are vLLM's.
"""

from collections.abc import Awaitable, Callable
from typing import Any, Generic, TypeVar

import msgspec
from starlette.types import Receive, Scope, Send

from textmill_router.api.openai.chat import check_chat
from textmill_router.api.openai.chat_types import ChatBody
from textmill_router.api.openai.completion_types import CompletionBody
from textmill_router.api.openai.completions import check_completion, take_prompts
from textmill_router.api.openai.model_names import check_model
from textmill_router.api.openai.types import OpenAIBody, reword
from textmill_router.errors import RequestError, RuleBroken
from textmill_router.exact_json import exact_decoder
from textmill_router.http.call import call_of
from textmill_router.http.json_body import ClientLeft, read_json
from textmill_router.http.replies import send_error, send_reply
from textmill_router.serving.call_options import ready_backend
from textmill_router.serving.call_terms import salt_of
from textmill_router.serving.chat_prompts import take_chat
from textmill_router.serving.service import Backend, Service


class RenderedPrompt(msgspec.Struct, frozen=True, gc=False):
    """A prompt as token ids."""

    token_ids: list[int]


class RenderedChat(msgspec.Struct, frozen=True, gc=False):
    """The prompt of a conversation as token ids. `features` would be those of images, which no conversation has."""

    token_ids: list[int]
    features: None = None


Body = TypeVar("Body", bound=OpenAIBody)
# Returns the answer to a body; the bytes are the caller's cache salt. Raises RequestError.
Render = Callable[[Body, Service, Backend, bytes], Awaitable[Any]]


class RenderRoute(Generic[Body]):
    """An ASGI endpoint, which refuses what the real call refuses, takes no permit and waits in no queue."""

    def __init__(self, service: Service, body_type: type[Body], render: Render[Body]) -> None:
        self._service = service
        self._decoder = exact_decoder(body_type)
        self._render = render

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        service = self._service
        try:
            service.permits.check_open()
            body = await read_json(scope, receive, self._decoder, service.payload_limit)
            check_model(body.model, service)
            backend = await ready_backend(service, scope, receive)
            salt = salt_of(call_of(scope).caller, shares_prefixes=service.settings.shared_prefix_cache)
            try:
                answer = await self._render(body, service, backend, salt)
            except RuleBroken as error:
                reword(body, error)
                raise
            await send_reply(scope, send, 200, msgspec.json.encode(answer))
        except ClientLeft:
            return
        except RequestError as error:
            await send_error(scope, send, error)


def chat_render_route(service: Service) -> RenderRoute[ChatBody]:
    """Return the ASGI endpoint of /v1/chat/completions/render."""
    return RenderRoute(service, ChatBody, _render_chat)


def completions_render_route(service: Service) -> RenderRoute[CompletionBody]:
    """Return the ASGI endpoint of /v1/completions/render."""
    return RenderRoute(service, CompletionBody, _render_completion)


async def _render_chat(body: ChatBody, service: Service, backend: Backend, salt: bytes) -> RenderedChat:
    checked_chat = check_chat(body, service, backend)
    chat = checked_chat.chat
    if chat.grammar is not None:
        await backend.grammars.check(chat.grammar, field=chat.grammar_field, salt=salt)
    taken = await take_chat(backend, chat, checked_chat.checked, cache_salt=salt)
    return RenderedChat(list(taken.prompt.prompt_ids))


async def _render_completion(
    body: CompletionBody, service: Service, backend: Backend, salt: bytes
) -> list[RenderedPrompt]:
    call = check_completion(body, service, backend)
    grammar = call.checked.generation.grammar
    if grammar is not None:
        await backend.grammars.check(grammar, field=call.grammar_field, salt=salt)
    prompts = await take_prompts(backend, call, cache_salt=salt)
    return [RenderedPrompt(list(prompt.intake.prompt_ids)) for prompt in prompts]
