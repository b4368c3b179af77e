"""Runs whole steps of a llama with random weights: first equalities, then milliseconds beside the memory's floor."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from textmill_shard.distributed.parallel import TensorParallel
from textmill_shard.engine.upload import Upload
from textmill_shard.errors import UnsupportedModelError
from textmill_shard.layouts.interface_layout import arrange_swapped
from textmill_shard.layouts.layout import FilledModel, Layout, LayoutOptions
from textmill_shard.model.adapter import AdapterTargets, LinearPart
from textmill_shard.model.decode_rows import DecodeRows
from textmill_shard.model.forward_batch import ForwardBatch
from textmill_shard.model.runner import ModelFacts, ModelRunner
from textmill_shard.model.synthetic_batch import SyntheticRow, synthetic_batch
from textmill_shard.probing.start_check import PROBE_TEXTS, check_against_probe
from textmill_shard.triton_kernels.paged_backend import PagedAttention
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from bench.gpu.report import Row
from bench.gpu.setting import Setting
from bench.gpu_paper import BYTES_PER_S, OPERATIONS_PER_S, Shape, costs
from bench.gpu_paper import Step as PaperStep

BLOCK_SIZE = 16
NUM_SLOTS = 256
CONTEXT = 1024
MOST_RATIO, MOST_JUDGED_ROWS = 1.25, 64  # aims of decode steps: time beside the floor, and up to how many rows
LEAST_SHARE = 0.6  # aim of a prefill: its rate beside that of a large product
TOLERANCE = 5e-2  # relative to the largest logit: bfloat16 rounds in another order for other shapes


@dataclass(frozen=True, slots=True)
class Sizes:
    """The sizes of a run."""

    shape: Shape
    dtype: torch.dtype
    decode_rows: tuple[int, ...]
    context: int
    prefill: int
    tolerance: float


REAL = Sizes(Shape(), torch.bfloat16, (1, 8, 64, 256), CONTEXT, 4096, TOLERANCE)
DRY = Sizes(
    Shape(layers=2, hidden=64, heads=4, kv_heads=2, head_dim=16, mlp=96, vocabulary=320),
    torch.float32,
    (1, 2),
    20,
    33,
    1e-4,
)


def sizes_of(setting: Setting) -> Sizes:
    return DRY if setting.is_dry else REAL


def make_model(setting: Setting, sizes: Sizes) -> Any:
    """Return a llama of transformers on the device, with weights from a seed."""
    shape = sizes.shape
    config = LlamaConfig(
        hidden_size=shape.hidden,
        intermediate_size=shape.mlp,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        vocab_size=shape.vocabulary,
        max_position_embeddings=131_072,
    )
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(sizes.dtype)
    try:
        with setting.device:
            model = LlamaForCausalLM(config).eval()
    finally:
        torch.set_default_dtype(before)
    return model


@dataclass(frozen=True, slots=True)
class MadeRunner:
    """A runner of `make_model`. A fault of the logits hinders no measurement of their time."""

    runner: ModelRunner
    fault: str  # what is wrong with its logits beside those of transformers' code alone, or ""

    def row(self) -> Row:
        numbers: dict[str, float | str] = {"fault": self.fault} if self.fault else {}
        return Row("two texts in chunks beside each other, as transformers' code alone", numbers, not self.fault)


def make_runner(setting: Setting, sizes: Sizes) -> MadeRunner:
    """Return a runner of `make_model`, and compare its logits with those of the probe."""
    shape, model = sizes.shape, make_model(setting, sizes)
    texts = tuple(torch.tensor(text, device=setting.device) % shape.vocabulary for text in PROBE_TEXTS)
    linears = {path: _whole(layer) for path, layer in model.named_modules() if isinstance(layer, nn.Linear)}
    filled = FilledModel(model, texts=texts, device=setting.device, max_tokens=0, rope_border=None, linears=linears)
    attention = PagedAttention(setting.kernels)
    options = LayoutOptions(
        num_slots=NUM_SLOTS, parallel=TensorParallel(), kernels=None, attention=attention, wants_native_decoder=False
    )
    layout = arrange_swapped(filled, options)
    runner = ModelRunner(
        model=model,
        decoder=layout.decoder,
        facts=_facts(setting, sizes, layout),
        parallel=TensorParallel(),
        targets=AdapterTargets(linears=layout.linears, module_names=frozenset(), dtype=sizes.dtype),
        adapters=layout.adapters,
        device_scans=setting.kernels,
    )
    try:
        check_against_probe(runner, texts=texts, expected_V_by_text=layout.logits_V_by_text)
    except UnsupportedModelError as error:
        return MadeRunner(runner, str(error))
    return MadeRunner(runner, "")


def _whole(layer: nn.Linear) -> LinearPart:
    return LinearPart(layer.in_features, layer.out_features, slice(0, layer.in_features), slice(0, layer.out_features))


def _facts(setting: Setting, sizes: Sizes, layout: Layout) -> ModelFacts:
    return ModelFacts(
        model_type="llama",
        dtype=str(sizes.dtype).removeprefix("torch."),
        device=setting.device.type,
        vocab_size=sizes.shape.vocabulary,
        eos_token_ids=(),
        max_model_tokens=0,
        weight_bytes=layout.weight_bytes,
        tokenizer_digest="",
        block_size=BLOCK_SIZE,
        kv_specs=layout.kv_specs,
        can_project=False,
    )


def batch_of(setting: Setting, sizes: Sizes, pieces: Sequence[tuple[int, int]]) -> ForwardBatch:
    """Return a batch of sequences with blocks of their own: (tokens before the step, tokens of the step) each."""
    rows, taken = [], 0
    generator = torch.Generator().manual_seed(1)
    for before, count in pieces:
        num_blocks = -(-(before + count) // BLOCK_SIZE)
        ids_n = torch.randint(sizes.shape.vocabulary, (before + count,), generator=generator)[before:]
        rows.append(SyntheticRow(ids_n=ids_n, blocks=range(taken, taken + num_blocks), start=before))
        taken += num_blocks
    return synthetic_batch(rows, block_size=BLOCK_SIZE, scratch_block=taken, device=setting.device)


def graph_step(
    setting: Setting, runner: ModelRunner, sizes: Sizes, num_rows: int, adapters: Sequence[int] = ()
) -> Callable[[], object] | None:
    """Return what computes the decode step of `batch_of` by a graph, from its numbers on the host on.

    `adapters` are the places of the rows' adapters. Without them no row has an adapter. None: no graph holds the step.
    """
    graphs = runner.graphs
    if graphs is None:
        return None
    num_blocks = -(-sizes.context // BLOCK_SIZE)
    rows = DecodeRows(
        slots_R=np.arange(num_rows),
        starts_R=np.full(num_rows, sizes.context - 1),
        tokens_R=None,
        block_tables_RB=np.arange(num_rows * num_blocks, dtype=np.int32).reshape(num_rows, num_blocks),
        adapters_R=np.array(adapters, dtype=np.int32) if adapters else None,
    )

    if graphs.seat(rows) is None:
        return None

    def run() -> object:
        seated = graphs.seat(rows)
        assert seated is not None
        Upload(setting.device).send_behind(seated.packed, graphs.memory)
        return runner.replay(seated)

    return run


def check_equalities(setting: Setting, made: MadeRunner) -> Iterator[Row]:
    """Compare the probe's texts, chunked with whole prompts, and rows of a batch with rows alone."""
    sizes, runner = sizes_of(setting), made.runner
    yield made.row()
    length = sizes.prefill // 2
    runner.allocate_kv(4 * -(-length // BLOCK_SIZE) + 1)
    whole = runner.forward(batch_of(setting, sizes, [(0, length)])).logits_NV[0].clone()
    cut = length // 3
    runner.forward(batch_of(setting, sizes, [(0, cut)]))
    chunked = runner.forward(batch_of(setting, sizes, [(cut, length - cut)])).logits_NV[0].clone()
    beside = runner.forward(batch_of(setting, sizes, [(0, length), (0, 7)])).logits_NV[0].clone()
    for name, found in (("a prompt in two chunks", chunked), ("a prompt beside another", beside)):
        error = float((found - whole).abs().max() / whole.abs().max())
        yield Row(f"{name}, as whole and alone", {"error": error, "allowed": sizes.tolerance}, error <= sizes.tolerance)


def time_steps(setting: Setting, runner: ModelRunner) -> Iterator[Row]:
    """Time decode steps, and one prefill, beside what the measured rates of the device allow.

    The floor of a decode step is weights and KV over the rate of copies. A prefill is judged by its products over the
    rate of a large product. The largest step comes last, because a small GPU may have no memory for its contexts.
    """
    sizes = sizes_of(setting)
    *numbers_of_rows, largest = sizes.decode_rows
    for num_rows in numbers_of_rows:
        yield _time_decode(setting, runner, sizes, num_rows)
    yield _time_prefill(setting, runner, sizes)
    yield _time_decode(setting, runner, sizes, largest)


def _time_decode(setting: Setting, runner: ModelRunner, sizes: Sizes, num_rows: int) -> Row:
    shape = sizes.shape
    weight_bytes = runner.facts.weight_bytes - shape.vocabulary * shape.hidden * sizes.dtype.itemsize  # embedding
    batch = batch_of(setting, sizes, [(sizes.context - 1, 1)] * num_rows)
    fill_pool(runner, num_rows * -(-sizes.context // BLOCK_SIZE) + 1)

    kv_bytes = num_rows * sizes.context * sum(spec.elements_per_token for spec in runner.facts.kv_specs)
    kv_bytes *= sizes.dtype.itemsize
    floor_ms = (weight_bytes + kv_bytes) / setting.rates.get("copy", BYTES_PER_S) * 1e3
    numbers = step_times(setting, runner, sizes, batch)
    best_ms = min(float(numbers[name]) for name in ("ms", "graph ms") if name in numbers)
    setting.rates[f"decode of {num_rows}"] = best_ms
    return Row(
        f"decode of {num_rows} rows, {sizes.context} context",
        {**numbers, "floor ms": floor_ms, "ratio": best_ms / floor_ms},
        is_fine=None if "graph ms" in numbers else False,
        aim=f"ratio <= {MOST_RATIO}" if num_rows <= MOST_JUDGED_ROWS else "",
        meets_aim=setting.judge(best_ms <= MOST_RATIO * floor_ms) if num_rows <= MOST_JUDGED_ROWS else None,
    )


def step_times(
    setting: Setting, runner: ModelRunner, sizes: Sizes, batch: ForwardBatch, *, adapter_rank: int = 0
) -> dict[str, float | str]:
    """Return the times of a decode step of `batch_of`, launched and as a graph, in milliseconds.

    With an `adapter_rank` the rows have adapters. There are no times of a graph where none can be had.
    """

    def run() -> object:
        return runner.forward(batch)

    numbers: dict[str, float | str] = {"ms": setting.time_ms(run), "host ms": setting.launch_ms(run)}
    num_rows = len(batch.context_lens_R)
    runner.record_graphs(
        setting.graph_recorder(), (num_rows,), lambda share: None, num_slots=num_rows, adapter_rank=adapter_rank
    )
    replay = graph_step(setting, runner, sizes, num_rows, batch.adapters_on_host)
    if replay is not None:
        return {**numbers, "graph ms": setting.time_ms(replay), "graph host ms": setting.launch_ms(replay)}
    return {**numbers, "graph": "none, for the reason in the log"}


def _time_prefill(setting: Setting, runner: ModelRunner, sizes: Sizes) -> Row:
    fill_pool(runner, -(-sizes.prefill // BLOCK_SIZE) + 1)
    prefill = batch_of(setting, sizes, [(0, sizes.prefill)])
    prefill_ms = setting.time_ms(lambda: runner.forward(prefill))
    whole = PaperStep("prefill", 1, sizes.prefill, sizes.prefill)
    rate = sum(cost.operations for cost in costs(sizes.shape, whole)) / prefill_ms * 1e3
    share = rate / setting.rates.get("product", OPERATIONS_PER_S)
    return Row(
        f"prefill of {sizes.prefill} tokens",
        {
            "ms": prefill_ms,
            "tokens/s": sizes.prefill / prefill_ms * 1e3,
            "TFLOP/s": rate / 1e12,
            "share of a product": share,
        },
        aim=f"share >= {LEAST_SHARE}",
        meets_aim=setting.judge(share >= LEAST_SHARE),
    )


@torch.inference_mode()
def fill_pool(runner: ModelRunner, num_blocks: int) -> None:
    """Make a pool of noise, because contexts are read that no step has written, and zeros take less power."""
    runner.allocate_kv(num_blocks)
    pool = runner.kv_pool
    assert pool is not None
    random = torch.Generator(pool.device).manual_seed(2)
    for tensor in (*pool.keys, *pool.values):
        block = torch.randn(tensor.shape[1:], generator=random, device=pool.device)
        tensor.copy_(block.to(tensor.dtype).expand_as(tensor))
