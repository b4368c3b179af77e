"""Checks all of a plan before the first part is applied (rule 20). A plan that breaks a rule is a bug of the router."""

import math
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from textmill_shard.slots.beam_blocks import num_search_blocks
from textmill_shard.slots.plan import Admit, Budget, IdArray, Plan, PlanRejection, ShardFacts
from textmill_shard.slots.slot_table import NOBODY, SlotTable

# Blocks hold only a part of a request's past (layout state), or serve one request alone (layout encoder_decoder).
LAYOUTS_WITHOUT_PREFIXES = ("state", "encoder_decoder")
BEAMS = "beams"  # an entry of `ShardFacts.features`

MEDIA_DIGEST_BYTES = 16

# The text is also the status of the stream's end, and gRPC takes 8 KiB of it. A text can name all blocks of a plan.
MAX_MESSAGE_CHARACTERS = 1000


class PlanRejected(Exception):
    """A plan breaks a rule. `rejection` goes to the router and names plan, slot and field."""

    def __init__(self, rejection: PlanRejection) -> None:
        super().__init__(f"plan {rejection.plan}, slot {rejection.slot}, {rejection.field}: {rejection.message}")
        self.rejection = rejection


def check_plan(plan: Plan, *, last_number: int, table: SlotTable, facts: ShardFacts) -> None:
    """Raise PlanRejected unless `plan` may be applied to `table` now. Changes nothing."""
    _PlanCheck(plan, table=table, facts=facts).run(last_number)


