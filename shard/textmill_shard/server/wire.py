"""Turns messages of `textmill_proto` into the shard's own types, and the shard's types into messages.

Packed arrays are little-endian: u32 for ids and counts, f32 for log-probabilities, u8 for flags.
"""

from collections.abc import Sequence

import numpy as np
from textmill_proto import PROTOCOL_VERSION
from textmill_proto.v1 import shard_pb2 as pb

from textmill_shard.engine.adapter_desk import LoadedAdapter
from textmill_shard.engine.media_put import MediaHeader, TensorHeader
from textmill_shard.slots.plan import (
    NO_IDS,
    Admit,
    Beams,
    Budget,
    Drop,
    EarlyStopping,
    Extend,
    FloatArray,
    FoundSequences,
    Grammar,
    Heartbeat,
    IdArray,
    MediaSpan,
    Plan,
    PlanRejection,
    ShardFacts,
    SlotError,
    SlotErrorCode,
    SlotPromptLogprobs,
    StepResult,
    TopTokens,
)
from textmill_shard.slots.plan_check import PlanRejected
from textmill_shard.slots.sampling_params import SamplingParams

NUM_KV_GROUPS = 1
_ERROR_CODES = {
    SlotErrorCode.NOT_FINITE: pb.SLOT_ERROR_CODE_NOT_FINITE,
    SlotErrorCode.INTERNAL: pb.SLOT_ERROR_CODE_INTERNAL,
    SlotErrorCode.MEDIA: pb.SLOT_ERROR_CODE_MEDIA,
}
_EARLY_STOPPING = {
    pb.EARLY_STOPPING_NO: EarlyStopping.NO,
    pb.EARLY_STOPPING_YES: EarlyStopping.YES,
    pb.EARLY_STOPPING_NEVER: EarlyStopping.NEVER,
}


def pack_u32(values: IdArray) -> bytes:
    """Pack ids or counts, each as 4 bytes."""
    return values.astype("<u4").tobytes()


def pack_f32(values: FloatArray) -> bytes:
    """Pack floats, each as 4 bytes."""
    return values.astype("<f4").tobytes()


def unpack_u32(data: bytes) -> IdArray:
    """Unpack ids or counts into int64. The length of `data` is a multiple of 4."""
    return np.frombuffer(data, dtype="<u4").astype(np.int64)


def unpack_f32(data: bytes) -> FloatArray:
    """Unpack float32. The length of `data` is a multiple of 4."""
    return np.frombuffer(data, dtype="<f4").astype(np.float32)


def plan_from_wire(message: pb.Plan) -> Plan:
    """Read a plan. Raises PlanRejected when the length of a packed field does not fit the type of its values."""
    budget = message.budget
    return Plan(
        number=message.number,
        drops=tuple(Drop(slot=drop.slot, request_id=drop.request_id) for drop in message.drops),
        extends=tuple(
            Extend(
                slot=extend.slot,
                request_id=extend.request_id,
                block_ids=_blocks_from_wire(message.number, "extends.block_ids", extend.slot, extend.block_ids),
            )
            for extend in message.extends
        ),
        admits=tuple(_admit_from_wire(message.number, admit) for admit in message.admits),
        budget=None
        if not message.HasField("budget")
        else Budget(
            max_step_tokens=budget.max_step_tokens,
            max_prefill_tokens=budget.max_prefill_tokens,
            max_chunk_tokens=budget.max_chunk_tokens,
        ),
    )


def plan_from_bytes(data: bytes) -> Plan:
    """Read a plan from a serialised message, the form in which rank 0 sends plans to the other ranks."""
    return plan_from_wire(pb.Plan.FromString(data))


