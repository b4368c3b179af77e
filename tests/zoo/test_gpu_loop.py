"""The step loop of a rank runs over a GPU without values: each step is launched without a wait for the device.

Models of the zoo are tried step by step in `test_fake_gpu.py`. Here the whole loop runs, with every kind of sampling,
and what the host reads of a step comes from the reader of tokens alone.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from textmill_shard.distributed.parallel import TensorParallel
from textmill_shard.engine.adapter_reader import AdapterReader, SoloGroup
from textmill_shard.engine.draw_trial import DrawTrial
from textmill_shard.engine.follower import Follower
from textmill_shard.engine.rank_channel import RankEntry
from textmill_shard.engine.status import ShardStatus
from textmill_shard.engine.step_executor import StepExecutor
from textmill_shard.engine.token_feed import TokenFeed
from textmill_shard.model.forward_batch import ForwardBatch, ForwardOutput
from textmill_shard.model.runner import ModelRunner
from textmill_shard.model.shared_vocabulary import SharedVocabulary
from textmill_shard.native.ranks import RankRoom
from textmill_shard.sampling import draw
from textmill_shard.sampling.row_scan import DeviceRowScanner
from textmill_shard.sampling.sampler import Sampler
from textmill_shard.slots.plan import IdArray, Plan
from textmill_shard.slots.sampling_params import SamplingParams

from tests.fakes.fake_gpu import FakeGpu, ShapeKernels
from tests.fakes.formula_adapters import read_shift
from tests.fakes.step_engine import make_part_sampling
from tests.fakes.tiny_models import make_tiny_llama
from tests.zoo.gpu_drive import TwinRoom, load_on
from tests.zoo.gpu_loop import GRAMMAR, NUM_NEW, SAMPLINGS, loop_facts, run_loop, sampler_of


@pytest.fixture
def gpu() -> FakeGpu:
    return FakeGpu()


@pytest.fixture
def runner(gpu: FakeGpu, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModelRunner:
    make_tiny_llama(tmp_path, layers=1)
    return load_on(gpu, tmp_path, monkeypatch, dtype="float32")


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=range(len(SAMPLINGS)))
def test_no_kind_of_sampling_lets_the_host_wait(gpu: FakeGpu, runner: ModelRunner, sampling: SamplingParams) -> None:
    """The one copy of a step has its numbers, and the mask of a grammar, which comes later, is a copy of its own."""
    found = run_loop(gpu, runner, (sampling,))
    assert found.errors == []
    assert gpu.num_waits == 0
    assert sum(len(result.tokens) for result in found.results) == NUM_NEW
    for step in found.steps[1:]:  # the first one has the copies of the admission
        assert step["copy to the GPU"] == 1 + (sampling is GRAMMAR), step
        assert step["copy to the host"] == 0


@pytest.mark.parametrize("has_graphs", [False, True])
def test_rows_of_every_kind_run_beside_each_other(gpu: FakeGpu, runner: ModelRunner, has_graphs: bool) -> None:
    found = run_loop(gpu, runner, SAMPLINGS, has_graphs=has_graphs)
    assert found.errors == []
    assert gpu.num_waits == 0
    assert sum(len(result.tokens) for result in found.results) == NUM_NEW * len(SAMPLINGS)
    assert all(step["copy to the host"] == 0 for step in found.steps)
    assert sum(step["graph"] for step in found.steps) == (has_graphs and 3 * (NUM_NEW - 1))  # three fours of requests


Fault = Callable[[torch.Tensor], object]
Plant = Callable[[pytest.MonkeyPatch, ModelRunner, Fault], None]


def plant_in_build(monkeypatch: pytest.MonkeyPatch, runner: ModelRunner, fault: Fault) -> None:
    take = TokenFeed.take

    def faulty(feed: TokenFeed, input_ids_T: torch.Tensor, slots_R: torch.Tensor) -> torch.Tensor:
        fault(input_ids_T)
        return take(feed, input_ids_T, slots_R)

    monkeypatch.setattr(TokenFeed, "take", faulty)


def plant_in_forward(monkeypatch: pytest.MonkeyPatch, runner: ModelRunner, fault: Fault) -> None:
    norm = next(module for module in runner.modules() if "Norm" in type(module).__name__)
    forward = norm.forward

    def faulty(x: torch.Tensor) -> torch.Tensor:
        fault(x)
        found: torch.Tensor = forward(x)
        return found

    monkeypatch.setattr(norm, "forward", faulty)


def plant_in_draft(monkeypatch: pytest.MonkeyPatch, runner: ModelRunner, fault: Fault) -> None:
    draft = Sampler.draft

    def faulty(sampler: Sampler, logits_NV: torch.Tensor, *args: Any) -> Any:
        fault(logits_NV)
        return draft(sampler, logits_NV, *args)

    monkeypatch.setattr(Sampler, "draft", faulty)


def plant_in_append(monkeypatch: pytest.MonkeyPatch, runner: ModelRunner, fault: Fault) -> None:
    append = Sampler.append

    def faulty(sampler: Sampler, rows: Any, tokens_N: torch.Tensor) -> None:
        fault(tokens_N)
        append(sampler, rows, tokens_N)

    monkeypatch.setattr(Sampler, "append", faulty)


@pytest.mark.parametrize(
    "fault",
    [lambda x: x.sum().item(), lambda x: bool(x.any()), lambda x: x.tolist(), lambda x: x + torch.ones(x.shape[-1])],
    ids=["item", "bool", "tolist", "tensor of the CPU"],
)
@pytest.mark.parametrize(
    "plant", [plant_in_build, plant_in_forward, plant_in_draft, plant_in_append], ids=lambda plant: plant.__name__
)
def test_a_fault_planted_in_any_stage_fails(
    plant: Plant, fault: Fault, gpu: FakeGpu, runner: ModelRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(monkeypatch, runner, fault)
    with pytest.raises(Exception, match=r"_local_scalar_dense|two (different )?devices|of a fake tensor|tolist"):
        run_loop(gpu, runner, SAMPLINGS[:1])


class NotedChannel:
    """Keeps what rank 0 sends for a follower that runs later. Implements `RankChannel`."""

    needs_plans = True

    def __init__(self) -> None:
        self.entries: list[RankEntry] = []
        self.num_shared = 0

    def send(self, entry: RankEntry) -> None:
        self.entries.append(entry)

    def receive(self) -> RankEntry:
        return self.entries.pop(0)

    def share_tokens(self, tokens_N: IdArray) -> IdArray:
        raise AssertionError("the ids of a GPU go through its host")

    def share_tensor(self, tensor: torch.Tensor) -> None:
        assert tensor.device.type == "cuda"
        self.num_shared += 1


def test_ranks_that_share_a_vocabulary_wait_for_no_token(
    gpu: FakeGpu, runner: ModelRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rank 0 gives the ids from device to device, and the host of the other rank never has them."""
    size = runner.facts.vocab_size
    half = size // 2
    parallel = TensorParallel(0, 2, room=cast(RankRoom, TwinRoom()))
    vocabulary = SharedVocabulary(parallel, (half, size - half))
    forward = runner.forward

    def forward_half(batch: ForwardBatch, wants_hidden: bool = False) -> ForwardOutput:
        assert batch.keeps_parts
        output = forward(batch, wants_hidden)
        return replace(output, logits_NV=output.logits_NV[:, :half].contiguous())

    monkeypatch.setattr(runner, "forward", forward_half)
    channel = NotedChannel()
    found = run_loop(gpu, runner, SAMPLINGS, channel=channel, vocabulary=vocabulary)
    assert found.errors == []
    num_steps = sum(step.total() > 0 for step in found.steps)
    assert (gpu.num_waits, channel.num_shared) == (0, num_steps)
    assert all(step["copy to the host"] == 0 for step in found.steps)
    plans = {str(plan.number).encode(): plan for plan in found.plans}

    def read_plan(data: bytes) -> Plan:
        return plans[data]

    with gpu:
        runner.allocate_kv(1)
        facts = loop_facts(runner)
        gpu.counts.clear()
        Follower(
            executor=StepExecutor(runner=runner, facts=facts, has_overlap=True, vocabulary=vocabulary),
            channel=channel,
            status=ShardStatus(),
            read_plan=read_plan,
            reader=AdapterReader(read_shift, SoloGroup()),
            sampling=make_part_sampling(sampler_of(runner), facts, channel, vocabulary),
        ).run()
    assert channel.entries == []
    assert channel.num_shared == 2 * num_steps
    assert (gpu.num_waits, gpu.counts["copy to the host"]) == (0, 0)


