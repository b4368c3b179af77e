"""Adapters in the native decoder equal transformers' models whose weights hold the adapters' products."""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any

import pytest
import torch
from textmill_shard.attention.base import AttentionRule
from textmill_shard.distributed.parallel import TensorParallel
from textmill_shard.layouts.native_decoder import NativeDecoder
from textmill_shard.model.adapter import AdapterWeights, LowRank
from textmill_shard.model.kv_pool import KvPool, LayerKvSpec
from textmill_shard.model.synthetic_batch import SyntheticRow, synthetic_batch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from tests.fakes.native_cases import native_kernels
from tests.fakes.tiny_models import SMALL

TOLERANCE = 1e-5  # of a logit, relative to the largest, in float32
BLOCK_SIZE = 4
# No width is a multiple of 16 outputs or of 32 inputs, and query, key and value begin within half panels.
ODD = {**SMALL, "hidden_size": 40, "intermediate_size": 42, "vocab_size": 301, "head_dim": 10}
SIZES: Mapping[str, dict[str, Any]] = {"odd": ODD, "even": {**SMALL}}
ATTENTION = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj")
ALL = (*ATTENTION, "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
# The adapters of a step: the layers that each changes, with their ranks. The ranks of a product's layers differ.
ADAPTERS: Sequence[Mapping[str, int]] = (
    dict.fromkeys(ALL, 8),
    dict(zip(ALL, (1, 9, 16, 7, 3, 17, 64), strict=True)),
    {"self_attn.v_proj": 5, "mlp.up_proj": 2},
)
LENGTHS = (30, 1, 3, 27, 5, 14, 1, 2)
PLACES = {"base rows": (1, 1, 0, 2, 3, 0, 2, 1), "no base rows": (1, 2, 3, 3, 1, 2, 3, 1)}


def make_model(sizes: str, dtype: torch.dtype) -> Any:
    torch.manual_seed(1)
    config = AutoConfig.for_model("llama", **SIZES[sizes])
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval().to(dtype)


def make_weights(model: Any, ranks: Mapping[str, int], *, has_head: bool) -> AdapterWeights:
    modules = {}
    for path, module in model.named_modules():
        rank = 4 if has_head and path == "lm_head" else ranks.get(path.partition(".layers.")[2].partition(".")[2])
        if rank is not None and isinstance(module, nn.Linear):
            a_rI = torch.randn(rank, module.in_features) * 0.3
            b_Or = torch.randn(module.out_features, rank) * 0.3
            modules[path] = LowRank(a_rI=a_rI.to(model.dtype), b_Or=b_Or.to(model.dtype), scale=0.5)
    return AdapterWeights(digest=bytes(16), modules=modules, max_rank=64)


def merged(model: Any, weights: AdapterWeights) -> Any:
    """Return a copy of the model with `scale B A` in its weights."""
    copy = deepcopy(model)
    for path, low in weights.modules.items():
        copy.get_submodule(path).weight.data += low.scale * low.b_Or @ low.a_rI
    return copy


class Served:
    """A native decoder with adapters at the places 1, 2, ... ."""

    def __init__(self, model: Any, adapters: Sequence[AdapterWeights], num_blocks: int) -> None:
        """Takes the model's weights."""
        layers, attention = model.model.layers, model.model.layers[0].self_attn
        spec = LayerKvSpec(model.config.num_key_value_heads, attention.head_dim, attention.head_dim)
        self._num_blocks = num_blocks
        self._pool = KvPool(
            specs=[spec] * len(layers),
            num_blocks=num_blocks,
            block_size=BLOCK_SIZE,
            dtype=model.dtype,
            device=torch.device("cpu"),
        )
        rules = [AttentionRule(layer.self_attn.scaling) for layer in layers]
        self._decoder = NativeDecoder(model, rules, native_kernels(), TensorParallel())
        self._decoder.bind(self._pool)
        for place, weights in enumerate(adapters, start=1):
            self._decoder.put(place, self._decoder.prepare(weights))

    @property
    def decoder(self) -> NativeDecoder:
        return self._decoder

    def run_in_chunks(self, context: torch.Tensor, place: int, chunk: int) -> torch.Tensor:
        """Return the logits `[V]` of the last token of a context that is computed `chunk` tokens at a time."""
        table = list(range(-(-len(context) // BLOCK_SIZE)))
        for start in range(0, len(context), chunk):
            row = SyntheticRow(context[start : start + chunk], table, start=start, adapter=place)
            logits_1V = self._forward([row], wants_hidden=False)
        return logits_1V[0]

    def run(
        self, contexts: Sequence[torch.Tensor], places: Sequence[int], *, wants_hidden: bool = False
    ) -> torch.Tensor:
        """Return the logits `[R, V]` of the last token of each context: all but that in one step, that in another."""
        tables, taken = [], 0
        for context in contexts:
            num_blocks = -(-len(context) // BLOCK_SIZE)
            tables.append(list(range(taken, taken + num_blocks)))
            taken += num_blocks
        rows = list(zip(contexts, tables, places, strict=True))
        first = [SyntheticRow(ids[:-1], table, adapter=place) for ids, table, place in rows if len(ids) > 1]
        if first:
            self._forward(first, wants_hidden=False)
        last = [SyntheticRow(ids[-1:], table, start=len(ids) - 1, adapter=place) for ids, table, place in rows]
        return self._forward(last, wants_hidden=wants_hidden)

    def _forward(self, rows: Sequence[SyntheticRow], *, wants_hidden: bool) -> torch.Tensor:
        batch = synthetic_batch(rows, block_size=BLOCK_SIZE, scratch_block=self._num_blocks, num_padding=1)
        return self._decoder.forward(batch, wants_hidden).logits_NV


def make_contexts() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    return [torch.randint(0, 120, (length,), generator=generator) for length in LENGTHS]


def num_blocks_of(contexts: Sequence[torch.Tensor]) -> int:
    return sum(-(-len(context) // BLOCK_SIZE) for context in contexts)


@pytest.mark.parametrize("wants_hidden", [False, True], ids=["logits", "hidden"])
@pytest.mark.parametrize("places", PLACES.values(), ids=PLACES)
@pytest.mark.parametrize("sizes", SIZES)
@torch.inference_mode()
def test_rows_equal_models_with_the_product_in_their_weights(
    sizes: str, places: Sequence[int], wants_hidden: bool
) -> None:
    model = make_model(sizes, torch.float32)
    adapters = [make_weights(model, ranks, has_head=number == 1) for number, ranks in enumerate(ADAPTERS)]
    models = [model, *(merged(model, weights) for weights in adapters)]
    contexts = make_contexts()
    wanted = [
        models[place](input_ids=context[None], use_cache=False).logits[0, -1]
        for context, place in zip(contexts, places, strict=True)
    ]
    served = Served(deepcopy(model), adapters, num_blocks_of(contexts))
    found = served.run(contexts, places, wants_hidden=wants_hidden)
    for row, wanted_V in enumerate(wanted):
        assert float((found[row] - wanted_V).abs().max() / wanted_V.abs().max()) < TOLERANCE, row


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("places", PLACES.values(), ids=PLACES)
@pytest.mark.parametrize("sizes", SIZES)
def test_a_row_gives_the_same_bits_alone_and_beside_any_rows(
    sizes: str, places: Sequence[int], dtype: torch.dtype
) -> None:
    model = make_model(sizes, dtype)
    adapters = [make_weights(model, ranks, has_head=number == 1) for number, ranks in enumerate(ADAPTERS)]
    contexts = make_contexts()
    served = Served(model, adapters, num_blocks_of(contexts))
    together = served.run(contexts, places)
    of_one = {place: served.run(contexts, [place] * len(contexts)) for place in sorted(set(places))}
    for row, place in enumerate(places):
        assert torch.equal(served.run([contexts[row]], [place])[0], together[row]), row
        assert torch.equal(of_one[place][row], together[row]), row
        assert all(torch.equal(together[row], of_one[other][row]) == (other == place) for other in of_one)


def test_a_place_that_gets_other_weights_is_read_anew() -> None:
    model = make_model("odd", torch.float32)
    adapters = [make_weights(model, ranks, has_head=False) for ranks in ADAPTERS[:2]]
    contexts = make_contexts()[:2]
    served = Served(model, adapters, num_blocks_of(contexts))
    second = served.run(contexts, [2, 2])
    first = served.run(contexts, [1, 1])
    served.decoder.remove(1)
    served.decoder.put(1, served.decoder.prepare(adapters[1]))
    assert torch.equal(served.run(contexts, [1, 1]), second)
    assert not torch.equal(first, second)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_prompt_gives_the_same_bits_whole_and_in_chunks(dtype: torch.dtype) -> None:
    model = make_model("odd", dtype)
    adapters = [make_weights(model, ranks, has_head=False) for ranks in ADAPTERS]
    context = make_contexts()[0]
    served = Served(model, adapters, num_blocks_of([context]))
    for place in range(len(adapters) + 1):
        whole_V = served.run_in_chunks(context, place, len(context))
        for chunk in (1, 7, 13):
            assert torch.equal(served.run_in_chunks(context, place, chunk), whole_V), (place, chunk)
