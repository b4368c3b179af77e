"""Runs one architecture of the zoo through the real step loop and through transformers, and compares the logits."""

# T tokens of a text, V vocabulary

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from textmill_shard.loader.load_options import LoadOptions
from textmill_shard.loader.model_loader import load_model
from textmill_shard.model.adapter import AdapterHost
from textmill_shard.model.forward_batch import ForwardBatch, ForwardOutput
from textmill_shard.model.runner import ModelRunner
from textmill_shard.slots.plan import Admit, Budget, ShardFacts
from textmill_shard.slots.sampling_params import SamplingParams
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM

from tests.fakes.shard_facts import facts_of
from tests.fakes.step_harness import Shard, ids
from tests.fakes.tiny_models import make_random_model
from tests.zoo.entry import VOCAB_SIZE, ZooEntry

BLOCK_SIZE = 4
NUM_BLOCKS = 64
NUM_SLOTS = 4
NUM_NEW = 5
# The first two prompts arrive together, the others when these have begun. Only the second prompt fits one chunk.
PROMPT_LENGTHS = (37, 5, 50, 21)
NUM_FIRST = 2
CHUNK_TOKENS = 11
BUDGET = Budget(max_step_tokens=NUM_SLOTS + 20, max_prefill_tokens=20, max_chunk_tokens=CHUNK_TOKENS)
# Tokens of each prompt for the encoder, which reads them in one step. The third prompt fills a step of its own.
ENCODER_LENGTHS = (30, 4, 44, 20)
ENCODER_BUDGET = Budget(max_step_tokens=NUM_SLOTS + 44, max_prefill_tokens=44, max_chunk_tokens=CHUNK_TOKENS)


@dataclass(slots=True)
class RecordingRunner:
    """A runner that passes all calls on and keeps the logits, by the first block of the request and the position."""

    runner: ModelRunner
    before_step: Callable[[int], None] = lambda number: None
    logits: dict[tuple[int, int], torch.Tensor] = field(default_factory=dict)
    num_steps: int = 0
    num_mixed_steps: int = 0  # a chunk beside a decode
    num_two_sided_steps: int = 0  # texts on both sides of the border of rotary tables

    graphs: None = None  # whose logits would be recorded by no `forward`

    @property
    def device(self) -> torch.device:
        return self.runner.device

    def forward(self, batch: ForwardBatch, wants_hidden: bool = False) -> ForwardOutput:
        self.num_steps += 1
        self.before_step(self.num_steps)
        output = self.runner.forward(batch, wants_hidden)
        lengths = batch.query_starts.diff()
        self.num_mixed_steps += int(bool((lengths == 1).any() and (lengths > 1).any()))
        is_long_T = batch.is_long_rope_T
        self.num_two_sided_steps += int(is_long_T is not None and bool(is_long_T.any() and (~is_long_T).any()))
        sequences = torch.searchsorted(batch.query_starts[1:], batch.logit_rows_N.int(), right=True)
        for sequence, row, logits_V in zip(sequences.tolist(), batch.logit_rows_N, output.logits_NV, strict=True):
            first_block = int(batch.block_tables_RB[sequence, 0])
            self.logits[first_block, int(batch.position_ids_T[row])] = logits_V
        return output

    @property
    def adapters(self) -> AdapterHost:
        return self.runner.adapters

    def project(self, hidden_nD: torch.Tensor, adapter: int = 0) -> torch.Tensor:
        return self.runner.project(hidden_nD, adapter)

    def copy_places(self, *, source_block: int, target_block: int, num_places: int) -> None:
        self.runner.copy_places(source_block=source_block, target_block=target_block, num_places=num_places)


@dataclass(frozen=True, slots=True)
class ZooModel:
    """A tiny model on disk, and the model in memory, which transformers runs without code of ours."""

    folder: Path
    reference: Any


@dataclass(frozen=True, slots=True)
class ZooResult:
    """The difference between the engine and transformers, and the kinds of steps that ran."""

    layout: str
    difference: float  # the largest difference of a logit, relative to the largest logit
    num_steps: int
    num_mixed_steps: int
    num_two_sided_steps: int


def make_zoo_model(entry: ZooEntry, folder: Path, *, seed: int = 0) -> ZooModel:
    config = AutoConfig.for_model(entry.type_of_config, **entry.config)
    how = {"attn_implementation": entry.attention, "experts_implementation": "eager"}
    auto_class = AutoModelForSeq2SeqLM if entry.layout == "encoder_decoder" else AutoModelForCausalLM
    model = make_random_model(config, folder, seed=seed, auto_class=auto_class, **how)
    if entry.longest_text is not None:
        reference_logits(model, [0] * entry.longest_text)
    return ZooModel(folder=folder, reference=model)


def load_zoo_model(model: ZooModel, *, native_cache_dir: Path | None, text_only: bool = False) -> ModelRunner:
    options = LoadOptions(
        model_dir=model.folder,
        dtype="float32",
        block_size=BLOCK_SIZE,
        native_cache_dir=native_cache_dir,
        text_only=text_only,
    )
    return load_model(options, lambda phase, share: None)


