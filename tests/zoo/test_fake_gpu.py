"""The launch half of a step runs on tensors of a GPU that have no values: no host read, no mix of devices, one copy.

The models are those of the zoo in bfloat16. Kernels are stood in for by their shapes.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from textmill_shard.distributed.parallel import TensorParallel
from textmill_shard.engine.step_executor import StepExecutor
from textmill_shard.engine.token_feed import TokenFeed
from textmill_shard.engine.upload import Upload
from textmill_shard.engine.wish_upload import WishUpload
from textmill_shard.layers.low_rank_tables import LowRankTables
from textmill_shard.model.forward_batch import ForwardBatch, ForwardOutput
from textmill_shard.model.graph_trial import GraphTrial
from textmill_shard.model.memory import KvMemoryOptions, plan_kv_memory
from textmill_shard.model.runner import ModelRunner
from textmill_shard.model.shared_vocabulary import SharedVocabulary
from textmill_shard.native.ranks import RankRoom
from textmill_shard.sampling.part_sampler import PartSampler
from textmill_shard.sampling.row_scan import DeviceRowScanner
from textmill_shard.sampling.row_selection import StepRows
from textmill_shard.sampling.sampler import Draft, Sampler
from textmill_shard.sampling.stage import SlotText
from textmill_shard.slots.plan import Budget, Plan
from textmill_shard.slots.sampling_params import SamplingParams
from torch._subclasses.fake_tensor import DataDependentOutputException

from tests.fakes.fake_gpu import FakeGpu, HostRead, ShapeGraphs, ShapeKernels
from tests.fakes.tiny_models import make_tiny_llama
from tests.zoo.drive import (
    NUM_BLOCKS,
    NUM_SLOTS,
    make_admit,
    make_zoo_model,
    prompts_of_zoo,
    zoo_facts,
)
from tests.zoo.entry import ZooEntry
from tests.zoo.gpu_drive import TwinRoom, load_on
from tests.zoo.table import FLAT, STATE

# Some models with experts.
GROUPED = ("mixtral", "qwen2_moe", "qwen3_moe", "olmoe", "deepseek_v3")
# Models each of whose experts computes all rows, so that there are no groups.
ALL_ROWS = ("llama4",)
# Few candidates, so that a row may have to look at more of its scores.
NUM_CANDIDATES = 16
MAX_RANK = 32  # of adapters, for which graphs have room
# The longest prompts have two chunks, of which the second stands beside a decode.
BUDGET = Budget(max_step_tokens=64, max_prefill_tokens=60, max_chunk_tokens=26)
NUM_WRITTEN = 3
SAMPLINGS = (
    SamplingParams(),
    SamplingParams(do_sample=True, temperature=0.7, top_p=0.9, seed=3),
    SamplingParams(repetition_penalty=1.2, logit_bias=((5, 1.0),), wants_logprobs=True),
    SamplingParams(do_sample=True, typical_p=0.9, watermark=True, seed=4),
)
# The sampler gets the logits alone, whatever the model, so that the kinds of sampling are tried with some models.
SAMPLED = ("llama", "gpt2", "mamba")


def no_fault(*_: Any) -> str:
    return ""


def draft_of_part(sampler: Sampler, logits_NV: torch.Tensor, rows: StepRows) -> Draft:
    """Draft a step of two ranks, of which this rank has the first ids."""
    vocab_size = logits_NV.shape[1]
    parallel = TensorParallel(0, 2, room=cast(RankRoom, TwinRoom()))
    side = PartSampler(sampler, SharedVocabulary(parallel, (vocab_size // 2, vocab_size - vocab_size // 2)))
    given = side.give(logits_NV[:, : vocab_size // 2].contiguous(), rows)
    return side.draft(given, side.join(given, side.exchange(given)), rows)


def run_steps(
    gpu: FakeGpu,
    runner: ModelRunner,
    samplings: tuple[SamplingParams, ...],
    adapters: tuple[int, ...] = (),
    *,
    has_parts: bool = False,
    graphs: ShapeGraphs | None = None,
) -> list[Counter[str]]:
    """Run requests to their ends, and return what each step launched. The last steps are of decodes alone.

    `adapters` are the places of the adapters of the requests, which have different ones, or 0. `has_parts`: the
    sampler takes this rank for one of two that share the vocabulary. With `graphs` steps of decodes are recorded first.
    """
    counts = []
    with gpu:
        runner.allocate_kv(NUM_BLOCKS)
        if graphs is not None:
            # There are no values that a check could compare.
            assert runner.record_graphs(
                graphs,
                (NUM_SLOTS,),
                lambda share: None,
                num_slots=NUM_SLOTS,
                adapter_rank=MAX_RANK if adapters else 0,
                check=no_fault,
            )
        executor = StepExecutor(runner=runner, facts=zoo_facts(runner), has_overlap=True)
        assert executor.feed is not None
        assert runner.device_scans is not None
        sampler = Sampler(
            num_slots=NUM_SLOTS,
            device=executor.device,
            num_candidates=NUM_CANDIDATES,
            scanner=DeviceRowScanner(runner.device_scans),
        )
        prompts = prompts_of_zoo()[: len(samplings)]
        admits = []
        blocks = np.arange(NUM_BLOCKS).reshape(NUM_SLOTS, -1)
        for slot, (prompt, sampling) in enumerate(zip(prompts, samplings, strict=True)):
            admit = make_admit(slot, prompt, blocks[slot], rope_border=runner.facts.rope_border)
            admits.append(admit)
            sampler.admit(slot, sampling, SlotText(admit.text_ids, admit.output_ids))
        executor.apply(Plan(number=1, drops=(), extends=(), admits=tuple(admits), budget=BUDGET))
        for slot, place in enumerate(adapters):
            executor.table.adapters[slot] = place
            executor.table.num_adapted += place > 0
        gpu.counts.clear()
        gpu.num_waits = 0
        while not (step := executor.compose()).is_empty:
            slots_N = step.slots_R[step.samples_R]
            upload = Upload(executor.device)
            wishes = WishUpload(sampler.select(slots_N) if len(slots_N) else (), upload)
            output = executor.forward(step, executor.build(step, upload))
            if len(slots_N):
                if has_parts:
                    draft = draft_of_part(sampler, output.logits_NV, wishes.rows())
                else:
                    draft = sampler.draft(output.logits_NV, wishes.rows())
                executor.feed.put(draft.sampled.tokens_N)
                sampler.append(wishes.rows(), draft.sampled.tokens_N)
            counts.append(Counter(gpu.counts))
            gpu.counts.clear()
            executor.fill(slots_N, executor.table.num_tokens[slots_N], np.ones(len(slots_N), dtype=np.int64))
            lengths = [len(prompts[slot]) + NUM_WRITTEN for slot in slots_N.tolist()]
            executor.end(slots_N[executor.table.num_tokens[slots_N] >= lengths].tolist())
    return counts


@pytest.mark.parametrize("entry", [*FLAT, *STATE], ids=lambda entry: entry.name)
def test_a_step_reads_no_value_mixes_no_devices_and_copies_once(
    entry: ZooEntry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu = FakeGpu()
    make_zoo_model(entry, tmp_path)
    runner = load_on(gpu, tmp_path, monkeypatch)
    samplings = SAMPLINGS if entry.name in SAMPLED else (SamplingParams(),) * NUM_SLOTS
    counts = run_steps(gpu, runner, samplings)
    assert len(counts) > NUM_WRITTEN
    assert {count["copy to the GPU"] for count in counts} == {1}
    assert all(count["copy to the host"] == 0 for count in counts)
    assert gpu.num_waits == 0
    num_layers = len(runner.facts.kv_specs)
    assert all(count["paged_attention"] >= num_layers for count in counts)
    if entry.name in GROUPED:
        # Experts are products of groups of rows, without a loop over the experts, for which the host would wait.
        assert counts[-1]["_grouped_mm"] >= 2


@pytest.mark.parametrize(
    "entry", [entry for entry in (*FLAT, *STATE) if entry.has_experts], ids=lambda entry: entry.name
)
def test_experts_read_no_value_where_torch_has_no_product_of_groups(
    entry: ZooEntry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu = FakeGpu(capability=(8, 0))
    make_zoo_model(entry, tmp_path)
    # Rounding to bfloat16 may let a router of random weights choose other experts, for which the start refuses swaps.
    # Jamba's states keep the type in which the model is loaded, and do not meet weights that change their type later.
    runner = load_on(gpu, tmp_path, monkeypatch, dtype="bfloat16" if entry.name == "jamba" else "float32")
    counts = run_steps(gpu, runner, (SamplingParams(),) * NUM_SLOTS)
    assert all(count["copy to the host"] == 0 for count in counts)
    num_layers = sum(type(module.forward).__name__ == "GroupedExperts" for module in runner.modules())
    assert (num_layers > 0) == (entry.name not in ALL_ROWS)
    if num_layers:
        # Models with states compute a step in several parts.
        products = {divmod(count["expert_product"], 2 * num_layers) for count in counts}
        assert all(parts >= 1 and rest == 0 for parts, rest in products), products
        assert entry.layout == "state" or products == {(1, 0)}


# What the experts of a layer launch: the sort of the pairs by their experts, and where those of each expert end; two
# products, and the gate between them; the weights of the pairs, the sum over the experts of a row, and its rounding,
# because Mixtral's weights of experts are float32.
EXPERT_LAYER = 2 + 3 + 3


def test_decode_steps_with_experts_become_graphs_where_torch_has_no_product_of_groups(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu = FakeGpu(capability=(8, 0))
    make_zoo_model(next(entry for entry in FLAT if entry.name == "mixtral"), tmp_path)
    runner = load_on(gpu, tmp_path, monkeypatch, dtype="float32")
    graphs = ShapeGraphs(gpu)
    counts = run_steps(gpu, runner, (SamplingParams(),) * NUM_SLOTS, graphs=graphs)
    assert counts[-1]["graph"] == 1
    [of_graph] = graphs.launches
    assert of_graph["copy to the GPU"] == of_graph["copy to the host"] == 0
    modules = [module for module in runner.modules() if type(module.forward).__name__ == "GroupedExperts"]
    assert of_graph["expert_product"] == 2 * len(modules)
    for module in modules:  # experts that launch nothing
        module.forward = lambda hidden_states, *_: hidden_states
    graphs = ShapeGraphs(gpu)
    run_steps(gpu, runner, (SamplingParams(),) * NUM_SLOTS, graphs=graphs)
    [rest] = graphs.launches
    assert of_graph.total() - rest.total() == len(modules) * EXPERT_LAYER, of_graph - rest


def test_experts_that_are_not_swapped_read_sizes_of_groups_where_torch_has_no_product(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu = FakeGpu(capability=(8, 9))
    make_zoo_model(next(entry for entry in FLAT if entry.name == "mixtral"), tmp_path)
    runner = load_on(gpu, tmp_path, monkeypatch, disabled_swaps=("experts",))
    with pytest.raises(HostRead, match="sizes of the groups"):
        run_steps(gpu, runner, (SamplingParams(),) * NUM_SLOTS)


def test_ranks_that_share_a_vocabulary_read_no_value_mix_no_devices_and_copy_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu = FakeGpu()
    make_zoo_model(FLAT[0], tmp_path)
    runner = load_on(gpu, tmp_path, monkeypatch)
    more = SamplingParams(do_sample=True, top_k=5, frequency_penalty=0.3, wants_logprobs=True, top_n_tokens=2)
    for samplings in (SAMPLINGS, (SAMPLINGS[1], more), (SAMPLINGS[0],)):
        counts = run_steps(gpu, runner, samplings, has_parts=True)
        assert {count["copy to the GPU"] for count in counts} == {1}
        assert all(count["copy to the host"] == 0 for count in counts)


@pytest.mark.parametrize("name", ["llama", "phi3", "gpt2", "mamba"])
def test_rows_of_adapters_read_no_value_mix_no_devices_and_copy_once(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = next(entry for entry in (*FLAT, *STATE) if entry.name == name)
    gpu = FakeGpu()
    make_zoo_model(entry, tmp_path)
    runner = load_on(gpu, tmp_path, monkeypatch, num_adapters=2)
    counts = run_steps(gpu, runner, SAMPLINGS, (2, 0, 1, 2))
    assert {count["copy to the GPU"] for count in counts} == {1}
    assert all(count["copy to the host"] == 0 for count in counts)
    assert gpu.num_waits == 0
    assert all(count["shrink"] == count["expand"] >= len(runner.targets.linears) for count in counts)


class ReadingKernels(ShapeKernels):
    """Kernels that ask which rows have an adapter."""

    def add_low_rank(
        self, out_TO: torch.Tensor, x_TI: torch.Tensor, table: Any, places_T: torch.Tensor, **sizes: Any
    ) -> None:
        if places_T.sum().item():
            super().add_low_rank(out_TO, x_TI, table, places_T, **sizes)


def test_a_planted_read_of_the_rows_of_adapters_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = FakeGpu()
    make_zoo_model(FLAT[0], tmp_path)
    runner = load_on(gpu, tmp_path, monkeypatch, num_adapters=1, shapes=ReadingKernels)
    with pytest.raises(DataDependentOutputException, match="_local_scalar_dense"):
        run_steps(gpu, runner, SAMPLINGS, (0, 1))


def test_an_admission_a_correction_and_an_adapter_do_not_let_the_host_wait() -> None:
    """What they change is written behind the steps under way: the state of each stage, an id, and the tables."""
    samplings = (
        SamplingParams(do_sample=True, min_p=0.1, top_k=3, seed=3, logit_bias=((5, 1.0),), allowed_ids=(1, 2)),
        SamplingParams(repetition_penalty=1.2, frequency_penalty=0.5, bad_sequences=((1,), (2, 3, 4))),
        SamplingParams(dry_multiplier=1.0, dry_breaker_ids=(3,), min_new_tokens=2, end_ids=(0,), watermark=True),
        SamplingParams(has_grammar=True),
    )
    gpu = FakeGpu()
    with gpu:
        device = torch.device("cuda:0")
        sampler = Sampler(num_slots=len(samplings), device=device)
        feed = TokenFeed(num_slots=len(samplings), device=device)
        for slot, sampling in enumerate(samplings):
            sampler.admit(slot, sampling, SlotText(np.array([5, 6, 7]), np.array([8, 8])))
        feed.correct(np.array([1, 2]), np.array([9, 9]))
        adapters = LowRankTables(["q", "v"], device)
        adapters.put(9, {})
        adapters.remove(9)
        assert gpu.counts["copy to the GPU"] > 13
        assert gpu.num_waits == 0
        torch.zeros(3).to(device)
        assert gpu.num_waits == 1


def plant(runner: ModelRunner, do: Callable[[torch.Tensor], Any]) -> None:
    """Let the first norm of the model do something with its result, as modelling code might."""
    norm = next(module for module in runner.modules() if "Norm" in type(module).__name__)
    forward = norm.forward
    norm.forward = lambda x: forward(x) + do(x)


@pytest.mark.parametrize(
    ("do", "error"),
    [
        (lambda x: x.sum().item(), DataDependentOutputException),
        (lambda x: 1.0 if x.any() else 0.0, DataDependentOutputException),
        (lambda x: torch.zeros(x.shape[-1], dtype=x.dtype), RuntimeError),
    ],
    ids=["item", "bool", "tensor of the CPU"],
)
def test_a_planted_fault_fails(
    do: Callable[[torch.Tensor], Any], error: type[Exception], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu = FakeGpu()
    make_zoo_model(FLAT[0], tmp_path)
    runner = load_on(gpu, tmp_path, monkeypatch)
    plant(runner, do)
    with pytest.raises(error, match=r"_local_scalar_dense|two (different )?devices"):
        run_steps(gpu, runner, SAMPLINGS)


def test_a_kernel_that_gets_a_tensor_of_the_cpu_fails() -> None:
    gpu = FakeGpu()
    kernels = ShapeKernels(gpu)
    with gpu:
        there, here = torch.empty(2, 1, 4, device="cuda"), torch.empty(2, 1, 4)
        with pytest.raises(AssertionError, match="the kernel write_kv gets a tensor of the CPU"):
            kernels.write_kv(there, here, there, there, there, places_T=there, tables=None)


NUM_LAYERS = 32
# What a layer of a llama launches in a decode step: four products of matrices (q, k and v; out; gate and up; down); the
# write of keys and values, attention, and the merge of the parts into which the contexts of few rows are split; the
# gate; two sums with the residual, each with the norm behind the sum.
LAYER = 4 + 3 + 1 + 2
# Around the layers: embedding, first and last norm, head and its rows; the tables of cosines and sines; the plan of
# the tiles of attention; the two parts of the scan of the scores; the mark of rows that are not finite; the ids of the
# step before, which are read and replaced.
AROUND = 24


# What penalties and a bias of all rows add to a step: the first pass reads them with the scores, and each sampled id is
# taken into the lists of the repetition penalty and into those of the other two, with the counts.
LISTS = 25
# What draws with top-p add: the states and limits of the rows, the candidates and their noise, and the choice. The
# candidates of the parts of a row come with the first pass, and three more launches select those of the row, take their
# ids from the keys and read their scores.
DRAWS = 69


@pytest.mark.parametrize(
    ("sampling", "more"),
    [
        (SamplingParams(repetition_penalty=1.2, frequency_penalty=0.5, logit_bias=((5, 1.0),)), LISTS),
        (SamplingParams(do_sample=True, temperature=0.7, top_p=0.9, seed=3), DRAWS),
    ],
    ids=["penalties and bias", "top-p"],
)
def test_launches_that_sampling_adds(
    sampling: SamplingParams, more: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu = FakeGpu()
    make_tiny_llama(tmp_path, layers=1)
    runner = load_on(gpu, tmp_path, monkeypatch, dtype="float32")
    plain = run_steps(gpu, runner, (SamplingParams(),) * NUM_SLOTS)[-1]
    found = run_steps(gpu, runner, (sampling,) * NUM_SLOTS)[-1]
    assert found["scan_parts"] == found["merge_parts"] == 1
    assert found["topk"] == int(sampling.do_sample)
    assert found["copy to the GPU"] == 1
    assert found.total() - plain.total() == more, found - plain


# What adapters add to a decode step of a llama: two launches for each of the seven layers of a layer, and for the head.
ADAPTED_LAYER = 2 * 7


def test_launches_that_adapters_add(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = FakeGpu()
    make_tiny_llama(tmp_path, layers=3)
    runner = load_on(gpu, tmp_path, monkeypatch, dtype="float32", num_adapters=2)
    samplings = (SamplingParams(),) * NUM_SLOTS
    plain = run_steps(gpu, runner, samplings)[-1]
    found = run_steps(gpu, runner, samplings, (2, 0, 1, 1))[-1]
    assert found["copy to the GPU"] == 1
    assert plain["shrink"] == 0
    assert found.total() - plain.total() == 3 * ADAPTED_LAYER + 2, found - plain


@pytest.mark.parametrize("kv_type", ["auto", "fp8_e4m3fn"])
def test_launches_and_copies_of_a_decode_step_of_32_layers(
    kv_type: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu = FakeGpu()
    make_tiny_llama(tmp_path, layers=NUM_LAYERS)
    runner = load_on(gpu, tmp_path, monkeypatch, dtype="float32", kv_type=kv_type)
    counts = run_steps(gpu, runner, (SamplingParams(),) * NUM_SLOTS)[-1]
    assert counts["copy to the GPU"] == 1
    assert counts["copy to the host"] == 0
    assert counts["paged_attention"] == counts["merge_splits"] == counts["write_kv"] == NUM_LAYERS
    assert counts.total() - counts["copy to the GPU"] == NUM_LAYERS * LAYER + AROUND, counts


# A step that is a graph launches the graph, and a copy of its logits, which the next replay would overwrite. Behind it
# come the two parts of the scan of the scores, the mark of rows that are not finite, and the write of the ids to where
# the next graph finds them.
GRAPH_STEP = {"graph": 1, "clone": 1, "scan_parts": 1, "merge_parts": 1, "masked_fill": 1, "index_copy_": 1}
# Around the layers in the graph: what makes tensors of the packed numbers; embedding, first and last norm, head and its
# rows; the tables of cosines and sines; the plan of the tiles of attention.
AROUND_IN_GRAPH = 19


def test_launches_and_copies_of_a_graph_step_of_32_layers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = FakeGpu()
    make_tiny_llama(tmp_path, layers=NUM_LAYERS)
    runner = load_on(gpu, tmp_path, monkeypatch, dtype="float32")
    graphs = ShapeGraphs(gpu)
    counts = run_steps(gpu, runner, (SamplingParams(),) * NUM_SLOTS, graphs=graphs)
    assert counts[-1] == {"copy to the GPU": 1, **GRAPH_STEP}
    [of_graph] = graphs.launches
    assert of_graph["unpack_rows"] == 1
    assert of_graph["copy to the GPU"] == of_graph["copy to the host"] == 0
    assert of_graph.total() == NUM_LAYERS * LAYER + AROUND_IN_GRAPH, of_graph


def test_the_numbers_of_the_sampler_travel_with_those_of_the_graph(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are copied on the device, because the host may still need them when the next step has been sent."""
    gpu = FakeGpu()
    make_tiny_llama(tmp_path, layers=1)
    runner = load_on(gpu, tmp_path, monkeypatch, dtype="float32")
    eager = run_steps(gpu, runner, SAMPLINGS)[-1]
    found = run_steps(gpu, runner, SAMPLINGS, graphs=ShapeGraphs(gpu))[-1]
    assert found["copy to the GPU"] == found["graph"] == 1
    assert found["copy to the host"] == 0
    assert found["clone"] - eager["clone"] == 2  # of the logits, and of the sampler's numbers


