"""Decides how many KV blocks fit into a fixed number of bytes, or into a share of the memory.

Of a share the weights and the largest step take their part first.
"""

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from textmill_shard.errors import NotEnoughMemory
from textmill_shard.model.forward_batch import ForwardBatch
from textmill_shard.model.kv_pool import UNBOUNDED_TOKENS
from textmill_shard.model.runner import ModelRunner
from textmill_shard.model.scan_trial import compile_scans, scan_everything
from textmill_shard.model.synthetic_batch import SyntheticRow, synthetic_batch
from textmill_shard.model.system_memory import free_memory_bytes, peak_bytes, total_memory_bytes

log = logging.getLogger(__name__)

MAX_TRIAL_TOKENS_ON_CPU = 512
LARGEST_IMAGE_ROWS = 4096  # tokens of an image; the router resizes larger images, or refuses them
TRIAL_IMAGE_ROWS = 256
# A GPU belongs to its rank alone, and a machine's RAM also serves the router, the page cache and other programs.
ADAPTER_SHARE = 0.05
DEFAULT_MEMORY_FRACTIONS = {"cpu": 0.4, "cuda": 0.8}


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
    num_graph_rows: int = 0  # of the largest decode step that becomes a graph, whose memory stays taken; 0 = no graphs


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


def plan_kv_memory(runner: ModelRunner, options: KvMemoryOptions) -> KvMemoryPlan:
    """Run the largest step once and divide the memory that is left into blocks. Every rank calls this function.

    The runner is left with a pool of the scratch block alone. Raises NotEnoughMemory where not even one block fits.
    """
    block_size = runner.facts.block_size
    bytes_per_block = runner.kv_bytes_per_block()
    memory_bytes = total_memory_bytes(runner.device)
    largest_step = _measure_largest_step(runner, options)
    step_bytes = largest_step.num_bytes
    if options.kv_cache_bytes is not None:
        kv_bytes, source = options.kv_cache_bytes, f"--kv-cache-bytes {options.kv_cache_bytes}"
        adapter_bytes, encode_bytes = _adapter_bytes(runner, options, kv_bytes), 0
        # The tower of a GPU runs between two steps, whose limit is fixed, so that its seconds are not needed.
        encode_s = _largest_encode(runner).seconds_per_element if runner.device.type == "cpu" else 0.0
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
        encoding = _largest_encode(runner)
        encode_bytes, encode_s = encoding.num_bytes, encoding.seconds_per_element
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


def _measure_largest_step(runner: ModelRunner, options: KvMemoryOptions) -> _Cost:
    """Return what a step of all tokens with one row of logits per slot takes.

    The step runs over a pool of the scratch block alone.
    """
    runner.allocate_kv(0)
    if runner.device_scans is not None:  # before the step, whose seconds are a measure of those to come
        compile_scans(runner.device_scans, vocab_size=runner.facts.vocab_size, device=runner.device)
    # Logits in the model's dtype, in float32, and the sampler's copy in float32.
    logits_bytes = options.num_slots * runner.facts.vocab_size * (runner.dtype.itemsize + 8)
    if runner.facts.decoder_prompt_ids:
        return _measure_longest_text(runner, options).plus(logits_bytes)
    if runner.device.type == "cuda":
        largest = _cost_of_step(runner, _largest_batch(runner, options.max_step_tokens, options.num_slots))
        # The measured step holds its own logits. With overlap those of the step before live on beside them.
        largest = largest.plus(options.num_slots * runner.facts.vocab_size * torch.float32.itemsize)
        return largest.plus(_graph_bytes(runner, options)) if options.num_graph_rows else largest
    # A CPU takes seconds for a large step, so a smaller step is run and its cost is scaled up. The logits are added.
    num_tokens = min(options.max_step_tokens, MAX_TRIAL_TOKENS_ON_CPU)
    measured = _cost_of_step(runner, _largest_batch(runner, num_tokens, 1))
    num_parts = -(-options.max_step_tokens // num_tokens)
    return measured.times(num_parts, num_parts).plus(logits_bytes)


def _graph_bytes(runner: ModelRunner, options: KvMemoryOptions) -> int:
    """Return the bytes that graphs keep: those of the largest decode step, and of the numbers that a graph reads."""
    rows = [_scratch_row(runner, 1, num_logits=1) for _ in range(options.num_graph_rows)]
    decode = synthetic_batch(rows, block_size=runner.facts.block_size, device=runner.device)
    sizes = runner.graph_sizes([options.num_graph_rows], num_slots=options.num_slots)
    return peak_bytes(runner.device, lambda: runner.forward(decode)) + sizes.num_bytes


def _measure_longest_text(runner: ModelRunner, options: KvMemoryOptions) -> _Cost:
    """Return the cost, without the logits, of a model with an encoder.

    Such a model encodes texts one by one, and then the decoders of all slots run together.
    """
    facts = runner.facts
    longest = min(facts.max_encoder_tokens or options.max_step_tokens, options.max_step_tokens)
    num_tokens = longest if runner.device.type == "cuda" else min(longest, MAX_TRIAL_TOKENS_ON_CPU)
    encoding = _cost_of_step(runner, _longest_text(runner, num_tokens))
    # Scores and relative positions grow with the square of the length.
    num_parts = -(-longest // num_tokens)
    encoding = encoding.times(num_parts**2, num_parts**2)
    # One layer gathers keys and values of every slot, as long as the longest text, and attention copies them once more.
    per_token = max(spec.elements_per_token for spec in facts.kv_specs)
    decoding_bytes = 2 * options.num_slots * longest * per_token * runner.dtype.itemsize
    return _Cost(max(encoding.num_bytes, decoding_bytes), encoding.seconds)


def _cost_of_step(runner: ModelRunner, batch: ForwardBatch) -> _Cost:
    began_s = time.monotonic()
    num_bytes = peak_bytes(runner.device, lambda: _run(runner, batch))
    return _Cost(num_bytes, time.monotonic() - began_s)


@torch.inference_mode()
def _run(runner: ModelRunner, batch: ForwardBatch) -> None:
    """Compute a step, and on a GPU the pass over its scores in which all rows ask for everything."""
    output = runner.forward(batch)
    if runner.device_scans is not None and len(output.logits_NV):
        scan_everything(runner.device_scans, output.logits_NV)


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
