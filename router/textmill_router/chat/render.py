"""Renders a conversation by the chat template that fits it; long conversations are rendered in a thread."""

import asyncio

from textmill_router.chat.prompt import ChatPrompt, ChatRequest, make_prompt
from textmill_router.chat.role_safety import RoleSafety
from textmill_router.chat.template import ChatTemplates
from textmill_router.chat.tools import ToolChoice, for_template

# A conversation of at most this many characters is rendered on the event loop, in about 0.5 ms at most. Each message
# counts for some characters more. Longer conversations are rendered in a thread.
INLINE_CHARACTERS = 4000
CHARACTERS_OF_A_MESSAGE = 150


async def render(
    templates: ChatTemplates, safety: RoleSafety, chat: ChatRequest, tools: ToolChoice | None
) -> ChatPrompt:
    """Return the prompt of a conversation. Raises ValidationFailed or TemplateFailed."""
    template = templates.pick(has_tools=tools is not None)
    shown = for_template(template, chat, tools)
    num_characters = sum(CHARACTERS_OF_A_MESSAGE + len(str(message)) for message in shown.messages)
    num_characters += sum(len(str(more)) for more in (shown.tools, shown.documents, shown.variables) if more)
    if num_characters <= INLINE_CHARACTERS:
        return make_prompt(template, shown, safety)
    return await asyncio.to_thread(make_prompt, template, shown, safety)
