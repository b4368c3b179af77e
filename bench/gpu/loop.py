"""Runs requests through the real step loop of a shard, without router and processes: what overlap and graphs change."""

import statistics
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from textmill_shard.engine.adapter_desk import AdapterDesk
from textmill_shard.engine.adapter_reader import AdapterReader, SoloGroup
from textmill_shard.engine.engine import Engine
from textmill_shard.engine.rank_channel import SoloChannel
from textmill_shard.engine.row_sampling import RowSampler
from textmill_shard.engine.session import StreamEnd
from textmill_shard.engine.status import ShardStatus
from textmill_shard.engine.step_executor import StepExecutor
from textmill_shard.engine.token_reader import TokenReader
from textmill_shard.grammar.slots import GrammarSlots
from textmill_shard.model.adapter import PreparedAdapter
from textmill_shard.model.runner import ModelRunner
from textmill_shard.sampling.row_scan import DeviceRowScanner
from textmill_shard.sampling.sampler import Sampler
from textmill_shard.slots.finish_rules import FinishRules
from textmill_shard.slots.plan import Admit, Budget, Drop, Plan, ShardFacts, StepResult
from textmill_shard.slots.sampling_params import SamplingParams

WAIT_S = 120.0


@dataclass(frozen=True, slots=True)
class Request:
    """One request of a run, in the slot of its place in the list."""

    prompt: Sequence[int]
    max_new: int
    sampling: SamplingParams = field(default_factory=SamplingParams)
    output: Sequence[int] = ()  # tokens that it has from before a preemption
    shares_of: int | None = None  # place of the request whose first blocks this one finds computed


@dataclass(frozen=True, slots=True)
class StepTimes:
    """The seconds of one step that decodes alone."""

    whole_s: float  # from the result before to this result
    device_s: float  # on the clock of the device
    host_s: float  # processor time of the thread that runs the steps


@dataclass(slots=True)
class LoopRun:
    """What a run has given."""

    tokens: list[list[int]]
    seconds: float = 0.0
    decodes: list[StepTimes] = field(default_factory=list)

    def median_ms(self, seconds_of: Callable[[StepTimes], float]) -> float:
        """Return the median over the steps that decode alone."""
        return 1e3 * statistics.median(map(seconds_of, self.decodes)) if self.decodes else float("nan")


