"""Random requests with every kind of option, and a router with four slots that runs them through a shard."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import Any

import numpy as np
from textmill_shard.grammar.fault import GrammarFault
from textmill_shard.slots.plan import FLAG_FINISHED, Admit, Budget, Grammar, SlotErrorCode, StepResult
from textmill_shard.slots.sampling_params import SamplingParams

from tests.fakes.step_harness import (
    BLOCK_SIZE,
    EOS_ID,
    FACTS,
    VOCAB_SIZE,
    Shard,
    admit,
    drop,
    extend,
    next_token,
)


class Judge:
    """A matcher that allows a third of the ids, which third follows from the token before and from the number."""

    def __init__(self, output_ids: Sequence[int]) -> None:
        self._tokens = list(output_ids)

    def allowed(self) -> Any:
        if len(self._tokens) == 6:
            raise GrammarFault("six tokens are enough")
        last = self._tokens[-1] if self._tokens else 0
        allowed_V = np.arange(VOCAB_SIZE) % 3 == (last + len(self._tokens)) % 3
        allowed_V[EOS_ID] = False
        return allowed_V

    def consume(self, tokens: Sequence[int]) -> None:
        self._tokens += tokens


class Judges:
    def build(self, grammar: Grammar, output_ids: Sequence[int] = (), *, caller: int = 0) -> Judge:
        return Judge(output_ids)


JUDGES: Any = Judges()
GRAMMAR_FACTS = replace(FACTS, features=("grammar", "prompt_logprobs"))


KINDS = (
    SamplingParams(),
    SamplingParams(wants_logprobs=True, top_n_tokens=3),
    SamplingParams(do_sample=True, temperature=4.0),
    SamplingParams(do_sample=True, temperature=4.0, top_p=0.9, wants_logprobs=True, top_n_tokens=2),
    SamplingParams(do_sample=True, temperature=4.0, typical_p=0.7),
    SamplingParams(do_sample=True, temperature=3.0, top_k=7, min_p=0.01),
    SamplingParams(do_sample=True, temperature=4.0, repetition_penalty=1.8, presence_penalty=0.4),
    SamplingParams(do_sample=True, temperature=4.0, frequency_penalty=1.5, logit_bias=((3, 4.0), (9, 2.0))),
    SamplingParams(do_sample=True, temperature=4.0, dry_multiplier=2.0, dry_allowed_length=1),
    SamplingParams(do_sample=True, temperature=4.0, watermark=True),
    SamplingParams(do_sample=True, temperature=4.0, min_new_tokens=5),
    SamplingParams(do_sample=True, temperature=4.0, allowed_ids=(1, 2, 3, 4, 5, EOS_ID)),
    SamplingParams(do_sample=True, temperature=4.0, bad_sequences=((1,), (2, 3))),
)


@dataclass
class Wanted:
    """One request of a random run."""

    prompt: list[int]
    sampling: SamplingParams
    max_new: int
    has_grammar: bool
    stop_ids: tuple[int, ...]
    rates_prompt: bool

    def admit(self, slot: int, request_id: int, blocks: Sequence[int], output: Sequence[int]) -> Admit:
        return admit(
            slot,
            self.prompt,
            blocks=blocks,
            request_id=request_id,
            output=output,
            max_new=self.max_new,
            sampling=self.sampling,
            stop_ids=self.stop_ids,
            prompt_logprobs_from=1 if self.rates_prompt and not output else None,
            prompt_top_n=1 if self.rates_prompt and not output else 0,
            grammar=Grammar("any") if self.has_grammar else None,
        )


@dataclass
class Seen:
    """The facts that results tell of one request."""

    tokens: list[int]
    logprobs: list[float]
    tops: list[tuple[list[int], list[float]]]
    prompt_logprobs: dict[int, float]
    end: int | SlotErrorCode | None = None


def make_requests(random: Random, number: int) -> list[Wanted]:
    return [
        Wanted(
            prompt=[random.randrange(VOCAB_SIZE - 1) for _ in range(random.randint(1, 14))],
            sampling=replace(random.choice(KINDS), seed=random.getrandbits(64)),
            max_new=random.randint(1, 12),
            has_grammar=random.random() < 0.15,
            stop_ids=(random.randrange(VOCAB_SIZE - 1),) if random.random() < 0.3 else (),
            rates_prompt=random.random() < 0.15,
        )
        for _ in range(number)
    ]


def note(seen: dict[int, Seen], result: StepResult, request_of: dict[int, int]) -> list[int]:
    """Note a result, and return the slots whose requests have ended."""
    ended = []
    tops = {
        top.row: (top.ids.tolist(), [round(float(value), 4) for value in top.logprobs]) for top in result.top_tokens
    }
    for row, (slot, token, flag) in enumerate(
        zip(result.slots.tolist(), result.tokens.tolist(), result.flags.tolist(), strict=True)
    ):
        if slot not in request_of:
            continue
        mine = seen[request_of[slot]]
        mine.tokens.append(token)
        if result.logprobs is not None and not np.isnan(result.logprobs[row]):
            mine.logprobs.append(round(float(result.logprobs[row]), 4))
        if row in tops:
            mine.tops.append(tops[row])
        if flag & FLAG_FINISHED:
            mine.end = flag
            ended.append(slot)
    for piece in result.prompt_logprobs:
        if piece.slot in request_of:
            values = enumerate(piece.logprobs.tolist())
            seen[request_of[piece.slot]].prompt_logprobs |= {piece.start + at: round(value, 4) for at, value in values}
    for error in result.errors:
        assert request_of.get(error.slot) == error.request_id
        seen[error.request_id].end = error.code
        ended.append(error.slot)
    return ended


def run_requests(requests: Sequence[Wanted], shard: Shard, random: Random, *, disturbs: bool) -> dict[int, Seen]:
    """Play a router with four slots: admit as slots are free, grant late, and now and then preempt a request."""
    seen = {number: Seen([], [], [], {}) for number in range(len(requests))}
    waiting = list(range(len(requests)))
    request_of: dict[int, int] = {}  # by slot, of the requests that are not leaving
    leaving: dict[int, tuple[int, int]] = {}  # by slot: its request, and the plan of its drop
    granted: dict[int, int] = {}
    starved: set[int] = set()  # slots that wait for blocks
    while waiting or request_of or leaving:
        admits, drops, extends = [], [], []
        for slot in list(request_of):
            if disturbs and random.random() < 0.03:
                leaving[slot] = request_of.pop(slot), -1
                drops.append(drop(slot, request_id=leaving[slot][0]))
            else:
                wanted = requests[request_of[slot]]
                num_needed = -(-(len(wanted.prompt) + wanted.max_new) // BLOCK_SIZE)
                if granted[slot] < num_needed and (slot in starved or random.random() < 0.5):
                    starved.discard(slot)
                    extends.append(extend(slot, [8 * slot + granted[slot]], request_id=request_of[slot]))
                    granted[slot] += 1
        for slot in range(FACTS.num_slots):
            if waiting and slot not in request_of and slot not in leaving and random.random() < 0.7:
                request_id = waiting.pop(0)
                wanted, output = requests[request_id], seen[request_id].tokens
                granted[slot] = min(8, -(-(len(wanted.prompt) + len(output) + 1) // BLOCK_SIZE))
                blocks = range(8 * slot, 8 * slot + granted[slot])
                admits.append(wanted.admit(slot, request_id, blocks, output))
                request_of[slot] = request_id
                starved.discard(slot)
        if admits or drops or extends:
            number = shard.send(admits=admits, drops=drops, extends=extends)
            leaving = {slot: (one, number if plan < 0 else plan) for slot, (one, plan) in leaving.items()}
        if not (request_of or leaving):
            continue  # no request was let in, so that the shard has nothing to say
        result = shard.next_result()
        starved.update(result.starved_slots.tolist())
        before = {slot: request for slot, (request, plan) in leaving.items() if result.plan_applied < plan}
        ended = note(seen, result, {**request_of, **before})
        for slot in ended:
            request_of.pop(slot, None)
            leaving.pop(slot, None)
        for slot, (request_id, plan) in list(leaving.items()):
            if result.plan_applied >= plan:
                del leaving[slot]
                waiting.append(request_id)
    return seen


def spoiled(tokens: Sequence[int]) -> bool:
    return len(tokens) > 4 and sum(tokens) % 61 == 0


def may_end(tokens: Sequence[int]) -> int:
    return EOS_ID if sum(tokens) % 17 == 0 else next_token(tokens)


BUDGET = Budget(max_step_tokens=12, max_prefill_tokens=9, max_chunk_tokens=4)
