"""How long a request may be and how much it may ask for, from the settings and the facts that the shard reports."""

from dataclasses import dataclass, replace

from textmill_router.engine.replica_set import ReplicaSet
from textmill_router.engine.shard_facts import ShardFacts
from textmill_router.settings import Settings, SettingsError

DEFAULT_PREFILL_TOKENS = 4096


@dataclass(frozen=True, slots=True)
class Limits:
    """The most that a request may ask for, in tokens and counts, and how its schemas are read.

    The limits are known once the shard is ready.
    """

    max_best_of: int
    max_stop_sequences: int
    max_top_n_tokens: int
    max_input_tokens: int
    max_total_tokens: int
    vocab_size: int
    max_output_tokens: int | None = None  # where the positions of a decoder end before the window does
    closes_objects: bool = True  # objects of schemas have no keys but those that their schema names
    input_limit: str = "--max-input-tokens"  # what `max_input_tokens` follows from


def resolve_limits(settings: Settings, facts: ShardFacts, engine: ReplicaSet) -> Limits:
    """Return the limits as they are set or, where they are not, as large as model and KV pool allow.

    Raises SettingsError for limits that model or KV pool do not allow.

    Where a model has an encoder, the encoder's positions bound the prompt and the decoder's positions the output.
    """
    pool_tokens = _largest_fitting(engine, facts) - len(facts.decoder_prompt_ids)
    possible = min(pool_tokens, _longest_by_positions(facts) or pool_tokens)
    max_total = settings.max_total_tokens or possible
    if max_total > possible:
        reason = f"the KV cache holds {pool_tokens} tokens of one request"
        if possible < pool_tokens:
            reason = f"the model's positions end at {possible}"
        raise SettingsError(f"--max-total-tokens is {max_total}, wanted at most {possible}: {reason}")
    if max_total < 2:
        raise SettingsError(f"the KV cache holds {pool_tokens} tokens, wanted at least 2: give the shard more memory")
    max_input = settings.max_input_tokens or max_total - 1
    if max_input >= max_total:
        raise SettingsError(
            f"--max-input-tokens is {max_input}, wanted less than {max_total}, prompt and output together "
            "(--max-total-tokens, or what model and KV cache allow)"
        )
    limits = Limits(
        max_best_of=settings.max_best_of,
        max_stop_sequences=settings.max_stop_sequences,
        max_top_n_tokens=settings.max_top_n_tokens,
        max_input_tokens=max_input,
        max_total_tokens=max_total,
        vocab_size=facts.vocab_size,
        closes_objects=not settings.open_objects,
    )
    if facts.has_encoder:
        return _encoder_limits(limits, settings, facts)
    if facts.uncut_prompts:
        reason = "--max-batch-prefill-tokens: this model reads a prompt in one step"
        return _whole_prompt_limits(limits, settings, facts, max_whole_tokens(settings, facts), reason)
    return limits


def _longest_by_positions(facts: ShardFacts) -> int:
    """Return the most tokens of prompt and output for which the model has positions, or 0 where it has no bound."""
    if not facts.has_encoder:
        return facts.max_model_tokens
    if not (facts.max_encoder_tokens and facts.max_model_tokens):
        return 0
    return facts.max_encoder_tokens + facts.max_model_tokens - len(facts.decoder_prompt_ids)


def _encoder_limits(limits: Limits, settings: Settings, facts: ShardFacts) -> Limits:
    """Narrow the limits for an encoder, which reads a prompt in one step beside a token of every slot (rule 16)."""
    most = max_whole_tokens(settings, facts)
    reason = "--max-batch-prefill-tokens: the encoder reads a prompt in one step"
    if 0 < facts.max_encoder_tokens < most:
        most, reason = facts.max_encoder_tokens, "where the positions of the encoder end"
    if facts.max_model_tokens:
        limits = replace(limits, max_output_tokens=facts.max_model_tokens - len(facts.decoder_prompt_ids))
    return _whole_prompt_limits(limits, settings, facts, most, reason)


def _whole_prompt_limits(limits: Limits, settings: Settings, facts: ShardFacts, most: int, reason: str) -> Limits:
    """Bound the tokens of a prompt that one step reads. `reason` says what the bound follows from."""
    if most < 1:
        raise SettingsError(
            f"{facts.num_slots} slots leave a step of {facts.max_step_tokens} tokens no room for a prompt"
        )
    if settings.max_input_tokens is not None and settings.max_input_tokens > most:
        raise SettingsError(f"--max-input-tokens is {settings.max_input_tokens}, wanted at most {most} ({reason})")
    if limits.max_input_tokens <= most:
        return limits
    return replace(limits, max_input_tokens=most, input_limit=reason)


def _largest_fitting(engine: ReplicaSet, facts: ShardFacts) -> int:
    """Return the longest request, in tokens, that fits the KV pool while no other request runs."""
    low, high = 0, facts.num_blocks * facts.block_size
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if engine.can_ever_fit(middle) else (low, middle - 1)
    return low


def max_whole_tokens(settings: Settings, facts: ShardFacts) -> int:
    """Return the most tokens of one request that a step computes beside a token of every slot (rule 16)."""
    return min(max_prefill_tokens(settings, facts), facts.max_step_tokens - facts.num_slots)


def max_prefill_tokens(settings: Settings, facts: ShardFacts) -> int:
    """Return the most prompt tokens of one step."""
    return min(settings.max_batch_prefill_tokens or DEFAULT_PREFILL_TOKENS, facts.max_step_tokens)
