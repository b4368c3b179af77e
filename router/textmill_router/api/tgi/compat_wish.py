"""What text generation on `POST /` is asked for beyond TGI's fields: lengths of transformers, n-grams and beams.

What is drawn follows TGI's rules. The checkpoint's files count for models without an encoder; an encoder-decoder is
asked here for streams and details alone, which stay those of TGI.
"""

from dataclasses import replace

import msgspec

from textmill_router.api.tgi.types import CompatBody, CompatParameters
from textmill_router.api.tgi.writing_types import SearchFields
from textmill_router.api.tgi.writing_wish import (
    Lengths,
    Wish,
    check_ranges,
    choose_beams,
    decoder_lengths,
    decoder_prompt,
    encoder_lengths,
    merged_numbers,
    with_search_rules,
)
from textmill_router.errors import ValidationFailed
from textmill_router.serving.checkpoint_defaults import CheckpointWriting
from textmill_router.serving.service import Backend
from textmill_router.serving.validation import CheckedParameters

_OWN = tuple(field.name for field in msgspec.structs.fields(SearchFields))
_SHARED = ("max_new_tokens", "min_new_tokens", "num_return_sequences")
_NOTHING = CheckpointWriting({}, {})


def read_compat_wish(
    body: CompatBody, checked: CheckedParameters, files: CheckpointWriting, backend: Backend, *, streams: bool
) -> Wish:
    """Return the wish of a call whose own fields are checked. Raises ValidationFailed."""
    parameters = body.parameters or CompatParameters()
    fields = SearchFields(**{name: getattr(parameters, name) for name in _OWN})
    given = merged_numbers(fields)
    check_ranges(given)
    given |= {name: value for name in _SHARED if (value := getattr(parameters, name)) is not None}
    has_encoder = backend.facts.has_encoder
    defaults = (_NOTHING if has_encoder else files).defaults_of("text-generation")
    beams, _ = choose_beams((fields,), given, defaults, backend, samples=checked.generation.sampling.do_sample)
    if beams is not None and (reason := _without_beams(parameters, checked, streams=streams)):
        if "num_beams" in given:
            message = f"`{reason}` and `parameters.num_beams` exclude each other; leave one out"
            raise ValidationFailed(message, field=reason)
        beams = None
    decoder_prompt_ids = decoder_prompt((fields,), backend)
    if has_encoder:  # where `max_new_tokens` counts as TGI counts
        own = {name: value for name, value in given.items() if not name.endswith("_new_tokens")}
        lengths = encoder_lengths(own, defaults.numbers, num_forced=max(0, len(decoder_prompt_ids) - 1))
    else:
        lengths = decoder_lengths(given, defaults.numbers)
    checked = _with_lengths(checked, lengths)
    checked = with_search_rules(checked, (fields,), given, defaults, backend)
    num_sequences = 1 if beams is None else beams.num_sequences
    return Wish(checked, beams, num_sequences, decoder_prompt_ids, warnings=defaults.not_served)


def _with_lengths(checked: CheckedParameters, lengths: Lengths) -> CheckedParameters:
    generation, most = checked.generation, checked.max_new_tokens
    if "max_new_tokens" in lengths.numbers:
        most = int(lengths.numbers["max_new_tokens"])
    if "min_new_tokens" in lengths.numbers:
        generation = replace(generation, min_new_tokens=int(lengths.numbers["min_new_tokens"]))
    return replace(checked, generation=generation, max_new_tokens=most, whole_lengths=lengths.whole)


def _without_beams(parameters: CompatParameters, checked: CheckedParameters, *, streams: bool) -> str:
    """Return the field of the call that a search by beams cannot obey, or nothing."""
    if streams:
        return "stream"
    sampling = checked.generation.sampling
    for name, is_asked in (
        ("details", parameters.details),
        ("decoder_input_details", parameters.decoder_input_details),
        ("best_of", checked.best_of > 1),
        ("stop", checked.stop),
        ("grammar", checked.generation.grammar),
        ("watermark", checked.generation.watermark),
        ("logit_bias", sampling.logit_bias),
        ("frequency_penalty", sampling.frequency_penalty),
        ("presence_penalty", sampling.presence_penalty),
        ("dry_multiplier", sampling.dry_multiplier),
    ):
        if is_asked:
            return f"parameters.{name}"
    return ""
