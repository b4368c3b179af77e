"""Executes plans and steps on the state of one rank. Equal states and equal plans give equal states on every rank.

The executor takes no decision of its own: plans and the rule of composition fix all that it does. `engine.py` and
`step_pipeline.py` call the executor on rank 0, and `follower.py` on the other ranks.
"""

# T tokens of the step, R rows, N rows that sample, V vocabulary, D width of the hidden states

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import count
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch

from textmill_shard.engine.apart_pass import ApartPass, ApartRows
from textmill_shard.engine.batch_builder import BatchBuilder
from textmill_shard.engine.media_rope import RopeRule
from textmill_shard.engine.media_rows import RowSource
from textmill_shard.engine.token_feed import TokenFeed
from textmill_shard.engine.upload import Upload
from textmill_shard.model.adapter import NO_ADAPTER, AdapterHost, PreparedAdapter
from textmill_shard.model.decode_graphs import DecodeGraphs, SeatedStep
from textmill_shard.model.forward_batch import ForwardBatch, ForwardOutput
from textmill_shard.model.media import MediaFault
from textmill_shard.model.shared_vocabulary import SharedVocabulary
from textmill_shard.sampling.logprobs import PromptLogprobs, prompt_logprobs
from textmill_shard.sampling.part_prompts import part_prompt_logprobs
from textmill_shard.slots.beam_blocks import BlockCopy
from textmill_shard.slots.plan import Admit, Budget, IdArray, Plan, ShardFacts, SlotError, SlotErrorCode
from textmill_shard.slots.plan_check import check_plan
from textmill_shard.slots.slot_table import RopeRow, SlotTable, TokenRange
from textmill_shard.slots.step_composer import ComposedStep, compose_step


class Runner(Protocol):
    """The model as the step loop sees the model. `model/runner.py` has the real one."""

    @property
    def device(self) -> torch.device: ...

    def forward(self, batch: ForwardBatch, wants_hidden: bool = False) -> ForwardOutput: ...

    @property
    def graphs(self) -> DecodeGraphs | None: ...

    def replay(self, seated: SeatedStep) -> ForwardOutput: ...

    @property
    def adapters(self) -> AdapterHost: ...

    def project(self, hidden_nD: torch.Tensor, adapter: int) -> torch.Tensor: ...

    def project_part(self, hidden_nD: torch.Tensor, adapter: int) -> torch.Tensor: ...

    def copy_places(self, *, source_block: int, target_block: int, num_places: int) -> None: ...

    def copy_states(self, sources: Sequence[int], targets: Sequence[int]) -> None: ...


@dataclass(frozen=True, slots=True)
class PromptStretch:
    """Prompt positions of one row whose hidden states a step gave, for log-probabilities of the tokens behind them."""

    slot: int
    request_id: int
    start: int  # prompt position of the first token of `targets_T`
    targets_T: torch.Tensor  # int64, the token behind each position
    hidden_TD: torch.Tensor
    top_n: int
    adapter: int  # place of the row's adapter, 0 = none
    is_placeholder_T: npt.NDArray[np.bool_] | None = None  # targets that stand for images, which nothing predicts


