"""Native steps of ranks that share memory: exchanges larger than a bank, teams of threads, and a rank that ends.

The ranks are threads. `test_tensor_parallel.py` has processes with whole models.
"""

import copy
from typing import Any

import pytest
import torch
from textmill_shard.attention.base import AttentionRule
from textmill_shard.distributed.parallel import TensorParallel
from textmill_shard.layers.parallel_layers import RowParallelLinear
from textmill_shard.layouts.native_decoder import NativeDecoder, why_not_native
from textmill_shard.model.forward_batch import ForwardBatch
from textmill_shard.model.kv_pool import KvPool, LayerKvSpec
from textmill_shard.native.kernels import load_kernels
from textmill_shard.native.ranks import RankLost, RankRoom
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from tests.fakes.native_cases import Piece, make_batch, native_cache_folder, native_kernels
from tests.fakes.rooms import by_each, rooms
from tests.zoo.entry import SMALL

BLOCK_SIZE = 4
NUM_TOKENS = 101  # of 64 floats: six and a half banks of 4096 bytes


def make_model() -> Any:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **SMALL), dtype=torch.float32).eval()


def decoder_of(model: Any, parallel: TensorParallel, num_blocks: int) -> NativeDecoder:
    """Return a decoder with two threads of its own, over a pool of its own."""
    rules = [AttentionRule(layer.self_attn.scaling) for layer in model.model.layers]
    assert why_not_native(model, rules) is None
    kernels = load_kernels(native_cache_folder(), num_threads=2)
    assert kernels is not None
    decoder = NativeDecoder(model, rules, kernels, parallel)
    spec = LayerKvSpec(model.config.num_key_value_heads, 16, 16)
    decoder.bind(
        KvPool(
            specs=[spec] * len(rules),
            num_blocks=num_blocks,
            block_size=BLOCK_SIZE,
            dtype=torch.float32,
            device=torch.device("cpu"),
        )
    )
    return decoder


def take_part(model: Any, parallel: TensorParallel) -> Any:
    """Give rank 0 the even inputs of the layers that ranks add up, and rank 1 the odd ones."""
    for layer in model.model.layers:
        for parent, name in ((layer.self_attn, "o_proj"), (layer.mlp, "down_proj")):
            weight_OI = getattr(parent, name).weight.detach().clone()
            weight_OI[:, 1 - parallel.rank :: 2] = 0.0
            setattr(parent, name, RowParallelLinear(nn.Parameter(weight_OI, requires_grad=False), None, parallel))
    return model


def make_prompt() -> tuple[ForwardBatch, int]:
    context = torch.randint(0, SMALL["vocab_size"], (NUM_TOKENS,), generator=torch.Generator().manual_seed(5))
    return make_batch([Piece(0, NUM_TOKENS)], ids=[context], block_size=BLOCK_SIZE)


def test_a_step_larger_than_a_bank_is_added_up_by_all_threads() -> None:
    native_kernels()
    model, (batch, num_blocks) = make_model(), make_prompt()
    alone = decoder_of(copy.deepcopy(model), TensorParallel(), num_blocks).forward(batch, wants_hidden=True)
    assert alone.hidden_TD is not None

    def work(room: RankRoom) -> torch.Tensor:
        parallel = TensorParallel(room.rank, 2, room=room)
        decoder = decoder_of(take_part(copy.deepcopy(model), parallel), parallel, num_blocks)
        for _ in range(20):
            hidden_TD = decoder.forward(batch, wants_hidden=True).hidden_TD
            assert hidden_TD is not None
        assert room.num_exchanges == 20 * 2 * len(model.model.layers)
        return hidden_TD

    with rooms(2) as made:
        first, second = by_each(made, work)
    assert torch.equal(first, second)
    difference = (first - alone.hidden_TD).abs().max() / alone.hidden_TD.abs().max()
    assert float(difference) < 1e-5


def test_a_rank_that_has_ended_ends_the_step_of_the_others() -> None:
    native_kernels()
    batch, num_blocks = make_prompt()
    with rooms(2) as made:
        made[1].close()
        parallel = TensorParallel(0, 2, room=made[0])
        decoder = decoder_of(take_part(make_model(), parallel), parallel, num_blocks)
        with pytest.raises(RankLost, match="rank 1 of 2 has ended"):
            decoder.forward(batch)
