"""The step loop of rank 0 runs over a GPU without values: each step is launched without a wait for the device.

Models of the zoo are tried step by step in `test_fake_gpu.py`. Here the whole loop runs, with every kind of sampling,
and what the host reads of a step comes from the reader of tokens alone.
"""

import threading
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from textmill_shard.engine.status import ShardStatus
from textmill_shard.engine.step_executor import StepExecutor
from textmill_shard.engine.token_feed import TokenFeed
from textmill_shard.engine.token_reader import HostMark, Mark, StepRead, TokenReader
from textmill_shard.engine.upload import pack_tensors
from textmill_shard.model.runner import ModelRunner
from textmill_shard.sampling.row_scan import DeviceRowScanner
from textmill_shard.sampling.sampler import Sampler
from textmill_shard.slots.plan import FLAG_FINISHED, Admit, Grammar, Plan, StepResult
from textmill_shard.slots.sampling_params import SamplingParams

from tests.fakes.fake_gpu import FakeGpu, ShapeGraphs
from tests.fakes.step_engine import make_engine
from tests.fakes.step_harness import WAIT_S, admit
from tests.fakes.tiny_models import make_tiny_llama
from tests.zoo.drive import BUDGET, NUM_BLOCKS, NUM_SLOTS, zoo_facts
from tests.zoo.gpu_drive import load_on

NUM_NEW = 6
STOP_ID = 200  # no id that the reader reads
NUM_CANDIDATES = 16  # so few that a row may have to look at more of its scores
GRAMMAR = SamplingParams(has_grammar=True)
# Each stage of the sampler, each way to draw, and what a request may ask about its tokens.
SAMPLINGS = (
    SamplingParams(),
    SamplingParams(wants_logprobs=True, top_n_tokens=3),
    SamplingParams(repetition_penalty=1.2, presence_penalty=0.1, frequency_penalty=0.5),
    SamplingParams(logit_bias=((5, 1.0),), min_new_tokens=4),
    SamplingParams(allowed_ids=(0, 1, 2), forced_first_ids=(0, 1), forced_last_ids=(0,)),
    SamplingParams(bad_sequences=((1,), (2, 3, 4)), no_repeat_ngram_size=2),
    SamplingParams(dry_multiplier=1.0, dry_breaker_ids=(3,)),
    SamplingParams(do_sample=True, seed=1),
    SamplingParams(do_sample=True, temperature=0.7, top_k=5, top_p=0.9, min_p=0.01, seed=2),
    SamplingParams(do_sample=True, typical_p=0.9, watermark=True, seed=3, wants_logprobs=True, top_n_tokens=2),
    GRAMMAR,
)


class AnyToken:
    """A matcher that lets every id follow."""

    def __init__(self, vocab_size: int) -> None:
        self._vocab_size = vocab_size

    def allowed(self) -> Any:
        return np.ones(self._vocab_size, dtype=bool)

    def consume(self, tokens: Sequence[int]) -> None:
        """Take any tokens."""


@dataclass
class AnyTokens:
    """Makes such matchers."""

    vocab_size: int

    def build(self, grammar: Grammar, output_ids: Sequence[int] = (), *, caller: int = 0) -> AnyToken:
        return AnyToken(self.vocab_size)


class NumberReader(TokenReader):
    """Reads made-up numbers, because the tensors have no values. Notes what each step launched before its read."""

    def __init__(self, gpu: FakeGpu) -> None:
        super().__init__(torch.device("cuda:0"), mark=lambda device: HostMark(0))
        self._counts = gpu.counts
        self.steps: list[Counter[str]] = []

    def begin(self, tensors: Sequence[torch.Tensor], began: Mark, on_read: Callable[[], None]) -> Future[StepRead]:
        self.steps.append(Counter(self._counts))
        if tensors:
            pack_tensors(tensors)
        self._counts.clear()
        done: Future[StepRead] = Future()
        done.set_result(StepRead([_values_of(tensor) for tensor in tensors], 0))
        on_read()
        return done


def _values_of(tensor: torch.Tensor) -> Any:
    """Return zeros, and falling numbers for scores, because scores that tie would be looked at again."""
    values = np.zeros(tuple(tensor.shape), dtype=str(tensor.dtype).removeprefix("torch."))
    return values - np.arange(tensor.shape[-1], dtype=values.dtype) if values.dtype.kind == "f" else values


@dataclass
class Found:
    """What a run of the loop has told. `steps` has what each step launched and copied."""

    steps: list[Counter[str]] = field(default_factory=list)
    results: list[StepResult] = field(default_factory=list)

    @property
    def errors(self) -> list[str]:
        return [error.message for result in self.results for error in result.errors]


def request_of(slot: int, request_id: int, sampling: SamplingParams) -> Admit:
    return admit(
        slot,
        [7, 8, 9, 4, 4][: 2 + slot],
        request_id=request_id,
        max_new=NUM_NEW,
        sampling=sampling,
        ignore_eos=True,
        stop_ids=(STOP_ID,),
        grammar=Grammar("any") if sampling is GRAMMAR else None,
    )


def run_loop(
    gpu: FakeGpu, runner: ModelRunner, samplings: Sequence[SamplingParams], *, has_graphs: bool = False
) -> Found:
    """Run a request of each sampling to its end, four at a time. Raises what the loop raises.

    The loop runs in this thread, because the GPU without values is that of one thread.
    """
    found = Found()
    with gpu:
        runner.allocate_kv(NUM_BLOCKS)
        if has_graphs:
            assert runner.record_graphs(
                ShapeGraphs(gpu),
                (NUM_SLOTS,),
                lambda share: None,
                num_slots=NUM_SLOTS,
                check=lambda bucket, adapter: "",  # there are no values to compare
            )
        facts = replace(zoo_facts(runner), features=("grammar",))
        executor = StepExecutor(runner=runner, facts=facts, has_overlap=True)
        assert runner.device_scans is not None
        sampler = Sampler(
            num_slots=NUM_SLOTS,
            device=executor.device,
            num_candidates=NUM_CANDIDATES,
            scanner=DeviceRowScanner(runner.device_scans),
        )
        matchers: Any = AnyTokens(facts.vocab_size)
        reader = NumberReader(gpu)
        engine = make_engine(
            executor, facts, status=ShardStatus(), sampler=sampler, matchers=matchers, token_reader=reader
        )
        session = engine.open_session()
        assert session is not None

        def play_router() -> None:
            """Send requests in fours, and read what the loop tells of them until they or the stream have ended."""
            try:
                for number, first in enumerate(range(0, len(samplings), NUM_SLOTS), 1):
                    group = samplings[first : first + NUM_SLOTS]
                    admits = tuple(request_of(slot, first + slot, sampling) for slot, sampling in enumerate(group))
                    engine.submit_plan(session, Plan(number, (), (), admits, BUDGET), b"")
                    num_ended = 0
                    while num_ended < len(group):
                        item = session.next_item(WAIT_S)
                        if not isinstance(item, StepResult):
                            return  # the loop has raised
                        found.results.append(item)
                        num_ended += int(np.count_nonzero(item.flags & FLAG_FINISHED)) + len(item.errors)
            finally:
                engine.stop()

        router = threading.Thread(target=play_router)
        router.start()
        gpu.num_waits = 0
        try:
            engine.run()
        finally:
            router.join(WAIT_S)
        found.steps = reader.steps
    return found


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
