"""The router's scheduler and the shard's step loop preempt requests with grammars, because the pool is too small.

Plans and results take the way over the wire's messages. The model is a tiny random llama in fp32.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from jsonschema import Draft202012Validator
from textmill_router.engine.wire import plan_to_proto, result_from_proto
from textmill_router.grammar.request_forms import schema_grammar
from textmill_router.request import (
    FinishReason,
    GenerationParameters,
    GenerationRequest,
    Grammar,
    RequestId,
    SamplingParameters,
    token_array,
)
from textmill_router.scheduler.config import SchedulerConfig
from textmill_router.scheduler.plan import Budget, Plan, ShardPool
from textmill_router.scheduler.scheduler import Scheduler
from textmill_shard.engine.session import EndReason
from textmill_shard.grammar.matcher import MatcherFactory
from textmill_shard.loader.load_options import LoadOptions
from textmill_shard.loader.model_loader import load_model
from textmill_shard.server.wire import plan_from_wire, result_to_wire

from tests.fakes.byte_tokenizer import END_ID
from tests.fakes.step_harness import BLOCK_SIZE, FACTS, Shard
from tests.fakes.tiny_models import VOCAB_SIZE, make_tiny_llama

NUM_BLOCKS = 36  # 144 tokens; a request needs up to 85
NUM_SLOTS = 8
MAX_STEP_TOKENS = FACTS.max_step_tokens
NUM_NEW_TOKENS = 70
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 8, "maxLength": 12},
        "tags": {"type": "array", "items": {"enum": ["x", "yy", "zzz"]}, "minItems": 2, "maxItems": 4},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
    },
    "required": ["name", "tags", "age"],
    "additionalProperties": False,
}
SCHEMA = schema_grammar(PERSON, field="schema").whole_output()
# Each token depends on all tokens before it, so a request that begins again in the middle must give another text.
COUNTER = Grammar("start: /" + "".join(f"{letter}[0-9]{{2,4}}" for letter in "abcdefghij") + "/")
ALL_AT_ONCE = SamplingParameters(
    do_sample=True,
    temperature=1.2,
    top_k=200,
    top_p=0.98,
    min_p=0.0001,
    typical_p=0.99,
    repetition_penalty=1.2,
    presence_penalty=0.3,
    frequency_penalty=0.2,
    logit_bias=((ord("7"), 3.0),),
)


class Pair:
    """A scheduler and a shard that exchange messages in one process."""

    def __init__(self, shard: Shard, *, max_chunk_tokens: int) -> None:
        self._shard = shard
        self._epoch = shard.session.epoch
        self.readmits: list[Plan] = []
        self.scheduler = Scheduler(
            SchedulerConfig(
                Budget(MAX_STEP_TOKENS, 2 * max_chunk_tokens, max_chunk_tokens),
                max_waiting_requests=100,
                max_waiting_tokens=10_000,
                grant_ahead_tokens=8,
                regrant_below_tokens=4,
            )
        )
        pool = ShardPool(
            num_slots=NUM_SLOTS,
            num_blocks=NUM_BLOCKS,
            block_size=BLOCK_SIZE,
            max_step_tokens=MAX_STEP_TOKENS,
        )
        self._send(self.scheduler.begin_epoch(pool, 0.0).plans)

    def _send(self, plans: Sequence[Plan]) -> None:
        for plan in plans:
            message = plan_to_proto(plan, self._epoch).plan
            self._shard.engine.submit_plan(self._shard.session, plan_from_wire(message), b"")

    def run(self, requests: Sequence[GenerationRequest]) -> dict[int, tuple[list[int], FinishReason]]:
        """Submit all requests at once, and return the tokens and the end of each.

        Counts the requests that are admitted again in the middle of a grammar.
        """
        tokens: dict[int, list[int]] = {request.request_id: [] for request in requests}
        ends: dict[int, FinishReason] = {}
        for request in requests:
            self.scheduler.on_submit(request, request.arrival_s)
        self._send(self.scheduler.on_tick(0.0))
        while len(ends) < len(requests):
            message = result_to_wire(self._epoch, self._shard.next_result())
            decision = self.scheduler.on_step(result_from_proto(message.result), 0.0)
            for plan in decision.plans:
                if any(admit.request.parameters.grammar is not None and admit.output_ids for admit in plan.admits):
                    self.readmits.append(plan)
            self._send(decision.plans)
            for output in decision.outputs:
                assert output.failure is None, output.failure
                tokens[output.request_id] += output.tokens
                if output.finish is not None:
                    ends[output.request_id] = output.finish
        return {request_id: (found, ends[request_id]) for request_id, found in tokens.items()}


@pytest.fixture(scope="module")
def shard(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shard]:
    folder: Path = make_tiny_llama(tmp_path_factory.mktemp("tiny") / "llama")
    torch.set_num_threads(1)
    runner = load_model(LoadOptions(model_dir=folder, dtype="float32", block_size=BLOCK_SIZE), lambda phase, part: None)
    runner.allocate_kv(NUM_BLOCKS)
    matchers = MatcherFactory((folder / "tokenizer.json").read_text(), vocab_size=VOCAB_SIZE, eos_token_ids=(END_ID,))
    facts = replace(
        FACTS,
        model_id="tiny",
        model_type="llama",
        num_blocks=NUM_BLOCKS,
        num_slots=NUM_SLOTS,
        vocab_size=VOCAB_SIZE,
        eos_token_ids=(END_ID,),
        max_model_tokens=512,
        features=("prefix_cache", "prompt_logprobs", "grammar"),
    )
    with Shard(facts=facts, runner=runner, matchers=matchers) as running:
        yield running


def make_requests(sampling: SamplingParameters, *, watermark: bool) -> list[GenerationRequest]:
    """Return two prompts with three sequences each, as best_of makes them, and two requests without a grammar."""
    requests = []
    for number in range(8):
        is_first = number % 3 == 0
        prompt = [*b"say it: ", *([number // 3] * 7)]
        requests.append(
            GenerationRequest(
                request_id=RequestId(number + 1),
                prompt_ids=token_array(prompt),
                max_new_tokens=NUM_NEW_TOKENS,
                arrival_s=float(number),
                parameters=GenerationParameters(
                    sampling=replace(sampling, seed=number),
                    grammar=(SCHEMA, COUNTER, None)[number // 3],
                    watermark=watermark,
                    ignore_eos=number >= 6,
                ),
                shares_prompt_of=None if is_first or number >= 6 else RequestId(number - number % 3 + 1),
            )
        )
    return requests


@pytest.mark.parametrize(
    ("sampling", "watermark", "max_chunk_tokens"),
    [(SamplingParameters(do_sample=True, temperature=1.5), False, 3), (ALL_AT_ONCE, True, 32)],
    ids=["wild", "all at once"],
)
def test_a_preempted_grammar_goes_on_where_it_was(
    shard: Shard, sampling: SamplingParameters, watermark: bool, max_chunk_tokens: int
) -> None:
    shard.engine.close_session(shard.session, EndReason.ROUTER_LEFT, "the next test")
    shard.engine.close_session(shard.session, EndReason.ROUTER_LEFT, "the next test")
    shard.connect()
    pair = Pair(shard, max_chunk_tokens=max_chunk_tokens)
    requests = make_requests(sampling, watermark=watermark)
    alone: dict[int, tuple[list[int], FinishReason]] = {}
    for request in requests:
        again = replace(request, request_id=RequestId(100 + request.request_id), shares_prompt_of=None)
        alone[request.request_id] = pair.run([again])[again.request_id]
    assert pair.scheduler.counters.num_preemptions == 0
    assert pair.run(requests) == alone
    assert pair.scheduler.counters.num_preemptions >= 2
    assert pair.readmits  # in the middle of a grammar
    assert pair.scheduler.counters.num_prefix_hit_tokens > 0
    for number in range(3):
        tokens, finish = alone[number + 1]
        if finish is FinishReason.EOS:
            Draft202012Validator(PERSON).validate(json.loads(bytes(tokens[:-1])))
    assert sum(finish is FinishReason.EOS for _, finish in alone.values()) >= 3
