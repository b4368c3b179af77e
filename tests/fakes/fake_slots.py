"""The slots of the fake shard, which check and apply plans and compose steps as the rules of the stream say.

The code is written from the rules alone. There is no model: token ids come from a script, and no K and V exist.
"""

import math
import struct
from array import array
from collections.abc import Callable
from dataclasses import dataclass, field

from textmill_proto.v1 import shard_pb2

Script = Callable[["array[int]", int], int]
"""Maps (prompt ids, number of output tokens so far) to the next id. Called once per row."""

FINISHED, BY_LENGTH, BY_EOS, BY_STOP_ID = 1, 2, 4, 8


def adapted_byte(digest: bytes, num_output: int) -> int:
    """Return the byte that an adapter gives: capital letters in their order, from one that the digest decides."""
    return 65 + (digest[0] + num_output) % 26


class BadPlan(Exception):
    """A plan breaks a rule (rule 20)."""

    def __init__(self, slot: int, field_name: str, message: str) -> None:
        super().__init__(message)
        self.slot = slot
        self.field_name = field_name


@dataclass(slots=True)
class Seat:
    """One occupant. Of its `num_tokens` tokens, prompt and output, `num_computed` have K and V."""

    request_id: int
    slot: int
    prompt_ids: "array[int]"
    num_output: int
    num_computed: int
    num_places: int
    block_ids: list[int]
    max_new_tokens: int
    min_new_tokens: int
    stop_ids: frozenset[int]
    wants_logprobs: bool
    top_n_tokens: int
    prompt_logprobs_next: int | None
    prompt_top_n_tokens: int
    caller: int
    weight: float
    adapter_digest: bytes = b""
    num_sequences: int = 0  # of a search by beams, whose sequences are all what the script says; 0 = no search
    forced_first_ids: "array[int]" = field(default_factory=lambda: array("I"))  # the ids that the first token may be
    is_starved: bool = False

    @property
    def num_tokens(self) -> int:
        return len(self.prompt_ids) + self.num_output

    def says(self, script: Script, num_output: int) -> int:
        """Return the next id by the script, which begins behind a forced first id."""
        if not self.forced_first_ids:
            return script(self.prompt_ids, num_output)
        return script(self.prompt_ids, num_output - 1) if num_output else self.forced_first_ids[0]


