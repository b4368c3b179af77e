"""Turns the router's own types into messages of `textmill_proto`, and messages into the router's types.

Packed arrays are little-endian on the wire.
"""

import sys
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from textmill_proto.v1 import shard_pb2

from textmill_router.media.media_item import MediaSpan
from textmill_router.request import (
    Beams,
    BeamSequence,
    EarlyStopping,
    FailureCode,
    Grammar,
    PromptLogprobs,
    RequestId,
    SamplingParameters,
    Slot,
    TopTokens,
)
from textmill_router.scheduler.plan import (
    Admit,
    Budget,
    Extend,
    Plan,
    SlotError,
    SlotPromptLogprobs,
    StepResult,
)

_IS_BIG_ENDIAN = sys.byteorder == "big"
_FAILURE_CODES = {
    shard_pb2.SLOT_ERROR_CODE_NOT_FINITE: FailureCode.NOT_FINITE,
    shard_pb2.SLOT_ERROR_CODE_INTERNAL: FailureCode.INTERNAL,
    shard_pb2.SLOT_ERROR_CODE_MEDIA: FailureCode.MEDIA,
}
_EARLY_STOPPING = {
    EarlyStopping.NO: shard_pb2.EARLY_STOPPING_NO,
    EarlyStopping.YES: shard_pb2.EARLY_STOPPING_YES,
    EarlyStopping.NEVER: shard_pb2.EARLY_STOPPING_NEVER,
}


class WireError(Exception):
    """The shard sent a message that the contract does not allow."""


@dataclass(frozen=True, slots=True)
class PlanRejected:
    """The shard refused a plan and ends the stream (rule 20). `message` names the slot, the field and the reason."""

    plan_number: int
    message: str


def plan_to_proto(plan: Plan, epoch: int) -> shard_pb2.ToShard:
    """Return the message of a plan.

    The message has at most 1 MiB, unless a single admit is longer (rule 4). The scheduler's plan builder keeps to that.
    """
    message = shard_pb2.Plan(
        number=plan.number,
        drops=[shard_pb2.Drop(slot=drop.slot, request_id=drop.request_id) for drop in plan.drops],
        extends=[_extend_to_proto(extend) for extend in plan.extends],
        admits=[admit_to_proto(admit) for admit in plan.admits],
        budget=None if plan.budget is None else _budget_to_proto(plan.budget),
    )
    return shard_pb2.ToShard(epoch=epoch, plan=message)


def heartbeat_to_proto(epoch: int) -> shard_pb2.ToShard:
    """Return the message of a heartbeat."""
    return shard_pb2.ToShard(epoch=epoch, heartbeat=shard_pb2.Heartbeat())


def result_from_proto(message: shard_pb2.StepResult) -> StepResult:
    """Read a result. Raises WireError where parallel arrays differ in length."""
    slots = unpack_ids(message.slots)
    tokens = unpack_ids(message.tokens)
    flags = message.flags
    prefill_slots = unpack_ids(message.prefill_slots)
    prefill_computed = unpack_ids(message.prefill_computed)
    if not len(slots) == len(tokens) == len(flags):
        raise WireError(f"step {message.step}: {len(slots)} slots, {len(tokens)} tokens, {len(flags)} flags")
    if len(prefill_slots) != len(prefill_computed):
        raise WireError(f"step {message.step}: {len(prefill_slots)} prefill slots, {len(prefill_computed)} counts")
    logprobs = unpack_floats(message.logprobs) if message.logprobs else None
    if logprobs is not None and len(logprobs) != len(slots):
        raise WireError(f"step {message.step}: {len(slots)} slots, {len(logprobs)} logprobs")
    return StepResult(
        step=message.step,
        plan_applied=message.plan_applied,
        slots=slots,
        tokens=tokens,
        flags=flags,
        prefill_slots=prefill_slots,
        prefill_computed=prefill_computed,
        starved_slots=unpack_ids(message.starved_slots),
        errors=tuple(_slot_error_from_proto(error) for error in message.errors),
        logprobs=logprobs,
        top_tokens=(
            {top.row: _top_tokens(unpack_ids(top.ids), unpack_floats(top.logprobs)) for top in message.top_tokens}
            if message.top_tokens
            else None
        ),
        prompt_logprobs=tuple(_prompt_logprobs_from_proto(piece) for piece in message.prompt_logprobs),
        step_s=message.step_ns * 1e-9,
        device_s=message.device_ns * 1e-9,
        found={one.slot: _sequences_of(one) for one in message.found} if message.found else None,
    )


