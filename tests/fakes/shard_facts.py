"""The facts of a shard in the shard's own type, for tests that build a shard by hand."""

from typing import Any

from textmill_shard.model.runner import ModelRunner
from textmill_shard.slots.plan import ShardFacts


def shard_facts(
    *, block_size: int, num_blocks: int, num_slots: int, max_step_tokens: int, vocab_size: int, **more: Any
) -> ShardFacts:
    """Return facts of an fp32 model on one rank, with 512 positions and no end ids. `more` are further fields."""
    fields = {
        "model_id": "tiny",
        "model_sha": "",
        "model_type": "llama",
        "dtype": "float32",
        "device": "cpu",
        "rank": 0,
        "world_size": 1,
        "eos_token_ids": (),
        "max_model_tokens": 512,
        **more,
    }
    return ShardFacts(
        block_size=block_size,
        num_blocks=num_blocks,
        num_slots=num_slots,
        max_step_tokens=max_step_tokens,
        vocab_size=vocab_size,
        **fields,
    )


def facts_of(
    runner: ModelRunner, *, block_size: int, num_blocks: int, num_slots: int, max_step_tokens: int, **more: Any
) -> ShardFacts:
    """Return the facts of a shard that has these sizes and serves a loaded model."""
    model = runner.facts
    fields = {
        "model_type": model.model_type,
        "dtype": model.dtype,
        "device": model.device,
        "eos_token_ids": model.eos_token_ids,
        "max_model_tokens": model.max_model_tokens,
        "layout": model.layout,
        "tokenizer_digest": model.tokenizer_digest,
        "rope_border": model.rope_border or 0,
        "decoder_prompt_ids": model.decoder_prompt_ids,
        "max_encoder_tokens": model.max_encoder_tokens,
        **more,
    }
    return shard_facts(
        block_size=block_size,
        num_blocks=num_blocks,
        num_slots=num_slots,
        max_step_tokens=max_step_tokens,
        vocab_size=model.vocab_size,
        **fields,
    )
