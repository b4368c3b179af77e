"""Finds the forms in which a chat template reads messages, by rendering conversations with marked texts.

Each form of each shape of a message is tried. A form serves if the template does not fail and the marked texts stand in
the prompt as text, and not as the inside of a printed list or object. Of several forms that serve, the form that most
templates are written for is taken. Where the template fails for all forms of a role's content, the template's syntax
tree decides. A template that writes no text of a user at all is tried no further.
"""

import re
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from textmill_router.chat.conversation import Conversation, Message
from textmill_router.chat.message_forms import AbsentContent, ContentForm, MessageForms
from textmill_router.errors import TemplateFailed

MAX_TRIAL_S = 2.0  # for all conversations of a template together

_FIRST, _SECOND, _NAME, _REASONING = "qzfirst", "qzsecond", "qzlook", "qzthought"
_ARGUMENT = "place"
_CALL_ID = "abcdef123"  # nine letters and digits, which some templates demand
_TOOL = {
    "type": "function",
    "function": {
        "name": _NAME,
        "description": "Looks.",
        "parameters": {"type": "object", "properties": {_ARGUMENT: {"type": "string", "description": "Where."}}},
    },
}
# A part of a printed list, or arguments as Python prints them, or JSON text inside JSON.
_PRINTED_PART = re.compile(rf"""['"]text\\?['"]:\s*\\?['"]{_FIRST}""")
_PRINTED_OBJECT = re.compile(rf"'{_ARGUMENT}':\s*'{_FIRST}")
_QUOTED_JSON = re.compile(rf'\\"{_ARGUMENT}\\"')


class FormTrial:
    """The trial of one template. `render` raises TemplateFailed."""

    def __init__(
        self, render: Callable[[Conversation], str], by_tree: ContentForm, max_trial_s: float = MAX_TRIAL_S
    ) -> None:
        self._render = render
        self._end_s = time.monotonic() + max_trial_s
        self._forms = MessageForms(by_tree)

    def forms(self) -> MessageForms:
        """Return the forms that serve."""
        self._try_content("user", lambda said: [said])
        if not self._forms.content("user").is_read:
            return replace(self._forms, contents={})
        self._try_content("assistant", lambda said: [self._said("user"), said, self._said("user")])
        for role in ("system", "developer"):
            self._try_content(role, lambda said: [said, self._said("user")])
        self._try_calls()
        self._try_content("tool", lambda said: [self._said("user"), self._call(), said])
        if "tool" not in self._forms.contents:  # a template without calls gets them as text
            self._try_content("tool", lambda said: [self._said("user"), self._said("assistant"), said])
        self._try_reasoning()
        return self._forms

    def _try_content(self, role: str, around: Callable[[Message], list[Message]]) -> None:
        message = {"role": role, **({"tool_call_id": _CALL_ID, "name": _NAME} if role == "tool" else {})}

        def rendered(content: object) -> str | None:
            # The trial's own forms of the other messages are applied; this one is given as it is.
            said = {**message, "content": content}
            return self._rendered([one if one is said else self._forms.fit(one) for one in around(said)])

        text = rendered(_FIRST)
        one, two = rendered(_parts(_FIRST)), rendered(_parts(_FIRST, _SECOND))
        if text is None and one is None and two is None:
            return
        takes_one = one is not None and _FIRST in one and not _PRINTED_PART.search(one)
        takes_two = takes_one and two is not None and _shows(two, _FIRST, _SECOND) and not _PRINTED_PART.search(two)
        form = ContentForm(text is not None and _FIRST in text, takes_two, takes_one)
        self._forms = replace(self._forms, contents={**self._forms.contents, role: form})

    def _try_calls(self) -> None:
        prompts: list[str] = []
        for has_text, absent in _call_forms():
            self._forms = replace(self._forms, has_text_arguments=has_text, absent_content=absent)
            for answer in ("yes", _parts("yes")):
                tool = {"role": "tool", "tool_call_id": _CALL_ID, "name": _NAME, "content": answer}
                prompt = self._rendered([*map(self._forms.fit, [self._said("user"), self._call()]), tool])
                if prompt is not None and self._shows_call(prompt):
                    return
                prompts += [] if prompt is None else [prompt]
        self._forms = replace(
            self._forms,
            has_text_arguments=False,
            absent_content=AbsentContent.MISSING,
            shows_calls=not prompts or any(_FIRST in prompt for prompt in prompts),
        )

    def _shows_call(self, prompt: str) -> bool:
        misread = _PRINTED_OBJECT.search(prompt) or _QUOTED_JSON.search(prompt) or re.search(r"\bNone\b", prompt)
        return misread is None and _shows(prompt, _FIRST, _NAME)

    def _try_reasoning(self) -> None:
        """Add the field `reasoning` to the two that transformers fills, where only this field's thought is shown."""
        for fields in (self._forms.reasoning_fields, (*self._forms.reasoning_fields, "reasoning")):
            forms = replace(self._forms, reasoning_fields=fields)
            before_call = [self._said("user"), {**self._call(), "reasoning_content": _REASONING}, self._answer()]
            earlier = [self._said("user"), {**self._said("assistant"), "reasoning_content": _REASONING}]
            for messages in (before_call, earlier, [*earlier, self._said("user")]):
                prompt = self._rendered([forms.fit(message) for message in messages])
                if prompt is not None and _REASONING in prompt:
                    self._forms = forms
                    return

    def _rendered(self, messages: list[Message]) -> str | None:
        """Return the prompt; None where the template fails, and for all that follow once the trial takes too long."""
        if time.monotonic() >= self._end_s:
            return None
        for tools in ([_TOOL], None):
            try:
                return self._render(Conversation(messages, tools=tools))
            except TemplateFailed:
                continue
        return None

    def _said(self, role: str) -> Message:
        return {"role": role, "content": "Well."}

    def _call(self) -> Message:
        function = {"name": _NAME, "arguments": {_ARGUMENT: _FIRST}}
        call = {"id": _CALL_ID, "type": "function", "function": function}
        return {"role": "assistant", "tool_calls": [call]}

    def _answer(self) -> Message:
        return {"role": "tool", "tool_call_id": _CALL_ID, "name": _NAME, "content": "yes"}


def _call_forms() -> Iterator[tuple[bool, AbsentContent]]:
    """Whether arguments are text, and what stands for an absent content: forms of most templates first."""
    for absent in AbsentContent:
        for has_text in (False, True):
            yield has_text, absent


def _parts(*texts: str) -> list[dict[str, Any]]:
    return [{"type": "text", "text": text} for text in texts]


def _shows(prompt: str, *texts: str) -> bool:
    return all(text in prompt for text in texts)
