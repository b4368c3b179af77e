"""From checked parameters and a text to the requests of the engine, by way of tokens, budget and seeds."""

import time
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, replace

from textmill_router.bounds import MAX_U64
from textmill_router.errors import RuleBroken
from textmill_router.media.images import KnownImage
from textmill_router.media.media_item import MediaItem
from textmill_router.request import Beams, GenerationParameters, GenerationRequest, token_array
from textmill_router.serving.budget import check_budget, prompt_too_long
from textmill_router.serving.call_terms import CallTerms
from textmill_router.serving.limits import Limits
from textmill_router.serving.service import Backend
from textmill_router.serving.validation import (
    CheckedParameters,
    check_text,
    with_drawn_seed,
    with_seed,
)


@dataclass(frozen=True, slots=True)
class TokenizedPrompt:
    """A prompt that fits the limits, and how many tokens may follow the prompt."""

    prompt_ids: "array[int]"
    max_new_tokens: int
    media: tuple[MediaItem, ...] = ()  # the images in the prompt
    min_new_tokens: int | None = None  # None: as the parameters of the call say


async def take_prompt(
    backend: Backend,
    text: str,
    checked: CheckedParameters,
    *,
    add_special_tokens: bool = True,
    images: Sequence[KnownImage] = (),
) -> TokenizedPrompt:
    """Tokenise a text, keep its last tokens where `truncate` is given, and check the budget. Raises RuleBroken.

    The text holds the texts of `images`.
    """
    check_text(text)
    limits = backend.limits
    if checked.truncate is None and backend.tokenizer.cannot_fit(text, limits.max_input_tokens):
        raise prompt_too_long(f"more than {limits.max_input_tokens}", limits)
    encoding = await backend.tokenizer.encode(text, add_special_tokens)
    return fit(backend, encoding.ids, checked, images)


async def take_pieces(
    backend: Backend,
    pieces: Sequence[str],
    checked: CheckedParameters,
    *,
    add_special_tokens: bool = False,
    images: Sequence[KnownImage] = (),
) -> TokenizedPrompt:
    """Tokenise a prompt in pieces, as `take_prompt` does a text.

    Chat templates write the special tokens at both ends, so these tokens are added only where a call asks for them.
    Raises RuleBroken.
    """
    limits = backend.limits
    text = pieces[0] if len(pieces) == 1 else "".join(pieces)
    check_text(text)
    if checked.truncate is None and backend.tokenizer.cannot_fit(text, limits.max_input_tokens):
        raise prompt_too_long(f"more than {limits.max_input_tokens}", limits)
    encodings = await backend.tokenizer.encode_pieces(pieces)
    prompt_ids = token_array(())
    for encoding in encodings:
        prompt_ids.extend(encoding.ids)
    if add_special_tokens:
        before, after = backend.tokenizer.edge_ids()
        prompt_ids = before + prompt_ids + after
    return fit(backend, prompt_ids, checked, images)


def fit(
    backend: Backend, prompt_ids: "array[int]", checked: CheckedParameters, images: Sequence[KnownImage] = ()
) -> TokenizedPrompt:
    """Return a prompt that fits the window and holds only tokens that the model has, cut where `truncate` is given.

    `prompt_ids` has one token for each run of rows of the `images`. Raises RuleBroken.
    """
    media: tuple[MediaItem, ...] = ()
    if backend.images is not None:
        placed = backend.images.place(prompt_ids, images)
        prompt_ids, media = placed.ids, placed.items
    if checked.truncate is not None and len(prompt_ids) > checked.truncate:
        prompt_ids, media = _truncated(prompt_ids, media, checked.truncate)
    tokenizer, num_known = backend.tokenizer, backend.limits.vocab_size
    wanted, least = checked.max_new_tokens, None
    if checked.whole_lengths is not None:
        wanted, least = _bound_whole(len(prompt_ids), checked, backend.limits)
    intake = TokenizedPrompt(prompt_ids, check_budget(len(prompt_ids), wanted, backend.limits), media, least)
    if media:  # the ids of images may lie beyond the vocabulary, and rows stand in their places
        return intake
    # Few tokenizers have ids that their model lacks (placeholders of images), and the shard would refuse the plan.
    if tokenizer.num_ids > num_known and (largest := max(prompt_ids, default=0)) >= num_known:
        raise RuleBroken(
            "`{field}` must not hold `{text}`: it is token {largest} of the tokenizer, and this model knows the tokens "
            "0 to {last}",
            field="inputs",
            text=tokenizer.id_to_text(largest),
            largest=largest,
            last=num_known - 1,
        )
    return intake


def _truncated(
    prompt_ids: "array[int]", media: tuple[MediaItem, ...], num_tokens: int
) -> "tuple[array[int], tuple[MediaItem, ...]]":
    """Return the last tokens of a prompt. Raises RuleBroken where an image would be cut."""
    num_cut = len(prompt_ids) - num_tokens
    kept = []
    for item in media:
        if item.spans[0].start < num_cut:
            raise RuleBroken(
                "`{field}` is {num_tokens}, which would cut an image of the prompt; leave it out or let it be larger",
                field="truncate",
                num_tokens=num_tokens,
            )
        kept.append(replace(item, spans=tuple(replace(span, start=span.start - num_cut) for span in item.spans)))
    return prompt_ids[num_cut:], tuple(kept)


