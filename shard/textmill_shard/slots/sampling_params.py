"""The sampling parameters of one request: checked numbers, no state."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """The sampling part of an Admit. The router has checked the ranges. The defaults switch everything off.

    `end_ids` are the ids that would end this request: its stop ids, and the EOS ids unless the request ignores them.
    None of them is drawn before `min_new_tokens` output tokens exist. `engine/row_sampling.py` fills in `end_ids`,
    `max_new_tokens` and `has_grammar` when the request gets its slot. `top_n_tokens` is the number of alternatives;
    tokens that tie with the last alternative are added.
    """

    do_sample: bool = False
    temperature: float = 1.0  # > 0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    typical_p: float = 1.0
    repetition_penalty: float = 1.0  # of prompt and output tokens
    presence_penalty: float = 0.0  # logit units, of output tokens
    frequency_penalty: float = 0.0  # logit units for each occurrence of an output token
    dry_multiplier: float = 0.0  # logit units, of prompt and output tokens (sampling/dry.py)
    dry_base: float = 1.75  # >= 1
    dry_allowed_length: int = 2  # tokens of the shortest repetition that lowers a score
    dry_breaker_ids: tuple[int, ...] = ()
    seed: int = 0  # unsigned 64 bits
    logit_bias: tuple[tuple[int, float], ...] = ()  # (token id, logit units)
    allowed_ids: tuple[int, ...] = ()  # the only ids that the output may have; empty: every id
    bad_sequences: tuple[tuple[int, ...], ...] = ()  # no empty one; the output has none of these sequences
    no_repeat_ngram_size: int = 0  # tokens in a row that stand in the text once at most; 0 = off
    encoder_no_repeat_ngram_size: int = 0  # tokens in a row of the encoder's text that the output has not; 0 = off
    forced_first_ids: tuple[int, ...] = ()  # the only ids of the first output token; empty: every id
    forced_last_ids: tuple[int, ...] = ()  # the only ids of the output token number `max_new_tokens`; empty: every id
    min_new_tokens: int = 0
    max_new_tokens: int = 0  # filled in as `end_ids` is
    end_ids: tuple[int, ...] = ()
    wants_logprobs: bool = False
    top_n_tokens: int = 0
    watermark: bool = False  # raise the green list of each step (sampling/watermark.py)
    has_grammar: bool = False