@dataclass
class SlotTable:
    """The slots of one epoch, with counts that tests read."""

    num_slots: int
    num_blocks: int
    block_size: int
    max_step_tokens: int
    eos_token_ids: frozenset[int]
    script: Script
    logprob_of: Callable[[int], float] = lambda request_id: -0.5  # of each output token of a request
    seats: dict[int, Seat] = field(default_factory=dict)  # by slot, in the order of admission
    prefills: dict[int, Seat] = field(default_factory=dict)
    num_had: dict[int, float] = field(default_factory=dict)  # prefill tokens of each caller by weight (rule 16)
    decodes: dict[int, Seat] = field(default_factory=dict)
    plan_applied: int = 0
    num_admitted: int = 0
    num_admitting_plans: int = 0
    num_dropped: int = 0
    num_prefill_tokens: int = 0
    num_sampled: int = 0
    failing_slots: set[int] = field(default_factory=set)
    last_admit: shard_pb2.Admit = field(default_factory=shard_pb2.Admit)
    adapters: dict[bytes, int] = field(default_factory=dict)  # loaded ones, by digest; the fake shard writes here
    media: dict[bytes, int] = field(default_factory=dict)  # rows of kept images, by digest; the fake shard writes here
    slots_without_media: set[int] = field(default_factory=set)  # slots whose images were not kept at their admission

    def __post_init__(self) -> None:
        self._max_step_tokens = self._max_prefill_tokens = self._max_chunk_tokens = self.max_step_tokens

    # ---- Plans.

    def apply(self, plan: shard_pb2.Plan) -> None:
        """Check all of the plan, then apply its drops, extends, admits and budget (rule 1). Raises BadPlan."""
        self._check(plan)
        for drop in plan.drops:
            if self._is_occupied_by(drop.slot, drop.request_id):
                self._leave(drop.slot)
                self.num_dropped += 1
        for extend in plan.extends:
            if self._is_occupied_by(extend.slot, extend.request_id):
                seat = self.seats[extend.slot]
                seat.block_ids += _ids(extend.block_ids[0])
                seat.num_places = len(seat.block_ids) * self.block_size
                seat.is_starved = False
        for admit in plan.admits:
            self._seat(admit)
            self.last_admit = admit
        self.num_admitting_plans += bool(plan.admits)
        if plan.HasField("budget"):
            self._max_step_tokens = plan.budget.max_step_tokens
            self._max_prefill_tokens = plan.budget.max_prefill_tokens
            self._max_chunk_tokens = plan.budget.max_chunk_tokens
        self.plan_applied = plan.number

    def _check(self, plan: shard_pb2.Plan) -> None:
        if plan.number != self.plan_applied + 1:
            raise BadPlan(0, "number", f"wanted {self.plan_applied + 1}, found {plan.number}")
        taken = set(self.seats)
        for drop in plan.drops:
            if self._is_occupied_by(drop.slot, drop.request_id):
                taken.discard(drop.slot)
        for admit in plan.admits:
            if admit.slot >= self.num_slots or admit.slot in taken:
                raise BadPlan(admit.slot, "admits.slot", "wanted a free slot")
            taken.add(admit.slot)
            num_tokens = (len(admit.prompt_ids) + len(admit.output_ids)) // 4
            is_copied = admit.HasField("copied_block_id")
            is_part = admit.num_cached_tokens % self.block_size > 0
            if is_part != is_copied or admit.num_cached_tokens >= num_tokens:
                raise BadPlan(admit.slot, "admits.num_cached_tokens", f"found {admit.num_cached_tokens}")
            if len(admit.output_ids) // 4 >= admit.max_new_tokens:
                raise BadPlan(admit.slot, "admits.max_new_tokens", f"found {admit.max_new_tokens}")
            if admit.adapter_digest and admit.adapter_digest not in self.adapters:
                raise BadPlan(admit.slot, "admits.adapter_digest", f"found {admit.adapter_digest.hex()}")
            blocks = _ids(admit.block_ids[0])
            if len(set(blocks)) != len(blocks) or any(block >= self.num_blocks for block in blocks):
                raise BadPlan(admit.slot, "admits.block_ids", "wanted different blocks below num_blocks")
        if plan.HasField("budget") and plan.budget.max_step_tokens > self.max_step_tokens:
            raise BadPlan(0, "budget.max_step_tokens", f"found {plan.budget.max_step_tokens}")

    def _is_occupied_by(self, slot: int, request_id: int) -> bool:
        seat = self.seats.get(slot)
        return seat is not None and seat.request_id == request_id

    def _seat(self, admit: shard_pb2.Admit) -> None:
        blocks = _ids(admit.block_ids[0])
        stop_ids = frozenset(_ids(admit.stop_ids))
        seat = Seat(
            request_id=admit.request_id,
            slot=admit.slot,
            prompt_ids=_ids(admit.prompt_ids),
            num_output=len(admit.output_ids) // 4,
            num_computed=admit.num_cached_tokens,
            num_places=len(blocks) * self.block_size,
            block_ids=list(blocks),
            max_new_tokens=admit.max_new_tokens,
            min_new_tokens=admit.min_new_tokens,
            stop_ids=stop_ids if admit.ignore_eos else stop_ids | self.eos_token_ids,
            wants_logprobs=admit.logprobs,
            top_n_tokens=admit.top_n_tokens,
            prompt_logprobs_next=admit.prompt_logprobs_from if admit.HasField("prompt_logprobs_from") else None,
            prompt_top_n_tokens=admit.prompt_top_n_tokens,
            caller=admit.caller,
            weight=admit.caller_weight or 1.0,
            adapter_digest=admit.adapter_digest,
            num_sequences=admit.beams.num_sequences,
            forced_first_ids=_ids(admit.sampling.forced_first_ids),
        )
        self.seats[seat.slot] = self.prefills[seat.slot] = seat
        needed = [span for span in admit.media if span.start + span.num_tokens > admit.num_cached_tokens]
        if any(span.first_row + span.num_tokens > self.media.get(span.digest, 0) for span in needed):
            self.slots_without_media.add(seat.slot)
        self.num_admitted += 1

    def _leave(self, slot: int) -> None:
        del self.seats[slot]
        self.prefills.pop(slot, None)
        self.decodes.pop(slot, None)
        self.failing_slots.discard(slot)
        self.slots_without_media.discard(slot)

    # ---- Steps.

    @property
    def is_runnable(self) -> bool:
        """Whether a step would have a row to compute or a slot to report (rule 2)."""
        return any(not seat.is_starved for seat in self.seats.values())

    def compose(self, step: int) -> shard_pb2.StepResult:
        """Make one step: every slot that decodes, then the prefills by the budget (rules 1, 13 and 16)."""
        result = shard_pb2.StepResult(step=step, plan_applied=self.plan_applied)
        starved: list[int] = []
        sampling: list[Seat] = []
        budget = self._max_step_tokens
        for seat in self.decodes.values():
            if seat.num_computed >= seat.num_places:
                if not seat.is_starved:
                    seat.is_starved = True
                    starved.append(seat.slot)
            elif budget > 0:
                budget -= 1
                seat.num_computed += 1
                sampling.append(seat)
        if self.prefills:
            sampling += self._prefill(result, min(budget, self._max_prefill_tokens), starved)
        for slot in (self.failing_slots | self.slots_without_media) & self.seats.keys():
            seat = self.seats[slot]
            lacks_media = slot in self.slots_without_media
            result.errors.add(
                slot=slot,
                request_id=seat.request_id,
                code=shard_pb2.SLOT_ERROR_CODE_MEDIA if lacks_media else shard_pb2.SLOT_ERROR_CODE_NOT_FINITE,
                message="an image is gone" if lacks_media else "scripted fault",
            )
            sampling = [other for other in sampling if other is not seat]
            self._leave(slot)
        self._sample(result, sampling)
        result.starved_slots = _packed(starved)
        return result

    def _prefill(self, result: shard_pb2.StepResult, budget: int, starved: list[int]) -> list[Seat]:
        """Prefill by the budget, and return the seats whose prompt is complete."""
        before = {slot: seat.num_computed for slot, seat in self.prefills.items()}
        if len({seat.caller for seat in self.prefills.values()}) > 1:
            self._prefill_by_callers(budget)
        else:
            self.num_had.clear()
            for limit in (self._max_chunk_tokens, budget):
                for seat in self.prefills.values():
                    chunk = max(0, min(limit, budget, _num_open(seat)))
                    seat.num_computed += chunk
                    budget -= chunk
        complete: list[Seat] = []
        partial: list[Seat] = []
        for slot, seat in list(self.prefills.items()):
            self.num_prefill_tokens += seat.num_computed - before[slot]
            self._report_prompt_logprobs(result, seat, before[slot])
            if seat.num_computed == seat.num_tokens:
                complete.append(seat)
                self.decodes[slot] = self.prefills.pop(slot)
            elif seat.num_computed > before[slot]:
                partial.append(seat)
            elif seat.num_computed >= seat.num_places and not seat.is_starved:
                seat.is_starved = True
                starved.append(slot)
        result.prefill_slots = _packed([seat.slot for seat in partial])
        result.prefill_computed = _packed([seat.num_computed for seat in partial])
        return complete

    def _prefill_by_callers(self, budget: int) -> None:
        """Give each next chunk to the caller who has had least by weight, there to the prefill with fewest chunks."""
        first: dict[int, int] = {}  # place of each caller's first prefill
        for place, seat in enumerate(self.prefills.values()):
            first.setdefault(seat.caller, place)
        known = [had for caller, had in self.num_had.items() if caller in first]
        self.num_had = {caller: self.num_had.get(caller, min(known, default=0.0)) for caller in first}
        num_chunks = dict.fromkeys(self.prefills, 0)
        while budget:
            seats = [seat for seat in self.prefills.values() if _num_open(seat) > 0]
            if not seats:
                return
            caller = min((seat.caller for seat in seats), key=lambda one: (self.num_had[one], first[one]))
            own = [seat for seat in seats if seat.caller == caller]
            seat = min(own, key=lambda one: num_chunks[one.slot])
            chunk = min(self._max_chunk_tokens, budget, _num_open(seat))
            seat.num_computed += chunk
            budget -= chunk
            num_chunks[seat.slot] += 1
            self.num_had[caller] += chunk / seat.weight

    def _report_prompt_logprobs(self, result: shard_pb2.StepResult, seat: Seat, num_before: int) -> None:
        """Report log-probabilities of the prompt, which are -1 everywhere.

        The hidden state of token i gives the probability of token i + 1.
        """
        if seat.prompt_logprobs_next is None:
            return
        start = max(seat.prompt_logprobs_next, num_before + 1)
        stop = min(seat.num_computed + 1, len(seat.prompt_ids))
        if start >= stop:
            return
        top_n = seat.prompt_top_n_tokens
        result.prompt_logprobs.add(
            slot=seat.slot,
            request_id=seat.request_id,
            start=start,
            logprobs=_packed_floats([-1.0] * (stop - start)),
            top_counts=_packed([top_n] * (stop - start)) if top_n else b"",
            top_ids=_packed(list(range(top_n)) * (stop - start)),
            top_logprobs=_packed_floats([-1.0 - index for index in range(top_n)] * (stop - start)),
        )
        seat.prompt_logprobs_next = stop

    def _sample(self, result: shard_pb2.StepResult, seats: list[Seat]) -> None:
        script = self.script
        slots: list[int] = []
        tokens: list[int] = []
        flags = bytearray()
        wants_logprobs = False
        for seat in seats:
            token_id = seat.says(script, seat.num_output)
            if seat.adapter_digest:
                token_id = adapted_byte(seat.adapter_digest, seat.num_output)
            seat.num_output += 1
            flag = 0
            if token_id in seat.stop_ids and seat.num_output > seat.min_new_tokens:
                flag = FINISHED | (BY_EOS if token_id in self.eos_token_ids else BY_STOP_ID)
            elif seat.num_output >= seat.max_new_tokens:
                flag = FINISHED | BY_LENGTH
            if seat.wants_logprobs or seat.top_n_tokens:
                wants_logprobs = True
                self._report_top(result, len(slots), token_id, seat.top_n_tokens)
            slots.append(seat.slot)
            tokens.append(token_id)
            flags.append(flag)
            if flag:
                self._leave(seat.slot)
                self._report_found(result, seat)
        self.num_sampled += len(slots)
        result.slots = _packed(slots)
        result.tokens = _packed(tokens)
        result.flags = bytes(flags)
        if wants_logprobs:
            result.logprobs = _packed_floats(
                [self.logprob_of(seat.request_id) if seat.wants_logprobs else math.nan for seat in seats]
            )

    def _report_found(self, result: shard_pb2.StepResult, seat: Seat) -> None:
        if seat.num_sequences:
            ids = [seat.says(self.script, index) for index in range(seat.num_output)]
            result.found.add(
                slot=seat.slot,
                lengths=_packed([len(ids)] * seat.num_sequences),
                tokens=_packed(ids * seat.num_sequences),
                scores=_packed_floats([-0.5 * (index + 1) for index in range(seat.num_sequences)]),
            )

    def _report_top(self, result: shard_pb2.StepResult, row: int, token_id: int, top_n: int) -> None:
        if top_n:
            result.top_tokens.add(
                row=row,
                ids=_packed([token_id + index for index in range(top_n)]),
                logprobs=_packed_floats([-0.5 - index for index in range(top_n)]),
            )


def _ids(data: bytes) -> "array[int]":
    return array("I", struct.unpack(f"<{len(data) // 4}I", data))


def _packed(ids: list[int]) -> bytes:
    return struct.pack(f"<{len(ids)}I", *ids)


def _packed_floats(values: list[float]) -> bytes:
    return struct.pack(f"<{len(values)}f", *values)


def _num_open(seat: Seat) -> int:
    """The tokens of a prefill that have a place and are not computed."""
    return min(seat.num_tokens, seat.num_places) - seat.num_computed