def _bound_whole(num_prompt_tokens: int, checked: CheckedParameters, limits: Limits) -> tuple[int | None, int | None]:
    """Return the most and the fewest new tokens of a prompt, where a bound counts its tokens too. Raises RuleBroken."""
    whole = checked.whole_lengths
    assert whole is not None
    wanted = checked.max_new_tokens
    if wanted is None and whole.max_tokens is not None:
        wanted = whole.max_tokens - num_prompt_tokens
        if wanted < 1:
            raise RuleBroken(
                "`{field}` must be larger than the prompt, which has {num_prompt} tokens, found {found}",
                field="max_length",
                num_prompt=num_prompt_tokens,
                found=whole.max_tokens,
            )
    elif wanted is None:
        room = min(limits.max_total_tokens - num_prompt_tokens, limits.max_output_tokens or limits.max_total_tokens)
        whole_bound = None if whole.default_tokens is None else whole.default_tokens - num_prompt_tokens
        bounds = [one for one in (whole.default_new_tokens, whole_bound) if one is not None and one > 0]
        wanted = min(*bounds, room) if bounds and room > 0 else None
    if whole.min_tokens is None:
        return wanted, None
    least = max(checked.generation.min_new_tokens, whole.min_tokens - num_prompt_tokens)
    return wanted, least if wanted is None else min(least, wanted)


def make_request(
    backend: Backend,
    intake: TokenizedPrompt,
    parameters: GenerationParameters,
    *,
    wants_logprobs: bool,
    wants_prompt_logprobs: bool,
    top_n_tokens: int,
    terms: CallTerms,
    stop_ids: tuple[int, ...] = (),
    decoder_prompt_ids: tuple[int, ...] | None = None,
    beams: Beams | None = None,
) -> GenerationRequest:
    """Return the request of one sequence. The tokens that an encoder reads are followed by the decoder's first tokens.

    `top_n_tokens` counts only with `wants_logprobs`. `decoder_prompt_ids` are other first tokens of the decoder than
    the model's own; where there are more, the answer has room for fewer. Raises RuleBroken where none is left.
    """
    prompt_ids, num_encoder_tokens = intake.prompt_ids, 0
    max_new_tokens = intake.max_new_tokens
    if backend.facts.has_encoder:
        num_encoder_tokens = len(prompt_ids)
        own_ids = backend.facts.decoder_prompt_ids if decoder_prompt_ids is None else decoder_prompt_ids
        num_more = len(own_ids) - len(backend.facts.decoder_prompt_ids)
        if num_more > 0:
            limits = backend.limits
            room = min(limits.max_total_tokens - len(prompt_ids), limits.max_output_tokens or limits.max_total_tokens)
            if room <= num_more:
                raise RuleBroken(
                    "`{field}` leaves no room for an answer behind the {num_forced} tokens that begin it; send less",
                    field="inputs",
                    num_forced=num_more,
                )
            max_new_tokens = min(max_new_tokens, room - num_more)
        prompt_ids = prompt_ids + token_array(own_ids)
    if intake.min_new_tokens is not None:
        parameters = replace(parameters, min_new_tokens=intake.min_new_tokens)
    if parameters.min_new_tokens > max_new_tokens:  # the window leaves less than was asked for
        parameters = replace(parameters, min_new_tokens=max_new_tokens)
    sampling = parameters.sampling
    if sampling.dry_multiplier > 0:
        breaker_ids = backend.breakers.ids_of(parameters.dry_sequence_breakers)
        parameters = replace(parameters, sampling=replace(sampling, dry_breaker_ids=breaker_ids))
    return GenerationRequest(
        request_id=backend.engine.next_request_id(),
        prompt_ids=prompt_ids,
        num_encoder_tokens=num_encoder_tokens,
        max_new_tokens=max_new_tokens,
        arrival_s=time.monotonic(),
        parameters=parameters,
        stop_ids=stop_ids,
        wants_logprobs=wants_logprobs,
        top_n_tokens=top_n_tokens if wants_logprobs else 0,
        wants_prompt_logprobs=wants_prompt_logprobs,
        standing=terms.standing,
        deadline_s=terms.deadline_s,
        cache_salt=terms.cache_salt,
        adapter_digest=b"" if terms.adapter is None else terms.adapter.digest,
        adapter_name="" if terms.adapter is None else terms.adapter.name,
        media=intake.media,
        beams=beams,
    )


def share_prompt(sequences: Sequence[GenerationRequest]) -> list[GenerationRequest]:
    """Return the sequences of one prompt, of which the first computes the prompt and its log-probabilities for all.

    `sequences` is not empty.
    """
    first, *others = sequences
    return [
        first,
        *(
            replace(other, shares_prompt_of=first.request_id, wants_prompt_logprobs=False, prompt_top_n_tokens=0)
            for other in others
        ),
    ]


def best_of_parameters(checked: CheckedParameters) -> list[GenerationParameters]:
    """Return the parameters of each sequence of best_of, which differ in the seed."""
    first = checked.generation
    return [first, *(with_drawn_seed(first) for _ in range(checked.best_of - 1))]


def choice_parameters(parameters: GenerationParameters, num_choices: int) -> list[GenerationParameters]:
    """Return the parameters of each choice of a call. The call's seed fixes the seeds of all choices, which differ."""
    seed = parameters.sampling.seed
    return [parameters, *(with_seed(parameters, (seed + index) & MAX_U64) for index in range(1, num_choices))]
