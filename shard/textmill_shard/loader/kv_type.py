"""Lets a loaded model keep its keys and values in 8 bits, with scales of the checkpoint or of a trial text."""

import logging
from collections.abc import Mapping
from types import MappingProxyType

import torch

from textmill_shard.errors import BackendRefused
from textmill_shard.model.kv_scales import KV_TYPES, KvScales, is_cut, measure_scales
from textmill_shard.model.runner import ModelRunner
from textmill_shard.model.synthetic_batch import SyntheticRow, synthetic_batch

log = logging.getLogger(__name__)

TRIAL_TOKENS = 256
NO_SCALES: Mapping[int, KvScales] = MappingProxyType({})
LAYOUTS_WITH_POOLS = ("flat", "state")  # the others read and write the pool by the model's own attention code


def check_kv_type(kv_type: str, runner: ModelRunner) -> None:
    """Raises BackendRefused with a sentence for a model whose keys and values cannot have another type."""
    if kv_type not in KV_TYPES:
        return
    facts = runner.facts
    if facts.layout not in LAYOUTS_WITH_POOLS:
        raise BackendRefused(
            f"--kv-cache-dtype {kv_type}: models of type {facts.model_type} attend in their own code, which reads keys "
            "and values in the type of the weights: leave the flag out"
        )
    if not facts.kv_specs:
        raise BackendRefused(
            f"--kv-cache-dtype {kv_type}: models of type {facts.model_type} keep no keys and values: leave the flag out"
        )


@torch.inference_mode()
def use_kv_type(
    kv_type: str, runner: ModelRunner, *, stored: Mapping[int, KvScales] = NO_SCALES, trial_tokens: int = TRIAL_TOKENS
) -> None:
    """Let the runner keep keys and values in a type from now on; "auto" changes nothing. Every rank calls this.

    Layers that have no scales in `stored`, by the number of the layer, get those of a text of `trial_tokens`, or of as
    many as the model allows. Raises BackendRefused.
    """
    check_kv_type(kv_type, runner)
    if kv_type not in KV_TYPES:
        return
    num_tokens = min(trial_tokens, runner.facts.max_model_tokens or trial_tokens)
    before_V = _run_trial(runner, num_tokens)
    pool = runner.kv_pool
    assert pool is not None
    keys = [tensor.flatten(0, 1)[:num_tokens] for tensor in pool.keys]
    values = [tensor.flatten(0, 1)[:num_tokens] for tensor in pool.values]
    measured = measure_scales(keys, values, KV_TYPES[kv_type])
    scales = tuple(stored.get(index, of_layer) for index, of_layer in enumerate(measured))
    num_cut = sum(is_cut(keys[index], values[index], scales[index], KV_TYPES[kv_type]) for index in stored)
    if num_cut:
        log.warning(
            "scales of the checkpoint are too small for keys or values of a trial text, which are cut to the largest "
            "number of the type",
            extra={"layers": num_cut},
        )
    runner.use_kv_type(KV_TYPES[kv_type], scales)
    after_V = _run_trial(runner, num_tokens)
    difference = float((after_V - before_V).abs().max() / before_V.abs().max().clamp(min=1e-6))
    log.info(
        "keys and values are kept in 8 bits",
        extra={
            "kv_cache_dtype": kv_type,
            "layers": len(scales),
            "layers_scaled_by_checkpoint": len(stored),
            "logits_differ_by": round(difference, 4),
            "trial_tokens": num_tokens,
        },
    )


def _run_trial(runner: ModelRunner, num_tokens: int) -> torch.Tensor:
    """Return the logits `[V]` behind a text of ids from the whole vocabulary, whose places are the first of a pool."""
    facts = runner.facts
    num_blocks = -(-num_tokens // facts.block_size)
    runner.allocate_kv(num_blocks)
    ids_n = torch.linspace(0, facts.vocab_size - 1, num_tokens).long()
    row = SyntheticRow(
        ids_n=ids_n[torch.randperm(num_tokens, generator=torch.Generator().manual_seed(0))],
        blocks=range(num_blocks),
        slot=0,
        is_long_rope=None if facts.rope_border is None else num_tokens > facts.rope_border,
    )
    batch = synthetic_batch([row], block_size=facts.block_size, scratch_block=num_blocks, device=runner.device)
    return runner.forward(batch).logits_NV[0].clone()