class StepExecutor:
    """Slot table, budget and model of one rank. Only the thread of the step loop calls the executor."""

    def __init__(
        self,
        *,
        runner: Runner,
        facts: ShardFacts,
        media: RowSource | None = None,
        rope: RopeRule | None = None,
        has_overlap: bool = False,
        vocabulary: SharedVocabulary | None = None,
    ) -> None:
        """`media` gives the rows of images, None for a model of text. `rope` is None where positions are indices.

        `has_overlap`: a step may be launched before the host has the tokens of the step before (rule 7).
        `vocabulary` is that of the runner, where ranks share it, and None where this rank computes all logits.
        """
        self._facts = facts
        self._runner = runner
        self._rope = rope
        self._vocabulary = vocabulary
        self.media_faults: dict[int, str] = {}  # of slots admitted since the last look, which compute nothing
        self.feed = None
        if has_overlap:
            graphs = runner.graphs
            shared = None if graphs is None or graphs.sizes.num_slots != facts.num_slots else graphs.last_ids_S
            self.feed = TokenFeed(num_slots=facts.num_slots, device=runner.device, last_ids_S=shared)
        self._builder = BatchBuilder(
            block_size=facts.block_size,
            device=runner.device,
            has_two_rope_tables=facts.rope_border > 0,
            has_encoder=bool(facts.decoder_prompt_ids),
            has_host_rows=facts.layout != "flat",
            media=media,
            has_span_ends=facts.uncut_spans or facts.uncut_prompts,
            shares_vocabulary=vocabulary is not None,
        )
        self._widest = Budget(facts.max_step_tokens, facts.max_step_tokens, facts.max_step_tokens)
        self._budget = self._widest
        self.table = SlotTable(num_slots=facts.num_slots, block_size=facts.block_size, num_blocks=facts.num_blocks)
        self.plan_applied = 0
        self._place_of_digest: dict[bytes, int] = {}

    @property
    def device(self) -> torch.device:
        """The device of the model."""
        return self._runner.device

    @property
    def adapter_digests(self) -> tuple[bytes, ...]:
        """The adapters that an admit may name. Any thread may ask."""
        return self._facts.adapter_digests

    def put_adapter(self, adapter: PreparedAdapter) -> None:
        """Let admits name an adapter from now on. Equal calls give equal places on every rank."""
        taken = set(self._place_of_digest.values())
        place = next(place for place in count(NO_ADAPTER + 1) if place not in taken)
        self._runner.adapters.put(place, adapter)
        self._place_of_digest[adapter.digest] = place
        self._facts = replace(self._facts, adapter_digests=tuple(self._place_of_digest))

    def holds_adapter(self, digest: bytes) -> bool:
        """Whether a slot has this loaded adapter."""
        return bool((self.table.adapters == self._place_of_digest[digest]).any())

    def remove_adapter(self, digest: bytes) -> None:
        """Free an adapter that no slot has."""
        self._runner.adapters.remove(self._place_of_digest.pop(digest))
        self._facts = replace(self._facts, adapter_digests=tuple(self._place_of_digest))

    def begin_epoch(self) -> None:
        """Free all slots and forget the plans. The weights and the adapters stay (rule 21)."""
        self.table.reset()
        self.media_faults.clear()
        self._budget = self._widest
        self.plan_applied = 0

    def check(self, plan: Plan) -> None:
        """Raise PlanRejected unless the plan may be applied now (rule 20)."""
        check_plan(plan, last_number=self.plan_applied, table=self.table, facts=self._facts)

    def apply(self, plan: Plan) -> None:
        """Apply a checked plan: first drops, then extends, admits and the budget (rule 1).

        A drop or an extend for a request that has left its slot does nothing (rule 5).
        """
        table = self.table
        for drop in plan.drops:
            if table.is_occupant(drop.slot, drop.request_id):
                table.end(drop.slot)
        for extend in plan.extends:
            if table.is_occupant(extend.slot, extend.request_id):
                table.grant(extend.slot, extend.block_ids)
        for admit in plan.admits:
            table.admit(
                admit,
                adapter=self._place_of_digest[admit.adapter_digest] if admit.adapter_digest else NO_ADAPTER,
                uncut=self._uncut_of(admit),
                rope=self._rope_of(admit),
            )
            if admit.slot in self.media_faults:
                table.set_ready(admit.slot, 0)
            if admit.copied_block_id is not None:
                num_blocks, num_places = divmod(admit.num_cached_tokens, self._facts.block_size)
                self._runner.copy_places(
                    source_block=admit.copied_block_id,
                    target_block=int(admit.block_ids[num_blocks]),
                    num_places=num_places,
                )
        if plan.budget is not None:
            self._budget = plan.budget
        self.plan_applied = plan.number

    def end(self, slots: Sequence[int]) -> None:
        """Free slots that finished or failed."""
        for slot in slots:
            self.table.end(slot)

    def release(self, slots: Sequence[int]) -> None:
        """Let slots sample whose grammars are ready."""
        self.table.release(slots)

    def set_ready(self, slots: Collection[int], until: Collection[int]) -> None:
        """Let slots compute the tokens before `until`, because the rows of their items are there."""
        for slot, bound in zip(slots, until, strict=True):
            self.table.set_ready(slot, bound)

    def compose(self) -> ComposedStep:
        """Choose the rows of the next step."""
        return compose_step(self.table, self._budget)

    def build(self, step: ComposedStep, upload: Upload | None = None) -> ForwardBatch | SeatedStep:
        """Return the tensors of a step, or how its graph is replayed.

        `upload` may hold further arrays, which are sent with those of the step.
        """
        upload = upload or Upload(self.device)
        if step.is_decode and (graphs := self._graphs()) is not None:
            seated = self._builder.seat(graphs, self.table, step, upload, self.feed)
            if seated is not None:
                return seated
        return self._builder.build(self.table, step, upload, self.feed)

    def _graphs(self) -> DecodeGraphs | None:
        """Return the graphs, unless they read the ids of other slots than those of the feed."""
        graphs = self._runner.graphs
        is_fed = graphs is not None and (self.feed is None or self.feed.last_ids_S is graphs.last_ids_S)
        return graphs if is_fed else None

    def forward(self, step: ComposedStep, batch: ForwardBatch | SeatedStep) -> ForwardOutput:
        """Run the model on the step. Counts K and V of its tokens as stored, and the tokens that its rows sample."""
        if isinstance(batch, SeatedStep):
            output = self._runner.replay(batch)
        else:
            output = self._runner.forward(batch, wants_hidden=self._wants_hidden(step))
        self.table.advance(step.slots_R, step.counts_R)
        self.table.count_sampled(step.slots_R if step.is_decode else step.slots_R[step.samples_R])
        return output

    @property
    def can_rewind(self) -> bool:
        """Whether a decode can be computed again with another token, as where all of its past stands in places."""
        return self._facts.layout != "state"

    def rewind(self, slots: IdArray, tokens: IdArray, is_launched: npt.NDArray[np.bool_]) -> None:
        """Give slots another last token than the one that was drawn at first.

        `is_launched` marks the slots whose next step was launched with the first token. That step counts for nothing.
        """
        for slot in slots[is_launched].tolist():
            self.table.rewind(slot)
        if self.feed is not None:
            self.feed.correct(slots, tokens)

    def forward_apart(self, rows: ApartRows) -> torch.Tensor:
        """Run the model on one token of each sequence of slots that are set apart, and return the logits [R, V]."""
        if (graphs := self._runner.graphs) is not None:
            seated = self._builder.seat_apart(graphs, self.table, rows)
            if seated is not None:
                return self._runner.replay(seated).logits_NV
        return self._runner.forward(self._builder.build_apart(self.table, rows)).logits_NV

    def follow_apart(self, one: ApartPass) -> None:
        """Make the copies and the forward pass that rank 0 makes for its searches."""
        for copy in one.copies:
            self.copy_block(copy)
        self.forward_apart(one.rows)

    def copy_block(self, copy: BlockCopy) -> None:
        """Copy the first places of a block of a slot into another block of the slot."""
        self._runner.copy_places(
            source_block=copy.source_block, target_block=copy.target_block, num_places=copy.num_places
        )

    @property
    def has_states(self) -> bool:
        """Whether layers carry state from token to token, in a row for each slot."""
        return self._facts.layout == "state"

    def copy_states(self, sources: Sequence[int], targets: Sequence[int]) -> None:
        """Write state rows into other rows. Rows behind those of the slots, and one more, are free for searches."""
        self._runner.copy_states(sources, targets)

    def rate(self, stretch: PromptStretch) -> PromptLogprobs:
        """Return the log-probabilities of prompt tokens. All ranks must call this, with stretches in equal order."""
        hidden_TD, targets_T, top_n = stretch.hidden_TD, stretch.targets_T, stretch.top_n
        if self._vocabulary is None:
            project = partial(self._runner.project, adapter=stretch.adapter)
            return prompt_logprobs(project, hidden_TD, targets_T, top_n)
        project = partial(self._runner.project_part, adapter=stretch.adapter)
        return part_prompt_logprobs(project, self._vocabulary, hidden_TD, targets_T, top_n)

    def whole_row(self, output: ForwardOutput, row: int) -> torch.Tensor:
        """Return the logits [V] of one row of a step. All ranks must call this."""
        if self._vocabulary is None:
            return output.logits_NV[row].clone()
        return self._vocabulary.join_rows(output.logits_NV[row : row + 1])[0]

    def prompt_stretches(self, step: ComposedStep, hidden_TD: torch.Tensor | None) -> list[PromptStretch]:
        """Return the prompt positions of this step whose log-probabilities a request asked for (rule 17), in row order.

        `hidden_TD` is None where no row of the step asks for them.
        """
        if hidden_TD is None:
            return []
        stretches = []
        query_start = 0
        for slot, start, length in zip(
            step.slots_R.tolist(), step.starts_R.tolist(), step.counts_R.tolist(), strict=True
        ):
            admit = self.table.admit_of(slot)
            if admit.prompt_logprobs_from is not None:
                # The hidden state at position p gives the token at p + 1, so that the last prompt position gives none.
                first = max(start, admit.prompt_logprobs_from - 1)
                end = min(start + length, len(admit.prompt_ids) - 1)
                if first < end:
                    rows = slice(query_start + first - start, query_start + end - start)
                    targets_T = admit.prompt_ids[first + 1 : end + 1]
                    is_placeholder_T = admit.is_placeholder_P[first + 1 : end + 1] if admit.media else None
                    if is_placeholder_T is not None:
                        targets_T = np.where(is_placeholder_T, 0, targets_T)
                    stretches.append(
                        PromptStretch(
                            slot=slot,
                            request_id=admit.request_id,
                            start=first + 1,
                            targets_T=self._builder.to_device(targets_T),
                            hidden_TD=hidden_TD[rows],
                            top_n=admit.prompt_top_n_tokens,
                            adapter=int(self.table.adapters[slot]),
                            is_placeholder_T=is_placeholder_T,
                        )
                    )
            query_start += length
        return stretches

    def fill(self, slots_N: IdArray, num_tokens_N: IdArray, tokens_N: IdArray) -> None:
        """Take in the tokens that rank 0 sampled. `num_tokens_N` counts the tokens of each slot up to this one."""
        self.table.fill(slots_N, num_tokens_N, tokens_N)

    def take_media_faults(self) -> list[SlotError]:
        """Return the slots admitted since the last call whose images do not fit the prompt. They compute nothing."""
        faults, self.media_faults = self.media_faults, {}
        return [
            SlotError(slot, self.table.admit_of(slot).request_id, SlotErrorCode.MEDIA, message)
            for slot, message in faults.items()
        ]

    @property
    def max_step_tokens(self) -> int:
        """The most tokens of a step now."""
        return self._budget.max_step_tokens

    def _uncut_of(self, admit: Admit) -> tuple[TokenRange, ...]:
        """Return the ranges of the prompt whose tokens see one another, so that a step computes all or none of them."""
        if self._facts.uncut_prompts:
            return (TokenRange(0, len(admit.prompt_ids)),)
        return tuple(TokenRange(span.start, span.end) for span in admit.media) if self._facts.uncut_spans else ()

    def _rope_of(self, admit: Admit) -> RopeRow | None:
        if self._rope is None or not admit.media:
            return None
        try:
            return self._rope(admit)
        except MediaFault as fault:
            self.media_faults[admit.slot] = str(fault)
            return None

    def _wants_hidden(self, step: ComposedStep) -> bool:
        if step.is_decode:
            return False
        prefills = step.slots_R[self.table.is_prefilling[step.slots_R]].tolist()
        return any(self.table.admit_of(slot).prompt_logprobs_from is not None for slot in prefills)
