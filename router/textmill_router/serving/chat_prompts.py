"""From a conversation to its tokens: first the grammar of the answers, before the permit, and then the prompt."""

from dataclasses import dataclass

from textmill_router.chat.answer_form import AnswerForm, FormatFlags, answer_form, grammar_for
from textmill_router.chat.prompt import ChatPrompt, ChatRequest
from textmill_router.chat.render import render
from textmill_router.chat.tools import ToolChoice
from textmill_router.grammar.request_forms import AskedGrammar
from textmill_router.media.images import KnownImage
from textmill_router.request import Grammar
from textmill_router.serving.prompts import TokenizedPrompt, take_pieces
from textmill_router.serving.service import Backend
from textmill_router.serving.validation import CheckedParameters


@dataclass(frozen=True, slots=True)
class PreparedChat:
    """A conversation that obeys the rules and that no template has rendered yet.

    `form` and `grammar` are those of the answers but for their reasoning, which the prompt may open or close.
    `grammar_field` is the part of the body that the grammar comes from.
    """

    chat: ChatRequest
    tools: ToolChoice | None
    content: AskedGrammar | None  # for the content of the answers
    grammar_field: str
    form: AnswerForm
    grammar: Grammar | None
    add_special_tokens: bool | None  # around a prompt that may have them already; None: as the model's kind has it


@dataclass(frozen=True, slots=True)
class TokenizedChat:
    """A rendered conversation that fits the limits, the grammar of its answers, and the form of these answers."""

    prompt: TokenizedPrompt
    num_characters: int  # of the prompt
    form: AnswerForm
    grammar: Grammar | None
    shown_specials: frozenset[int]  # ids of special tokens whose text the reader needs


def prepare_chat(
    backend: Backend,
    flags: FormatFlags,
    chat: ChatRequest,
    *,
    tools: ToolChoice | None = None,
    content: AskedGrammar | None = None,
    grammar_field: str = "grammar",
    add_special_tokens: bool | None = None,
) -> PreparedChat:
    """The grammar of the result is to be compiled before a permit is taken.

    Raises TemplateFailed where the model has no template, ValidationFailed for a tool whose schema is not one of
    objects.
    """
    form = answer_form(backend.chat_templates.pick(has_tools=tools is not None), tools, flags)
    grammar = _grammar(backend, content, tools, form.without_reasoning())
    return PreparedChat(chat, tools, content, grammar_field, form, grammar, add_special_tokens)


@dataclass(frozen=True, slots=True)
class ShownChat:
    """A rendered conversation. `pieces` are those of the prompt with the texts of the images in them.

    `adds_special_tokens` says whether the tokenizer puts its own tokens around the prompt of this model.
    """

    prompt: ChatPrompt
    pieces: tuple[str, ...]
    images: tuple[KnownImage, ...]
    adds_special_tokens: bool

    def whole_pieces(self, backend: Backend) -> tuple[str, ...]:
        """Return the pieces with a token for each row of the images, as a tokenizer needs them for all ids."""
        if backend.images is None:
            return self.pieces
        return backend.images.fill(self.prompt.pieces, self.images, has_all_rows=True)


async def show_chat(backend: Backend, chat: ChatRequest, tools: ToolChoice | None, *, cache_salt: bytes) -> ShownChat:
    """Render a conversation and read its images. Raises ValidationFailed, TemplateFailed, Overloaded, ShuttingDown."""
    prompt = await render(backend.chat_templates, backend.role_safety, chat, tools)
    if backend.images is None:
        return ShownChat(prompt, prompt.pieces, (), False)
    images = await backend.images.read(chat.images, salt=cache_salt)
    pieces = backend.images.fill(prompt.pieces, images)
    return ShownChat(prompt, pieces, images, backend.images.adds_special_tokens(pieces[0], backend.tokenizer.bos_token))


async def take_chat(
    backend: Backend, prepared: PreparedChat, checked: CheckedParameters, *, cache_salt: bytes
) -> TokenizedChat:
    """Render and tokenise the conversation with its images, and check the budget.

    `cache_salt` keeps what is known of grammars and images apart by callers.

    Raises ValidationFailed, TemplateFailed, and what the reading of images raises.
    """
    shown = await show_chat(backend, prepared.chat, prepared.tools, cache_salt=cache_salt)
    prompt = shown.prompt
    add_special_tokens = (
        shown.adds_special_tokens if prepared.add_special_tokens is None else prepared.add_special_tokens
    )
    tokens = await take_pieces(
        backend, shown.pieces, checked, add_special_tokens=add_special_tokens, images=shown.images
    )
    form, grammar = prepared.form.behind(prompt.text, prompt.begun), prepared.grammar
    if grammar is not None and form.reasoning is not None:
        grammar = _grammar(backend, prepared.content, prepared.tools, form)
        assert grammar is not None
        await backend.grammars.check(grammar, field=prepared.grammar_field, salt=cache_salt)
    shown_specials = backend.tokenizer.special_ids_of(form.markers)
    return TokenizedChat(tokens, sum(map(len, prompt.pieces)), form, grammar, shown_specials)


def _grammar(
    backend: Backend, content: AskedGrammar | None, tools: ToolChoice | None, form: AnswerForm
) -> Grammar | None:
    return grammar_for(content, tools, form, backend.tokenizer, closes_objects=backend.limits.closes_objects)