def _admit_from_wire(plan: int, admit: pb.Admit) -> Admit:
    def ids(field: str, data: bytes) -> IdArray:
        return _ids_from_wire(plan, f"admits.{field}", admit.slot, data)

    sampling = admit.sampling
    bias_ids = ids("sampling.logit_bias_ids", sampling.logit_bias_ids).tolist()
    bias_values = sampling.logit_bias_values
    if len(bias_values) != 4 * len(bias_ids):
        message = f"wanted one value of 4 bytes per id ({len(bias_ids)}), got {len(bias_values)} bytes"
        raise _rejected(plan, admit.slot, "admits.sampling.logit_bias_values", message)
    return Admit(
        request_id=admit.request_id,
        slot=admit.slot,
        prompt_ids=ids("prompt_ids", admit.prompt_ids),
        output_ids=ids("output_ids", admit.output_ids),
        num_cached_tokens=admit.num_cached_tokens,
        block_ids=_blocks_from_wire(plan, "admits.block_ids", admit.slot, admit.block_ids),
        max_new_tokens=admit.max_new_tokens,
        sampling=SamplingParams(
            do_sample=sampling.do_sample,
            temperature=sampling.temperature,
            top_k=sampling.top_k,
            top_p=sampling.top_p,
            min_p=sampling.min_p,
            typical_p=sampling.typical_p,
            repetition_penalty=sampling.repetition_penalty,
            presence_penalty=sampling.presence_penalty,
            frequency_penalty=sampling.frequency_penalty,
            dry_multiplier=sampling.dry_multiplier,
            dry_base=sampling.dry_base,
            dry_allowed_length=sampling.dry_allowed_length,
            dry_breaker_ids=tuple(ids("sampling.dry_breaker_ids", sampling.dry_breaker_ids).tolist()),
            allowed_ids=tuple(ids("sampling.allowed_ids", sampling.allowed_ids).tolist()),
            no_repeat_ngram_size=sampling.no_repeat_ngram_size,
            encoder_no_repeat_ngram_size=sampling.encoder_no_repeat_ngram_size,
            forced_first_ids=tuple(ids("sampling.forced_first_ids", sampling.forced_first_ids).tolist()),
            forced_last_ids=tuple(ids("sampling.forced_last_ids", sampling.forced_last_ids).tolist()),
            bad_sequences=tuple(
                tuple(ids("sampling.bad_sequences", sequence).tolist()) for sequence in sampling.bad_sequences
            ),
            seed=sampling.seed,
            logit_bias=tuple(zip(bias_ids, unpack_f32(bias_values).tolist(), strict=True)),
            min_new_tokens=admit.min_new_tokens,
            wants_logprobs=admit.logprobs,
            top_n_tokens=admit.top_n_tokens,
            watermark=admit.watermark,
        ),
        stop_ids=tuple(ids("stop_ids", admit.stop_ids).tolist()),
        ignore_eos=admit.ignore_eos,
        prompt_logprobs_from=admit.prompt_logprobs_from if admit.HasField("prompt_logprobs_from") else None,
        prompt_top_n_tokens=admit.prompt_top_n_tokens,
        is_long_rope=admit.long_rope,
        num_encoder_tokens=admit.num_encoder_tokens,
        copied_block_id=admit.copied_block_id if admit.HasField("copied_block_id") else None,
        caller=admit.caller,
        adapter_digest=admit.adapter_digest,
        caller_weight=admit.caller_weight or 1.0,
        grammar=Grammar(admit.grammar.text) if admit.HasField("grammar") else None,
        media=tuple(
            MediaSpan(
                digest=span.digest,
                start=span.start,
                num_tokens=span.num_tokens,
                first_row=span.first_row,
                grid=tuple(ids("media.grid", span.grid).tolist()),
            )
            for span in admit.media
        ),
        beams=_beams_from_wire(plan, admit) if admit.HasField("beams") else None,
    )


def _beams_from_wire(plan: int, admit: pb.Admit) -> Beams:
    beams = admit.beams
    early_stopping = _EARLY_STOPPING.get(beams.early_stopping)
    if early_stopping is None:
        message = f"wanted a value of EarlyStopping, got {beams.early_stopping}"
        raise _rejected(plan, admit.slot, "admits.beams.early_stopping", message)
    return Beams(
        num_beams=beams.num_beams,
        num_sequences=beams.num_sequences,
        length_penalty=beams.length_penalty,
        early_stopping=early_stopping,
        max_ms=beams.max_ms,
    )


def _blocks_from_wire(plan: int, field: str, slot: int, groups: Sequence[bytes]) -> IdArray:
    if len(groups) > NUM_KV_GROUPS:
        raise _rejected(plan, slot, field, f"this model has {NUM_KV_GROUPS} KV group, got {len(groups)}")
    return _ids_from_wire(plan, field, slot, groups[0]) if groups else NO_IDS


def _ids_from_wire(plan: int, field: str, slot: int, data: bytes) -> IdArray:
    if len(data) % 4:
        raise _rejected(plan, slot, field, f"wanted 4 bytes per id, got {len(data)} bytes")
    return unpack_u32(data)


def _rejected(plan: int, slot: int, field: str, message: str) -> PlanRejected:
    return PlanRejected(PlanRejection(plan=plan, slot=slot, field=field, message=message))


def facts_to_wire(facts: ShardFacts) -> pb.ShardInfo:
    """Return the facts as a message, with the version of the protocol."""
    return pb.ShardInfo(
        protocol_version=PROTOCOL_VERSION,
        model_id=facts.model_id,
        model_sha=facts.model_sha,
        model_type=facts.model_type,
        dtype=facts.dtype,
        device=facts.device,
        rank=facts.rank,
        world_size=facts.world_size,
        block_size=facts.block_size,
        num_blocks=facts.num_blocks,
        num_slots=facts.num_slots,
        max_step_tokens=facts.max_step_tokens,
        vocab_size=facts.vocab_size,
        eos_token_ids=facts.eos_token_ids,
        layout=facts.layout,
        features=facts.features,
        tokenizer_digest=facts.tokenizer_digest,
        max_model_tokens=facts.max_model_tokens,
        weight_bytes=facts.weight_bytes,
        kv_bytes=facts.kv_bytes,
        rope_border=facts.rope_border,
        decoder_prompt_ids=facts.decoder_prompt_ids,
        max_encoder_tokens=facts.max_encoder_tokens,
        adapter_bytes=facts.adapter_bytes,
        max_adapter_rank=facts.max_adapter_rank,
        adapter_digests=facts.adapter_digests,
        media_kinds=facts.media_kinds,
        media_cache_bytes=facts.media_cache_bytes,
        media_row_bytes=facts.media_row_bytes,
        uncut_spans=facts.uncut_spans,
        uncut_prompts=facts.uncut_prompts,
        kv_dtype=facts.kv_dtype,
    )


