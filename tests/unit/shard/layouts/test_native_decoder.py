"""The native decoder against transformers' own models: tiny random ones of each family, in chunks and mixed batches."""

import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from textmill_shard.attention.base import AttentionRule
from textmill_shard.distributed.parallel import TensorParallel
from textmill_shard.layouts.native_decoder import NativeDecoder, why_not_native
from textmill_shard.model.forward_batch import ForwardBatch, ForwardOutput
from textmill_shard.model.kv_pool import KvPool, LayerKvSpec
from textmill_shard.model.synthetic_batch import SyntheticRow, synthetic_batch
from textmill_shard.native.kernels import LAYER_PARTS, PARTS_AROUND
from textmill_shard.sampling.row_scan import TorchRowScanner
from transformers import AutoConfig, AutoModelForCausalLM

from tests.fakes.native_cases import Piece, make_batch, native_kernels
from tests.fakes.processes import wait_until
from tests.fakes.tiny_models import ARCHITECTURES, SMALL

# Relative to the largest logit. In bfloat16 transformers rounds after each operation and we after each product, so
# both are compared with float32 and ours must not be the worse one by more than a tenth.
FLOAT32_TOLERANCE = 2e-5
BLOCK_SIZE = 4

FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {**ARCHITECTURES["llama"]}),
    "llama tied, odd sizes": (
        "llama",
        {**SMALL, "tie_word_embeddings": True, "hidden_size": 40, "intermediate_size": 42, "vocab_size": 301,
         "head_dim": 10},
    ),
    "llama with biases": ("llama", {**SMALL, "attention_bias": True, "mlp_bias": True}),
    "llama with llama3 rope": (
        "llama",
        {**SMALL, "rope_parameters": {"rope_type": "llama3", "rope_theta": 100.0, "factor": 4.0,
                                      "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                                      "original_max_position_embeddings": 64}},
    ),
    "llama with yarn rope": (
        "llama",
        {**SMALL, "rope_parameters": {"rope_type": "yarn", "rope_theta": 100.0, "factor": 4.0,
                                      "original_max_position_embeddings": 128}},
    ),
    "mistral": ("mistral", {**ARCHITECTURES["mistral"]}),
    "qwen2": ("qwen2", {**SMALL}),
    "qwen3": ("qwen3", {**ARCHITECTURES["qwen3"]}),
    "smollm3": ("smollm3", {**SMALL, "num_hidden_layers": 4, "no_rope_layer_interval": 2}),
}  # fmt: skip
CONTEXT_LENS = (21, 3, 97, 64, 1, 30)


def make_model(family: str, dtype: torch.dtype = torch.float32) -> Any:
    model_type, fields = FAMILIES[family]
    torch.manual_seed(11)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **fields), dtype=torch.float32).eval()
    for parameter in model.parameters():
        if parameter.dim() == 1:
            parameter.data.add_(torch.randn_like(parameter), alpha=0.1)
    return model.to(dtype)


def rules_of(model: Any) -> list[AttentionRule]:
    config = model.config
    window = config.sliding_window if config.model_type == "mistral" else None
    return [AttentionRule(layer.self_attn.scaling, window_tokens=window) for layer in model.model.layers]


def make_native(model: Any) -> NativeDecoder:
    """Takes the model's weights: compute what is expected of it before."""
    rules = rules_of(model)
    assert why_not_native(model, rules) is None
    return NativeDecoder(model, rules, native_kernels(), TensorParallel())


def make_pool(model: Any, num_blocks: int) -> KvPool:
    attention = model.model.layers[0].self_attn
    spec = LayerKvSpec(model.config.num_key_value_heads, attention.head_dim, attention.head_dim)
    pool = KvPool(
        specs=[spec] * len(model.model.layers),
        num_blocks=num_blocks,
        block_size=BLOCK_SIZE,
        dtype=model.dtype,
        device=torch.device("cpu"),
    )
    for tensor in (*pool.keys, *pool.values):
        tensor.fill_(torch.nan)
    return pool


def make_contexts(model: Any) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    return [torch.randint(0, model.config.vocab_size, (length,), generator=generator) for length in CONTEXT_LENS]


@torch.inference_mode()
def expected_logits(model: Any, contexts: list[torch.Tensor]) -> list[torch.Tensor]:
    """Logits `[L, V]` of each context alone, uncached."""
    model.set_attn_implementation("eager")
    return [model(input_ids=context.unsqueeze(0), use_cache=False).logits[0].float() for context in contexts]


