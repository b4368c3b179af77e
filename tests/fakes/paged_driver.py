"""Drives a model runner by hand: prompts in chunks beside each other, shuffled blocks, greedy decode."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch
from textmill_shard.model.forward_batch import ForwardBatch
from textmill_shard.model.runner import ModelRunner


@dataclass(slots=True)
class DrivenSequence:
    """One request: its tokens so far and where they lie."""

    tokens: list[int]
    blocks: list[int]
    num_computed: int = 0
    logits: dict[int, torch.Tensor] = field(default_factory=dict)  # position -> float32 [V]


class PagedDriver:
    """Hands out blocks in a seeded random order and builds batches; the caller says who runs how many tokens."""

    def __init__(self, runner: ModelRunner, *, num_blocks: int, seed: int = 0) -> None:
        self.runner = runner
        self.block_size = runner.facts.block_size
        runner.allocate_kv(num_blocks)
        order = torch.randperm(num_blocks, generator=torch.Generator().manual_seed(seed))
        self._free_blocks: list[int] = order.tolist()

    def start(self, prompt: Sequence[int], *, max_new_tokens: int) -> DrivenSequence:
        num_blocks = -(-(len(prompt) + max_new_tokens) // self.block_size)
        blocks, self._free_blocks = self._free_blocks[:num_blocks], self._free_blocks[num_blocks:]
        assert len(blocks) == num_blocks, "the pool of this test is too small"
        return DrivenSequence(tokens=list(prompt), blocks=blocks)

    def step(self, work: Iterable[tuple[DrivenSequence, int]], *, all_logits: bool = False, padding: int = 0) -> None:
        """Compute the next n tokens of each sequence; keeps the logits of the last of them, or of all."""
        work = list(work)
        output = self.runner.forward(self.build(work, all_logits=all_logits, padding=padding))
        row = 0
        for sequence, length in work:
            stop = sequence.num_computed + length
            for position in range(sequence.num_computed if all_logits else stop - 1, stop):
                sequence.logits[position] = output.logits_NV[row]
                row += 1
            sequence.num_computed = stop

    def build(
        self, work: Sequence[tuple[DrivenSequence, int]], *, all_logits: bool = False, padding: int = 0
    ) -> ForwardBatch:
        ids: list[int] = []
        positions: list[int] = []
        places: list[int] = []
        starts = [0]
        rows: list[int] = []
        assert self.runner.kv_pool is not None
        scratch = self.runner.kv_pool.scratch_block
        for sequence, length in work:
            for position in range(sequence.num_computed, sequence.num_computed + length):
                ids.append(sequence.tokens[position])
                positions.append(position)
                block = sequence.blocks[position // self.block_size]
                places.append(block * self.block_size + position % self.block_size)
            rows.extend(range(starts[-1], len(ids)) if all_logits else [len(ids) - 1])
            starts.append(len(ids))
        ids += [0] * padding
        positions += [0] * padding
        places += [scratch * self.block_size] * padding
        width = max(len(sequence.blocks) for sequence, _ in work)
        tables = [sequence.blocks + [scratch] * (width - len(sequence.blocks)) for sequence, _ in work]
        context_lens = [sequence.num_computed + length for sequence, length in work]
        return ForwardBatch(
            input_ids_T=torch.tensor(ids),
            position_ids_T=torch.tensor(positions),
            kv_places_T=torch.tensor(places),
            query_starts=torch.tensor(starts, dtype=torch.int32),
            context_lens_R=torch.tensor(context_lens, dtype=torch.int32),
            block_tables_RB=torch.tensor(tables, dtype=torch.int32),
            logit_rows_N=torch.tensor(rows),
            max_query_len=max(length for _, length in work),
            max_context_len=max(context_lens),
        )

    def decode_greedily(self, sequences: Sequence[DrivenSequence], num_tokens: int) -> None:
        """Append `num_tokens` argmax tokens to each, all in one batch; the prompts are computed already."""
        for index in range(num_tokens):
            for sequence in sequences:
                sequence.tokens.append(int(sequence.logits[sequence.num_computed - 1].argmax()))
            if index < num_tokens - 1:
                self.step([(sequence, 1) for sequence in sequences])