class _PlanCheck:
    """The check of one plan against one table.

    `_num_holders` and `_writers` are copies of the table's arrays, which follow the changes of the plan in their order.
    """

    def __init__(self, plan: Plan, *, table: SlotTable, facts: ShardFacts) -> None:
        self._plan = plan
        self._table = table
        self._facts = facts
        self._has_grants = bool(plan.admits or plan.extends)
        self._num_holders = table.num_holders.copy() if self._has_grants else table.num_holders
        self._writers = table.writers.copy() if self._has_grants else table.writers

    def run(self, last_number: int) -> None:
        plan = self._plan
        self._require(plan.number == last_number + 1, "number", f"plan {last_number + 1} comes next, got {plan.number}")
        dropped_slots = self._check_drops()
        self._check_extends(dropped_slots)
        seated_requests: dict[int, int] = {}
        for admit in plan.admits:
            self._check_tokens(admit)
            self._check_grammar(admit)
            self._check_adapter(admit)
            self._check_sampling(admit)
            self._check_rope(admit)
            self._check_encoder(admit)
            self._check_media(admit)
            self._check_beams(admit)
            self._check_seat(admit, dropped_slots=dropped_slots, seated_requests=seated_requests)
            seated_requests[admit.slot] = admit.request_id
        if plan.budget is not None:
            self._check_budget(plan.budget)

    def _check_drops(self) -> set[int]:
        """Return the slots that are free once the drops are applied."""
        dropped_slots: set[int] = set()
        for drop in self._plan.drops:
            self._check_slot("drops.slot", drop.slot)
            if self._table.is_occupant(drop.slot, drop.request_id) and drop.slot not in dropped_slots:
                dropped_slots.add(drop.slot)
                if self._has_grants:
                    blocks = self._table.blocks_of(drop.slot)
                    self._num_holders[blocks] -= 1
                    self._writers[blocks[self._writers[blocks] == drop.slot]] = NOBODY
        return dropped_slots

    def _check_extends(self, dropped_slots: set[int]) -> None:
        for extend in self._plan.extends:
            slot = extend.slot
            self._check_slot("extends.slot", slot)
            self._check_block_ids("extends.block_ids", slot, extend.block_ids)
            if self._table.is_occupant(slot, extend.request_id) and slot not in dropped_slots:
                self._check_fresh("extends.block_ids", slot, extend.block_ids)

    def _check_seat(self, admit: Admit, *, dropped_slots: set[int], seated_requests: dict[int, int]) -> None:
        """Check slot, request and blocks of an admit.

        `seated_requests` has, by slot, the requests of the plan's earlier admits.
        """
        slot, table = admit.slot, self._table
        self._check_slot("admits.slot", slot)
        is_free = (not table.is_occupied[slot] or slot in dropped_slots) and slot not in seated_requests
        self._require(is_free, "admits.slot", "the slot must be free, it is taken", slot)
        slots = set(np.flatnonzero(table.is_occupied & (table.request_ids == admit.request_id)).tolist())
        is_new = not slots - dropped_slots and admit.request_id not in seated_requests.values()
        self._require(is_new, "admits.request_id", f"request {admit.request_id} has a seat already", slot)

        self._check_block_ids("admits.block_ids", slot, admit.block_ids)
        block_size, num_cached = self._facts.block_size, admit.num_cached_tokens
        num_cached_blocks, num_copied = divmod(num_cached, block_size)
        is_right = (num_copied > 0) == (admit.copied_block_id is not None) and num_cached < admit.num_tokens
        message = (
            f"wanted a multiple of {block_size} (if and only if nothing is copied) below {admit.num_tokens} tokens, "
            f"got {num_cached}"
        )
        self._require(is_right, "admits.num_cached_tokens", message, slot)
        has_room = len(admit.block_ids) * block_size >= num_cached
        message = f"{num_cached} cached tokens need {-(-num_cached // block_size)} blocks, got {len(admit.block_ids)}"
        self._require(has_room, "admits.block_ids", message, slot)
        has_whole_past = num_cached == 0 or self._facts.layout not in LAYOUTS_WITHOUT_PREFIXES
        message = f"a model of layout {self._facts.layout} computes every token, got {num_cached} cached ones"
        self._require(has_whole_past, "admits.num_cached_tokens", message, slot)
        if admit.copied_block_id is not None:
            self._check_copied(slot, admit.copied_block_id, num_copied)
        self._check_cached(slot, admit.block_ids[:num_cached_blocks])
        self._check_fresh("admits.block_ids", slot, admit.block_ids[num_cached_blocks:])

    def _check_copied(self, slot: int, block: int, num_places: int) -> None:
        """Require that the writer of the block, if there is one, has computed the places to be copied (rule 10)."""
        field, blocks = "admits.copied_block_id", np.array([block])
        self._check_block_ids(field, slot, blocks)
        is_computed = bool(self._has_computed(blocks, num_places).all())
        self._require(is_computed, field, f"{num_places} places of block {block} are still being written", slot)

    def _check_cached(self, slot: int, blocks: IdArray) -> None:
        """Require that the writers of these cached blocks, if there are any, have filled them (rules 9 and 10)."""
        self._num_holders[blocks] += 1
        is_full = self._has_computed(blocks, self._facts.block_size)
        message = f"cached blocks must be full, {blocks[~is_full].tolist()} are still being written"
        self._require(bool(is_full.all()), "admits.num_cached_tokens", message, slot)

    def _has_computed(self, blocks: IdArray, num_places: int) -> npt.NDArray[np.bool_]:
        """Return for each block whether it has no writer, or a writer that has computed so many of its places."""
        writers = self._writers[blocks]
        needed = self._table.write_indices[blocks] * self._facts.block_size + num_places
        # A writer that this very plan admits is not in the table yet, and has computed no place.
        has_computed = (self._table.num_computed[writers] >= needed) & (self._table.writers[blocks] == writers)
        is_right: npt.NDArray[np.bool_] = (writers == NOBODY) | has_computed
        return is_right

    def _check_fresh(self, field: str, slot: int, blocks: IdArray) -> None:
        """Require that no table has these blocks, because two writers would destroy each other's tokens (rule 8)."""
        held = blocks[self._num_holders[blocks] > 0]
        self._require(not len(held), field, f"blocks {held.tolist()} are held by another request or twice", slot)
        self._num_holders[blocks] += 1
        self._writers[blocks] = slot

    def _check_rope(self, admit: Admit) -> None:
        """Require the rotary table that the length demands.

        Both sides must agree, because a block computed with one table is no prefix for a request of the other table.
        """
        border, num_tokens = self._facts.rope_border, len(admit.prompt_ids) + admit.max_new_tokens
        message = f"{num_tokens} tokens with a border of {border}, got {admit.is_long_rope}"
        self._require(admit.is_long_rope == (0 < border < num_tokens), "admits.long_rope", message, admit.slot)

    def _check_encoder(self, admit: Admit) -> None:
        """Require a text for the encoder that fits one step and leaves the decoder a token (rule 16)."""
        facts, num_encoder = self._facts, admit.num_encoder_tokens
        least = most = 0
        if facts.decoder_prompt_ids:
            positions = facts.max_encoder_tokens or facts.max_step_tokens
            least, most = 1, min(len(admit.prompt_ids) - 1, facts.max_step_tokens, positions)
        is_right = least <= num_encoder <= most
        message = f"wanted {least} .. {most} tokens for the encoder, got {num_encoder}"
        self._require(is_right, "admits.num_encoder_tokens", message, admit.slot)

    def _check_beams(self, admit: Admit) -> None:
        """Require a search that the shard can do, with the blocks of the whole search (rule 34)."""
        beams, facts, slot = admit.beams, self._facts, admit.slot
        if beams is None:
            return
        can_search = BEAMS in facts.features
        self._require(can_search, "admits.beams", "this shard searches no beams", slot)
        most = facts.num_slots
        is_right = 2 <= beams.num_beams <= most
        self._require(is_right, "admits.beams.num_beams", f"wanted 2 .. {most}, got {beams.num_beams}", slot)
        is_right = 1 <= beams.num_sequences <= beams.num_beams
        message = f"wanted 1 .. {beams.num_beams}, got {beams.num_sequences}"
        self._require(is_right, "admits.beams.num_sequences", message, slot)
        is_right = math.isfinite(beams.length_penalty)
        message = f"wanted a finite number, got {beams.length_penalty}"
        self._require(is_right, "admits.beams.length_penalty", message, slot)
        is_plain = not (len(admit.output_ids) or admit.grammar or admit.sampling.do_sample or admit.media)
        self._require(
            is_plain, "admits.beams", "a search begins anew, draws nothing, has no grammar and no items", slot
        )
        wanted = num_search_blocks(admit, block_size=facts.block_size)
        message = f"the search needs {wanted} blocks, got {len(admit.block_ids)}"
        self._require(len(admit.block_ids) == wanted, "admits.block_ids", message, slot)

    def _check_block_ids(self, field: str, slot: int, blocks: IdArray) -> None:
        num_blocks = self._facts.num_blocks
        outside = blocks[blocks >= num_blocks]
        self._require(not len(outside), field, f"blocks are 0 .. {num_blocks - 1}, got {outside.tolist()}", slot)
        is_unique = len(np.unique(blocks)) == len(blocks)
        self._require(is_unique, field, "a block is named twice", slot)

    def _check_tokens(self, admit: Admit) -> None:
        slot, facts = admit.slot, self._facts
        num_prompt, num_output = len(admit.prompt_ids), len(admit.output_ids)
        self._require(num_prompt > 0, "admits.prompt_ids", "a prompt has at least one token, got none", slot)
        self._check_vocabulary("admits.prompt_ids", slot, admit.read_ids.tolist())
        self._check_vocabulary("admits.output_ids", slot, admit.output_ids.tolist())
        self._check_vocabulary("admits.stop_ids", slot, admit.stop_ids)
        is_weight = 0.0 < admit.caller_weight < math.inf
        self._require(is_weight, "admits.caller_weight", f"wanted a number above 0, got {admit.caller_weight}", slot)
        has_length = admit.max_new_tokens > num_output
        message = f"wanted more than the {num_output} output tokens there are, got {admit.max_new_tokens}"
        self._require(has_length, "admits.max_new_tokens", message, slot)
        num_total = num_prompt - admit.num_encoder_tokens + admit.max_new_tokens
        fits = facts.max_model_tokens == 0 or num_total <= facts.max_model_tokens
        message = f"the model takes {facts.max_model_tokens} tokens, prompt and max_new_tokens come to {num_total}"
        self._require(fits, "admits.max_new_tokens", message, slot)
        first = admit.prompt_logprobs_from
        if first is not None:
            can_rate = "prompt_logprobs" in facts.features
            self._require(can_rate, "admits.prompt_logprobs_from", "this model has no prompt log-probabilities", slot)
            is_computed_here = admit.num_cached_tokens < first <= num_prompt
            message = (
                f"wanted {admit.num_cached_tokens + 1} .. {num_prompt} (the cached prompt has no logits), got {first}"
            )
            self._require(is_computed_here, "admits.prompt_logprobs_from", message, slot)

    def _check_grammar(self, admit: Admit) -> None:
        is_known = admit.grammar is None or "grammar" in self._facts.features
        self._require(is_known, "admits.grammar", "this model's tokenizer allows no grammars", admit.slot)

    def _check_adapter(self, admit: Admit) -> None:
        digest = admit.adapter_digest
        is_known = not digest or digest in self._facts.adapter_digests
        message = f"wanted the digest of a loaded adapter, or none, got {digest.hex()}"
        self._require(is_known, "admits.adapter_digest", message, admit.slot)

    def _check_media(self, admit: Admit) -> None:
        """Require spans in order, inside the prompt and without overlap, of a model that takes items (rule 33)."""
        slot, num_prompt = admit.slot, len(admit.prompt_ids)
        takes_media = not admit.media or bool(self._facts.media_kinds)
        self._require(takes_media, "admits.media", "this model takes text only", slot)
        least = 0
        for span in admit.media:
            is_digest = len(span.digest) == MEDIA_DIGEST_BYTES
            message = f"wanted {MEDIA_DIGEST_BYTES} bytes, got {len(span.digest)}"
            self._require(is_digest, "admits.media.digest", message, slot)
            is_inside = least <= span.start and span.num_tokens > 0 and span.end <= num_prompt
            message = f"wanted at least one token in {least} .. {num_prompt - 1}, got {span.start} .. {span.end - 1}"
            self._require(is_inside, "admits.media.start", message, slot)
            is_grid = len(span.grid) in (0, 3)
            self._require(is_grid, "admits.media.grid", f"wanted 3 numbers or none, got {len(span.grid)}", slot)
            is_whole = not self._facts.uncut_spans or span.num_tokens <= self._facts.max_step_tokens
            message = f"wanted at most {self._facts.max_step_tokens} (one step), got {span.num_tokens}"
            self._require(is_whole, "admits.media.num_tokens", message, slot)
            least = span.end

    def _check_sampling(self, admit: Admit) -> None:
        slot, params = admit.slot, admit.sampling
        numbers = (params.temperature, params.repetition_penalty, params.presence_penalty, params.frequency_penalty)
        is_finite = all(math.isfinite(number) for number in numbers)
        self._require(is_finite, "admits.sampling", f"wanted finite numbers, got {numbers}", slot)
        has_no_dry = params.dry_multiplier == 0
        for name, is_right, wanted, found in (
            ("temperature", params.temperature > 0, "more than 0", params.temperature),
            ("repetition_penalty", params.repetition_penalty > 0, "more than 0", params.repetition_penalty),
            ("top_p", 0 < params.top_p <= 1, "above 0 and at most 1", params.top_p),
            ("min_p", 0 <= params.min_p < 1, "at least 0 and below 1", params.min_p),
            ("dry_multiplier", 0 <= params.dry_multiplier < math.inf, "finite and at least 0", params.dry_multiplier),
            ("dry_base", has_no_dry or 1 <= params.dry_base < math.inf, "finite and at least 1", params.dry_base),
            (
                "dry_allowed_length",
                has_no_dry or params.dry_allowed_length > 0,
                "at least 1",
                params.dry_allowed_length,
            ),
            ("typical_p", 0 < params.typical_p <= 1, "above 0 and at most 1", params.typical_p),
        ):
            self._require(is_right, f"admits.sampling.{name}", f"wanted {wanted}, got {found}", slot)
        self._check_vocabulary("admits.sampling.logit_bias_ids", slot, [token for token, _ in params.logit_bias])
        self._check_vocabulary("admits.sampling.dry_breaker_ids", slot, params.dry_breaker_ids)
        self._check_vocabulary("admits.sampling.allowed_ids", slot, params.allowed_ids)
        self._check_vocabulary("admits.sampling.forced_first_ids", slot, params.forced_first_ids)
        self._check_vocabulary("admits.sampling.forced_last_ids", slot, params.forced_last_ids)
        for sequence in params.bad_sequences:
            self._require(bool(sequence), "admits.sampling.bad_sequences", "wanted at least one id, got none", slot)
            self._check_vocabulary("admits.sampling.bad_sequences", slot, sequence)

    def _check_vocabulary(self, field: str, slot: int, ids: Iterable[int]) -> None:
        largest = max(ids, default=0)
        message = f"token ids are 0 .. {self._facts.vocab_size - 1}, got {largest}"
        self._require(largest < self._facts.vocab_size, field, message, slot)

    def _check_budget(self, budget: Budget) -> None:
        facts = self._facts
        is_right = facts.num_slots <= budget.max_step_tokens <= facts.max_step_tokens
        message = f"wanted {facts.num_slots} (slots) .. {facts.max_step_tokens} tokens, got {budget.max_step_tokens}"
        self._require(is_right, "budget.max_step_tokens", message)
        self._require(budget.max_prefill_tokens > 0, "budget.max_prefill_tokens", "wanted at least 1, got 0")
        self._require(budget.max_chunk_tokens > 0, "budget.max_chunk_tokens", "wanted at least 1, got 0")

    def _check_slot(self, field: str, slot: int) -> None:
        num_slots = self._facts.num_slots
        self._require(slot < num_slots, field, f"slots are 0 .. {num_slots - 1}, got {slot}", slot)

    def _require(self, is_right: bool, field: str, message: str, slot: int = 0) -> None:
        if not is_right:
            if len(message) > MAX_MESSAGE_CHARACTERS:
                message = f"{message[:MAX_MESSAGE_CHARACTERS]}..."
            raise PlanRejected(PlanRejection(plan=self._plan.number, slot=slot, field=field, message=message))
