"""The profile of a native step: the operations of each part, and the try that counts."""

import torch
from textmill_shard.native.kernels import LAYER_PARTS, PARTS_AROUND

from bench.kernel_profile import DecoderShape, Part, gflop_of_parts, measure_parts, num_pairs, profile_lines

SHAPE = DecoderShape(num_layers=2, hidden=10, heads=2, kv_heads=1, head_dim=4, mlp=6, vocabulary=50)


def test_pairs_are_those_of_a_causal_mask() -> None:
    assert num_pairs(((1, 0, 3),)) == 1 + 2 + 3
    assert num_pairs(((2, 5, 1), (1, 1, 2))) == 2 * 6 + 2 + 3


def test_last_layer_counts_wanted_rows_alone_after_the_attention() -> None:
    gflop = gflop_of_parts(SHAPE, num_tokens=5, num_rows=1, pairs=15)
    flop = {name: round(value * 1e9) for name, value in gflop.items()}
    assert flop == {
        "qkv": 2 * 2 * 5 * 10 * (8 + 2 * 4),
        "attend": 2 * (2 + 2) * 15 * 8,
        "attention_out": 2 * (5 + 1) * 8 * 10,
        "gate_up": 2 * (5 + 1) * 10 * 12,
        "down": 2 * (5 + 1) * 6 * 10,
        "head": 2 * 1 * 10 * 50,
    }


def test_parts_of_the_fastest_try_are_summed_over_the_layers() -> None:
    slow_and_fast = iter((3_000_000, 2_000_000, 4_000_000))

    def step(part_ns: torch.Tensor) -> None:
        part_ns.fill_(next(slow_and_fast))

    parts = measure_parts(step, tries=3, num_layers=2, gflop={"down": 8.0})
    assert [part.name for part in parts] == [*LAYER_PARTS, *PARTS_AROUND]
    assert {part.name: part.ms for part in parts}["down"] == 2 * 2.0
    assert {part.name: part.ms for part in parts}["head"] == 2.0
    assert "2000" in profile_lines([Part("down", 4.0, 8.0)])[1]
