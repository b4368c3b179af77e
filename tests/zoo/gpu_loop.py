"""Runs the step loop of rank 0 over a GPU without values, in the thread of the test.

Numbers that the host reads of a step are made up by the reader of tokens, because the tensors have none.
"""

import threading
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from textmill_shard.engine.rank_channel import RankChannel
from textmill_shard.engine.status import ShardStatus
from textmill_shard.engine.step_executor import StepExecutor
from textmill_shard.engine.token_reader import HostMark, Mark, StepRead, TokenReader
from textmill_shard.engine.upload import pack_tensors
from textmill_shard.model.runner import ModelRunner
from textmill_shard.model.shared_vocabulary import SharedVocabulary
from textmill_shard.sampling.row_scan import DeviceRowScanner
from textmill_shard.sampling.sampler import Sampler
from textmill_shard.slots.plan import FLAG_FINISHED, Admit, Grammar, Plan, ShardFacts, StepResult
from textmill_shard.slots.sampling_params import SamplingParams

from tests.fakes.fake_gpu import FakeGpu, ShapeGraphs
from tests.fakes.step_engine import make_engine
from tests.fakes.step_harness import WAIT_S, admit
from tests.zoo.drive import BUDGET, NUM_BLOCKS, NUM_SLOTS, zoo_facts

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

    plans: list[Plan] = field(default_factory=list)
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


def loop_facts(runner: ModelRunner) -> ShardFacts:
    return replace(zoo_facts(runner), features=("grammar",))


def sampler_of(runner: ModelRunner) -> Sampler:
    assert runner.device_scans is not None
    return Sampler(
        num_slots=NUM_SLOTS,
        device=runner.device,
        num_candidates=NUM_CANDIDATES,
        scanner=DeviceRowScanner(runner.device_scans),
    )


def run_loop(
    gpu: FakeGpu,
    runner: ModelRunner,
    samplings: Sequence[SamplingParams],
    *,
    has_graphs: bool = False,
    channel: RankChannel | None = None,
    vocabulary: SharedVocabulary | None = None,
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
        facts = loop_facts(runner)
        executor = StepExecutor(runner=runner, facts=facts, has_overlap=True, vocabulary=vocabulary)
        matchers: Any = AnyTokens(facts.vocab_size)
        reader = NumberReader(gpu)
        engine = make_engine(
            executor,
            facts,
            status=ShardStatus(),
            channel=channel,
            sampler=sampler_of(runner),
            matchers=matchers,
            token_reader=reader,
            vocabulary=vocabulary,
        )
        session = engine.open_session()
        assert session is not None

        def play_router() -> None:
            """Send requests in fours, and read what the loop tells of them until they or the stream have ended."""
            try:
                for number, first in enumerate(range(0, len(samplings), NUM_SLOTS), 1):
                    group = samplings[first : first + NUM_SLOTS]
                    admits = tuple(request_of(slot, first + slot, sampling) for slot, sampling in enumerate(group))
                    found.plans.append(Plan(number, (), (), admits, BUDGET))
                    engine.submit_plan(session, found.plans[-1], str(number).encode())
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
