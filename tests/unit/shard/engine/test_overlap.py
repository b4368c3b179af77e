"""Overlap: a step is launched before the host has the tokens of the step before, and the results stay the same."""

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from random import Random

import pytest
import torch
from textmill_shard.engine.session import StreamEnd
from textmill_shard.model.forward_batch import ForwardBatch
from textmill_shard.sampling.sampler import Draft, SampledRows, Sampler
from textmill_shard.slots.plan import (
    FLAG_EOS,
    FLAG_FINISHED,
    Grammar,
    PlanRejection,
)
from textmill_shard.slots.sampling_params import SamplingParams

from tests.fakes.late_tokens import gated_reader, late_reader
from tests.fakes.random_requests import (
    BUDGET,
    GRAMMAR_FACTS,
    JUDGES,
    make_requests,
    may_end,
    run_requests,
    spoiled,
)
from tests.fakes.step_harness import (
    EOS_ID,
    FACTS,
    WAIT_S,
    Shard,
    admit,
    drop,
    extend,
    finished_slots,
    flags_of,
    greedy,
    next_token,
    tokens_by_slot,
)

PROMPT = [5, 3, 8, 1, 9]


def wait_until(is_so: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + WAIT_S
    while not is_so():
        assert time.monotonic() < deadline_s, "what was waited for did not happen"
        time.sleep(0.0005)


def slots_of(batch: ForwardBatch) -> list[int]:
    assert batch.slots_R is not None
    return batch.slots_R.tolist()


def test_a_step_is_launched_before_the_tokens_of_the_step_before_are_on_the_host() -> None:
    gate = threading.Semaphore(0)
    with Shard(token_reader=gated_reader(gate)) as shard:
        shard.send(admits=[admit(0, PROMPT, max_new=6)])
        for number in range(1, 6):
            num_launched = number + 1
            wait_until(partial(shard.has_launched, num_launched))
            assert shard.is_silent(0.01)
            assert len(shard.runner.batches) == num_launched  # two steps are under way, and no third
            gate.release()
            assert shard.next_result().step == number
        gate.release()
        assert shard.run_to_end(0) == {0: greedy(PROMPT, 6)}
    # The decode takes its id from the device. The host does not know the id yet.
    assert [batch.input_ids_T.tolist() for batch in shard.runner.batches] == [
        PROMPT,
        *([token] for token in greedy(PROMPT, 5)),
    ]


def test_rule_06_the_vain_row_after_an_end_is_swallowed() -> None:
    def say(tokens: Sequence[int]) -> int:
        return EOS_ID if len(tokens) == 7 and tokens[0] == 5 else next_token(tokens)

    gate = threading.Semaphore(0)
    with Shard(token_reader=gated_reader(gate)) as shard:
        shard.runner.say = say
        shard.send(admits=[admit(0, PROMPT, max_new=9), admit(1, [6, 2], max_new=9)])
        for step in range(1, 9):  # tokens come when the next step has been launched
            wait_until(partial(shard.has_launched, step + 1))
            gate.release()
        gate.release()
        tokens = shard.run_to_end(0, 1)
        assert tokens == {0: [*greedy(PROMPT, 2), EOS_ID], 1: greedy([6, 2], 9)}
        assert flags_of(shard.results, 0) == [0, 0, FLAG_FINISHED | FLAG_EOS]
        assert sum(0 in slots_of(batch) for batch in shard.runner.batches) == 4  # one more than there are tokens


def test_rule_07_an_end_by_length_wastes_no_row() -> None:
    with Shard(token_reader=late_reader()) as shard:
        shard.send(admits=[admit(0, PROMPT, max_new=3)])
        assert shard.run_to_end(0) == {0: greedy(PROMPT, 3)}
        assert shard.is_silent()
        assert len(shard.runner.batches) == 3


def test_rule_06_a_row_of_a_dropped_request_is_no_row_of_the_next_occupant() -> None:
    gate = threading.Semaphore(0)
    with Shard(token_reader=gated_reader(gate)) as shard:
        shard.send(admits=[admit(0, PROMPT, max_new=9)])
        wait_until(partial(shard.has_launched, 2))
        shard.send(drops=[drop(0)], admits=[admit(0, [2, 4, 6], blocks=range(8, 12), request_id=7)])
        gate.release(100)
        results = [shard.next_result()]
        while results[-1].plan_applied < 2:
            results.append(shard.next_result())
        late = [result for result in results if result.plan_applied < 2]
        assert all(token in greedy(PROMPT, 3) for result in late for token in result.tokens.tolist())
        shard.results = results[len(late) :]
        assert shard.run_to_end(0) == {0: greedy([2, 4, 6], 4)}


def test_rule_02_an_acknowledgement_comes_behind_the_steps_that_came_before_its_plan() -> None:
    gate = threading.Semaphore(0)
    with Shard(token_reader=gated_reader(gate)) as shard:
        shard.send(admits=[admit(0, PROMPT, max_new=2)])
        wait_until(partial(shard.has_launched, 2))
        shard.send(drops=[drop(3)])
        assert shard.is_silent(0.02)
        gate.release(2)
        found = [shard.next_result() for _ in range(3)]
        assert [(result.step, result.plan_applied) for result in found] == [(1, 1), (2, 1), (0, 2)]


def test_rule_13_a_slot_that_starves_beside_steps_under_way_is_told() -> None:
    with Shard(token_reader=late_reader()) as shard:
        shard.send(admits=[admit(0, PROMPT, blocks=[0, 1], max_new=20)])
        while not len(shard.next_result().starved_slots):
            pass
        assert shard.results[-1].starved_slots.tolist() == [0]
        assert tokens_by_slot(shard.results) == {0: greedy(PROMPT, 4)}
        assert shard.is_silent()
        shard.send(extends=[extend(0, [2])])
        while not len(shard.next_result().starved_slots):
            pass
        assert tokens_by_slot(shard.results) == {0: greedy(PROMPT, 8)}


@pytest.mark.parametrize("is_rejected", [True, False])
def test_steps_under_way_are_told_before_the_stream_ends(is_rejected: bool) -> None:
    gate = threading.Semaphore(0)
    with Shard(token_reader=gated_reader(gate)) as shard:
        shard.send(admits=[admit(0, PROMPT, max_new=9)])
        wait_until(partial(shard.has_launched, 2))
        if is_rejected:
            shard.send(number=9)
        else:
            shard.engine.stop()
        gate.release(2)
        assert [shard.next_result().step for _ in range(2)] == [1, 2]
        assert isinstance(shard.next_item(), PlanRejection if is_rejected else StreamEnd)


def test_an_error_of_the_device_that_comes_with_the_tokens_ends_the_loop() -> None:
    gate = threading.Semaphore(0)
    reader = gated_reader(gate)
    error = torch.AcceleratorError("the device is gone")

    class Broken:
        def wait(self) -> None:
            assert gate.acquire(timeout=WAIT_S)
            raise error

        def ns_since(self, earlier: object) -> int:
            return 0

    reader.mark = Broken  # type: ignore[method-assign]
    with Shard(token_reader=reader) as shard:
        shard.send(admits=[admit(0, PROMPT, max_new=9)])
        gate.release(9)
        assert isinstance(shard.next_item(), StreamEnd)
    assert shard.error is error


def test_rule_25_a_grammar_sees_every_token_before_its_mask() -> None:
    grammar = Grammar("any")
    sampling = SamplingParams(do_sample=True, temperature=3.0, seed=4)
    found = []
    for reader in (None, late_reader(1)):
        with Shard(facts=GRAMMAR_FACTS, matchers=JUDGES, token_reader=reader) as shard:
            shard.send(
                admits=[
                    admit(0, PROMPT, max_new=5, grammar=grammar, sampling=sampling),
                    admit(1, [1, 2], max_new=9, sampling=sampling),
                    admit(2, [3, 4], max_new=9, grammar=grammar),
                ]
            )
            found.append(shard.run_to_end(0, 1, 2))
            assert [error.slot for result in shard.results for error in result.errors] == [2]
    assert found[0] == found[1]
    for slot in (0, 2):
        tokens = found[0][slot]
        assert all(
            token % 3 == (last + at) % 3 for at, (last, token) in enumerate(zip([0, *tokens], tokens, strict=False))
        )


class FewCandidates(Sampler):
    """A sampler whose rows have to look beyond their candidates often. Counts the steps in which a row has to."""

    def __init__(self, *, num_candidates: int = 2) -> None:
        super().__init__(num_slots=FACTS.num_slots, device=torch.device("cpu"), num_candidates=num_candidates)
        self.num_settled = 0

    def settle(self, draft: Draft) -> SampledRows:
        self.num_settled += 1
        return super().settle(draft)


@pytest.mark.parametrize("seed", range(6))
def test_all_kinds_of_rows_have_the_tokens_that_they_have_without_overlap(seed: int) -> None:
    requests = make_requests(Random(seed), 24)
    found = []
    for has_overlap in (False, True):
        sampler = FewCandidates()
        reader = late_reader(seed) if has_overlap else None
        with Shard(facts=GRAMMAR_FACTS, matchers=JUDGES, sampler=sampler, token_reader=reader) as shard:
            shard.runner.spoil, shard.runner.say = spoiled, may_end
            shard.send(budget=BUDGET)
            found.append(run_requests(requests, shard, Random(seed), disturbs=has_overlap))
        assert shard.error is None
        assert sampler.num_settled > 20
    for request_id in range(len(requests)):
        assert found[1][request_id] == found[0][request_id], (request_id, requests[request_id])


def test_a_model_with_state_rows_settles_before_its_tokens_are_fed() -> None:
    """A state that has taken in a token cannot be taken back, so no row of such a model is ever computed again."""
    sampling = SamplingParams(do_sample=True, temperature=5.0, seed=7)
    sampler = FewCandidates()
    facts = replace(FACTS, layout="state", features=())
    with Shard(facts=facts, sampler=sampler, token_reader=late_reader()) as shard:
        shard.send(admits=[admit(0, PROMPT, max_new=20, sampling=sampling, ignore_eos=True)])
        tokens = shard.run_to_end(0)[0]
    assert sampler.num_settled > 5
    assert [batch.input_ids_T.tolist() for batch in shard.runner.batches] == [PROMPT, *([one] for one in tokens[:-1])]


def test_a_step_without_memory_waits_for_the_steps_before_it_and_runs_in_halves() -> None:
    errors = [torch.OutOfMemoryError("none left")]

    def say(tokens: Sequence[int]) -> int:
        return EOS_ID if len(tokens) == 3 and tokens[0] == 1 else next_token(tokens)

    with Shard(token_reader=late_reader()) as shard:
        shard.runner.say = say
        # The third step fails once, when the second has ended slot 0 and the host does not know that yet.
        shard.runner.refuse = lambda batch: errors.pop() if len(shard.runner.batches) == 3 and errors else None
        shard.send(admits=[admit(slot, [slot + 1, 2], max_new=6) for slot in range(4)])
        tokens = shard.run_to_end(0, 1, 2, 3)
    assert not errors
    assert tokens[0] == [*greedy([1, 2], 1), EOS_ID]
    assert {slot: tokens[slot] for slot in (1, 2, 3)} == {slot: greedy([slot + 1, 2], 6) for slot in (1, 2, 3)}
    assert finished_slots(shard.results) == {0, 1, 2, 3}


def test_a_vain_row_without_memory_is_no_error() -> None:
    with Shard(token_reader=late_reader()) as shard:
        shard.runner.say = lambda tokens: EOS_ID if len(tokens) == 6 else next_token(tokens)
        shard.runner.refuse = lambda batch: torch.OutOfMemoryError("none left") if shard.has_launched(3) else None
        shard.send(admits=[admit(0, PROMPT, max_new=9)])
        assert shard.run_to_end(0) == {0: [*greedy(PROMPT, 1), EOS_ID]}
        assert shard.is_silent()
    assert not [error for result in shard.results for error in result.errors]
