"""Tells from a chat template what stands around an image, for prompts that no template renders."""

from textmill_router.chat.conversation import Conversation
from textmill_router.chat.message_content import IMAGE_PART
from textmill_router.chat.template import ChatTemplates
from textmill_router.errors import TemplateFailed

_WORDS = "\ufdd3words\ufdd3"


def image_frame(templates: ChatTemplates, placeholder: str) -> tuple[str, str]:
    """Return what the template puts before and behind the placeholder of an image in a user's message.

    A prompt with an image is compared with one without. Both texts are empty where there is no template that shows the
    image once.
    """
    text = {"type": "text", "text": _WORDS}
    try:
        template = templates.pick(has_tools=False)
        plain, with_image = (
            str(template.render(Conversation([{"role": "user", "content": content}])))
            for content in ([text], [IMAGE_PART, text])
        )
    except TemplateFailed:
        return "", ""
    shortest = min(len(plain), len(with_image))
    start = next((place for place in range(shortest) if plain[place] != with_image[place]), shortest)
    end = 0
    while end < shortest - start and plain[-1 - end] == with_image[-1 - end]:
        end += 1
    before, found, after = with_image[start : len(with_image) - end].partition(placeholder)
    return (before, after) if found and placeholder not in after else ("", "")
