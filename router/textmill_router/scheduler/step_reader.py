"""Turns a step result into outputs, and advances the requests that it names (rules 3, 6, 7, 9, 13, 17, 19)."""

from textmill_router.request import BeamSequence, Failure, FailureCode, FinishReason, RequestOutput
from textmill_router.scheduler.epoch import Epoch
from textmill_router.scheduler.plan import (
    FLAG_EOS,
    FLAG_FINISHED,
    FLAG_STOP_ID,
    SlotError,
    SlotPromptLogprobs,
    StepResult,
)
from textmill_router.scheduler.request_state import NEVER, RequestState, RequestStatus


class StreamBroken(Exception):
    """A result breaks a rule of docs/wire.md. The engine loop ends the stream and begins a new epoch."""


class StepReader:
    """Reads the results of one epoch in the order of arrival."""

    def __init__(self, epoch: Epoch) -> None:
        self._epoch = epoch
        self._counters = epoch.counters
        self._plan_applied = 0

    def acknowledge(self, result: StepResult) -> list[RequestState]:
        """Free the slots whose drop the shard had applied before this step; return their occupants. Call before `read`.

        No row of the result belongs to these occupants, because the step was composed after their drops (rule 2).
        """
        applied = result.plan_applied
        if not self._plan_applied <= applied <= self._epoch.num_plans:
            raise StreamBroken(
                f"result applies plan {applied} after {self._plan_applied}, last plan sent is {self._epoch.num_plans}"
            )
        self._plan_applied = applied
        return self._epoch.slots.acknowledge(applied)

    def read(self, result: StepResult, outputs: list[RequestOutput]) -> None:
        """Append the outputs of one result. Tokens of cancelled requests are dropped, those of preempted ones count.

        When `StreamBroken` is raised, `outputs` holds the outputs that were read before the broken rule.
        """
        if result.step:
            self._counters.num_steps += 1
        for piece in result.prompt_logprobs:
            if self._is_shown(piece):
                outputs.append(self._read_prompt_logprobs(piece))
        self._read_rows(result, outputs)
        self._read_prefills(result)
        for slot in result.starved_slots:
            self._occupant(slot)  # only counted: grants follow from the router's own numbers
            self._counters.num_starvations += 1
        for error in result.errors:
            self._read_error(error, outputs)

    def _read_rows(self, result: StepResult, outputs: list[RequestOutput]) -> None:
        seats = self._epoch.slots.seats
        applied = self._plan_applied
        cancelled = RequestStatus.CANCELLED
        num_before = len(outputs)
        num_seats = len(seats)
        for row, (slot, token, flags) in enumerate(zip(result.slots, result.tokens, result.flags, strict=True)):
            state = seats[slot] if slot < num_seats else None
            if state is None or state.admit_plan > applied:
                raise StreamBroken(f"step {result.step} has a row for slot {slot}, where nobody sits")
            if state.status is cancelled:
                if flags & FLAG_FINISHED:
                    self._epoch.end(state)
                continue
            state.output_ids.append(token)
            # The sampled token has no K and V yet (rule 9).
            num_computed = state.num_tokens
            state.num_tokens = num_computed + 1
            if num_computed + 1 >= state.watch_at:
                self._look_at(state, num_computed)
            else:
                state.num_computed_tokens = num_computed
            finish = None
            if flags:
                finish = self._finish(state, flags)
            output = RequestOutput(state.request_id, (token,), (), (), None, finish, None, state.effort)
            if not state.is_plain:
                _add_logprobs(output, state, row, result)
                if finish is not None and state.request.beams is not None:
                    output.sequences = _found_sequences(slot, state, result)
            outputs.append(output)
        self._counters.num_output_tokens += len(outputs) - num_before

    def _look_at(self, state: RequestState, num_computed: int) -> None:
        """Do the rare work of a row: the first token in a slot, a full block, places that run short."""
        if state.is_in_prefill:
            self._counters.num_prefill_tokens += num_computed - state.num_computed_tokens
            self._epoch.end_prefill(state)
            if state.media_spans:
                self._epoch.media.release(state.request_id)
        state.num_computed_tokens = num_computed
        if len(state.output_ids) > state.request.max_new_tokens:
            raise StreamBroken(f"request {state.request_id} has more than {state.request.max_new_tokens} tokens")
        if state.status is RequestStatus.RUNNING:
            self._epoch.cache.index_computed(state)
            self._epoch.grants.watch(state)
        else:
            state.watch_at = NEVER  # leaving: indexes nothing, is granted nothing

    def _finish(self, state: RequestState, flags: int) -> FinishReason | None:
        if not flags & FLAG_FINISHED:
            return None
        self._epoch.end(state)
        if flags & FLAG_EOS:
            return FinishReason.EOS
        return FinishReason.STOP_ID if flags & FLAG_STOP_ID else FinishReason.LENGTH

    def _read_prefills(self, result: StepResult) -> None:
        for slot, num_computed in zip(result.prefill_slots, result.prefill_computed, strict=True):
            state = self._occupant(slot)
            if not state.num_computed_tokens <= num_computed < state.num_tokens:
                raise StreamBroken(
                    f"slot {slot} computed {num_computed} tokens of {state.num_tokens}, "
                    f"after {state.num_computed_tokens}"
                )
            self._counters.num_prefill_tokens += num_computed - state.num_computed_tokens
            state.effort.num_chunk_steps += 1
            state.num_computed_tokens = num_computed
            if state.status is RequestStatus.RUNNING:
                self._epoch.cache.index_computed(state)
                self._epoch.note_prefill(state)
                if 0 < state.media_end <= num_computed:
                    self._epoch.media.release(state.request_id)

    def _read_error(self, error: SlotError, outputs: list[RequestOutput]) -> None:
        """End the occupant of a slot that failed. The blocks that it wrote leave the prefix index (rule 19)."""
        state = self._occupant(error.slot)
        if state.request_id != error.request_id:
            raise StreamBroken(f"error for request {error.request_id} in slot {error.slot} of {state.request_id}")
        self._epoch.end(state)
        self._epoch.cache.forget(state.chain[state.num_foreign_blocks :])
        if state.status is not RequestStatus.CANCELLED:
            outputs.append(failed(state, error.code, error.message))

    def _is_shown(self, prompt_logprobs: SlotPromptLogprobs) -> bool:
        return self._occupant(prompt_logprobs.slot).status is not RequestStatus.CANCELLED

    def _read_prompt_logprobs(self, prompt_logprobs: SlotPromptLogprobs) -> RequestOutput:
        state = self._occupant(prompt_logprobs.slot)
        piece = prompt_logprobs.piece
        if state.request_id != prompt_logprobs.request_id or piece.start != state.next_prompt_logprob:
            raise StreamBroken(
                f"prompt log-probabilities of request {prompt_logprobs.request_id} from {piece.start}, "
                f"expected request {state.request_id} from {state.next_prompt_logprob}"
            )
        state.next_prompt_logprob += len(piece.logprobs)
        return RequestOutput(state.request_id, prompt_logprobs=piece, effort=state.effort)

    def _occupant(self, slot: int) -> RequestState:
        seats = self._epoch.slots.seats
        state = seats[slot] if slot < len(seats) else None
        if state is None or state.admit_plan > self._plan_applied:
            raise StreamBroken(f"a result names slot {slot}, where nobody sits")
        return state


def failed(state: RequestState, code: FailureCode, message: str) -> RequestOutput:
    """The last output of a request that fails."""
    return RequestOutput(state.request_id, failure=Failure(code, message), effort=state.effort)


def _found_sequences(slot: int, state: RequestState, result: StepResult) -> tuple[BeamSequence, ...]:
    if result.found is None or slot not in result.found:
        raise StreamBroken(f"step {result.step} ends the search of request {state.request_id} without its sequences")
    return result.found[slot]


def _add_logprobs(output: RequestOutput, state: RequestState, row: int, result: StepResult) -> None:
    request = state.request
    if request.wants_logprobs:
        if result.logprobs is None:
            raise StreamBroken(f"step {result.step} has no log-probabilities, request {state.request_id} wants them")
        output.logprobs = (result.logprobs[row],)
    if request.top_n_tokens:
        if result.top_tokens is None or row not in result.top_tokens:
            raise StreamBroken(
                f"step {result.step} has no top tokens in row {row}, request {state.request_id} wants them"
            )
        output.top_tokens = (result.top_tokens[row],)
