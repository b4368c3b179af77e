"""All that the scheduler knows of one request."""

from array import array
from enum import Enum

from textmill_router.request import BlockId, Effort, GenerationRequest, RequestId, Slot
from textmill_router.scheduler.account import Account

NEVER = 1 << 62


class RequestStatus(Enum):
    """`PREEMPTED` and `CANCELLED` requests may still be leaving: their drop is not acknowledged yet (rule 6)."""

    WAITING = "waiting"
    RUNNING = "running"
    PREEMPTED = "preempted"
    CANCELLED = "cancelled"


class RequestState:
    """One request from submit to its end. Only files of this folder write here.

    `num_computed_tokens` changes only by results (rule 3). `chain` holds the hashes of the first full blocks, as many
    as were needed so far. The chain outlasts preemption and epochs, because it depends on the tokens alone.
    """

    __slots__ = (
        "account",
        "admit_plan",
        "block_ids",
        "chain",
        "drop_plan",
        "effort",
        "epoch",
        "hold_hash",
        "is_paused",
        "is_plain",
        "leader",
        "max_places",
        "media_end",
        "media_spans",
        "next_prompt_logprob",
        "num_charged_tokens",
        "num_computed_tokens",
        "num_foreign_blocks",
        "num_indexed_blocks",
        "num_lonely_strikes",
        "num_lost_tokens",
        "num_new_tokens",
        "num_outputs_at_epoch",
        "num_strikes",
        "num_tokens",
        "order",
        "output_ids",
        "place_order",
        "prefill_share",
        "request",
        "request_id",
        "slot",
        "status",
        "was_lost",
        "watch_at",
    )

    def __init__(self, request: GenerationRequest) -> None:
        self.request = request
        self.request_id: RequestId = request.request_id
        self.output_ids: array[int] = array("I")
        self.num_tokens = len(request.prompt_ids)
        self.num_new_tokens = self.num_tokens  # to compute at the next admission, as far as was known at the last push
        self.status = RequestStatus.WAITING
        # The last token needs no place, because no further token is computed from it.
        self.max_places = len(request.prompt_ids) + request.max_new_tokens - 1
        self.is_paused = False  # the reader is far behind, so the request gets no further blocks for now
        self.is_plain = not (request.wants_logprobs or request.top_n_tokens or request.beams)
        self.place_order = (request.priority, request.arrival_s, request.request_id)
        self.order = (1, *self.place_order)  # becomes 0, and so goes first, once the request has run (rules 6, 22)

        self.account: Account | None = None  # of the caller, once a scheduler has the request
        self.num_charged_tokens = 0  # first tokens that the account was charged for, or that a cache held

        self.media_spans = request.media_spans if request.media else ()
        # The images are needed until so many tokens are computed.
        self.media_end = self.media_spans[-1].end if self.media_spans else 0

        self.slot: Slot | None = None
        self.admit_plan = 0  # number of the plan that admitted the request
        self.drop_plan = NEVER  # number of the plan that drops the request, once sent
        self.block_ids: list[BlockId] = []
        self.num_computed_tokens = 0
        self.num_indexed_blocks = 0  # full blocks that are in the prefix index
        self.num_foreign_blocks = 0  # blocks at the start that other requests wrote in this epoch
        self.chain: list[bytes] = []
        self.leader: RequestState | None = None  # computes this prompt; None from the first admission on
        self.hold_hash: bytes | None = None  # the hash that the request last waited for (rule 11)
        self.prefill_share = 0  # tokens of the next chunk (rule 16)
        self.watch_at = NEVER  # number of tokens at which a block is full or places run short; 0 = no token yet
        self.next_prompt_logprob = 1  # first prompt position not delivered (rule 17)

        self.effort = Effort()  # for the client
        self.epoch = 0  # epoch of the last admission
        self.num_outputs_at_epoch = 0  # output tokens at the first admission in that epoch
        self.was_lost = False  # whether the shard died with the request in a slot, and no slot was given since
        self.num_lost_tokens = 0  # tokens whose K and V that shard had stored
        self.num_strikes = 0  # deaths of the shard in a row without a token between them (rule 22)
        self.num_lonely_strikes = 0  # those of them at which every other request with a slot had a token

    def __repr__(self) -> str:
        return f"RequestState({self.request_id}, {self.status.value}, slot={self.slot}, tokens={self.num_tokens})"

    @property
    def waits_for_leader(self) -> bool:
        """Whether another request has yet to compute this prompt."""
        leader = self.leader
        return leader is not None and not leader.output_ids and not leader.has_ended

    @property
    def has_ended(self) -> bool:
        """Whether the request was cancelled, or its last row or error has come, also after a preemption (rule 6)."""
        is_waiting = self.status is RequestStatus.WAITING
        return self.status is RequestStatus.CANCELLED or (self.slot is None and not is_waiting)

    @property
    def wants_prompt_logprobs(self) -> bool:
        """Whether prompt log-probabilities have yet to be delivered."""
        request = self.request
        can_be_scored = not request.num_encoder_tokens  # an encoder predicts no next token
        is_owed = self.next_prompt_logprob < len(request.prompt_ids)
        return request.wants_prompt_logprobs and can_be_scored and is_owed

    @property
    def is_in_prefill(self) -> bool:
        """Whether the request has a slot and no token yet in that slot, leaving requests included."""
        return self.slot is not None and self.watch_at == 0

    @property
    def has_token_in_epoch(self) -> bool:
        """Whether a token has come since the first admission in the epoch of the last admission."""
        return len(self.output_ids) > self.num_outputs_at_epoch

    def packed_ids(self, start: int, end: int) -> bytes:
        """The ids of tokens `start` .. `end` - 1 as bytes, where the output follows the prompt."""
        prompt_ids = self.request.prompt_ids
        num_prompt = len(prompt_ids)
        if end <= num_prompt:
            return prompt_ids[start:end].tobytes()
        if start >= num_prompt:
            return self.output_ids[start - num_prompt : end - num_prompt].tobytes()
        return prompt_ids[start:].tobytes() + self.output_ids[: end - num_prompt].tobytes()

    def packed_media(self, start: int, end: int) -> bytes:
        """What tells the images apart whose placeholders are among tokens `start` .. `end` - 1.

        For each span that has such placeholders: its digest, and the row that stands in the first of them, as u32.
        """
        packed = b""
        for span in self.media_spans:
            first = max(span.start, start)
            if first < min(span.end, end):
                packed += span.digest + (span.first_row + first - span.start).to_bytes(4, "little")
        return packed

    def charge_prompt(self) -> None:
        """Charge the caller for the tokens that the slot just given has to compute."""
        if self.account is not None:
            self.account.charge(self.num_tokens - self.num_computed_tokens)
            self.num_charged_tokens = self.num_tokens

    def charge_outputs(self) -> None:
        """Charge the caller for the output tokens that were computed since the last charge."""
        if self.account is not None and self.num_tokens > self.num_charged_tokens:
            num_beams = 1 if self.request.beams is None else self.request.beams.num_beams
            self.account.charge((self.num_tokens - self.num_charged_tokens) * num_beams)
            self.num_charged_tokens = self.num_tokens

    def num_blocks_at_most(self, block_size: int) -> int:
        """The blocks that the request may come to hold."""
        request = self.request
        if request.beams is not None:
            return request.beams.num_blocks(len(request.prompt_ids), request.max_new_tokens, block_size)
        return -(-(self.max_places + 1) // block_size)

    def forget_shard(self) -> None:
        """Reset the fields that describe a slot. Tokens and delivered outputs stay, but a search begins anew."""
        if self.request.beams is not None:
            self.output_ids = array("I")
            self.num_tokens = len(self.request.prompt_ids)
        self.slot = None
        self.drop_plan = NEVER
        self.block_ids = []
        self.num_computed_tokens = 0
        self.num_new_tokens = self.num_tokens
        self.num_indexed_blocks = 0
        self.prefill_share = 0
        self.watch_at = NEVER
        self.hold_hash = None
