"""The real step loop over a model that is a formula: its next token follows from the tokens in its KV places.

The pool of `PrefixRunner` keeps the token written to each place. A logit row reads its whole context back through the
block table, so a wrong block, place, position or order gives another token than `next_token`. In the place of a
placeholder the pool keeps the one number of the row that stands there, which the "tower" makes from a pixel.
"""

import threading
import time
from collections.abc import Callable, Sequence
from types import TracebackType

import numpy as np
import torch
from textmill_shard.engine.adapter_reader import AdapterReader
from textmill_shard.engine.media_desk import MediaDesk
from textmill_shard.engine.media_rope import RopeRule
from textmill_shard.engine.media_rows import OwnRows
from textmill_shard.engine.rank_channel import RankChannel, SoloChannel
from textmill_shard.engine.session import Outgoing, Session, StreamEnd
from textmill_shard.engine.status import ShardStatus
from textmill_shard.engine.step_executor import Runner, StepExecutor
from textmill_shard.engine.token_reader import TokenReader
from textmill_shard.grammar.matcher import MatcherFactory
from textmill_shard.model.forward_batch import ForwardBatch, ForwardOutput
from textmill_shard.model.shared_vocabulary import SharedVocabulary
from textmill_shard.sampling.sampler import Sampler
from textmill_shard.slots.plan import (
    FLAG_FINISHED,
    Admit,
    Budget,
    Drop,
    Extend,
    Grammar,
    Plan,
    PlanRejection,
    ShardFacts,
    StepResult,
)
from textmill_shard.slots.sampling_params import SamplingParams

from tests.fakes.formula_adapters import FormulaAdapters
from tests.fakes.shard_facts import shard_facts
from tests.fakes.step_engine import make_engine

BLOCK_SIZE = 4
NUM_BLOCKS = 32
NUM_SLOTS = 4
VOCAB_SIZE = 50
EOS_ID = 49
WAIT_S = 60.0  # far more than a step takes, also on a machine with other work

FACTS = shard_facts(
    model_id="prefix",
    model_type="prefix",
    block_size=BLOCK_SIZE,
    num_blocks=NUM_BLOCKS,
    num_slots=NUM_SLOTS,
    max_step_tokens=64,
    vocab_size=VOCAB_SIZE,
    eos_token_ids=(EOS_ID,),
    max_model_tokens=100,
)


def next_token(tokens: Sequence[int]) -> int:
    """Return the token that follows `tokens`, which is never EOS (49)."""
    return (sum((index + 1) * token for index, token in enumerate(tokens)) + 7 * len(tokens) + 3) % (VOCAB_SIZE - 1)


def greedy(prompt: Sequence[int], num_new: int, *, shift: int = 0) -> list[int]:
    """Return the output of a prompt that runs alone, with an adapter of this shift."""
    tokens = list(prompt)
    for _ in range(num_new):
        tokens.append((next_token(tokens) + shift) % (VOCAB_SIZE - 1))
    return tokens[len(prompt) :]


