"""Measures the time of each part of a native decoder step, and the speed of the parts that multiply matrices."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from textmill_shard.native.kernels import LAYER_PARTS, PARTS_AROUND


@dataclass(frozen=True, slots=True)
class DecoderShape:
    """The sizes of a llama-type decoder on which its work depends."""

    num_layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    mlp: int
    vocabulary: int


@dataclass(frozen=True, slots=True)
class Part:
    """One part of a step, summed over the layers. `gflop` is 0 where nothing is multiplied."""

    name: str
    ms: float
    gflop: float


def num_pairs(groups: tuple[tuple[int, int, int], ...]) -> int:
    """Return the number of pairs of a query and a key that the query sees.

    Each group is (sequences, tokens stored before the step, tokens of the step).
    """
    return sum(count * sum(range(before + 1, before + tokens + 1)) for count, before, tokens in groups)


def gflop_of_parts(shape: DecoderShape, *, num_tokens: int, num_rows: int, pairs: int) -> dict[str, float]:
    """Return the billions of operations of each part that multiplies matrices. A multiply and an add are two.

    Behind its attention the last layer computes only the rows whose logits are wanted.
    """
    width, layers = shape.heads * shape.head_dim, shape.num_layers
    after = (layers - 1) * num_tokens + num_rows
    return {
        "qkv": 2e-9 * layers * num_tokens * shape.hidden * (width + 2 * shape.kv_heads * shape.head_dim),
        "attend": 4e-9 * layers * pairs * width,
        "attention_out": 2e-9 * after * width * shape.hidden,
        "gate_up": 2e-9 * after * shape.hidden * 2 * shape.mlp,
        "down": 2e-9 * after * shape.mlp * shape.hidden,
        "head": 2e-9 * num_rows * shape.hidden * shape.vocabulary,
    }


def measure_parts(
    step: Callable[[torch.Tensor], object], *, tries: int, num_layers: int, gflop: dict[str, float]
) -> list[Part]:
    """Return the parts of the fastest of several steps. `step` writes the nanoseconds of its parts into its tensor."""
    width = num_layers * len(LAYER_PARTS)
    all_ns = torch.zeros(tries, width + len(PARTS_AROUND), dtype=torch.int64)
    for part_ns in all_ns:
        step(part_ns)
    fastest = all_ns[all_ns.sum(dim=1).argmin()]
    layers = fastest[:width].view(num_layers, len(LAYER_PARTS)).sum(dim=0).tolist()
    spent = dict(zip((*LAYER_PARTS, *PARTS_AROUND), (*layers, *fastest[width:].tolist()), strict=True))
    return [Part(name, ns * 1e-6, gflop.get(name, 0.0)) for name, ns in spent.items()]


def profile_lines(parts: list[Part]) -> list[str]:
    """Return the lines of a table, whose last column is the speed of the parts that multiply."""
    total = sum(part.ms for part in parts)
    lines = [f"    {'part':<16} {'ms':>8} {'share':>6} {'GFLOP/s':>8}"]
    for part in parts:
        speed = f"{part.gflop / part.ms * 1e3:>8.0f}" if part.gflop else f"{'':>8}"
        lines.append(f"    {part.name:<16} {part.ms:>8.2f} {part.ms / total:>6.1%} {speed}")
    speed = f"{sum(part.gflop for part in parts) / total * 1e3:>8.0f}"
    return [*lines, f"    {'sum':<16} {total:>8.2f} {'':>6} {speed}"]
