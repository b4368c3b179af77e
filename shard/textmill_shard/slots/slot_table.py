"""The rows of the requests that have a slot: one row per slot, in numpy arrays.

A row is a function of its Admit, of the blocks granted since and of the tokens sampled since (rule 18). The table
holds no sampling state and decides nothing. Other files read from it which tokens a slot has yet to compute, and
where their K and V belong.
"""

# S slots, B blocks of the widest table, P tokens of a prompt

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from textmill_shard.slots.plan import Admit, IdArray
from textmill_shard.slots.prefill_shares import PrefillShares

NOBODY = -1
NO_BOUND = np.iinfo(np.int64).max
_FIRST_TABLE_BLOCKS = 16


@dataclass(frozen=True, slots=True)
class TokenRange:
    """Tokens `start` to `end` - 1 of a request."""

    start: int
    end: int


@dataclass(frozen=True, slots=True)
class RopeRow:
    """The rotary positions of a prompt. The output token at index i has the position i + `delta` three times."""

    positions_3P: IdArray
    delta: int


class SlotTable:
    """The slots of the shard. Only the executor writes them.

    Arrays are indexed by slot, and rows of free slots hold zeros. A token counts from the launch of the step that
    samples the token, and under overlap the host learns later which token that is. A slot whose tokens are all
    counted is full, and is in no further step (rule 7).
    """

    def __init__(self, *, num_slots: int, block_size: int, num_blocks: int) -> None:
        self.num_slots = num_slots
        self.block_size = block_size
        self.num_blocks = num_blocks
        self._scratch_block = num_blocks
        self.reset()

    def reset(self) -> None:
        """Free every slot, because a new epoch begins."""
        num_slots = self.num_slots
        self.request_ids = np.zeros(num_slots, dtype=np.uint64)  # 0 for free slots; `is_occupied` tells them apart
        self.is_occupied = np.zeros(num_slots, dtype=bool)
        self.is_prefilling = np.zeros(num_slots, dtype=bool)  # no token sampled since admission
        self.is_held = np.zeros(num_slots, dtype=bool)  # must not sample yet, because its grammar compiles (rule 19)
        self.order = np.zeros(num_slots, dtype=np.int64)  # rank in the order of admission, which no two admits share
        self.callers = np.zeros(num_slots, dtype=np.int64)  # number of the caller (rule 16)
        self.weights = np.ones(num_slots)  # of the caller: share of the prefills beside other callers (rule 16)
        self.prefill_shares = PrefillShares()
        self.num_prompt = np.zeros(num_slots, dtype=np.int64)  # tokens
        self.num_encoder = np.zeros(num_slots, dtype=np.int64)  # first tokens of the prompt, for the encoder
        self.num_tokens = np.zeros(num_slots, dtype=np.int64)  # prompt and output
        self.num_computed = np.zeros(num_slots, dtype=np.int64)  # tokens whose K and V are stored
        self.num_places = np.zeros(num_slots, dtype=np.int64)  # tokens that the granted blocks have room for
        self.max_tokens = np.zeros(num_slots, dtype=np.int64)  # prompt and output; the request ends at this number
        self.min_tokens = np.zeros(num_slots, dtype=np.int64)  # prompt and output; EOS and stop ids count beyond it
        self.last_tokens = np.zeros(num_slots, dtype=np.int64)
        self.ignores_eos = np.zeros(num_slots, dtype=bool)
        self.has_stop_ids = np.zeros(num_slots, dtype=bool)
        self.is_long_rope = np.zeros(num_slots, dtype=bool)
        self.adapters = np.zeros(num_slots, dtype=np.int32)  # place of the request's adapter, 0 = none
        self.num_adapted = 0  # occupied slots with an adapter
        self.num_with_media = 0  # occupied slots whose prompts have items
        self.ready_until = np.full(num_slots, NO_BOUND)  # tokens whose rows are there may be computed (rule 33)
        self.num_roped = 0  # occupied slots whose rotary positions are not their indices
        self.rope_deltas = np.zeros(num_slots, dtype=np.int64)  # rotary position of an output token, less its index
        self.has_uncut = np.zeros(num_slots, dtype=bool)  # has spans of tokens that one step computes (rule 16)
        self.is_apart = np.zeros(num_slots, dtype=bool)  # searches by beams behind its prompt, in steps of its own
        self.num_apart = 0
        self.was_starved = np.zeros(num_slots, dtype=bool)  # reported since the last grant (rule 13)
        self.block_tables_SB = np.full((num_slots, _FIRST_TABLE_BLOCKS), self._scratch_block, dtype=np.int32)
        self.num_holders = np.zeros(self.num_blocks, dtype=np.int32)  # tables that name a block
        self.writers = np.full(self.num_blocks, NOBODY, dtype=np.int64)  # slot that writes or wrote a block
        self.write_indices = np.zeros(self.num_blocks, dtype=np.int64)  # index of the block in its writer's table
        self._tokens: list[IdArray | None] = [None] * num_slots
        self._admits: list[Admit | None] = [None] * num_slots
        self._uncut: list[tuple[TokenRange, ...]] = [()] * num_slots
        self._rope_positions: list[IdArray | None] = [None] * num_slots
        self._num_admitted = 0
        self.num_occupied = 0

    def admit(
        self,
        admit: Admit,
        *,
        adapter: int = 0,
        uncut: tuple[TokenRange, ...] = (),
        rope: RopeRow | None = None,
    ) -> None:
        """Put a request into a free slot. `plan_check.py` has checked the message.

        `adapter` is the place of the adapter that the message names, 0 where the message names none. `uncut` are the
        ranges of tokens, in order, of which a step computes all or none. `rope` is None where rotary positions are
        indices.
        """
        slot = admit.slot
        assert not self.is_occupied[slot], slot
        num_prompt = len(admit.prompt_ids)
        num_tokens = admit.num_tokens
        max_tokens = num_prompt + admit.max_new_tokens
        tokens = np.empty(max_tokens, dtype=np.int64)
        tokens[:num_prompt] = admit.prompt_ids
        tokens[num_prompt:num_tokens] = admit.output_ids
        self._tokens[slot] = tokens
        self._admits[slot] = admit
        self.request_ids[slot] = admit.request_id
        self.is_occupied[slot] = True
        self.num_occupied += 1
        self.is_prefilling[slot] = True
        self.is_held[slot] = admit.grammar is not None
        self._num_admitted += 1
        self.order[slot] = self._num_admitted
        self.callers[slot] = admit.caller
        self.weights[slot] = admit.caller_weight
        self.num_prompt[slot] = num_prompt
        self.num_encoder[slot] = admit.num_encoder_tokens
        self.num_tokens[slot] = num_tokens
        self.num_computed[slot] = admit.num_cached_tokens
        self.num_places[slot] = 0
        self.max_tokens[slot] = max_tokens
        # The mask of a grammar lets EOS through only where the text may end, so each EOS that comes ends the request.
        has_grammar = admit.grammar is not None
        self.min_tokens[slot] = num_prompt + (0 if has_grammar else admit.sampling.min_new_tokens)
        self.last_tokens[slot] = tokens[num_tokens - 1]
        self.ignores_eos[slot] = admit.ignore_eos and not has_grammar
        self.has_stop_ids[slot] = bool(admit.stop_ids)
        self.is_long_rope[slot] = admit.is_long_rope
        self.adapters[slot] = adapter
        self.num_adapted += adapter > 0
        self.num_with_media += bool(admit.media)
        self.ready_until[slot] = next(
            (span.start for span in admit.media if span.end > admit.num_cached_tokens), NO_BOUND
        )
        if admit.num_encoder_tokens:
            uncut = (TokenRange(0, admit.num_encoder_tokens), *uncut)
        self.has_uncut[slot] = bool(uncut)
        self._uncut[slot] = uncut
        self.num_roped += rope is not None
        self.rope_deltas[slot] = 0 if rope is None else rope.delta
        self._rope_positions[slot] = None if rope is None else rope.positions_3P
        self.was_starved[slot] = False
        self.grant(slot, admit.block_ids)

    def grant(self, slot: int, block_ids: IdArray) -> None:
        """Append blocks to the slot's table. A starved slot that gains places goes on (rule 13)."""
        if not len(block_ids):
            return
        start = int(self.num_places[slot]) // self.block_size
        end = start + len(block_ids)
        self._widen(end)
        self.block_tables_SB[slot, start:end] = block_ids
        self.num_places[slot] = end * self.block_size
        self.was_starved[slot] = False
        self.num_holders[block_ids] += 1
        num_cached = self.admit_of(slot).num_cached_tokens // self.block_size
        own_blocks = block_ids[max(num_cached - start, 0) :]  # a cached block keeps the writer that it has
        self.writers[own_blocks] = slot
        self.write_indices[own_blocks] = np.arange(end - len(own_blocks), end)

    def end(self, slot: int) -> None:
        """Free a slot."""
        assert self.is_occupied[slot], slot
        self.num_occupied -= 1
        self.num_adapted -= int(self.adapters[slot] > 0)
        self.num_with_media -= bool(self.admit_of(slot).media)
        self.num_roped -= self._rope_positions[slot] is not None
        self.ready_until[slot] = NO_BOUND
        self.rope_deltas[slot] = 0
        self._uncut[slot] = ()
        self._rope_positions[slot] = None
        self.num_apart -= int(self.is_apart[slot])
        blocks = self.blocks_of(slot)
        self.num_holders[blocks] -= 1
        self.writers[blocks[self.writers[blocks] == slot]] = NOBODY
        self.block_tables_SB[slot, : len(blocks)] = self._scratch_block
        for row in (self.num_tokens, self.num_computed, self.num_places, self.last_tokens, self.adapters):
            row[slot] = 0
        self.request_ids[slot] = 0
        for mark in (
            self.is_occupied,
            self.is_prefilling,
            self.is_held,
            self.is_apart,
            self.was_starved,
            self.has_uncut,
        ):
            mark[slot] = False
        self._tokens[slot] = None
        self._admits[slot] = None

    def release(self, slots: Sequence[int]) -> None:
        """Let slots sample whose grammars are ready."""
        self.is_held[list(slots)] = False

    def set_apart(self, slot: int) -> None:
        """Leave the slot out of the steps, because the tokens behind its prompt are computed elsewhere (rule 34)."""
        assert self.is_occupied[slot], slot
        assert not self.is_apart[slot], slot
        self.is_apart[slot] = True
        self.num_apart += 1

    def advance(self, slots: IdArray, counts: IdArray) -> None:
        """Note that K and V of the next `counts` tokens of `slots` are stored."""
        self.num_computed[slots] += counts

    def count_sampled(self, slots: IdArray) -> IdArray:
        """Count the token that each of `slots` samples in a step, and return the counts. `fill` brings the tokens."""
        num_tokens = self.num_tokens[slots] + 1
        self.num_tokens[slots] = num_tokens
        self.is_prefilling[slots] = False
        return num_tokens

    def fill(self, slots: IdArray, num_tokens: IdArray, tokens: IdArray) -> None:
        """Write the tokens of one step. `num_tokens` are the counts that `count_sampled` returned for the step."""
        for slot, count, token in zip(slots.tolist(), num_tokens.tolist(), tokens.tolist(), strict=True):
            self._row(slot)[count - 1] = token
        self.last_tokens[slots] = tokens

    def append(self, slots: IdArray, tokens: IdArray) -> None:
        """Append one sampled token to each of `slots`."""
        self.fill(slots, self.count_sampled(slots), tokens)

    def rewind(self, slot: int) -> None:
        """Take back the last step of a slot that decodes: its token was computed, and the next one was counted."""
        self.num_computed[slot] -= 1
        self.num_tokens[slot] -= 1

    def set_ready(self, slot: int, until: int) -> None:
        """Let a slot compute the tokens before `until`, because the rows of the items before are there (rule 33)."""
        self.ready_until[slot] = until

    def uncut_of(self, slot: int) -> tuple[TokenRange, ...]:
        """Return the ranges of the occupant's tokens, in order, of which a step computes all or none (rule 16)."""
        return self._uncut[slot]

    def rope_positions(self, slot: int, *, start: int, end: int) -> IdArray:
        """Return the rotary positions `[3, end - start]` of the occupant's tokens from `start` on."""
        positions_3P = self._rope_positions[slot]
        if positions_3P is None:
            return np.broadcast_to(np.arange(start, end), (3, end - start))
        num_prompt = positions_3P.shape[1]
        behind = np.arange(max(start, num_prompt), max(end, num_prompt)) + self.rope_deltas[slot]
        return np.concatenate([positions_3P[:, start:end], np.broadcast_to(behind, (3, len(behind)))], axis=1)

    def is_occupant(self, slot: int, request_id: int) -> bool:
        """Whether this request has this slot now."""
        return bool(self.is_occupied[slot] and self.request_ids[slot] == request_id)

    def admit_of(self, slot: int) -> Admit:
        """Return the message that admitted the occupant."""
        admit = self._admits[slot]
        assert admit is not None, slot
        return admit

    def tokens_of(self, slot: int, *, start: int = 0, end: int) -> IdArray:
        """Return a view of the occupant's tokens from `start` up to, but not including, `end`."""
        return self._row(slot)[start:end]

    def blocks_of(self, slot: int) -> IdArray:
        """Return the granted blocks, in the order of the tokens."""
        return self.block_tables_SB[slot, : int(self.num_places[slot]) // self.block_size].astype(np.int64)

    @property
    def is_empty(self) -> bool:
        """Whether every slot is free."""
        return not self.is_occupied.any()

    def _row(self, slot: int) -> IdArray:
        tokens = self._tokens[slot]
        assert tokens is not None, slot
        return tokens

    def _widen(self, num_blocks: int) -> None:
        width = self.block_tables_SB.shape[1]
        if num_blocks <= width:
            return
        wider_SB = np.full((self.num_slots, max(num_blocks, 2 * width)), self._scratch_block, dtype=np.int32)
        wider_SB[:, :width] = self.block_tables_SB
        self.block_tables_SB = wider_SB