def run_zoo_model(model: ZooModel, runner: ModelRunner, *, prompt_lengths: Sequence[int] = PROMPT_LENGTHS) -> ZooResult:
    """Run four requests, and compare every sampled row with transformers' uncached forward pass of the row's text."""
    runner.allocate_kv(NUM_BLOCKS)
    recorder = RecordingRunner(runner)
    prompts = prompts_of_zoo(prompt_lengths)
    shuffled = np.random.default_rng(6).permutation(NUM_BLOCKS)
    encoder_lengths = ENCODER_LENGTHS if runner.facts.decoder_prompt_ids else (0,) * len(prompts)
    admits = [
        replace(admit, num_encoder_tokens=length)
        for admit, length in zip(
            _admits(prompts, shuffled, rope_border=runner.facts.rope_border), encoder_lengths, strict=True
        )
    ]
    with Shard(facts=zoo_facts(runner), runner=recorder) as shard:

        def admit_others(step: int) -> None:
            if step == 2:
                shard.send(admits=admits[NUM_FIRST:])

        recorder.before_step = admit_others
        shard.send(admits=admits[:NUM_FIRST], budget=budget_of(runner))
        outputs = shard.run_to_end(*range(len(prompts)))
        assert shard.error is None, shard.error
    difference = 0.0
    for admit, prompt in zip(admits, prompts, strict=True):
        num_read = admit.num_encoder_tokens
        expected_TV = reference_logits(model.reference, [*prompt, *outputs[admit.slot][:-1]], num_read=num_read)
        for position in range(len(prompt) - 1, len(prompt) + NUM_NEW - 1):
            found_V = recorder.logits[int(admit.block_ids[0]), position]
            assert int(found_V.argmax()) == outputs[admit.slot][position - len(prompt) + 1]
            error = (found_V - expected_TV[position - num_read]).abs().max() / expected_TV.abs().max()
            difference = max(difference, float(error)) if torch.isfinite(error) else float("inf")
    return ZooResult(
        layout=runner.facts.layout,
        difference=difference,
        num_steps=recorder.num_steps,
        num_mixed_steps=recorder.num_mixed_steps,
        num_two_sided_steps=recorder.num_two_sided_steps,
    )


def prompts_of_zoo(lengths: Sequence[int] = PROMPT_LENGTHS) -> list[list[int]]:
    """Return the prompts, which are equal for every row of the zoo."""
    random = np.random.default_rng(5)
    return [random.integers(0, VOCAB_SIZE, length).tolist() for length in lengths]


def budget_of(runner: ModelRunner) -> Budget:
    return ENCODER_BUDGET if runner.facts.decoder_prompt_ids else BUDGET


def reference_logits(reference: Any, tokens: Sequence[int], *, num_read: int = 0) -> torch.Tensor:
    """Return the logits `[T, V]` of a text by one forward pass without a cache.

    With an encoder, T counts the tokens behind the `num_read` tokens that the encoder reads.
    """
    text = torch.tensor([tokens])
    inputs = (
        {"input_ids": text[:, :num_read], "decoder_input_ids": text[:, num_read:]} if num_read else {"input_ids": text}
    )
    with torch.inference_mode():
        logits: torch.Tensor = reference(**inputs, use_cache=False).logits[0]
    return logits.float()


def make_admit(
    slot: int, prompt: Sequence[int], block_ids: Any, *, output: Sequence[int] = (), rope_border: int | None = None
) -> Admit:
    """Return a request for NUM_NEW greedy tokens."""
    return Admit(
        request_id=100 + slot,
        slot=slot,
        prompt_ids=ids(prompt),
        output_ids=ids(output),
        num_cached_tokens=0,
        block_ids=ids(block_ids),
        max_new_tokens=NUM_NEW,
        sampling=SamplingParams(),
        ignore_eos=True,
        is_long_rope=0 < (rope_border or 0) < len(prompt) + NUM_NEW,
    )


def _admits(prompts: Sequence[Sequence[int]], free_blocks: Any, *, rope_border: int | None) -> list[Admit]:
    admits = []
    taken = 0
    for slot, prompt in enumerate(prompts):
        num_blocks = -(-(len(prompt) + NUM_NEW) // BLOCK_SIZE)
        blocks = free_blocks[taken : taken + num_blocks]
        admits.append(make_admit(slot, prompt, blocks, rope_border=rope_border))
        taken += num_blocks
    return admits


def zoo_facts(runner: ModelRunner) -> ShardFacts:
    return facts_of(
        runner,
        block_size=BLOCK_SIZE,
        num_blocks=NUM_BLOCKS,
        num_slots=NUM_SLOTS,
        max_step_tokens=budget_of(runner).max_step_tokens,
        eos_token_ids=(),
    )
