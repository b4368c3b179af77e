"""Turns the tokens, the log-probabilities and the errors of a step into the result for the router."""

# R rows of the step, N rows that sampled

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from textmill_shard.device import is_device_gone
from textmill_shard.engine.row_sampling import DrawnRows
from textmill_shard.engine.step_executor import PromptStretch
from textmill_shard.sampling.logprobs import PromptLogprobs
from textmill_shard.sampling.logprobs import TopTokens as Alternatives
from textmill_shard.slots.plan import (
    NO_IDS,
    FloatArray,
    FoundSequences,
    IdArray,
    SlotError,
    SlotErrorCode,
    SlotPromptLogprobs,
    StepResult,
    TopTokens,
)
from textmill_shard.slots.step_composer import ComposedStep

NO_TOP = Alternatives(ids=np.zeros(0, dtype=np.uint32), logprobs=np.zeros(0, dtype=np.float32))


def build_result(
    *,
    step: int,
    plan_applied: int,
    composed: ComposedStep,
    drawn_rows: DrawnRows | None = None,
    flags_N: IdArray = NO_IDS,
    errors: Mapping[int, SlotError] | None = None,
    prompt_logprobs: Sequence[SlotPromptLogprobs] = (),
    found: tuple[FoundSequences, ...] = (),
    step_ns: int = 0,
    device_ns: int = 0,
) -> StepResult:
    """Return the result of a step. `errors` is by slot. Its slots appear in no other field of the result (rule 6)."""
    errors = errors or {}
    # In most steps each row has a token, and no row has an error or alternatives.
    if composed.is_decode and drawn_rows is not None and not (errors or drawn_rows.top):
        return StepResult(
            step=step,
            plan_applied=plan_applied,
            slots=composed.slots_R,
            tokens=drawn_rows.tokens_N,
            flags=flags_N,
            starved_slots=composed.starved_slots,
            logprobs=drawn_rows.logprobs_N,
            found=found,
            step_ns=step_ns,
            device_ns=device_ns,
        )
    is_fine_R = ~np.isin(composed.slots_R, list(errors)) if errors else np.ones(len(composed.slots_R), dtype=bool)
    is_prefill_R = ~composed.samples_R & is_fine_R
    is_fine_N = is_fine_R[composed.samples_R]
    tokens, logprobs, top_tokens = _sampled_rows(drawn_rows, is_fine_N)
    return StepResult(
        step=step,
        plan_applied=plan_applied,
        slots=composed.slots_R[composed.samples_R & is_fine_R],
        tokens=tokens,
        flags=flags_N[is_fine_N] if drawn_rows is not None else NO_IDS,
        prefill_slots=composed.slots_R[is_prefill_R],
        prefill_computed=(composed.starts_R + composed.counts_R)[is_prefill_R],
        starved_slots=composed.starved_slots,
        errors=tuple(errors.values()),
        logprobs=logprobs,
        top_tokens=top_tokens,
        prompt_logprobs=tuple(piece for piece in prompt_logprobs if piece.slot not in errors),
        found=found,
        step_ns=step_ns,
        device_ns=device_ns,
    )


def _sampled_rows(
    drawn_rows: DrawnRows | None, is_fine_N: npt.NDArray[np.bool_]
) -> tuple[IdArray, FloatArray | None, tuple[TopTokens, ...]]:
    if drawn_rows is None:
        return NO_IDS, None, ()
    logprobs = None if drawn_rows.logprobs_N is None else drawn_rows.logprobs_N[is_fine_N]
    tops: list[Alternatives | None] = []
    if drawn_rows.top:
        tops = [top for top, is_fine in zip(drawn_rows.top, is_fine_N.tolist(), strict=True) if is_fine]
    top_tokens = tuple(
        TopTokens(row=row, ids=top.ids.astype(np.int64), logprobs=top.logprobs)
        for row, top in enumerate(tops)
        if top is not None
    )
    return drawn_rows.tokens_N[is_fine_N], logprobs, top_tokens


def rate_prompts(
    stretches: Sequence[PromptStretch], rate: Callable[[PromptStretch], PromptLogprobs], *, is_alone: bool
) -> tuple[list[SlotPromptLogprobs], list[SlotError]]:
    """Return the log-probabilities of the prompt tokens of `stretches`, and an error for each slot where they failed.

    `is_alone` says that there is one rank. With several ranks, the function raises the exception of a stretch, because
    the ranks would no longer make the same calls.
    """
    pieces: list[SlotPromptLogprobs] = []
    errors: list[SlotError] = []
    for stretch in stretches:
        try:
            piece = _piece_of(stretch, rate(stretch))
        except Exception as error:
            if not is_alone or is_device_gone(error):
                raise
            message = f"prompt log-probabilities failed: {type(error).__name__}: {error}"
            errors.append(SlotError(stretch.slot, stretch.request_id, SlotErrorCode.INTERNAL, message))
            continue
        if np.isfinite(_rated(piece.logprobs, stretch)).all():
            pieces.append(piece)
        else:
            message = "the model gave logits that are not finite for the prompt"
            errors.append(SlotError(stretch.slot, stretch.request_id, SlotErrorCode.NOT_FINITE, message))
    return pieces, errors


def _piece_of(stretch: PromptStretch, prompt: PromptLogprobs) -> SlotPromptLogprobs:
    if stretch.is_placeholder_T is not None:
        prompt = _without_placeholders(prompt, stretch.is_placeholder_T)
    no_floats = np.zeros(0, dtype=np.float32)
    return SlotPromptLogprobs(
        slot=stretch.slot,
        request_id=stretch.request_id,
        start=stretch.start,
        logprobs=prompt.logprobs,
        top_counts=np.array([len(top.ids) for top in prompt.top], dtype=np.int64),
        top_ids=np.concatenate([NO_IDS, *(top.ids.astype(np.int64) for top in prompt.top)]),
        top_logprobs=np.concatenate([no_floats, *(top.logprobs for top in prompt.top)]),
    )


def _rated(logprobs_T: FloatArray, stretch: PromptStretch) -> FloatArray:
    """Return the log-probabilities of the targets that the model predicts."""
    return logprobs_T if stretch.is_placeholder_T is None else logprobs_T[~stretch.is_placeholder_T]


def _without_placeholders(found: PromptLogprobs, is_placeholder_T: npt.NDArray[np.bool_]) -> PromptLogprobs:
    """Return NaN, and no alternatives, at the placeholders of images, which stand for no token of the vocabulary."""
    top = tuple(NO_TOP if is_none else each for each, is_none in zip(found.top, is_placeholder_T, strict=False))
    return PromptLogprobs(np.where(is_placeholder_T, np.float32(np.nan), found.logprobs), top)
