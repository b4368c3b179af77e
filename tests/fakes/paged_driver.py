"""Drives a model runner by hand: chunks of several prompts in one batch, shuffled blocks, greedy decode."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch
from textmill_shard.model.forward_batch import ForwardBatch
from textmill_shard.model.runner import ModelRunner
from textmill_shard.model.synthetic_batch import SyntheticRow, synthetic_batch


@dataclass(slots=True)
class DrivenSequence:
    """One request: its tokens so far, and the blocks of their K and V."""

    tokens: list[int]
    blocks: list[int]
    num_computed: int = 0
    logits: dict[int, torch.Tensor] = field(default_factory=dict)  # position -> float32 [V]


class PagedDriver:
    """The driver of one runner.

    It hands out blocks in a seeded random order and builds batches. The caller says how many tokens each sequence runs.
    """

    def __init__(self, runner: ModelRunner, *, num_blocks: int, seed: int = 0) -> None:
        self.runner = runner
        self.block_size = runner.facts.block_size
        runner.allocate_kv(num_blocks)
        self._scratch_block = num_blocks
        order = torch.randperm(num_blocks, generator=torch.Generator().manual_seed(seed))
        self._free_blocks: list[int] = order.tolist()

    def start(self, prompt: Sequence[int], *, max_new_tokens: int) -> DrivenSequence:
        num_blocks = -(-(len(prompt) + max_new_tokens) // self.block_size)
        blocks, self._free_blocks = self._free_blocks[:num_blocks], self._free_blocks[num_blocks:]
        assert len(blocks) == num_blocks, "the pool of this test is too small"
        return DrivenSequence(tokens=list(prompt), blocks=blocks)

    def step(self, work: Iterable[tuple[DrivenSequence, int]], *, all_logits: bool = False, padding: int = 0) -> None:
        """Compute the next n tokens of each sequence, and keep the logits of the last of these tokens, or of all."""
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
        rows = [
            SyntheticRow(
                ids_n=torch.tensor(sequence.tokens[sequence.num_computed : sequence.num_computed + length]),
                blocks=sequence.blocks,
                start=sequence.num_computed,
                num_logits=length if all_logits else 1,
            )
            for sequence, length in work
        ]
        return synthetic_batch(rows, block_size=self.block_size, scratch_block=self._scratch_block, num_padding=padding)

    def decode_greedily(self, sequences: Sequence[DrivenSequence], num_tokens: int) -> None:
        """Append `num_tokens` argmax tokens to each sequence, all in one batch. The prompts are computed already."""
        for index in range(num_tokens):
            for sequence in sequences:
                sequence.tokens.append(int(sequence.logits[sequence.num_computed - 1].argmax()))
            if index < num_tokens - 1:
                self.step([(sequence, 1) for sequence in sequences])
