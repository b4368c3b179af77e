"""How one request wants its tokens drawn: checked numbers, no state."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """The sampling part of an Admit. Ranges are checked by the router; "off" is the default of each field.

    `end_ids` are the ids that would end this request (EOS ids unless they are ignored, and its stop ids): they cannot
    be drawn before `min_new_tokens` output tokens exist. `end_ids` and `has_grammar` are filled in when the request is
    seated (engine/row_sampling.py). `top_n_tokens` counts alternatives; ties at the cut are added.
    """

    do_sample: bool = False
    temperature: float = 1.0  # > 0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    typical_p: float = 1.0
    repetition_penalty: float = 1.0  # prompt and output tokens
    presence_penalty: float = 0.0  # logit units, output tokens
    frequency_penalty: float = 0.0  # logit units per occurrence, output tokens
    dry_multiplier: float = 0.0  # logit units, prompt and output tokens (sampling/dry.py)
    dry_base: float = 1.75  # >= 1
    dry_allowed_length: int = 2  # tokens of the shortest repetition that costs something
    dry_breaker_ids: tuple[int, ...] = ()
    seed: int = 0  # unsigned 64 bits
    logit_bias: tuple[tuple[int, float], ...] = ()  # (token id, logit units)
    min_new_tokens: int = 0
    end_ids: tuple[int, ...] = ()
    wants_logprobs: bool = False
    top_n_tokens: int = 0
    watermark: bool = False  # raise the green list of each step (sampling/watermark.py)
    has_grammar: bool = False
