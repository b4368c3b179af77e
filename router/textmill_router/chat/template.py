"""A model's chat templates: the choice of one for a conversation, and the text that it makes of the conversation."""

import logging
from collections.abc import Mapping

import jinja2
from jinja2 import meta, nodes

from textmill_router.chat.content_form import content_form
from textmill_router.chat.conversation import Conversation
from textmill_router.chat.form_trial import FormTrial
from textmill_router.chat.sandbox import ChatSandbox
from textmill_router.errors import TemplateFailed

log = logging.getLogger(__name__)

DEFAULT_NAME = "default"
TOOLS_NAME = "tool_use"
MAX_SOURCE_CHARACTERS = 1_000_000


class ChatTemplate:
    """One compiled template.

    `names` are the variables that the template reads, `source` tells formats of calls and reasoning apart, and `forms`
    are the forms in which the template reads messages.
    """

    def __init__(self, sandbox: ChatSandbox, source: str, special_tokens: Mapping[str, str]) -> None:
        """Compile and try the template. Raises TemplateFailed where the source is no template."""
        if len(source) > MAX_SOURCE_CHARACTERS:
            raise TemplateFailed(f"the template has {len(source)} characters, the limit is {MAX_SOURCE_CHARACTERS}")
        try:
            tree = sandbox.parse(source)
            self._template = sandbox.compile(source)
        except jinja2.TemplateSyntaxError as error:
            raise TemplateFailed(f"line {error.lineno} of the template: {error.message}") from error
        self._sandbox = sandbox
        self._special_tokens = dict(special_tokens)
        self.source = source
        self.names: frozenset[str] = frozenset(meta.find_undeclared_variables(tree))
        constants = {node.value for node in tree.find_all(nodes.Const) if isinstance(node.value, str)}
        attributes = {node.attr for node in tree.find_all(nodes.Getattr)}
        self._mentioned = constants | attributes
        self.forms = FormTrial(self.render, content_form(tree)).forms()

    def mentions(self, name: str) -> bool:
        """Whether the template knows a role or a message's field of this name."""
        return name in self._mentioned

    @property
    def takes_tools(self) -> bool:
        return "tools" in self.names

    def render(self, conversation: Conversation) -> str:
        """Return the text. Raises TemplateFailed with the message of the template or of the operation that failed."""
        try:
            return self._sandbox.render(
                self._template,
                {
                    **self._special_tokens,
                    **conversation.variables,
                    "messages": conversation.messages,
                    "tools": conversation.tools,
                    "documents": conversation.documents,
                    "add_generation_prompt": conversation.add_generation_prompt,
                },
            )
        except jinja2.TemplateError as error:
            raise TemplateFailed(error.message or type(error).__name__) from error
        except Exception as error:  # a template may fail as any of Python's operators may
            raise TemplateFailed(f"{type(error).__name__}: {error}") from error


class ChatTemplates:
    """The templates of a model by name, compiled once. A template that cannot be compiled raises its error at use."""

    def __init__(self, sources: Mapping[str, str], special_tokens: Mapping[str, str]) -> None:
        sandbox = ChatSandbox()
        self._templates: dict[str, ChatTemplate | TemplateFailed] = {}
        for name, source in sources.items():
            try:
                self._templates[name] = ChatTemplate(sandbox, source, special_tokens)
            except TemplateFailed as error:
                log.warning("a chat template cannot be used", extra={"template": name, "reason": str(error)})
                self._templates[name] = error

    @property
    def usable(self) -> dict[str, ChatTemplate]:
        """The templates that can be used, by name."""
        return {name: found for name, found in self._templates.items() if isinstance(found, ChatTemplate)}

    @property
    def sources(self) -> tuple[str, ...]:
        """The sources of the templates that can be used."""
        return tuple(template.source for template in self._templates.values() if isinstance(template, ChatTemplate))

    def pick(self, *, has_tools: bool) -> ChatTemplate:
        """Return the template `tool_use` for a conversation with tools where there is one, else the template `default`.

        Raises TemplateFailed where the model has no such template or the template cannot be compiled.
        """
        template = self._templates.get(TOOLS_NAME) if has_tools else None
        template = template or self._templates.get(DEFAULT_NAME)
        if template is None:
            found = ", ".join(sorted(self._templates)) or "none"
            raise TemplateFailed(
                f"the model has no chat template named {DEFAULT_NAME!r}, found {found}; use /generate or "
                "/v1/completions with a prompt rendered by you"
            )
        if isinstance(template, TemplateFailed):
            raise TemplateFailed(str(template))
        return template