def rejected_from_proto(message: shard_pb2.PlanRejected) -> PlanRejected:
    """Read the refusal of a plan."""
    return PlanRejected(message.plan, f"slot {message.slot}, {message.field}: {message.message}")


def pack_ids(ids: Sequence[int]) -> bytes:
    """Pack ids as unsigned 32-bit integers."""
    packed = array("I", ids)
    if _IS_BIG_ENDIAN:
        packed.byteswap()
    return packed.tobytes()


def pack_floats(values: Iterable[float]) -> bytes:
    """Pack numbers as 32-bit floats."""
    packed = array("f", values)
    if _IS_BIG_ENDIAN:
        packed.byteswap()
    return packed.tobytes()


def unpack_ids(data: bytes) -> "array[int]":
    """Unpack unsigned 32-bit integers. Raises WireError where the bytes are no whole number of them."""
    packed = array("I")
    packed.frombytes(_whole(data))
    if _IS_BIG_ENDIAN:
        packed.byteswap()
    return packed


def unpack_floats(data: bytes) -> "array[float]":
    """Unpack 32-bit floats. Raises WireError where the bytes are no whole number of them."""
    packed = array("f")
    packed.frombytes(_whole(data))
    if _IS_BIG_ENDIAN:
        packed.byteswap()
    return packed


def _whole(data: bytes) -> bytes:
    if len(data) % 4:
        raise WireError(f"packed array of {len(data)} bytes, wanted a multiple of 4")
    return data


def _extend_to_proto(extend: Extend) -> shard_pb2.Extend:
    return shard_pb2.Extend(slot=extend.slot, request_id=extend.request_id, block_ids=[pack_ids(extend.block_ids)])


def _budget_to_proto(budget: Budget) -> shard_pb2.Budget:
    return shard_pb2.Budget(
        max_step_tokens=budget.max_step_tokens,
        max_prefill_tokens=budget.max_prefill_tokens,
        max_chunk_tokens=budget.max_chunk_tokens,
    )


def admit_to_proto(admit: Admit) -> shard_pb2.Admit:
    """Return the message of an admit. Raises ValueError or OverflowError for a number that its field does not hold."""
    request, parameters = admit.request, admit.request.parameters
    return shard_pb2.Admit(
        request_id=request.request_id,
        slot=admit.slot,
        prompt_ids=pack_ids(request.prompt_ids),
        output_ids=pack_ids(admit.output_ids),
        num_cached_tokens=admit.num_cached_tokens,
        block_ids=[pack_ids(admit.block_ids)],
        max_new_tokens=request.max_new_tokens,
        min_new_tokens=parameters.min_new_tokens,
        stop_ids=pack_ids(request.stop_ids),
        ignore_eos=parameters.ignore_eos,
        sampling=_sampling_to_proto(parameters.sampling),
        logprobs=request.wants_logprobs,
        top_n_tokens=request.top_n_tokens,
        prompt_logprobs_from=admit.prompt_logprobs_from,
        prompt_top_n_tokens=request.prompt_top_n_tokens,
        grammar=None if parameters.grammar is None else _grammar_to_proto(parameters.grammar),
        watermark=parameters.watermark,
        long_rope=admit.is_long_rope,
        num_encoder_tokens=request.num_encoder_tokens,
        copied_block_id=admit.copied_block_id,
        caller=admit.caller,
        adapter_digest=request.adapter_digest,
        caller_weight=admit.caller_weight,
        media=[_span_to_proto(span) for span in request.media_spans] if request.media else None,
        beams=None if request.beams is None else _beams_to_proto(request.beams),
    )


