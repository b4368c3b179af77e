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

_FIRST, _SECOND, _TOOL_NAME, _CALLED, _REASONING = "qzfirst", "qzsecond", "qzlook", "qzcalled", "qzthought"
_ARGUMENT = "place"
_CALL_ID = "abcdef123"  # nine letters and digits, which some templates demand
_TOOL = {
    "type": "function",
    "function": {
        "name": _TOOL_NAME,
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
        message = {"role": role, **({"tool_call_id": _CALL_ID, "name": _TOOL_NAME} if role == "tool" else {})}

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
        """Take the first form with which a call is shown whole, else the first with which its name is shown.

        A template that shows a call by its id, which holds the name of the tool, shows the call too. Where a call is
        shown in no form, calls of a history become text.
        """
        rendered: list[tuple[MessageForms, str]] = []
        for forms, prompt in self._rendered_calls():
            if _is_call_read(prompt) and _shows(prompt, _CALLED, _FIRST):
                self._forms = forms
                return
            rendered.append((forms, prompt))
        with_name = [(forms, prompt) for forms, prompt in rendered if _CALLED in prompt]
        if not with_name:
            with_id = [(forms, prompt) for forms, prompt in rendered if _shows(prompt, _CALL_ID, _FIRST)]
            with_name = [(replace(forms, shows_names=False), prompt) for forms, prompt in with_id]
        whole = [forms for forms, prompt in with_name if _is_call_read(prompt)]
        if whole:
            self._forms = whole[0]
        elif rendered and not with_name:
            self._forms = replace(self._forms, shows_calls=False)

    def _rendered_calls(self) -> Iterator[tuple[MessageForms, str]]:
        """Render a call and its answer in each form for which the template does not fail, common forms first."""
        for absent in AbsentContent:
            for has_text in (False, True):
                forms = replace(self._forms, has_text_arguments=has_text, absent_content=absent)
                for content in ("yes", _parts("yes")):
                    messages = [forms.fit(self._said("user")), forms.fit(self._call()), self._answer(content)]
                    prompt = self._rendered(messages)
                    if prompt is not None:
                        yield forms, prompt

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
        function = {"name": _CALLED, "arguments": {_ARGUMENT: _FIRST}}
        call = {"id": _CALL_ID, "type": "function", "function": function}
        return {"role": "assistant", "tool_calls": [call]}

    def _answer(self, content: object = "yes") -> Message:
        return {"role": "tool", "tool_call_id": _CALL_ID, "name": _TOOL_NAME, "content": content}


def _is_call_read(prompt: str) -> bool:
    """Whether neither arguments nor an absent content are printed as Python or inside of JSON text."""
    return not (_PRINTED_OBJECT.search(prompt) or _QUOTED_JSON.search(prompt) or re.search(r"\bNone\b", prompt))


def _parts(*texts: str) -> list[dict[str, Any]]:
    return [{"type": "text", "text": text} for text in texts]


def _shows(prompt: str, *texts: str) -> bool:
    return all(text in prompt for text in texts)