class StepLoop:
    """A shard's step loop over a runner, whose pool must be allocated. Use it as a context manager."""

    def __init__(
        self, runner: ModelRunner, *, num_slots: int, num_blocks: int, max_step_tokens: int, has_overlap: bool
    ) -> None:
        facts = ShardFacts(
            model_id="bench",
            model_sha="",
            model_type=runner.facts.model_type,
            dtype=runner.facts.dtype,
            device=runner.facts.device,
            rank=0,
            world_size=1,
            block_size=runner.facts.block_size,
            num_blocks=num_blocks,
            num_slots=num_slots,
            max_step_tokens=max_step_tokens,
            vocab_size=runner.facts.vocab_size,
            eos_token_ids=(),
            max_model_tokens=0,
            layout=runner.facts.layout,
            features=("prefix_cache",),
            tokenizer_digest="",
            weight_bytes=runner.facts.weight_bytes,
            kv_bytes=0,
        )
        self._block_size = facts.block_size
        self._max_step_tokens = max_step_tokens
        executor = StepExecutor(runner=runner, facts=facts, has_overlap=has_overlap)
        rules = FinishRules(())
        grammars = GrammarSlots(None, rules)
        scanner = None if runner.device_scans is None else DeviceRowScanner(runner.device_scans)
        sampler = Sampler(num_slots=num_slots, device=executor.device, scanner=scanner)
        reader = AdapterReader(_no_adapter, SoloGroup())
        self._engine = Engine(
            executor=executor,
            row_sampler=RowSampler(sampler=sampler, finish_rules=rules, grammars=grammars, has_overlap=has_overlap),
            grammars=grammars,
            finish_rules=rules,
            channel=SoloChannel(),
            adapters=AdapterDesk(executor, reader, max_bytes=0),
            status=ShardStatus(),
            lease_s=WAIT_S,
            reader=TokenReader(executor.device) if has_overlap else None,
        )
        self._thread = threading.Thread(target=self._engine.run, name="step-loop", daemon=True)
        self._session = self._engine.open_session()
        self._plan_number = 0

    def __enter__(self) -> "StepLoop":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._engine.stop()
        self._thread.join(WAIT_S)

    def run(self, requests: Sequence[Request], *, chunk_tokens: int | None = None) -> LoopRun:
        """Run requests side by side to their ends. Later ones that share blocks wait for the first to be computed."""
        blocks = self._blocks_of(requests)
        found = LoopRun(tokens=[[] for _ in requests])
        waiting = [place for place, request in enumerate(requests) if request.shares_of is not None]
        first = [place for place in range(len(requests)) if place not in waiting]
        budget = Budget(self._max_step_tokens, self._max_step_tokens, chunk_tokens or self._max_step_tokens)
        began_s = time.perf_counter()
        self._send(
            admits=[_admit(place, requests[place], blocks[place], self._block_size) for place in first], budget=budget
        )
        num_open = len(first)
        result_s, host_s = began_s, self._host_s()
        while num_open:
            result = self._next()
            before_s, result_s = result_s, time.perf_counter()
            before_host_s, host_s = host_s, self._host_s()
            if result.step and not len(result.prefill_slots):
                times = StepTimes(result_s - before_s, result.device_ns / 1e9, host_s - before_host_s)
                found.decodes.append(times)
            for slot, token, flag in zip(
                result.slots.tolist(), result.tokens.tolist(), result.flags.tolist(), strict=True
            ):
                found.tokens[slot].append(token)
                num_open -= flag > 0
            if waiting and all(found.tokens[place] for place in first):
                self._send(
                    admits=[_admit(place, requests[place], blocks[place], self._block_size) for place in waiting]
                )
                num_open += len(waiting)
                waiting = []
        found.seconds = time.perf_counter() - began_s
        return found

    def _host_s(self) -> float:
        """Return the processor time that the thread of the steps has used so far."""
        assert self._thread.ident is not None
        return time.clock_gettime(time.pthread_getcpuclockid(self._thread.ident))

    def run_preempted(self, request: Request, *, after: int) -> list[int]:
        """Run one request, drop it after so many tokens, admit it again with its tokens, and return all of them."""
        [blocks] = self._blocks_of([request])
        self._send(
            admits=[_admit(0, request, blocks, self._block_size)],
            budget=Budget(*(self._max_step_tokens,) * 3),
        )
        tokens: list[int] = []
        while len(tokens) < after:
            tokens += self._next().tokens.tolist()
        number = self._send(drops=[Drop(slot=0, request_id=0)])
        while True:
            result = self._next()
            if result.plan_applied >= number:
                break
        again = Request(request.prompt, request.max_new, request.sampling, output=tokens[:after])
        self._send(admits=[_admit(0, again, blocks, self._block_size)])
        tokens = tokens[:after]
        while len(tokens) < request.max_new:
            tokens += self._next().tokens.tolist()
        return tokens

    def _blocks_of(self, requests: Sequence[Request]) -> list[list[int]]:
        taken, blocks = 0, list[list[int]]()
        for request in requests:
            num_blocks = -(-(len(request.prompt) + request.max_new) // self._block_size)
            own = list(range(taken, taken + num_blocks))
            taken += num_blocks
            if request.shares_of is not None:
                num_shared = _num_shared(request, self._block_size)
                own[:num_shared] = blocks[request.shares_of][:num_shared]
            blocks.append(own)
        return blocks

    def _send(self, *, admits: Sequence[Admit] = (), drops: Sequence[Drop] = (), budget: Budget | None = None) -> int:
        assert self._session is not None
        self._plan_number += 1
        plan = Plan(self._plan_number, drops=tuple(drops), extends=(), admits=tuple(admits), budget=budget)
        self._engine.submit_plan(self._session, plan, b"")
        return self._plan_number

    def _next(self) -> StepResult:
        assert self._session is not None
        item = self._session.next_item(WAIT_S)
        if isinstance(item, StreamEnd) or not isinstance(item, StepResult):
            raise RuntimeError(f"the step loop has ended: {item}")
        if item.errors:
            raise RuntimeError(f"a request has failed: {item.errors[0]}")
        return item


def _num_shared(request: Request, block_size: int) -> int:
    return (len(request.prompt) - 1) // block_size


def _admit(place: int, request: Request, blocks: Sequence[int], block_size: int) -> Admit:
    num_cached = 0 if request.shares_of is None else _num_shared(request, block_size) * block_size
    return Admit(
        request_id=place,
        slot=place,
        prompt_ids=np.array(request.prompt, dtype=np.int64),
        output_ids=np.array(request.output, dtype=np.int64),
        num_cached_tokens=num_cached,
        block_ids=np.array(blocks, dtype=np.int64),
        max_new_tokens=request.max_new,
        sampling=request.sampling,
        ignore_eos=True,
    )


def _no_adapter(folder: Path) -> PreparedAdapter:
    raise AssertionError("no adapter is loaded here")
