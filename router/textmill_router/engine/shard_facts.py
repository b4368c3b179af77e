"""The facts of a shard (`Hello`) and the state of its start (`Health`), read from the wire."""

from dataclasses import dataclass

from textmill_proto.v1 import shard_pb2

from textmill_router.scheduler.plan import ShardPool

BEAM_FEATURE = "beams"  # an entry of `ShardInfo.features`, which says that requests may search by beams
PREFIX_FEATURE = "prefix_cache"  # an entry of `ShardInfo.features`, which says that equal prefixes may share blocks


@dataclass(frozen=True, slots=True)
class ShardFacts:
    """The part of `ShardInfo` in shard.proto that the router uses; names and units are those of the message."""

    protocol_version: int
    model_id: str
    model_sha: str
    model_type: str
    dtype: str
    device: str
    world_size: int
    block_size: int
    num_blocks: int
    num_slots: int
    max_step_tokens: int
    vocab_size: int
    eos_token_ids: tuple[int, ...]
    features: tuple[str, ...]
    tokenizer_digest: str
    max_model_tokens: int
    rope_border: int = 0
    decoder_prompt_ids: tuple[int, ...] = ()
    max_encoder_tokens: int = 0
    adapter_bytes: int = 0
    max_adapter_rank: int = 0
    adapter_digests: tuple[bytes, ...] = ()
    media_kinds: tuple[str, ...] = ()
    media_cache_bytes: int = 0
    media_row_bytes: int = 0
    uncut_spans: bool = False
    uncut_prompts: bool = False
    kv_dtype: str = ""

    @property
    def has_encoder(self) -> bool:
        """Whether an encoder reads the prompt, and a decoder continues first tokens of its own."""
        return bool(self.decoder_prompt_ids)

    @property
    def can_search_beams(self) -> bool:
        """Whether requests may search their output by beams."""
        return BEAM_FEATURE in self.features


@dataclass(frozen=True, slots=True)
class ShardHealth:
    """The answer to Health. `phase` and `progress` (0 to 1) tell of a shard that loads, `detail` of one that failed."""

    is_ready: bool
    has_failed: bool
    phase: str
    progress: float
    detail: str


def facts_from_proto(info: shard_pb2.ShardInfo) -> ShardFacts:
    """Read the facts of a Hello."""
    return ShardFacts(
        protocol_version=info.protocol_version,
        model_id=info.model_id,
        model_sha=info.model_sha,
        model_type=info.model_type,
        dtype=info.dtype,
        device=info.device,
        world_size=info.world_size,
        block_size=info.block_size,
        num_blocks=info.num_blocks,
        num_slots=info.num_slots,
        max_step_tokens=info.max_step_tokens,
        vocab_size=info.vocab_size,
        eos_token_ids=tuple(info.eos_token_ids),
        features=tuple(info.features),
        tokenizer_digest=info.tokenizer_digest,
        max_model_tokens=info.max_model_tokens,
        rope_border=info.rope_border,
        decoder_prompt_ids=tuple(info.decoder_prompt_ids),
        max_encoder_tokens=info.max_encoder_tokens,
        adapter_bytes=info.adapter_bytes,
        max_adapter_rank=info.max_adapter_rank,
        adapter_digests=tuple(info.adapter_digests),
        media_kinds=tuple(info.media_kinds),
        media_cache_bytes=info.media_cache_bytes,
        media_row_bytes=info.media_row_bytes,
        uncut_spans=info.uncut_spans,
        uncut_prompts=info.uncut_prompts,
        kv_dtype=info.kv_dtype,
    )


def health_from_proto(report: shard_pb2.HealthReport) -> ShardHealth:
    """Read an answer to Health."""
    return ShardHealth(
        is_ready=report.state == shard_pb2.SHARD_STATE_READY,
        has_failed=report.state == shard_pb2.SHARD_STATE_FAILED,
        phase=report.phase,
        progress=report.progress,
        detail=report.detail,
    )


def pool_of(facts: ShardFacts) -> ShardPool:
    """Return the facts that the scheduler uses."""
    return ShardPool(
        num_slots=facts.num_slots,
        num_blocks=facts.num_blocks,
        block_size=facts.block_size,
        max_step_tokens=facts.max_step_tokens,
        rope_border=facts.rope_border,
        can_share_prefixes=PREFIX_FEATURE in facts.features,
        media_cache_bytes=facts.media_cache_bytes,
        media_row_bytes=facts.media_row_bytes,
        uncut_spans=facts.uncut_spans,
        uncut_prompts=facts.uncut_prompts,
    )
