"""The model shard: a shard in plain Python that keeps the rules of docs/wire.md and checks every read of a place.

The code is written from the numbered rules alone and shares none with the scheduler. No K and V are computed. A place
remembers the digest of the prefix that some request wrote there, and every read asserts that the digest is that of the
reader's own prefix.
"""

from array import array
from collections import deque
from dataclasses import dataclass, field
from random import Random

from textmill_router.request import FailureCode, GenerationRequest, PromptLogprobs
from textmill_router.scheduler.plan import (
    FLAG_EOS,
    FLAG_FINISHED,
    FLAG_LENGTH,
    FLAG_STOP_ID,
    Admit,
    Budget,
    Plan,
    ShardPool,
    SlotError,
    SlotPromptLogprobs,
    StepResult,
)

EOS_ID = 0
VOCAB_SIZE = 24
NOT_A_NUMBER = -1  # content of a place written by a poisoned request
_MASK = (1 << 61) - 1


def extend_digest(digest: int, token: int) -> int:
    """Return the digest of a prefix that is one token longer. The empty prefix has the digest 1."""
    mixed = (digest * 6364136223846793005 + token * 1442695040888963407 + 1013904223) & _MASK
    return (mixed ^ (mixed >> 29)) or 1


def digest_of(tokens: list[int]) -> int:
    """Return the digest of a whole prefix."""
    digest = 1
    for token in tokens:
        digest = extend_digest(digest, token)
    return digest


def next_token(digest: int) -> int:
    """Return the token that follows a prefix. This function is the model."""
    return (digest >> 11) % VOCAB_SIZE


def prompt_logprob(digest: int, token: int) -> float:
    """Return the model's log-probability of a prompt token after a prefix."""
    return -float((digest ^ token) % 997) / 64.0


def undisturbed_text(prompt: list[int], max_new_tokens: int, stop_ids: tuple[int, ...], ignore_eos: bool) -> list[int]:
    """Return the output that a request gets when no other request exists."""
    digest = digest_of(prompt)
    output: list[int] = []
    while len(output) < max_new_tokens:
        token = next_token(digest)
        output.append(token)
        digest = extend_digest(digest, token)
        if token in stop_ids or (token == EOS_ID and not ignore_eos):
            break
    return output


def as_read(request: GenerationRequest) -> list[int]:
    """Return the prompt as the model reads it: in the place of each placeholder stands the row of an image."""
    tokens = [*request.prompt_ids]
    for span in request.media_spans:
        image = int.from_bytes(span.digest[:4], "little")
        for number in range(span.num_tokens):
            tokens[span.start + number] = VOCAB_SIZE + 1 + image * 1000 + span.first_row + number
    return tokens


class PlanRefused(Exception):
    """A plan breaks a rule, and no part of the plan was applied (rule 20)."""

    def __init__(self, plan_number: int, slot: int, what: str, message: str) -> None:
        super().__init__(f"plan {plan_number}, slot {slot}, {what}: {message}")
        self.plan_number = plan_number


@dataclass(slots=True, eq=False)
class Occupant:
    """The occupant of a slot. All its state follows from the Admit (rule 18)."""

    admit: Admit
    tokens: list[int]  # as the device knows them, which under overlap are one or two more than on the host
    digests: list[int]  # of the prefix that ends with each token
    num_computed: int
    table: list[int]
    has_sampled: bool = False
    has_ended: bool = False  # as the host knows it
    is_starved: bool = False
    ready_until: int = 1 << 30  # tokens before the first image whose rows are not there (rule 33)

    def num_whole(self, start: int, num_wanted: int, most: int, is_uncut: bool) -> int:
        """Return the tokens of a chunk from `start` on, which cuts no image where `is_uncut` (rule 16)."""
        end = start + min(num_wanted, most)
        for span in self.admit.request.media_spans if is_uncut and end > start else ():
            if span.start < end < span.end:
                whole = span.end - start if span.start <= start else span.start - start
                return whole if whole <= most else 0
        return end - start

    @property
    def num_left(self) -> int:
        """The number of output tokens still to be sampled."""
        return len(self.admit.request.prompt_ids) + self.admit.request.max_new_tokens - len(self.tokens)


@dataclass(slots=True)
class Row:
    """The work of one slot in a step."""

    slot: int
    occupant: Occupant
    token: int | None  # None for a prefill that did not sample
    num_computed: int
    flags: int = 0
    is_error: bool = False
    prompt_logprobs: PromptLogprobs | None = None