def media_header_from_wire(message: pb.MediaHeader) -> MediaHeader:
    """Read what an item is. The engine checks the header."""
    tensors = (TensorHeader(tensor.name, tensor.dtype, tuple(tensor.shape)) for tensor in message.tensors)
    return MediaHeader(digest=message.digest, kind=message.kind, tensors=tuple(tensors), num_rows=message.num_rows)


def adapter_to_wire(adapter: LoadedAdapter) -> pb.AdapterInfo:
    """Return the answer to a load."""
    return pb.AdapterInfo(
        digest=adapter.digest,
        max_rank=adapter.max_rank,
        num_bytes=max(adapter.bytes_by_rank),
        num_modules=adapter.num_modules,
        target_names=adapter.target_names,
    )


def hello_to_wire(epoch: int, facts: ShardFacts) -> pb.FromShard:
    """Return the first message of a stream."""
    return pb.FromShard(epoch=epoch, hello=pb.Hello(info=facts_to_wire(facts)))


def heartbeat_to_wire(epoch: int, beat: Heartbeat) -> pb.FromShard:
    """Return the message of a heartbeat."""
    return pb.FromShard(
        epoch=epoch,
        heartbeat=pb.Heartbeat(
            last_step=beat.last_step,
            last_step_age_ms=beat.last_step_age_ms,
            plan_applied=beat.plan_applied,
            overdue_ms=beat.overdue_ms,
            num_memory_faults=beat.num_memory_faults,
            media_bytes=beat.media_bytes,
            num_media_encodes=beat.num_media_encodes,
        ),
    )


def rejection_to_wire(epoch: int, rejection: PlanRejection) -> pb.FromShard:
    """Return the message that refuses a plan."""
    rejected = pb.PlanRejected(
        plan=rejection.plan, slot=rejection.slot, field=rejection.field, message=rejection.message
    )
    return pb.FromShard(epoch=epoch, rejected=rejected)


def result_to_wire(epoch: int, result: StepResult) -> pb.FromShard:
    """Return the message of a step's result."""
    message = pb.StepResult(
        step=result.step,
        plan_applied=result.plan_applied,
        slots=pack_u32(result.slots),
        tokens=pack_u32(result.tokens),
        flags=result.flags.astype(np.uint8).tobytes(),
        prefill_slots=pack_u32(result.prefill_slots),
        prefill_computed=pack_u32(result.prefill_computed),
        starved_slots=pack_u32(result.starved_slots),
        errors=[_error_to_wire(error) for error in result.errors],
        logprobs=b"" if result.logprobs is None else pack_f32(result.logprobs),
        top_tokens=[_top_to_wire(top) for top in result.top_tokens],
        prompt_logprobs=[_prompt_logprobs_to_wire(piece) for piece in result.prompt_logprobs],
        step_ns=result.step_ns,
        device_ns=result.device_ns,
        found=[_found_to_wire(found) for found in result.found],
    )
    return pb.FromShard(epoch=epoch, result=message)


def _found_to_wire(found: FoundSequences) -> pb.FoundSequences:
    return pb.FoundSequences(
        slot=found.slot,
        lengths=pack_u32(np.array([len(sequence) for sequence in found.sequences], dtype=np.int64)),
        tokens=pack_u32(np.concatenate([NO_IDS, *found.sequences])),
        scores=pack_f32(found.scores),
    )


def _error_to_wire(error: SlotError) -> pb.SlotError:
    code = _ERROR_CODES[error.code]
    return pb.SlotError(slot=error.slot, request_id=error.request_id, code=code, message=error.message)


def _top_to_wire(top: TopTokens) -> pb.TopTokens:
    return pb.TopTokens(row=top.row, ids=pack_u32(top.ids), logprobs=pack_f32(top.logprobs))


def _prompt_logprobs_to_wire(piece: SlotPromptLogprobs) -> pb.PromptLogprobs:
    return pb.PromptLogprobs(
        slot=piece.slot,
        request_id=piece.request_id,
        start=piece.start,
        logprobs=pack_f32(piece.logprobs),
        top_counts=pack_u32(piece.top_counts),
        top_ids=pack_u32(piece.top_ids),
        top_logprobs=pack_f32(piece.top_logprobs),
    )
