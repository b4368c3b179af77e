"""Decides how many KV blocks fit into a fixed number of bytes, or into a share of the memory.

Of a share the weights and the largest step take their part first.
"""

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TypeAlias

import torch

from textmill_shard.errors import NotEnoughMemory, is_of_memory
from textmill_shard.model.forward_batch import ForwardBatch, ForwardOutput
from textmill_shard.model.graph_trial import GraphTrial, graph_bytes
from textmill_shard.model.kv_pool import UNBOUNDED_TOKENS
from textmill_shard.model.runner import ModelRunner
from textmill_shard.model.scan_trial import compile_scans
from textmill_shard.model.step_trial import compile_steps
from textmill_shard.model.synthetic_batch import SyntheticRow, synthetic_batch
from textmill_shard.model.system_memory import free_device_memory, free_memory_bytes, peak_bytes, total_memory_bytes

log = logging.getLogger(__name__)

MAX_TRIAL_TOKENS_ON_CPU = 512
LARGEST_IMAGE_ROWS = 4096  # tokens of an image; the router resizes larger images, or refuses them
TRIAL_IMAGE_ROWS = 256
# A GPU belongs to its rank alone, and a machine's RAM also serves the router, the page cache and other programs.
ADAPTER_SHARE = 0.05
DEFAULT_MEMORY_FRACTIONS = {"cpu": 0.4, "cuda": 0.8}

# Takes the memory of a sampler's state, and returns what samples the rows of a step whose requests ask for everything.
# The output has hidden states too, where they can become logits. Where ranks share a vocabulary, the output has this
# rank's part of the logits.
DrawTrials: TypeAlias = Callable[[], Callable[[ForwardOutput], None]]


@dataclass(frozen=True, slots=True)
class KvMemoryOptions:
    """The limits that the operator has set."""

    max_step_tokens: int  # tokens of the largest step
    num_slots: int  # requests that sample in the largest step
    kv_cache_bytes: int | None = None  # bytes for the cache of this rank; None = by memory_fraction
    memory_fraction: float | None = (
        None  # share of the whole RAM or device memory, for weights, steps and cache together
    )
    max_kv_tokens: int | None = None  # the most places of the cache; None = no such limit
    adapter_bytes: int | None = 0  # set aside on this rank; None = ADAPTER_SHARE of the bytes for the cache
    media_bytes: int = 0  # set aside for images, beside the cache that `memory_fraction` gives
    num_sharing: int = 1  # ranks that share the memory of a CPU
    graphs: GraphTrial | None = None  # decode steps that become graphs, whose memory stays taken; None = no graphs


@dataclass(frozen=True, slots=True)
class KvMemoryPlan:
    """The parts of this rank's memory, in bytes. The number of blocks is equal on every rank."""

    num_blocks: int
    weight_bytes: int
    step_bytes: int  # the most that the largest step took beside the weights
    step_s: float  # seconds of the largest step
    kv_bytes: int
    adapter_bytes: int  # set aside for adapters, equal on every rank
    encode_s_per_element: float  # of the tower, for each element of an image's tensors; 0 where none was measured
    memory_bytes: int  # memory of the machine or device


