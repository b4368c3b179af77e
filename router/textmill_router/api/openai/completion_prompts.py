"""The prompts of a completion, as token ids for the engine and as text with offsets for `echo`."""

from array import array
from dataclasses import dataclass

from textmill_router.api.openai.completion_types import PromptSource
from textmill_router.errors import SuffixRefused, ValidationFailed
from textmill_router.serving.budget import prompt_too_long
from textmill_router.serving.prompts import TokenizedPrompt, fit, take_prompt
from textmill_router.serving.service import Backend
from textmill_router.serving.validation import CheckedParameters
from textmill_router.text.fill_in_middle import MiddleTokens, find_middle_tokens
from textmill_router.text.tokenization import Encoding, Tokenizer


@dataclass(frozen=True, slots=True)
class CompletionPrompt:
    """A prompt that fits the limits.

    `offsets` has the place of each token in characters of `text`, and is empty where the call does not need it.
    """

    intake: TokenizedPrompt
    text: str  # as `echo` shows it
    offsets: list[int]


def middle_tokens_for(sources: list[PromptSource], tokenizer: Tokenizer) -> MiddleTokens:
    """Return the tokens by which this model is asked for the text between a prompt and a suffix.

    Raises ValidationFailed for a model that has no such tokens, and for prompts that are token ids.
    """
    tokens = find_middle_tokens(tokenizer.token_to_id)
    if tokens is None:
        raise SuffixRefused("`suffix` must not be set: this model has no fill-in-the-middle tokens", field="suffix")
    if any(source.text is None for source in sources):
        raise ValidationFailed("`suffix` needs prompts that are text, found token ids", field="suffix")
    return tokens


async def take_middle_prompt(
    backend: Backend,
    prefix: str,
    suffix: str,
    tokens: MiddleTokens,
    checked: CheckedParameters,
    *,
    add_special_tokens: bool,
) -> CompletionPrompt:
    """Encode the two texts apart, the suffix as text inside a line. Raises ValidationFailed."""
    limits, tokenizer = backend.limits, backend.tokenizer
    if tokenizer.cannot_fit(prefix + suffix, limits.max_input_tokens):
        raise prompt_too_long(f"more than {limits.max_input_tokens}", limits)
    encoded_prefix, encoded_suffix = await tokenizer.encode_pieces([prefix, suffix])
    ids = tokens.join(encoded_prefix.ids, encoded_suffix.ids)
    if add_special_tokens:
        before, after = tokenizer.edge_ids()
        ids = before + ids + after
    return CompletionPrompt(_fit(ids, checked, backend), prefix + suffix, [])


async def take_completion_prompt(
    backend: Backend,
    source: PromptSource,
    checked: CheckedParameters,
    *,
    wants_offsets: bool,
    add_special_tokens: bool,
    cache_salt: bytes,
) -> CompletionPrompt:
    """Tokenise a prompt and check the budget. Token ids are taken as they are.

    In a text each `![](URL)` is an image where the model takes images, as on TGI's routes. Raises ValidationFailed, and
    what the reading of images raises.
    """
    limits, tokenizer = backend.limits, backend.tokenizer
    if source.text is None:
        assert source.ids is not None
        intake = _fit(source.ids, checked, backend)  # before the ids are spelt out, which takes a microsecond for each
        return CompletionPrompt(intake, *spell_out(tokenizer, source.ids))
    if backend.images is not None:
        found = await backend.images.in_text(source.text, field=source.field, salt=cache_salt)
        if found.images:
            if wants_offsets:
                raise ValidationFailed("`echo` with `logprobs` takes no images in `prompt`", field="echo")
            intake = await take_prompt(
                backend,
                "".join(backend.images.parts(found)),
                checked,
                add_special_tokens=add_special_tokens and found.adds_special_tokens,
                images=found.images,
            )
            return CompletionPrompt(intake, source.text, [])
    if checked.truncate is None and tokenizer.cannot_fit(source.text, limits.max_input_tokens):
        raise prompt_too_long(f"more than {limits.max_input_tokens}", limits)
    encoding = await tokenizer.encode(source.text, add_special_tokens, wants_offsets)
    intake = _fit(encoding.ids, checked, backend)
    return CompletionPrompt(intake, source.text, _character_offsets(source.text, encoding) if wants_offsets else [])


def spell_out(tokenizer: Tokenizer, ids: "array[int]") -> tuple[str, list[int]]:
    """Return the text of token ids, with special tokens literally, and the place where each token begins."""
    detokenizer = tokenizer.new_detokenizer(ids[:0])
    pieces: list[str] = []
    offsets: list[int] = []
    length = 0
    for token_id in ids:
        offsets.append(length)
        piece = detokenizer.step(token_id)
        if tokenizer.is_special(token_id):
            piece += detokenizer.flush() + tokenizer.id_to_text(token_id)
        pieces.append(piece)
        length += len(piece)
    pieces.append(detokenizer.flush())
    return "".join(pieces), offsets


def _fit(ids: "array[int]", checked: CheckedParameters, backend: Backend) -> TokenizedPrompt:
    return fit(backend, ids, checked)


def _character_offsets(text: str, encoding: Encoding) -> list[int]:
    """Return where the tokens begin. Tokens that the tokenizer added are at the start or the end of the text."""
    starts = [start for start, _ in encoding.byte_offsets]
    if text.isascii():
        return starts
    places = array("L", bytes(0))
    for place, character in enumerate(text):
        places.extend([place] * len(character.encode("utf-8", "surrogatepass")))
    places.append(len(text))
    return [places[start] for start in starts]