class PrefixRunner:
    """The model that the docstring of this file explains.

    A `gate` lets one forward pass through per release. A test may replace `say`, `spoil` and `refuse`.
    """

    def __init__(
        self,
        *,
        num_blocks: int = NUM_BLOCKS,
        vocab_size: int = VOCAB_SIZE,
        gate: threading.Semaphore | None = None,
    ) -> None:
        self._vocab_size = vocab_size
        self.device = torch.device("cpu")
        self.pool = [[-1] * BLOCK_SIZE for _ in range(num_blocks + 1)]
        self.batches: list[ForwardBatch] = []
        self.say: Callable[[Sequence[int]], int] = next_token
        self.spoil: Callable[[Sequence[int]], bool] = lambda tokens: False  # rows whose logits become NaN
        self.raises: Exception | None = None
        self.refuse: Callable[[ForwardBatch], Exception | None] = lambda batch: None  # what a step raises
        self.adapters = FormulaAdapters()
        self.graphs = None
        self._gate = gate

    def forward(self, batch: ForwardBatch, wants_hidden: bool = False) -> ForwardOutput:
        self.batches.append(batch)
        if self._gate is not None:
            assert self._gate.acquire(timeout=WAIT_S)
        if self.raises is not None:
            raise self.raises
        refusal = self.refuse(batch)
        if refusal is not None:
            raise refusal
        tokens = batch.input_ids_T.tolist()
        if batch.media is not None:
            for index, row in zip(batch.media.places_m.tolist(), batch.media.rows_mD[:, 0].tolist(), strict=True):
                tokens[index] = int(row)
        for token, place in zip(tokens, batch.kv_places_T.tolist(), strict=True):
            self.pool[place // BLOCK_SIZE][place % BLOCK_SIZE] = token
        logits_TV = torch.zeros(len(batch.input_ids_T), self._vocab_size)
        starts = batch.query_starts.tolist()
        places = [0] * (len(starts) - 1) if batch.adapters_R is None else batch.adapters_R.tolist()
        for row, context_len in enumerate(batch.context_lens_R.tolist()):
            blocks = batch.block_tables_RB[row].tolist()
            context = [self.pool[blocks[at // BLOCK_SIZE]][at % BLOCK_SIZE] for at in range(context_len)]
            for index in range(starts[row], starts[row + 1]):
                position = int(batch.position_ids_T[index])
                seen = context[: position + 1]
                said = self.say(seen)
                shift = self.adapters.shifts[places[row]]
                logits_TV[index, (said + shift) % (self._vocab_size - 1) if shift else said] = 5.0
                if self.spoil(seen):
                    logits_TV[index] = torch.nan
        return ForwardOutput(
            logits_NV=logits_TV[batch.logit_rows_N], hidden_TD=2.0 * logits_TV if wants_hidden else None
        )

    def project(self, hidden_nD: torch.Tensor, adapter: int = 0) -> torch.Tensor:
        return hidden_nD / 2.0

    def copy_places(self, *, source_block: int, target_block: int, num_places: int) -> None:
        self.pool[target_block][:num_places] = self.pool[source_block][:num_places]


class Shard:
    """An engine in its thread with one session, which takes plans and gives results. Use it as a context manager.

    The model is a `PrefixRunner` (`.runner`) unless another runner is given.
    """

    def __init__(
        self,
        *,
        gate: threading.Semaphore | None = None,
        facts: ShardFacts = FACTS,
        runner: Runner | None = None,
        channel: RankChannel | None = None,
        reader: AdapterReader | None = None,
        sampler: Sampler | None = None,
        matchers: MatcherFactory | None = None,
        media: MediaDesk | None = None,
        rope: RopeRule | None = None,
        lease_s: float = 60.0,
        clock: Callable[[], float] = time.monotonic,
        token_reader: TokenReader | None = None,
        vocabulary: SharedVocabulary | None = None,
    ) -> None:
        """`media` is the desk of a model with images, and `rope` its rule of rotary positions (`step_media.py`).

        With `token_reader` a step is launched before the tokens of the step before are on the host.
        """
        self.gate = gate
        self.runner = PrefixRunner(num_blocks=facts.num_blocks, gate=gate)
        self.status = ShardStatus()
        rows = None if media is None else OwnRows(media.store, channel or SoloChannel())
        self.executor = StepExecutor(
            runner=runner or self.runner,
            facts=facts,
            media=rows,
            rope=rope,
            has_overlap=token_reader is not None,
            vocabulary=vocabulary,
        )
        self.engine = make_engine(
            self.executor,
            facts,
            status=self.status,
            channel=channel,
            reader=reader,
            sampler=sampler,
            matchers=matchers,
            media=media,
            lease_s=lease_s,
            clock=clock,
            token_reader=token_reader,
            vocabulary=vocabulary,
        )
        self.error: Exception | None = None
        self._thread = threading.Thread(target=self._run)
        self.session = self.connect()
        self.results: list[StepResult] = []
        self._number = 0
        self._num_stepped = 0

    def _run(self) -> None:
        try:
            self.engine.run()
        except Exception as error:
            self.error = error

    def __enter__(self) -> "Shard":
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self.gate is not None:
            self.gate.release(1000)
        self.engine.stop()
        self._thread.join(WAIT_S)
        assert not self._thread.is_alive()

    def connect(self) -> Session:
        session = self.engine.open_session()
        assert session is not None
        self.session, self._number, self.results = session, 0, []
        return session

    def send(
        self,
        *,
        drops: Sequence[Drop] = (),
        extends: Sequence[Extend] = (),
        admits: Sequence[Admit] = (),
        budget: Budget | None = None,
        number: int | None = None,
    ) -> int:
        """Send the next plan, and return its number."""
        self._number += 1
        plan = Plan(number or self._number, tuple(drops), tuple(extends), tuple(admits), budget)
        self.engine.submit_plan(self.session, plan, self.data_of(plan))
        return plan.number

    def data_of(self, plan: Plan) -> bytes:
        """Return the bytes of a plan for other ranks, of which there are none here."""
        return b""

    def next_item(self) -> Outgoing:
        item = self.session.next_item(WAIT_S)
        assert item is not None, "the shard says nothing"
        return item

    def next_result(self) -> StepResult:
        item = self.next_item()
        assert isinstance(item, StepResult), item
        self.results.append(item)
        return item

    def hold(self) -> None:
        """Wait until the next step is composed and stands at the gate. A plan sent now comes after that step."""
        deadline_s = time.monotonic() + WAIT_S
        while len(self.runner.batches) == self._num_stepped:
            assert time.monotonic() < deadline_s, "no step was composed"
            time.sleep(0.0005)

    def has_launched(self, num_steps: int) -> bool:
        return len(self.runner.batches) == num_steps

    def step(self) -> StepResult:
        """Let one forward pass through the gate, and return the step's result."""
        assert self.gate is not None
        self.hold()
        self._num_stepped += 1
        self.gate.release()
        return self.next_result()

    def is_silent(self, for_s: float = 0.05) -> bool:
        """Return whether no message comes in this time, for the few tests in which none may come."""
        return self.session.next_item(for_s) is None

    def rejection(self) -> PlanRejection:
        """Read up to the rejection, and return it. The end of the stream must follow."""
        item = self.next_item()
        while isinstance(item, StepResult):
            item = self.next_item()
        assert isinstance(item, PlanRejection), item
        assert isinstance(self.next_item(), StreamEnd)
        return item

    def run_to_end(self, *slots: int) -> dict[int, list[int]]:
        """Read results until each of `slots` has finished, and return the tokens of all results so far, by slot."""
        while not all(slot in finished_slots(self.results) for slot in slots):
            self.next_result()
        return tokens_by_slot(self.results)


def gated() -> Shard:
    """Return a shard whose steps the test lets through one by one."""
    return Shard(gate=threading.Semaphore(0))


def tokens_by_slot(results: Sequence[StepResult]) -> dict[int, list[int]]:
    found: dict[int, list[int]] = {}
    for result in results:
        for slot, token in zip(result.slots.tolist(), result.tokens.tolist(), strict=True):
            found.setdefault(slot, []).append(token)
    return found


def flags_of(results: Sequence[StepResult], slot: int) -> list[int]:
    return [
        flag
        for result in results
        for at, flag in zip(result.slots.tolist(), result.flags.tolist(), strict=True)
        if at == slot
    ]


def finished_slots(results: Sequence[StepResult]) -> set[int]:
    return {
        slot
        for result in results
        for slot, flag in zip(result.slots.tolist(), result.flags.tolist(), strict=True)
        if flag & FLAG_FINISHED
    } | {error.slot for result in results for error in result.errors}


def ids(values: Sequence[int]) -> "np.ndarray[tuple[int], np.dtype[np.int64]]":
    return np.array(values, dtype=np.int64)


def admit(
    slot: int,
    prompt: Sequence[int],
    *,
    blocks: Sequence[int] | None = None,
    request_id: int | None = None,
    output: Sequence[int] = (),
    max_new: int = 4,
    cached: int = 0,
    sampling: SamplingParams | None = None,
    stop_ids: Sequence[int] = (),
    ignore_eos: bool = False,
    prompt_logprobs_from: int | None = None,
    prompt_top_n: int = 0,
    grammar: Grammar | None = None,
    copied: int | None = None,
    adapter_digest: bytes = b"",
) -> Admit:
    """Return an admit, by default with blocks for all its tokens: slot s has blocks from 8 s to 8 s + 7."""
    if blocks is None:
        num_blocks = -(-(len(prompt) + max_new) // BLOCK_SIZE)
        blocks = range(8 * slot, 8 * slot + num_blocks)
    return Admit(
        request_id=100 + slot if request_id is None else request_id,
        slot=slot,
        prompt_ids=ids(prompt),
        output_ids=ids(output),
        num_cached_tokens=cached,
        block_ids=ids(list(blocks)),
        max_new_tokens=max_new,
        sampling=sampling or SamplingParams(),
        stop_ids=tuple(stop_ids),
        ignore_eos=ignore_eos,
        prompt_logprobs_from=prompt_logprobs_from,
        prompt_top_n_tokens=prompt_top_n,
        grammar=grammar,
        copied_block_id=copied,
        adapter_digest=adapter_digest,
    )


def extend(slot: int, blocks: Sequence[int], *, request_id: int | None = None) -> Extend:
    return Extend(slot=slot, request_id=100 + slot if request_id is None else request_id, block_ids=ids(blocks))


def drop(slot: int, *, request_id: int | None = None) -> Drop:
    return Drop(slot=slot, request_id=100 + slot if request_id is None else request_id)