@pytest.mark.parametrize("has_parts", [False, True])
def test_the_trial_of_the_largest_step_mixes_no_devices(
    gpu: FakeGpu, runner: ModelRunner, monkeypatch: pytest.MonkeyPatch, has_parts: bool
) -> None:
    """Its rows are settled too, for which the host waits. That is a matter of the start alone."""
    vocab_size, num_rows = 4000, 3
    vocabulary = None
    if has_parts:
        parallel = TensorParallel(0, 2, room=cast(RankRoom, TwinRoom()))
        vocabulary = SharedVocabulary(parallel, (vocab_size // 2, vocab_size // 2))
    # Which rows are open is a number, which a GPU without values does not have.
    monkeypatch.setattr(draw, "_groups", lambda marks_S: [torch.zeros(2, dtype=torch.int64, device=marks_S.device)])
    kernels = ShapeKernels(gpu)
    with gpu:
        trial = DrawTrial(
            num_slots=4,
            vocab_size=vocab_size,
            longest_text=50,
            device=torch.device("cuda:0"),
            scanner=DeviceRowScanner(kernels),
            vocabulary=vocabulary,
        )
        num_ids = vocab_size if vocabulary is None else vocabulary.num_ids
        trial.sample(ForwardOutput(logits_NV=torch.zeros(num_rows, num_ids, device="cuda:0"), hidden_TD=None))
    assert gpu.counts["scan_parts"] == (3 if has_parts else 2)  # by one pass, and where stages change the scores
    assert gpu.counts["sort"] >= 2  # of all scores of some rows
    assert gpu.counts["gumbel"] >= 8
