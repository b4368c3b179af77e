"""Estimates what one rank takes of memory: weights, keys and values, states, and the largest step.

The shard measures the same when it loads the model (`model/memory.py` of the shard), and the launcher compares the two.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from textmill_launcher.plan.model_shape import ModelShape
from textmill_launcher.plan.tensor_headers import TensorHeader
from textmill_launcher.plan.tower import DEFAULT_MEDIA_CACHE_BYTES, split_tower

ELEMENT_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
NATIVE_DTYPES = ("float32", "bfloat16")  # of the kernels for CPUs
MAX_TRIAL_TOKENS = 512  # the shard measures a step of so many tokens and scales
REPLICATED_EMBEDDING_SHARE = 0.05  # a smaller share of the weights stays whole on each rank

# The types whose whole step is one native call on a CPU.
NATIVE_TYPES = frozenset(
    {
        *("llama", "mistral", "qwen2", "qwen3", "smollm3"),
        *("qwen2_vl", "qwen2_vl_text", "qwen2_5_vl", "qwen2_5_vl_text", "qwen3_vl_text"),
    }
)
# How many numbers a step keeps per token at its peak, in multiples of 2 hidden + 2 mlp: measured with the shard on a
# CPU, at several sizes. A native step needs its inputs and outputs alone, and always as many. Code in Python keeps what
# it computes, and the memory that the allocator has not given back yet varies by a third from start to start.
NATIVE_PEAKS = {"float32": 1.0, "bfloat16": 1.32}
USUAL_PEAKS = {"float32": 2.7, "bfloat16": 3.2, "float16": 3.2}
PEAKS = {
    "gemma2": {"float32": 3.0, "bfloat16": 3.0},
    "gemma3_text": {"float32": 3.6, "bfloat16": 3.7},
    "gpt2": {"float32": 4.1, "bfloat16": 3.2},
    "gpt_neox": {"float32": 1.7, "bfloat16": 2.8},
    "phi3": {"float32": 2.6, "bfloat16": 3.2},
    "opt": {"float32": 1.95, "bfloat16": 2.5},
    "starcoder2": {"float32": 2.4, "bfloat16": 1.7},
    "cohere": {"float32": 3.2, "bfloat16": 4.6},
    "olmo2": {"float32": 3.0, "bfloat16": 2.4},
    "granite": {"float32": 2.85, "bfloat16": 3.8},
    "mixtral": {"float32": 2.3, "bfloat16": 3.1},
    "qwen3_moe": {"float32": 2.95, "bfloat16": 5.9},
}


@dataclass(frozen=True, slots=True)
class RankNeeds:
    """The memory of one rank, in bytes."""

    weight_bytes: int
    kv_bytes_per_token: int
    state_bytes: int  # for all slots
    step_bytes: int
    tower_bytes: int = 0  # of the weights: those that encode images, which the first rank alone has, whole
    media_bytes: int = 0  # set aside on the first rank for images
    is_step_rough: bool = (
        False  # whether code in Python runs the model, whose peak varies by a third from start to start
    )


def estimate(
    shape: ModelShape,
    tensors: Sequence[TensorHeader],
    *,
    dtype: str,
    device: str,
    num_shard: int,
    num_slots: int,
    max_step_tokens: int,
    media_cache_bytes: int | None = None,
    text_only: bool = False,
    kv_element_bytes: int | None = None,
) -> RankNeeds:
    """Return what the first of `num_shard` ranks takes.

    A number of keys and values takes `kv_element_bytes`, or as many bytes as one of the weights.
    """
    tower: list[TensorHeader] = []
    if shape.takes_images:
        tensors, tower = split_tower(tensors)
    element_bytes = ELEMENT_BYTES[dtype]
    is_native = device == "cpu" and dtype in NATIVE_DTYPES
    runs_natively = is_native and kv_element_bytes is None and num_shard == 1 and shape.model_type in NATIVE_TYPES
    measured = PEAKS.get(shape.model_type, {}).get(dtype) if device == "cpu" else None
    peak = NATIVE_PEAKS[dtype] if runs_natively else measured or USUAL_PEAKS[dtype]
    trial = min(max_step_tokens, MAX_TRIAL_TOKENS) if device == "cpu" else max_step_tokens
    num_tokens = trial * -(-max_step_tokens // trial)
    step_elements = peak * 2 * (shape.hidden + shape.mlp // num_shard)
    # Of each slot: logits in the model's type, in float32, and the sampler's copy in float32.
    logits_bytes = num_slots * shape.vocab * (element_bytes + 8)
    takes_images = shape.takes_images and not text_only
    tower_bytes = sum(tensor.loaded_bytes(element_bytes) for tensor in tower) if takes_images else 0
    return RankNeeds(
        weight_bytes=tower_bytes
        + _weight_bytes(
            shape,
            tensors,
            element_bytes=element_bytes,
            num_shard=num_shard,
            packs_head=is_native and not runs_natively,
        ),
        kv_bytes_per_token=shape.kv_elements_of_rank(num_shard) * (kv_element_bytes or element_bytes),
        state_bytes=(shape.state_elements_per_slot or 0) * (num_slots + 1) * element_bytes,
        step_bytes=int(num_tokens * step_elements * element_bytes) + logits_bytes,
        tower_bytes=tower_bytes,
        media_bytes=(media_cache_bytes or DEFAULT_MEDIA_CACHE_BYTES[device]) if takes_images else 0,
        is_step_rough=not runs_natively,
    )


def _weight_bytes(
    shape: ModelShape, tensors: Sequence[TensorHeader], *, element_bytes: int, num_shard: int, packs_head: bool
) -> int:
    """Return the bytes of one rank's weights. `packs_head`: a head that is tied is packed beside the embedding."""
    sizes = {tensor.name: tensor.loaded_bytes(element_bytes) for tensor in tensors}
    heads = {tensor.name for tensor in tensors if _is_vocabulary(tensor, shape)}
    has_own_head = any("head" in name or name.startswith("embed_out") for name in heads)
    if shape.is_tied and has_own_head and len(heads) > 1:  # stored twice, loaded once
        for name in heads:
            if "head" in name or name.startswith("embed_out"):
                sizes.pop(name)
        has_own_head = False
    total = sum(sizes.values())
    vocabulary = sum(sizes.get(name, 0) for name in heads)
    if not has_own_head and packs_head and not shape.has_encoder:
        total += vocabulary
    if num_shard == 1:
        return total
    divided = sum(
        size
        for tensor, size in ((tensor, sizes.get(tensor.name, 0)) for tensor in tensors)
        if len(tensor.shape) > 1 and tensor.name not in heads
    )
    if vocabulary > REPLICATED_EMBEDDING_SHARE * total or has_own_head:
        divided += vocabulary
    return total - divided + divided // num_shard


def _is_vocabulary(tensor: TensorHeader, shape: ModelShape) -> bool:
    return len(tensor.shape) == 2 and tensor.shape[0] == shape.vocab and "layers." not in tensor.name