def plan_kv_memory(runner: ModelRunner, options: KvMemoryOptions, draws: DrawTrials | None = None) -> KvMemoryPlan:
    """Run the largest step and divide the memory that is left into blocks. Every rank calls this function.

    `draws` samples the rows of the step; None where the memory of draws is small beside that of the step. The runner is
    left with a pool of the scratch block alone. Raises NotEnoughMemory where not even one block fits. Where memory runs
    out within the step, several ranks raise NotEnoughMemory too, all of them, and a rank alone raises the error of the
    step.
    """
    block_size = runner.facts.block_size
    bytes_per_block = runner.kv_bytes_per_block()
    memory_bytes = total_memory_bytes(runner.device)
    measured = _measured_together(runner, options, draws)
    largest_step, encoding = measured.step, measured.tower
    step_bytes, encode_s = largest_step.num_bytes, encoding.seconds_per_element
    if options.kv_cache_bytes is not None:
        kv_bytes, source = options.kv_cache_bytes, f"--kv-cache-bytes {options.kv_cache_bytes}"
        adapter_bytes, encode_bytes = _adapter_bytes(runner, options, kv_bytes), 0
    else:
        # The ranks on one CPU share its memory, and each rank on GPUs has a GPU of its own.
        num_sharing = options.num_sharing if runner.device.type == "cpu" else 1
        fraction = options.memory_fraction or DEFAULT_MEMORY_FRACTIONS[runner.device.type]
        allowed = (
            int(memory_bytes * fraction) // num_sharing
            - runner.facts.weight_bytes
            - runner.facts.state_bytes
            - step_bytes
        )
        encode_bytes = encoding.num_bytes
        kv_bytes = min(allowed, free_memory_bytes(runner.device) // num_sharing - step_bytes)
        kv_bytes -= options.media_bytes + encode_bytes
        adapter_bytes = _adapter_bytes(runner, options, kv_bytes)
        kv_bytes -= adapter_bytes
        source = f"--memory-fraction {fraction} of {memory_bytes} bytes"
    if bytes_per_block:
        num_blocks = (kv_bytes // bytes_per_block) - 1  # one block is scratch
    else:  # no layer keeps keys and values, so blocks only count tokens
        num_blocks = options.num_slots * -(-(runner.facts.max_model_tokens or UNBOUNDED_TOKENS) // block_size)
    if options.max_kv_tokens is not None:
        num_blocks = min(num_blocks, -(-options.max_kv_tokens // block_size))
    num_blocks = runner.parallel.min_int(num_blocks, runner.device)
    if num_blocks < 1:
        raise NotEnoughMemory(
            f"{source} leaves {max(kv_bytes, 0)} bytes for the KV cache, two blocks take {2 * bytes_per_block} "
            f"(weights {runner.facts.weight_bytes}, a step of {options.max_step_tokens} tokens {step_bytes}, "
            f"adapters {adapter_bytes}, images {options.media_bytes}, the tower at work {encode_bytes})"
        )
    plan = KvMemoryPlan(
        num_blocks=num_blocks,
        weight_bytes=runner.facts.weight_bytes,
        step_bytes=step_bytes,
        step_s=largest_step.seconds,
        kv_bytes=(num_blocks + 1) * bytes_per_block,
        adapter_bytes=adapter_bytes,
        encode_s_per_element=encode_s,
        memory_bytes=memory_bytes,
    )
    log.info(
        "memory planned",
        extra={
            "num_blocks": plan.num_blocks,
            "num_kv_tokens": plan.num_blocks * block_size,
            "weight_bytes": plan.weight_bytes,
            "step_bytes": plan.step_bytes,
            "step_s": round(plan.step_s, 3),
            "kv_bytes": plan.kv_bytes,
            "adapter_bytes": plan.adapter_bytes,
            "media_bytes": options.media_bytes,
            "encode_bytes": encode_bytes,
        },
    )
    return plan


@dataclass(frozen=True, slots=True)
class _EncodeCost:
    """The bytes of the tower at the largest image, and its seconds for each element of an image's tensors."""

    num_bytes: int = 0
    seconds_per_element: float = 0.0


def _largest_encode(runner: ModelRunner) -> _EncodeCost:
    """Return what the tower takes, beside its weights, for the largest image. Both are 0 on a rank without a tower.

    A CPU takes seconds for a large image, so a smaller image is encoded and the cost is scaled up.
    """
    if not runner.encodes_media:
        return _EncodeCost()
    largest = runner.sample_media(LARGEST_IMAGE_ROWS)
    trial = largest if runner.device.type == "cuda" else runner.sample_media(TRIAL_IMAGE_ROWS)
    began_s = time.monotonic()
    num_bytes = peak_bytes(runner.device, lambda: runner.encode_media(trial))
    seconds = (time.monotonic() - began_s) / _num_elements(trial)
    return _EncodeCost(-(-num_bytes * _num_elements(largest) // _num_elements(trial)), seconds)


def _num_elements(tensors: Mapping[str, torch.Tensor]) -> int:
    return sum(tensor.numel() for tensor in tensors.values())


def _adapter_bytes(runner: ModelRunner, options: KvMemoryOptions, kv_bytes: int) -> int:
    """Return the bytes for adapters, of which every rank sets aside as many."""
    wanted = int(max(kv_bytes, 0) * ADAPTER_SHARE) if options.adapter_bytes is None else options.adapter_bytes
    return runner.parallel.min_int(wanted, runner.device)


@dataclass(frozen=True, slots=True)
class _Cost:
    """The peak bytes and the seconds of a step."""

    num_bytes: int
    seconds: float

    def times(self, bytes_factor: int, seconds_factor: int) -> "_Cost":
        return _Cost(self.num_bytes * bytes_factor, self.seconds * seconds_factor)

    def plus(self, num_bytes: int) -> "_Cost":
        return _Cost(self.num_bytes + num_bytes, self.seconds)


@dataclass(frozen=True, slots=True)
class _Measured:
    """What the largest step and the largest image take."""

    step: _Cost
    tower: _EncodeCost


def _measured_together(runner: ModelRunner, options: KvMemoryOptions, draws: DrawTrials | None) -> _Measured:
    """Measure on all ranks, so that memory that runs out on one rank leaves no other rank waiting.

    Each rank measures with its exchanges at rest, and then all ranks tell one another whether their memory sufficed.
    Only then the step runs with exchanges, in memory that each rank is known to have. Ranks on the CPUs of one machine
    exchange in their kernels, which cannot rest, and where memory runs out the system ends the process anyway.
    """
    parallel = runner.parallel
    if parallel.world_size == 1 or parallel.room is not None:
        return _measure(runner, options, draws)
    found, reason = None, "memory ran out on another rank"
    try:
        with parallel.at_rest():
            found = _measure(runner, options, draws)
    except Exception as error:
        if not is_of_memory(error):
            raise
        reason = f"{type(error).__name__}: {error}"
    if found is None:
        free_device_memory(runner.device)  # before the exchange, which needs memory too
    if not parallel.min_int(int(found is not None), runner.device):
        raise NotEnoughMemory(f"a step of {options.max_step_tokens} tokens has no room: {reason}")
    assert found is not None
    cost = _cost_of_step(runner, _trial_step(runner, options), draws)
    return replace(found, step=replace(found.step, seconds=max(found.step.seconds, cost.seconds)))


def _measure(runner: ModelRunner, options: KvMemoryOptions, draws: DrawTrials | None) -> _Measured:
    """Return what a step of all tokens with one row of logits per slot takes, and what the largest image takes.

    The step runs over a pool of the scratch block alone.
    """
    runner.allocate_kv(0)
    if runner.device_scans is not None:  # before the step, whose seconds are a measure of those to come
        compile_scans(runner.device_scans, vocab_size=_num_local_ids(runner), device=runner.device)
        if not runner.facts.decoder_prompt_ids:
            compile_steps(runner, max_step_tokens=options.max_step_tokens, num_slots=options.num_slots)
    step = _cost_of_largest(runner, options, draws)
    # The tower of a GPU runs between two steps, whose limit is fixed, so that its seconds are not needed.
    needs_tower = options.kv_cache_bytes is None or runner.device.type == "cpu"
    return _Measured(step, _largest_encode(runner) if needs_tower else _EncodeCost())


def _cost_of_largest(runner: ModelRunner, options: KvMemoryOptions, draws: DrawTrials | None) -> _Cost:
    facts = runner.facts
    measured = _cost_of_step(runner, _trial_step(runner, options), draws)
    # Logits in the model's dtype, in float32, and the sampler's copy in float32.
    logits_bytes = options.num_slots * facts.vocab_size * (runner.dtype.itemsize + 8)
    if facts.decoder_prompt_ids:
        return _with_decoders(runner, options, measured).plus(logits_bytes)
    if runner.device.type == "cuda":
        # The measured step holds its own logits. With overlap those of the step before live on beside them, and so do
        # the scores that requests have made of these.
        kept_bytes = 2 * options.num_slots * _num_local_ids(runner) * torch.float32.itemsize
        return measured.plus(kept_bytes + _graph_bytes(runner, options))
    num_parts = -(-options.max_step_tokens // min(options.max_step_tokens, MAX_TRIAL_TOKENS_ON_CPU))
    return measured.times(num_parts, num_parts).plus(logits_bytes)


def _num_local_ids(runner: ModelRunner) -> int:
    """Return the number of token ids whose logits this rank computes."""
    return runner.facts.vocab_size if runner.vocabulary is None else runner.vocabulary.num_ids


def _trial_step(runner: ModelRunner, options: KvMemoryOptions) -> ForwardBatch:
    """Return the step that is measured: the largest on a GPU. A CPU, which takes seconds for that, has a smaller one.

    The cost of a smaller step is scaled up, and its logits are added.
    """
    is_cuda, most = runner.device.type == "cuda", options.max_step_tokens
    if runner.facts.decoder_prompt_ids:
        return _longest_text(runner, _num_trial_tokens(runner, _longest_encoder_text(runner, options)))
    return _largest_batch(runner, _num_trial_tokens(runner, most), options.num_slots if is_cuda else 1)


def _num_trial_tokens(runner: ModelRunner, num_tokens: int) -> int:
    return num_tokens if runner.device.type == "cuda" else min(num_tokens, MAX_TRIAL_TOKENS_ON_CPU)


def _longest_encoder_text(runner: ModelRunner, options: KvMemoryOptions) -> int:
    """Return the tokens of the longest text of an encoder, which one step computes."""
    return min(runner.facts.max_encoder_tokens or options.max_step_tokens, options.max_step_tokens)


def _graph_bytes(runner: ModelRunner, options: KvMemoryOptions) -> int:
    """Return the bytes that graphs keep: those of the largest decode step and its numbers, or more where more is taken.

    What the driver and libraries take of their own shows only when graphs are recorded.
    """
    trial = options.graphs
    if trial is None:
        return 0
    rows = [_scratch_row(runner, 1, num_logits=1) for _ in range(trial.num_rows)]
    decode = synthetic_batch(rows, block_size=runner.facts.block_size, device=runner.device)
    sizes = runner.graph_sizes([trial.num_rows], num_slots=options.num_slots)
    computed = peak_bytes(runner.device, lambda: runner.forward(decode)) + sizes.num_bytes
    return max(computed, graph_bytes(runner, trial, num_slots=options.num_slots))


def _with_decoders(runner: ModelRunner, options: KvMemoryOptions, encoding: _Cost) -> _Cost:
    """Return the cost, without the logits, of a model with an encoder, from that of the measured text.

    Such a model encodes texts one by one, and then the decoders of all slots run together.
    """
    longest = _longest_encoder_text(runner, options)
    # Scores and relative positions grow with the square of the length.
    num_parts = -(-longest // _num_trial_tokens(runner, longest))
    encoding = encoding.times(num_parts**2, num_parts**2)
    # One layer gathers keys and values of every slot, as long as the longest text, and attention copies them once more.
    per_token = max(spec.elements_per_token for spec in runner.facts.kv_specs)
    decoding_bytes = 2 * options.num_slots * longest * per_token * runner.dtype.itemsize
    return _Cost(max(encoding.num_bytes, decoding_bytes), encoding.seconds)


def _cost_of_step(runner: ModelRunner, batch: ForwardBatch, draws: DrawTrials | None) -> _Cost:
    began_s = time.monotonic()
    num_bytes = peak_bytes(runner.device, lambda: _run(runner, batch, draws))
    return _Cost(num_bytes, time.monotonic() - began_s)


@torch.inference_mode()
def _run(runner: ModelRunner, batch: ForwardBatch, draws: DrawTrials | None) -> None:
    """Compute a step, and sample its rows."""
    if draws is None:
        runner.forward(batch)
        return
    sample = draws()
    parts = replace(batch, keeps_parts=runner.vocabulary is not None)
    sample(runner.forward(parts, wants_hidden=runner.facts.can_project))


def _largest_batch(runner: ModelRunner, num_tokens: int, num_logit_rows: int) -> ForwardBatch:
    """Return a batch with the sizes of the largest step, in chunks as long as the model allows.

    All tokens lie in the scratch block, so that the computed numbers mean nothing.
    """
    chunk = min(num_tokens, runner.facts.max_model_tokens or num_tokens)
    lens = [min(chunk, num_tokens - start) for start in range(0, num_tokens, chunk)]
    rows: list[SyntheticRow] = []
    num_wanted = num_logit_rows
    for length in reversed(lens):
        rows.insert(0, _scratch_row(runner, length, num_logits=min(num_wanted, length)))
        num_wanted -= rows[0].num_logits
    return synthetic_batch(rows, block_size=runner.facts.block_size, device=runner.device)


def _longest_text(runner: ModelRunner, num_tokens: int) -> ForwardBatch:
    """Return a batch of `num_tokens` tokens for the encoder and one for the decoder, in the scratch block."""
    row = _scratch_row(runner, num_tokens + 1, num_logits=1, num_encoder=num_tokens)
    return synthetic_batch([row], block_size=runner.facts.block_size, device=runner.device)


def _scratch_row(
    runner: ModelRunner, num_tokens: int, *, num_logits: int, num_encoder: int | None = None
) -> SyntheticRow:
    """Return a text whose blocks are all the scratch block, the one block of an empty pool."""
    return SyntheticRow(
        ids_n=torch.zeros(num_tokens, dtype=torch.int64),
        blocks=[0] * -(-num_tokens // runner.facts.block_size),
        num_logits=num_logits,
        num_encoder=num_encoder,
    )