def _span_to_proto(span: MediaSpan) -> shard_pb2.MediaSpan:
    return shard_pb2.MediaSpan(
        digest=span.digest,
        start=span.start,
        num_tokens=span.num_tokens,
        first_row=span.first_row,
        grid=b"" if span.grid is None else pack_ids(span.grid),
    )


def _beams_to_proto(beams: Beams) -> shard_pb2.Beams:
    return shard_pb2.Beams(
        num_beams=beams.num_beams,
        num_sequences=beams.num_sequences,
        length_penalty=beams.length_penalty,
        early_stopping=_EARLY_STOPPING[beams.early_stopping],
        max_ms=beams.max_ms,
    )


def _grammar_to_proto(grammar: Grammar) -> shard_pb2.Grammar:
    return shard_pb2.Grammar(text=grammar.text)


def _sampling_to_proto(sampling: SamplingParameters) -> shard_pb2.Sampling:
    return shard_pb2.Sampling(
        do_sample=sampling.do_sample,
        temperature=sampling.temperature,
        top_k=sampling.top_k,
        top_p=sampling.top_p,
        min_p=sampling.min_p,
        typical_p=sampling.typical_p,
        repetition_penalty=sampling.repetition_penalty,
        presence_penalty=sampling.presence_penalty,
        frequency_penalty=sampling.frequency_penalty,
        seed=sampling.seed,
        logit_bias_ids=pack_ids([token_id for token_id, _ in sampling.logit_bias]),
        logit_bias_values=pack_floats(value for _, value in sampling.logit_bias),
        dry_multiplier=sampling.dry_multiplier,
        dry_base=sampling.dry_base,
        dry_allowed_length=sampling.dry_allowed_length,
        dry_breaker_ids=pack_ids(sampling.dry_breaker_ids),
        allowed_ids=pack_ids(sampling.allowed_ids),
        bad_sequences=[pack_ids(sequence) for sequence in sampling.bad_sequences],
        no_repeat_ngram_size=sampling.no_repeat_ngram_size,
        encoder_no_repeat_ngram_size=sampling.encoder_no_repeat_ngram_size,
        forced_first_ids=pack_ids(sampling.forced_first_ids),
        forced_last_ids=pack_ids(sampling.forced_last_ids),
    )


def _slot_error_from_proto(error: shard_pb2.SlotError) -> SlotError:
    code = _FAILURE_CODES.get(error.code, FailureCode.INTERNAL)
    return SlotError(Slot(error.slot), RequestId(error.request_id), code, error.message)


def _sequences_of(message: shard_pb2.FoundSequences) -> tuple[BeamSequence, ...]:
    lengths, ids, scores = unpack_ids(message.lengths), unpack_ids(message.tokens), unpack_floats(message.scores)
    if sum(lengths) != len(ids) or len(lengths) != len(scores):
        raise WireError(f"{len(lengths)} sequences of {sum(lengths)} tokens, {len(ids)} tokens, {len(scores)} scores")
    sequences = []
    start = 0
    for length, score in zip(lengths, scores, strict=True):
        sequences.append(BeamSequence(ids[start : start + length], score))
        start += length
    return tuple(sequences)


def _top_tokens(ids: "array[int]", logprobs: "array[float]") -> TopTokens:
    if len(ids) != len(logprobs):
        raise WireError(f"{len(ids)} top tokens, {len(logprobs)} logprobs")
    return TopTokens(ids, logprobs)


def _prompt_logprobs_from_proto(message: shard_pb2.PromptLogprobs) -> SlotPromptLogprobs:
    logprobs = unpack_floats(message.logprobs)
    counts = unpack_ids(message.top_counts)
    ids = unpack_ids(message.top_ids)
    values = unpack_floats(message.top_logprobs)
    if len(counts) not in (0, len(logprobs)) or sum(counts) != len(ids):
        raise WireError(f"{len(logprobs)} prompt positions, {len(counts)} counts for {len(ids)} alternatives")
    top: list[TopTokens] = []
    start = 0
    for count in counts:
        top.append(_top_tokens(ids[start : start + count], values[start : start + count]))
        start += count
    piece = PromptLogprobs(message.start, logprobs, tuple(top))
    return SlotPromptLogprobs(Slot(message.slot), RequestId(message.request_id), piece)
