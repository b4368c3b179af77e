"""Without graphs, without overlap, and without both, requests of every kind have the tokens that they have with both.

The model is a tiny llama. Its graphs are recorded by a recorder that runs no Python at a replay, and its kernels are
stood in for by plain torch. The tokens reach the host after random times.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from textmill_shard.loader.load_options import LoadOptions
from textmill_shard.loader.model_loader import load_model
from textmill_shard.model.adapter import AdapterWeights, LowRank
from textmill_shard.model.runner import ModelRunner
from textmill_shard.slots.beam_blocks import num_search_blocks
from textmill_shard.slots.plan import Admit, Beams, EarlyStopping
from textmill_shard.slots.sampling_params import SamplingParams

from tests.fakes.late_tokens import late_reader
from tests.fakes.plain_kernels import PlainKernels, load_by
from tests.fakes.random_requests import BUDGET, JUDGES, Seen, make_requests, run_requests
from tests.fakes.recorded_graphs import FakeGraphRecorder, RecordedKernels
from tests.fakes.shard_facts import facts_of
from tests.fakes.step_harness import BLOCK_SIZE, NUM_BLOCKS, NUM_SLOTS, VOCAB_SIZE, Shard, admit, ids, tokens_by_slot
from tests.fakes.tiny_models import make_tiny_llama

MAX_RANK = 4  # of adapters
BOTH_OFF = (False, False)
SWITCHES = ((True, False), (False, True), (True, True))  # graphs, overlap


@dataclass(frozen=True)
class Served:
    """A shard whose model has graphs or none, whose steps overlap or not."""

    shard: Shard
    runner: ModelRunner
    recorder: FakeGraphRecorder
    num_recorded: int  # replays at the start, which compare graphs with steps

    @property
    def num_replays(self) -> int:
        return self.recorder.num_replays - self.num_recorded


Serve = Callable[[bool, bool], Served]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_llama(tmp_path_factory.mktemp("switches"), vocab=VOCAB_SIZE, seed=4)


@pytest.fixture
def serve(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Serve:
    def start(has_graphs: bool, has_overlap: bool) -> Served:
        kernels: Any = RecordedKernels(PlainKernels())
        load_by(monkeypatch, kernels)
        options = LoadOptions(model_dir=folder, dtype="float32", block_size=BLOCK_SIZE, num_slots=NUM_SLOTS)
        runner = load_model(options, lambda phase, share: None)
        runner.allocate_kv(NUM_BLOCKS)
        recorder = FakeGraphRecorder(kernels)
        if has_graphs:
            buckets = (1, 2, NUM_SLOTS)
            assert runner.record_graphs(
                recorder, buckets, lambda share: None, num_slots=NUM_SLOTS, adapter_rank=MAX_RANK
            )
        facts = facts_of(
            runner,
            block_size=BLOCK_SIZE,
            num_blocks=NUM_BLOCKS,
            num_slots=NUM_SLOTS,
            max_step_tokens=64,
            eos_token_ids=(),
            features=("grammar", "prompt_logprobs", "beams"),
        )
        reader = late_reader() if has_overlap else None
        shard = Shard(facts=facts, runner=runner, matchers=JUDGES, token_reader=reader)
        return Served(shard, runner, recorder, recorder.num_replays)

    return start


def assert_same(found: Seen, expected: Seen) -> None:
    """Compare what two runs tell of a request. Sums in another order change the last digits of log-probabilities."""
    assert (found.tokens, found.end) == (expected.tokens, expected.end)
    assert [ids_T for ids_T, _ in found.tops] == [ids_T for ids_T, _ in expected.tops]
    assert found.logprobs == pytest.approx(expected.logprobs, abs=1e-3)
    assert found.prompt_logprobs == pytest.approx(expected.prompt_logprobs, abs=1e-3)


@pytest.mark.parametrize("seed", range(2))
def test_requests_of_every_kind_have_the_same_tokens(serve: Serve, seed: int) -> None:
    """The requests have penalties, seeds, watermarks, grammars, stop ids and more, and some are preempted."""
    requests = make_requests(Random(seed), 24)
    assert any(request.has_grammar for request in requests)
    assert any(request.stop_ids for request in requests)
    assert any(request.sampling.watermark for request in requests)

    def run(has_graphs: bool, has_overlap: bool) -> dict[int, Seen]:
        served = serve(has_graphs, has_overlap)
        with served.shard as shard:
            shard.send(budget=BUDGET)
            found = run_requests(requests, shard, Random(seed), disturbs=has_graphs or has_overlap)
        assert shard.error is None
        assert (served.num_replays > 20) == has_graphs
        return found

    expected = run(*BOTH_OFF)
    for switches in SWITCHES:
        found = run(*switches)
        for number, request in enumerate(requests):
            try:
                assert_same(found[number], expected[number])
            except AssertionError as error:
                raise AssertionError(f"graphs and overlap {switches}: {request}") from error


def adapter_of(runner: ModelRunner, seed: int) -> AdapterWeights:
    """Return an adapter of all layers whose products are as large as the outputs that they change."""
    random = torch.Generator().manual_seed(seed)
    modules = {
        path: LowRank(
            a_rI=torch.randn(seed, part.in_features, generator=random) / part.in_features**0.5,
            b_Or=torch.randn(part.out_features, seed, generator=random) / seed**0.5,
            scale=1.0,
        )
        for path, part in runner.targets.linears.items()
    }
    return AdapterWeights(digest=bytes([seed]) * 16, modules=modules, max_rank=seed)


def search(slot: int, prompt: Sequence[int], *, first_block: int) -> Admit:
    made = replace(admit(slot, prompt, max_new=8, blocks=()), beams=Beams(3, 2, 1.0, EarlyStopping.NO))
    count = num_search_blocks(made, block_size=BLOCK_SIZE)
    return replace(made, block_ids=ids(range(first_block, first_block + count)))


def test_adapters_and_searches_by_beams_have_the_same_tokens(serve: Serve) -> None:
    def run(has_graphs: bool, has_overlap: bool) -> tuple[dict[int, list[int]], list[list[list[int]]]]:
        served = serve(has_graphs, has_overlap)
        shard = served.shard
        for rank in (2, 4):
            shard.executor.put_adapter(served.runner.adapters.prepare(adapter_of(served.runner, rank)))
        draws = SamplingParams(do_sample=True, seed=5, repetition_penalty=1.2)
        with shard:
            shard.send(
                admits=[
                    search(0, [5, 3, 8, 1, 9], first_block=0),
                    admit(1, [6, 2], max_new=9, blocks=range(16, 19), adapter_digest=bytes([2]) * 16),
                    admit(2, [6, 2], max_new=12, blocks=range(19, 23), adapter_digest=bytes([4]) * 16, sampling=draws),
                    admit(3, [6, 2], max_new=12, blocks=range(23, 27)),
                ]
            )
            shard.run_to_end(0, 1, 2, 3)
        assert shard.error is None
        assert (served.num_replays > 15) == has_graphs
        found = [one.sequences for result in shard.results for one in result.found]
        return tokens_by_slot(shard.results), [[sequence.tolist() for sequence in one] for one in found]

    expected = run(*BOTH_OFF)
    tokens, [sequences] = expected
    assert tokens[1] != tokens[3][:9]
    assert len(sequences) == 2
    assert all(run(*switches) == expected for switches in SWITCHES)