def run_in_steps(
    fast: NativeDecoder, pool: KvPool, contexts: list[torch.Tensor], *, chunk: int, wants_hidden: bool = False
) -> list[torch.Tensor]:
    """The last logits of each context; prompts go in by uneven chunks while the others decode their tail."""
    done = [0] * len(contexts)
    last: dict[int, torch.Tensor] = {}
    turn = 0
    counts = [-(-len(context) // BLOCK_SIZE) for context in contexts]
    shuffled = torch.randperm(sum(counts), generator=torch.Generator().manual_seed(0))
    tables = [table.tolist() for table in shuffled.split(counts)]
    while any(done[row] < len(context) for row, context in enumerate(contexts)):
        rows = [row for row, context in enumerate(contexts) if done[row] < len(context)]
        parts = []
        for row in rows:
            left = len(contexts[row]) - done[row]
            count = 1 if left <= 4 else min(left - 4, chunk + (turn + row) % 3)
            ids_n = contexts[row][done[row] : done[row] + count]
            parts.append(SyntheticRow(ids_n=ids_n, blocks=tables[row], start=done[row]))
        step = synthetic_batch(parts, block_size=BLOCK_SIZE, scratch_block=pool.num_blocks, num_padding=turn % 2)
        output = fast.forward(step, wants_hidden=wants_hidden)
        check_scan(output)
        assert (output.hidden_TD is not None) == wants_hidden
        for index, (row, part) in enumerate(zip(rows, parts, strict=True)):
            done[row] += len(part.ids_n)
            last[row] = output.logits_NV[index]
        turn += 1
    return [last[row] for row in range(len(contexts))]


def check_scan(output: ForwardOutput) -> None:
    """What the step says of its logits is what torch finds in them."""
    assert output.scan is not None
    found = output.scan.as_row_scan()
    expected = TorchRowScanner().scan(output.logits_NV, wants_mass=True)
    assert torch.equal(found.best_N, expected.best_N)
    assert torch.equal(found.not_finite_N, expected.not_finite_N)
    assert found.log_mass_N is not None
    assert expected.log_mass_N is not None
    assert torch.allclose(found.log_mass_N, expected.log_mass_N, rtol=4e-6, atol=4e-6)
    assert output.scan.best_scores_N.tolist() == output.logits_NV.amax(-1).tolist()


def relative_error(found: list[torch.Tensor], expected: list[torch.Tensor]) -> float:
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(found, expected, strict=True))


def num_blocks_of(contexts: list[torch.Tensor]) -> int:
    return sum(-(-len(context) // BLOCK_SIZE) for context in contexts)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("chunk", [200, 7])
def test_logits_equal_transformers_in_float32(family: str, chunk: int) -> None:
    model = make_model(family)
    contexts = make_contexts(model)
    expected = [logits[-1] for logits in expected_logits(model, contexts)]
    fast, pool = make_native(model), make_pool(model, num_blocks_of(contexts))
    fast.bind(pool)
    assert relative_error(run_in_steps(fast, pool, contexts, chunk=chunk), expected) < FLOAT32_TOLERANCE


@pytest.mark.parametrize("family", FAMILIES)
def test_bfloat16_is_as_near_to_float32_as_transformers(family: str) -> None:
    model = make_model(family, torch.bfloat16)
    contexts = make_contexts(model)
    theirs = [logits[-1] for logits in expected_logits(model, contexts)]
    exact = [logits[-1] for logits in expected_logits(make_model(family, torch.bfloat16).float(), contexts)]
    fast, pool = make_native(model), make_pool(model, num_blocks_of(contexts))
    fast.bind(pool)
    ours = run_in_steps(fast, pool, contexts, chunk=9)
    assert relative_error(ours, exact) < 1.1 * relative_error(theirs, exact)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_request_gives_the_same_bits_alone_whole_or_in_chunks(dtype: torch.dtype) -> None:
    model = make_model("llama", dtype)
    contexts = make_contexts(model)
    fast, pool = make_native(model), make_pool(model, num_blocks_of(contexts))
    fast.bind(pool)
    whole = run_in_steps(fast, pool, contexts, chunk=200)
    chunked = run_in_steps(fast, pool, contexts, chunk=5)
    for row, context in enumerate(contexts):
        assert torch.equal(whole[row], chunked[row]), row
        assert torch.equal(run_in_steps(fast, pool, [context], chunk=11)[0], whole[row]), row


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_hidden_states_give_the_logits_of_each_position(dtype: torch.dtype) -> None:
    model = make_model("qwen3", dtype)
    context = make_contexts(model)[2]
    expected = expected_logits(model, [context])[0]
    fast, pool = make_native(model), make_pool(model, num_blocks_of([context]))
    fast.bind(pool)
    batch, _ = make_batch([Piece(0, len(context))], ids=[context], block_size=BLOCK_SIZE)
    output = fast.forward(batch, wants_hidden=True)
    assert output.hidden_TD is not None
    assert output.hidden_TD.dtype == dtype
    projected = fast.project(output.hidden_TD)
    tolerance = FLOAT32_TOLERANCE if dtype == torch.float32 else 0.05
    assert float((projected - expected).abs().max() / expected.abs().max()) < tolerance
    assert torch.equal(projected[-1], output.logits_NV[0])
    assert torch.equal(output.logits_NV, fast.forward(batch).logits_NV)


@pytest.mark.skipif(sys.platform != "linux", reason="reads what the system counts of each thread")
def test_a_step_of_little_work_wakes_no_thread() -> None:
    before = {path.name for path in Path("/proc/self/task").iterdir()}
    kernels = native_kernels(2)
    [member] = {path.name for path in Path("/proc/self/task").iterdir()} - before

    def sleeps() -> bool:
        return "State:\tS" in Path(f"/proc/self/task/{member}/status").read_text()

    def num_rests() -> int:
        lines = Path(f"/proc/self/task/{member}/status").read_text().splitlines()
        return sum(int(line.split()[1]) for line in lines if line.startswith("voluntary_ctxt_switches"))

    def steps(batch: ForwardBatch) -> int:
        """Return how often the other thread has gone to sleep in ten steps, before each of which the thread sleeps."""
        first = num_rests()
        for _ in range(10):
            wait_until(sleeps, 10.0, "the other thread sleeps")
            fast.forward(batch)
        wait_until(sleeps, 10.0, "the other thread sleeps")
        return num_rests() - first

    model = make_model("llama")
    context = make_contexts(model)[2]
    fast = NativeDecoder(model, rules_of(model), kernels, TensorParallel())
    fast.bind(make_pool(model, num_blocks_of([context])))
    whole, _ = make_batch([Piece(0, len(context))], ids=[context], block_size=BLOCK_SIZE)
    one, _ = make_batch([Piece(len(context) - 1, 1)], ids=[context], block_size=BLOCK_SIZE)
    assert steps(whole) >= 10
    assert steps(one) == 0


@pytest.mark.parametrize("num_threads", [1, 2])
def test_profile_tells_the_time_of_each_part_of_each_layer(num_threads: int) -> None:
    model = make_model("llama")
    context = make_contexts(model)[2]
    fast = NativeDecoder(model, rules_of(model), native_kernels(num_threads), TensorParallel())
    fast.bind(make_pool(model, num_blocks_of([context])))
    batch, _ = make_batch([Piece(0, len(context))], ids=[context], block_size=BLOCK_SIZE)
    part_ns = torch.full((len(model.model.layers) * len(LAYER_PARTS) + len(PARTS_AROUND),), -1)
    started = time.perf_counter_ns()
    output = fast.forward(batch, part_ns=part_ns)
    assert int(part_ns.sum()) <= time.perf_counter_ns() - started
    assert bool((part_ns >= 0).all())
    assert int((part_ns > 0).sum()) > 0.9 * len(part_ns)
    assert torch.equal(output.logits_NV, fast.forward(batch).logits_NV)


def test_weights_are_held_once() -> None:
    model = make_model("llama tied, odd sizes")
    num_bytes = sum(parameter.nbytes for parameter in model.parameters())
    fast = make_native(model)
    assert sum(parameter.nbytes for parameter in model.parameters() if parameter.dim() > 1) == 0
    assert fast.num_bytes < 1.35 * num_bytes  # panels are filled up to 32 outputs: much for a tiny model


@pytest.mark.parametrize(
    "model_type", sorted(set(ARCHITECTURES) - {*(kind for kind, _ in FAMILIES.values()), "granite"})
)
def test_other_architectures_are_left_alone(model_type: str) -> None:
    config = AutoConfig.for_model(model_type, **ARCHITECTURES[model_type])
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    assert why_not_native(model, [AttentionRule(scaling=1.0)] * config.num_hidden_layers) is not None


@pytest.mark.parametrize("path", ["model.norm", "model.layers.1.input_layernorm", "model.layers.0.self_attn.k_norm"])
def test_norms_with_different_epsilons_are_left_alone(path: str) -> None:
    """The native step has one epsilon for all norms."""
    model = make_model("qwen3")
    rules = rules_of(model)
    assert why_not_native(model, rules) is None
    model.get_submodule(path).variance_epsilon *= 10
    assert why_not_native(model, rules) == "norms have different epsilons"


@pytest.mark.parametrize(("first", "second"), [(48, 96), (96, 48)])
def test_layers_of_different_sizes_are_left_alone(first: int, second: int) -> None:
    """The native step takes the sizes of all layers from the first."""
    sizes = {**ARCHITECTURES["llama"], "num_hidden_layers": 1}
    model, other = (
        AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **{**sizes, "intermediate_size": size}))
        for size in (first, second)
    )
    model.model.layers.append(other.model.layers[0])
    assert why_not_native(model, [AttentionRule(scaling=1.0)] * 2) == "layers are not of one size"
    del model.model.layers[1]
    assert why_not_native(model, [AttentionRule(scaling=1.0)]) is None