def test_launches_and_copies_of_a_graph_step_with_adapters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = FakeGpu()
    make_tiny_llama(tmp_path, layers=3)
    runner = load_on(gpu, tmp_path, monkeypatch, dtype="float32", num_adapters=2)
    graphs = ShapeGraphs(gpu)
    counts = run_steps(gpu, runner, (SamplingParams(),) * NUM_SLOTS, (2, 0, 1, 1), graphs=graphs)
    assert counts[-1] == {"copy to the GPU": 1, **GRAPH_STEP}
    plain, adapted = graphs.launches
    assert adapted.total() - plain.total() == 3 * ADAPTED_LAYER + 2
    assert adapted["shrink"] == adapted["expand"] == 3 * 7 + 1


def test_the_memory_that_graphs_keep_is_set_aside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside the largest step the largest decode step is measured, and graphs are recorded to see what they take."""
    gpu = FakeGpu()
    make_tiny_llama(tmp_path, layers=1)
    runner = load_on(gpu, tmp_path, monkeypatch, dtype="float32")
    tokens: list[int] = []
    forward = runner.forward

    def note(batch: ForwardBatch) -> ForwardOutput:
        tokens.append(len(batch.input_ids_T))
        return forward(batch)

    taken: list[int] = []
    monkeypatch.setattr("textmill_shard.model.graph_trial.taken_bytes", lambda _: taken.pop(0))
    measured: list[int] = []

    def peak(_: torch.device, run: Callable[[], object]) -> int:
        run()
        measured.append(tokens[-1])
        return 1000 * tokens[-1]

    monkeypatch.setattr(runner, "forward", note)
    for name, number in (("total_memory_bytes", 10**9), ("free_memory_bytes", 10**9)):
        monkeypatch.setattr(f"textmill_shard.model.memory.{name}", lambda _, number=number: number)
    monkeypatch.setattr("textmill_shard.model.memory.peak_bytes", peak)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda *_: None)
    options = KvMemoryOptions(max_step_tokens=64, num_slots=8, memory_fraction=0.5)
    with gpu:
        plain = plan_kv_memory(runner, options)
        graphs = ShapeGraphs(gpu)
        taken[:] = [0, 7000, 7100]  # before, behind the graph of six rows, and behind that of three
        with_graphs = plan_kv_memory(runner, replace(options, graphs=GraphTrial(graphs, num_rows=6, num_graphs=5)))
        assert len(graphs.launches) == 2
        taken[:] = [0, 10**6, 2 * 10**6]
        with_large_graphs = plan_kv_memory(
            runner, replace(options, graphs=GraphTrial(graphs, num_rows=6, num_graphs=5))
        )
    # The logits of the step before, and the scores made of these, lie beside those of the largest step.
    assert plain.step_bytes == 64_000 + 2 * 8 * runner.facts.vocab_size * 4
    packed = 4 * (4 + 6 * (6 + runner.graph_sizes([6], num_slots=8).table_width))
    assert with_graphs.step_bytes - plain.step_bytes > 6000 + packed
    assert with_graphs.step_bytes - plain.step_bytes == 6000 + runner.graph_sizes([6], num_slots=8).num_bytes
    assert with_large_graphs.step_bytes - plain.step_bytes == 10**6 + 4 * 10**6
    assert measured == [64, 64, 6, 64, 6]
    assert with_large_graphs.num_blocks < with_graphs.num_blocks < plain.num_blocks