@dataclass(slots=True)
class LaunchedStep:
    """A step on its way through the device."""

    number: int
    plan_applied: int
    rows: list[Row] = field(default_factory=list)
    starved: list[tuple[int, Occupant]] = field(default_factory=list)


class ModelShard:
    """One epoch of a shard.

    A test calls `send`, `turn` and `receive`. Each plan and each result travels for 0 to `max_delay` turns.
    """

    change_order = ("drops", "extends", "admits")

    def __init__(
        self,
        pool: ShardPool,
        *,
        rng: Random,
        has_overlap: bool,
        max_delay: int = 3,
        poisoned: frozenset[int] = frozenset(),
    ) -> None:
        self.pool = pool
        self._rng = rng
        self._depth = 1 if has_overlap else 0
        self._max_delay = max_delay
        self._poisoned = set(poisoned)
        self._places: dict[tuple[int, int], int] = {}
        self._seats: dict[int, Occupant] = {}  # in order of admission
        self._budget: Budget | None = None
        self._had: dict[int, float] = {}  # prefill tokens of each caller by weight, while several callers prefill
        self._plan_applied = 0
        self._plan_reported = 0
        self._num_steps = 0
        self._launched: deque[LaunchedStep] = deque()
        self._clock = 0
        self.images: dict[bytes, int] = {}  # bytes of the images that are kept, that used longest ago first
        self.leases: dict[bytes, list[int]] = {}  # turns at which the leases of an image end
        self._plans: deque[tuple[int, Plan]] = deque()
        self._results: deque[tuple[int, StepResult]] = deque()

    @property
    def num_seated(self) -> int:
        """The number of slots that are taken, as the host knows it."""
        return len(self._seats)

    def prefilling(self) -> list[int]:
        """Return the ids of the requests that have not sampled since their admission."""
        return [occupant.admit.request_id for occupant in self._seats.values() if not occupant.has_sampled]

    def poison(self, request_id: int) -> None:
        """Let this request compute values that are not finite."""
        self._poisoned.add(request_id)

    def send(self, plan: Plan) -> None:
        """Take a plan of the router. Plans keep their order, and each arrives after a random time."""
        due = self._clock + self._rng.randint(0, self._max_delay)
        self._plans.append((max(due, self._plans[-1][0] if self._plans else 0), plan))

    def receive(self) -> StepResult | None:
        """Return the next result that has reached the router, or None."""
        return self._results.popleft()[1] if self._results and self._results[0][0] <= self._clock else None

    def keeps(self, digest: bytes, lease_turns: int) -> bool:
        """Return whether an image is kept, and renew its lease."""
        if digest in self.images:
            self.images[digest] = self.images.pop(digest)
            self.leases[digest].append(self._clock + lease_turns)
        return digest in self.images

    def put(self, digest: bytes, num_bytes: int, lease_turns: int) -> bool:
        """Keep an image, and return whether those that are needed leave room for it (rule 33)."""
        needed = {digest for occupant in self._seats.values() for digest in self._needed(occupant)}
        for other in list(self.images):
            if sum(self.images.values()) + num_bytes <= self.pool.media_cache_bytes:
                break
            if other not in needed and all(end <= self._clock for end in self.leases[other]):
                del self.images[other], self.leases[other]
        if sum(self.images.values()) + num_bytes > self.pool.media_cache_bytes:
            return False
        self.images[digest] = num_bytes
        self.leases[digest] = [self._clock + lease_turns]
        return True

    def _needed(self, occupant: Occupant) -> list[bytes]:
        return [span.digest for span in occupant.admit.request.media_spans if span.end > occupant.num_computed]

    def _run_tower(self) -> None:
        """Make the rows of some images that slots wait for."""
        for occupant in self._seats.values():
            spans = [span for span in occupant.admit.request.media_spans if span.end > occupant.ready_until]
            if spans and self._rng.random() < 0.4:
                occupant.ready_until = spans[1].start if len(spans) > 1 else 1 << 30

    def turn(self) -> None:
        """Do one turn: apply the plans that have come, launch a step, and report the step before."""
        self._clock += 1
        self._run_tower()
        while self._plans and self._plans[0][0] <= self._clock:
            self._apply(self._plans.popleft()[1])
        step = self._compose()
        if step is not None:
            self._launch(step)
            self._launched.append(step)
        while self._launched and (step is None or len(self._launched) > self._depth):
            self._report(self._launched.popleft())

    # ---- Plans.

    def _apply(self, plan: Plan) -> None:
        self._check(plan)
        for kind in self.change_order:
            if kind == "drops":
                for drop in plan.drops:
                    occupant = self._seats.get(drop.slot)
                    if occupant is not None and occupant.admit.request_id == drop.request_id:
                        del self._seats[drop.slot]
            elif kind == "extends":
                for extend in plan.extends:
                    occupant = self._seats.get(extend.slot)
                    if occupant is not None and occupant.admit.request_id == extend.request_id:
                        occupant.table.extend(extend.block_ids)
                        occupant.is_starved = False
            else:
                for admit in plan.admits:
                    self._seats[admit.slot] = self._occupant_of(admit)
                    self._copy_places(admit)
        if plan.budget is not None:
            self._budget = plan.budget
        self._plan_applied = plan.number

    def _copy_places(self, admit: Admit) -> None:
        """Copy places behind the steps launched so far (rule 10). A place that was never written stays unwritten."""
        if admit.copied_block_id is None:
            return
        num_whole, num_copied = divmod(admit.num_cached_tokens, self.pool.block_size)
        for place in range(num_copied):
            content = self._places.get((admit.copied_block_id, place))
            if content is not None:
                self._places[admit.block_ids[num_whole], place] = content

    def _occupant_of(self, admit: Admit) -> Occupant:
        tokens = [*as_read(admit.request), *admit.output_ids]
        digests = []
        digest = 1
        for token in tokens:
            digest = extend_digest(digest, token)
            digests.append(digest)
        occupant = Occupant(admit, tokens, digests, admit.num_cached_tokens, list(admit.block_ids))
        for digest in dict.fromkeys(self._needed(occupant)):
            assert digest in self.images, f"request {admit.request_id} is admitted without an image that it needs"
            del self.leases[digest][:1]
        needed = [span.start for span in admit.request.media_spans if span.end > admit.num_cached_tokens]
        if needed:
            occupant.ready_until = needed[0]
        return occupant

    def _check(self, plan: Plan) -> None:
        """Check all of a plan (rule 20), also that no block gets a second writer (rules 8 and 10)."""

        def refuse(slot: int, what: str, message: str) -> PlanRefused:
            return PlanRefused(plan.number, slot, what, message)

        if plan.number != self._plan_applied + 1:
            raise refuse(0, "number", f"{plan.number} after {self._plan_applied}")
        budget = plan.budget or self._budget
        if budget is None:
            raise refuse(0, "budget", "the first plan has none")
        if not self.pool.num_slots <= budget.max_step_tokens <= self.pool.max_step_tokens:
            raise refuse(0, "budget.max_step_tokens", f"{budget.max_step_tokens}")
        ids = {slot: occupant.admit.request_id for slot, occupant in self._seats.items()}
        tables = {slot: list(occupant.table) for slot, occupant in self._seats.items()}
        block_size = self.pool.block_size

        def grant(slot: int, what: str, new_blocks: list[int]) -> None:
            in_use = {block for table in tables.values() for block in table}
            for block in new_blocks:
                if not 0 <= block < self.pool.num_blocks:
                    raise refuse(slot, what, f"block {block} of {self.pool.num_blocks}")
                if block in in_use:
                    raise refuse(slot, what, f"block {block} would have two writers")
                in_use.add(block)

        for kind in self.change_order:
            if kind == "drops":
                for drop in plan.drops:
                    if not 0 <= drop.slot < self.pool.num_slots:
                        raise refuse(drop.slot, "drops.slot", "no such slot")
                    if ids.get(drop.slot) == drop.request_id:
                        del ids[drop.slot], tables[drop.slot]
            elif kind == "extends":
                for extend in plan.extends:
                    if not 0 <= extend.slot < self.pool.num_slots:
                        raise refuse(extend.slot, "extends.slot", "no such slot")
                    if ids.get(extend.slot) == extend.request_id:
                        grant(extend.slot, "extends.block_ids", list(extend.block_ids))
                        tables[extend.slot].extend(extend.block_ids)
            else:
                for admit in plan.admits:
                    slot, num_tokens = admit.slot, len(admit.request.prompt_ids) + len(admit.output_ids)
                    if not 0 <= slot < self.pool.num_slots or slot in ids:
                        raise refuse(slot, "admits.slot", "not a free slot")
                    if admit.request_id in ids.values():
                        raise refuse(slot, "admits.request_id", "sits already")
                    is_part = admit.num_cached_tokens % block_size > 0
                    is_copied = admit.copied_block_id is not None
                    if is_part != is_copied or not 0 <= admit.num_cached_tokens < num_tokens:
                        raise refuse(slot, "admits.num_cached_tokens", f"{admit.num_cached_tokens} of {num_tokens}")
                    if len(admit.output_ids) >= admit.request.max_new_tokens:
                        raise refuse(slot, "admits.max_new_tokens", "nothing is left to sample")
                    if len(set(admit.block_ids)) != len(admit.block_ids):
                        raise refuse(slot, "admits.block_ids", "a block stands twice")
                    if admit.prompt_logprobs_from is not None and admit.num_cached_tokens:
                        raise refuse(
                            slot, "admits.num_cached_tokens", "prompt log-probabilities need all tokens computed"
                        )
                    num_shared = admit.num_cached_tokens // block_size
                    if admit.num_cached_tokens > len(admit.block_ids) * block_size:
                        raise refuse(slot, "admits.block_ids", "fewer blocks than cached tokens")
                    grant(slot, "admits.block_ids", list(admit.block_ids[num_shared:]))
                    ids[slot] = admit.request_id
                    tables[slot] = list(admit.block_ids)

    # ---- Steps.

    def _share(self, wanted: dict[int, int], num_left: int, max_chunk: int) -> dict[int, int]:
        """Give each prefill its tokens of a step (rule 16). `wanted` holds the prefills in order of admission."""
        admits = {slot: self._seats[slot].admit for slot in wanted}
        callers = list(dict.fromkeys(admit.caller for admit in admits.values()))
        takes = dict.fromkeys(wanted, 0)
        if len(callers) < 2:
            self._had = {}
            for limit in (max_chunk, num_left):
                for slot, most in wanted.items():
                    more = self._chunk(slot, takes[slot], limit, min(most - takes[slot], num_left))
                    takes[slot] += more
                    num_left -= more
            return takes
        least = min((had for caller, had in self._had.items() if caller in callers), default=0.0)
        self._had = {caller: self._had.get(caller, least) for caller in callers}
        chunks = dict.fromkeys(wanted, 0)
        wanted = dict(wanted)
        while num_left and (open_slots := [slot for slot, most in wanted.items() if takes[slot] < most]):
            caller = min(
                (admits[slot].caller for slot in open_slots), key=lambda one: (self._had[one], callers.index(one))
            )
            slot = min((slot for slot in open_slots if admits[slot].caller == caller), key=lambda one: chunks[one])
            more = self._chunk(slot, takes[slot], max_chunk, min(wanted[slot] - takes[slot], num_left))
            if not more:  # an image does not fit into the rest of the step
                wanted[slot] = takes[slot]
            takes[slot] += more
            chunks[slot] += 1
            num_left -= more
            self._had[caller] += more / admits[slot].caller_weight
        return takes

    def _chunk(self, slot: int, num_had: int, num_wanted: int, most: int) -> int:
        occupant = self._seats[slot]
        return occupant.num_whole(occupant.num_computed + num_had, num_wanted, most, self.pool.uncut_spans)

    def _compose(self) -> LaunchedStep | None:
        """Choose the rows of a step by the fixed rule.

        First come all decodes. The prefills share the rest of the budget.
        """
        budget = self._budget
        if budget is None:
            return None
        step = LaunchedStep(self._num_steps + 1, self._plan_applied)
        num_left = budget.max_step_tokens
        takes: dict[int, int] = {}
        prefills: list[int] = []
        for slot, occupant in self._seats.items():
            if occupant.num_left <= 0 or occupant.num_computed == len(occupant.tokens):
                continue  # the last token of the slot (rule 7) or its error is on the way
            num_places = len(occupant.table) * self.pool.block_size
            if num_places <= occupant.num_computed:
                if not occupant.is_starved:
                    occupant.is_starved = True
                    step.starved.append((slot, occupant))
            elif occupant.has_sampled:
                takes[slot] = 1
                num_left -= 1
            else:
                prefills.append(slot)
        num_left = min(num_left, budget.max_prefill_tokens)
        wanted = {}
        for slot in prefills:
            occupant = self._seats[slot]
            num_places = len(occupant.table) * self.pool.block_size
            end = min(len(occupant.tokens), num_places, occupant.ready_until)
            wanted[slot] = max(end - occupant.num_computed, 0)
        shares = self._share(wanted, num_left, budget.max_chunk_tokens)
        takes |= {slot: take for slot, take in shares.items() if take}
        for slot, take in takes.items():
            step.rows.append(Row(slot, self._seats[slot], None, take))
        if step.rows:
            self._num_steps += 1
            return step
        if step.starved or (not self._launched and self._plan_reported < self._plan_applied):
            step.number = 0  # this result stands for no step and only acknowledges (rule 2)
            return step
        return None

    def _launch(self, step: LaunchedStep) -> None:
        """Run a step on the device, which writes and reads places in the order of the launches (rule 8)."""
        for row in step.rows:
            occupant = row.occupant
            first, end = occupant.num_computed, occupant.num_computed + row.num_computed
            is_poisoned = occupant.admit.request_id in self._poisoned
            for position in range(first, end):
                content = NOT_A_NUMBER if is_poisoned else occupant.digests[position]
                self._places[self._place(occupant, position)] = content
            is_finite = self._read_all(occupant, end, is_poisoned)
            occupant.num_computed = row.num_computed = end
            row.prompt_logprobs = self._prompt_logprobs(occupant, first, end)
            if end < len(occupant.tokens):
                continue
            occupant.has_sampled = True
            if not is_finite:
                row.is_error = True
                continue
            row.token = token = next_token(occupant.digests[-1])
            occupant.tokens.append(token)
            occupant.digests.append(extend_digest(occupant.digests[-1], token))
            if token == EOS_ID and not occupant.admit.request.parameters.ignore_eos:
                row.flags |= FLAG_FINISHED | FLAG_EOS
            if token in occupant.admit.request.stop_ids:
                row.flags |= FLAG_FINISHED | FLAG_STOP_ID
            if occupant.num_left == 0:
                row.flags |= FLAG_FINISHED | FLAG_LENGTH

    def _place(self, occupant: Occupant, position: int) -> tuple[int, int]:
        return occupant.table[position // self.pool.block_size], position % self.pool.block_size

    def _read_all(self, occupant: Occupant, end: int, is_poisoned: bool) -> bool:
        """Read the K and V of all tokens before `end`, and return whether all are finite.

        Only a poisoned request may read a value that is not finite.
        """
        for position in range(end):
            content = self._places.get(self._place(occupant, position))
            if content == NOT_A_NUMBER and is_poisoned:
                return False
            assert content == occupant.digests[position], (
                f"request {occupant.admit.request_id} reads place {self._place(occupant, position)} "
                f"for its token {position} and finds the prefix of another"
            )
        return True

    def _prompt_logprobs(self, occupant: Occupant, first: int, end: int) -> PromptLogprobs | None:
        start = occupant.admit.prompt_logprobs_from
        if start is None:
            return None
        start, stop = max(first + 1, start), min(end + 1, len(occupant.admit.request.prompt_ids))
        if start >= stop:
            return None
        values = [prompt_logprob(occupant.digests[at - 1], occupant.tokens[at]) for at in range(start, stop)]
        return PromptLogprobs(start=start, logprobs=array("d", values))

    # ---- Results.

    def is_reported(self, row: Row) -> bool:
        """Return whether a row is reported, which it is not after the row that ended its occupant (rule 6)."""
        return not row.occupant.has_ended

    def _report(self, step: LaunchedStep) -> None:
        sampled: list[Row] = []
        prefilled: list[Row] = []
        errors: list[SlotError] = []
        pieces: list[SlotPromptLogprobs] = []
        for row in step.rows:
            if not self.is_reported(row):
                continue
            admit = row.occupant.admit
            if row.is_error:
                errors.append(SlotError(admit.slot, admit.request_id, FailureCode.NOT_FINITE, "logits are not finite"))
                self._end(row)
                continue
            if row.prompt_logprobs is not None:
                pieces.append(SlotPromptLogprobs(admit.slot, admit.request_id, row.prompt_logprobs))
            if row.token is None:
                prefilled.append(row)
                continue
            sampled.append(row)
            if row.flags & FLAG_FINISHED:
                self._end(row)
        starved = [slot for slot, occupant in step.starved if not occupant.has_ended]
        result = StepResult(
            step=step.number,
            plan_applied=step.plan_applied,
            slots=array("I", [row.slot for row in sampled]),
            tokens=array("I", [row.token or 0 for row in sampled]),
            flags=bytes(row.flags for row in sampled),
            prefill_slots=array("I", [row.slot for row in prefilled]),
            prefill_computed=array("I", [row.num_computed for row in prefilled]),
            starved_slots=array("I", starved),
            errors=tuple(errors),
            prompt_logprobs=tuple(pieces),
        )
        self._plan_reported = step.plan_applied
        due = self._clock + self._rng.randint(0, self._max_delay)
        self._results.append((max(due, self._results[-1][0] if self._results else 0), result))

    def _end(self, row: Row) -> None:
        row.occupant.has_ended = True
        if self._seats.get(row.slot) is row.occupant:
            del self._seats[row.slot]
