"""Rules 18 to 21 of docs/wire.md as the step loop obeys them: state, errors, streams that end."""

import threading
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from textmill_shard.engine.session import EndReason, StreamEnd
from textmill_shard.model.forward_batch import ForwardBatch, RowScan
from textmill_shard.sampling.row_selection import StepRows
from textmill_shard.sampling.sampler import Draft, Sampler
from textmill_shard.sampling.stage import SlotText
from textmill_shard.slots.plan import (
    Plan,
    PlanRejection,
    SlotErrorCode,
)
from textmill_shard.slots.sampling_params import SamplingParams

from tests.fakes.step_harness import (
    FACTS,
    WAIT_S,
    Shard,
    admit,
    drop,
    extend,
    greedy,
    tokens_by_slot,
)

PROMPT = [5, 3, 8, 1, 9]
# From torch's allocator of a CPU, c10/core/impl/alloc_cpu.cpp.
ALLOCATOR_TEXT = "[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory: you tried"


def gated() -> Shard:
    """A shard whose steps the test lets through one by one."""
    return Shard(gate=threading.Semaphore(0))


def test_rule_18_a_readmitted_request_goes_on_as_if_undisturbed() -> None:
    sampling = SamplingParams(do_sample=True, seed=11, temperature=30.0, repetition_penalty=1.3, frequency_penalty=0.4)
    request = admit(0, PROMPT, max_new=12, sampling=sampling)
    with Shard() as shard:
        shard.send(admits=[request])
        undisturbed = shard.run_to_end(0)[0]
    assert undisturbed != greedy(PROMPT, 12)
    for cut in (1, 5, 11):
        with Shard() as shard:
            again = replace(request, slot=2, output_ids=np.array(undisturbed[:cut]), block_ids=np.arange(16, 24))
            shard.send(admits=[admit(1, [4, 4], max_new=8), again])
            assert shard.run_to_end(2)[2] == undisturbed[cut:]


def test_a_device_that_is_gone_ends_the_loop_and_fails_no_request_whichever_library_tells_of_it() -> None:
    error = RuntimeError("Triton Error [CUDA]: an illegal memory access was encountered")

    class BrokenSampler(Sampler):
        def draft(self, *_: object) -> Draft:  # type: ignore[override]
            raise error

    sampler = BrokenSampler(num_slots=FACTS.num_slots, device=torch.device("cpu"))
    with Shard(sampler=sampler) as shard:
        shard.send(admits=[admit(0, PROMPT, max_new=4, sampling=SamplingParams(do_sample=True))])
        end = shard.next_item()
    assert isinstance(end, StreamEnd)
    assert end.reason is EndReason.FAILED
    assert shard.error is error


@pytest.mark.parametrize("is_new_epoch", [False, True])
def test_rule_18_a_request_admitted_again_to_its_slot_is_built_from_the_new_admit(is_new_epoch: bool) -> None:
    sampling = SamplingParams(do_sample=True, seed=5, temperature=30.0)
    request = admit(0, PROMPT, max_new=9, sampling=sampling, ignore_eos=True)
    with Shard() as shard:
        shard.send(admits=[request])
        undisturbed = shard.run_to_end(0)[0]
    with gated() as shard:
        shard.send(admits=[request])
        for _ in range(5):
            shard.step()
        shard.hold()
        # As if only two of the tokens so far had reached the router.
        again = replace(request, output_ids=np.array(undisturbed[:2]))
        if is_new_epoch:
            shard.engine.close_session(shard.session, EndReason.ROUTER_LEFT, "left")
            shard.connect()
            shard.send(admits=[again])
        else:
            shard.send(drops=[drop(0)], admits=[again])
        shard.gate.release(100)
        while not shard.results or shard.results[-1].slots.tolist() != [0] or not shard.results[-1].flags[0]:
            shard.next_result()
        assert tokens_by_slot(shard.results)[0][-7:] == undisturbed[2:]


def test_rule_18_a_slot_keeps_nothing_of_its_former_occupant() -> None:
    sampling = SamplingParams(repetition_penalty=9.0, frequency_penalty=3.0)
    with Shard() as shard:
        shard.send(admits=[admit(0, PROMPT, sampling=sampling)])
        shard.run_to_end(0)
        shard.send(admits=[admit(0, [1, 2, 3], blocks=[20, 21], request_id=5)])
        shard.results.clear()
        assert shard.run_to_end(0) == {0: greedy([1, 2, 3], 4)}


def test_rule_19_logits_that_are_not_finite_end_only_their_slot() -> None:
    with Shard() as shard:
        shard.runner.spoil = lambda tokens: tokens[0] == 6 and len(tokens) == 4
        shard.send(admits=[admit(0, PROMPT, max_new=6), admit(1, [6, 2], max_new=6)])
        tokens = shard.run_to_end(0, 1)
        errors = [error for result in shard.results for error in result.errors]
        assert [(error.slot, error.request_id, error.code) for error in errors] == [(1, 101, SlotErrorCode.NOT_FINITE)]
        assert tokens == {0: greedy(PROMPT, 6), 1: greedy([6, 2], 2)}
        assert not shard.executor.table.is_occupied.any()


class _FailingSampler(Sampler):
    """Raises when the request with the seed 666 samples its second token."""

    def __init__(self) -> None:
        super().__init__(num_slots=FACTS.num_slots, device=torch.device("cpu"))
        self._bad_slot = -1
        self._num_appends = 0

    def admit(self, slot: int, params: SamplingParams, tokens: SlotText) -> None:
        super().admit(slot, params, tokens)
        if params.seed == 666:
            self._bad_slot = slot

    def draft(self, logits_NV: torch.Tensor, rows: StepRows, scan: RowScan | None = None) -> Draft:
        if self._num_appends == 1 and self._has_bad_slot(rows):
            raise RuntimeError("a bad row")
        return super().draft(logits_NV, rows, scan)

    def append(self, rows: StepRows, tokens_N: torch.Tensor) -> None:
        super().append(rows, tokens_N)
        self._num_appends += self._has_bad_slot(rows)

    def _has_bad_slot(self, rows: StepRows) -> bool:
        return any(self._bad_slot in wish_rows.on_host.slots_G for wish_rows in rows if wish_rows is not None)


def test_rule_19_an_exception_of_one_row_ends_only_its_slot() -> None:
    with Shard(sampler=_FailingSampler()) as shard:
        bad = SamplingParams(seed=666, logit_bias=((0, 0.0),))  # without a wish, the slot would be in no rows
        asks = SamplingParams(wants_logprobs=True, top_n_tokens=2)
        shard.send(admits=[admit(1, [6, 2], max_new=6, sampling=bad), admit(2, PROMPT, max_new=6, sampling=asks)])
        tokens = shard.run_to_end(1, 2)
        errors = [error for result in shard.results for error in result.errors]
        assert [(error.slot, error.code) for error in errors] == [(1, SlotErrorCode.INTERNAL)]
        assert "a bad row" in errors[0].message
        assert tokens == {1: greedy([6, 2], 1), 2: greedy(PROMPT, 6)}
        for result in shard.results:
            assert result.logprobs is not None
            assert len(result.logprobs) == len(result.slots)
            assert [top.row for top in result.top_tokens] == [result.slots.tolist().index(2)]


def test_rule_19_prompt_logprobs_that_are_not_finite_are_an_error() -> None:
    with Shard() as shard:
        shard.runner.spoil = lambda tokens: len(tokens) == 2
        shard.send(admits=[admit(0, PROMPT, prompt_logprobs_from=1)])
        shard.run_to_end(0)
        assert [error.code for error in shard.results[0].errors] == [SlotErrorCode.NOT_FINITE]
        assert len(shard.results[0].slots) == 0


@pytest.mark.parametrize("is_rejected", [True, False])
def test_a_step_that_ran_is_told_before_the_stream_ends(is_rejected: bool) -> None:
    with gated() as shard:
        shard.send(admits=[admit(0, [1, 2], max_new=9)])
        shard.step()
        shard.hold()
        if is_rejected:
            shard.send(number=9)
        else:
            shard.engine.stop()
        assert shard.gate is not None
        shard.gate.release()
        assert shard.next_result().step == 2
        assert isinstance(shard.next_item(), PlanRejection if is_rejected else StreamEnd)


def test_rule_20_a_rejected_plan_changes_nothing_and_ends_the_stream() -> None:
    with Shard() as shard:
        shard.send(admits=[admit(0, PROMPT, blocks=[0, 1], max_new=20)])
        while not len(shard.next_result().starved_slots):
            pass
        shard.send(extends=[extend(0, [2])], admits=[admit(1, [1, 2], cached=3)])
        rejection = shard.rejection()
        assert (rejection.plan, rejection.slot, rejection.field) == (2, 1, "admits.num_cached_tokens")
        assert shard.runner.pool[2] == [-1] * 4  # the extend of that plan was not applied
        assert shard.executor.table.is_empty
        shard.connect()
        shard.send(admits=[admit(0, PROMPT)])
        assert shard.run_to_end(0) == {0: greedy(PROMPT, 4)}


def test_rule_21_a_second_stream_is_refused_while_one_is_live() -> None:
    with Shard() as shard:
        assert shard.engine.open_session() is None
        first = shard.session
        shard.engine.close_session(first, EndReason.ROUTER_LEFT, "left")
        second = shard.engine.open_session()
        assert second is not None
        assert second.epoch == first.epoch + 1


def test_rule_21_a_broken_stream_drops_all_slots_and_the_next_starts_empty() -> None:
    with gated() as shard:
        shard.send(admits=[admit(0, PROMPT, max_new=20)])
        shard.step()
        former = shard.session
        shard.engine.close_session(former, EndReason.ROUTER_LEFT, "left")
        shard.connect()
        shard.send(admits=[admit(0, [1, 2], blocks=[0, 1])])
        shard.gate.release(10)
        assert shard.run_to_end(0) == {0: greedy([1, 2], 4)}
        assert [result.step for result in shard.results] == [1, 2, 3, 4]
        assert shard.results[-1].plan_applied == 1


def test_rule_21_results_of_an_ended_epoch_do_not_reach_the_next_stream() -> None:
    with gated() as shard:
        shard.send(admits=[admit(0, PROMPT, max_new=20)])
        shard.hold()
        shard.engine.close_session(shard.session, EndReason.ROUTER_LEFT, "left")
        shard.connect()
        shard.gate.release()
        shard.send(drops=[drop(0)])
        assert shard.next_result().step == 0


def test_rule_21_a_late_plan_of_an_ended_epoch_is_thrown_away() -> None:
    with Shard() as shard:
        former = shard.session
        shard.engine.close_session(former, EndReason.ROUTER_LEFT, "left")
        shard.connect()
        shard.engine.submit_plan(former, Plan(1, admits=(admit(0, PROMPT),)), b"")
        shard.engine.close_session(former, EndReason.ROUTER_LEFT, "left")
        shard.send(admits=[admit(0, [1, 2])])
        assert shard.run_to_end(0) == {0: greedy([1, 2], 4)}


def test_rule_21_silence_of_the_router_ends_the_epoch() -> None:
    now = [0.0]
    with Shard(lease_s=5.0, clock=lambda: now[0]) as shard:
        shard.send(admits=[admit(0, PROMPT, blocks=[0, 1], max_new=20)])
        while not len(shard.next_result().starved_slots):
            pass
        now[0] = 4.9
        assert shard.is_silent()
        now[0] = 5.1
        item = shard.next_item()
        assert isinstance(item, StreamEnd)
        assert item.reason is EndReason.LEASE
        assert shard.executor.table.is_empty
        assert shard.engine.open_session() is not None


def test_rule_21_any_message_renews_the_lease() -> None:
    now = [0.0]
    with Shard(lease_s=5.0, clock=lambda: now[0]) as shard:
        for _ in range(4):
            now[0] += 4.0
            shard.session.hear()
            assert shard.session.silence_s() == 0.0
        shard.send(drops=[drop(0)])
        assert shard.next_result().plan_applied == 1


def test_a_fault_of_the_model_ends_the_loop_and_tells_the_stream() -> None:
    with Shard() as shard:
        shard.runner.raises = RuntimeError("device lost")
        shard.send(admits=[admit(0, PROMPT)])
        item = shard.next_item()
        assert isinstance(item, StreamEnd)
        assert item.reason is EndReason.FAILED
        assert "device lost" in item.message
    assert isinstance(shard.error, RuntimeError)


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("on a device"), MemoryError(), RuntimeError(ALLOCATOR_TEXT)])
def test_step_that_runs_out_of_memory_runs_again_in_halves(error: Exception) -> None:
    prompts = [PROMPT, [6, 2], [9, 9, 4], [7]]
    sampling = SamplingParams(do_sample=True, seed=11, temperature=30.0, repetition_penalty=1.3)
    with Shard() as shard:
        shard.send(admits=[admit(slot, prompt, max_new=6, sampling=sampling) for slot, prompt in enumerate(prompts)])
        undisturbed = shard.run_to_end(0, 1, 2, 3)
    with Shard() as shard:
        shard.runner.refuse = lambda batch: error if len(batch.context_lens_R) > 1 else None
        shard.send(admits=[admit(slot, prompt, max_new=6, sampling=sampling) for slot, prompt in enumerate(prompts)])
        assert shard.run_to_end(0, 1, 2, 3) == undisturbed
        assert not any(result.errors for result in shard.results)
        assert [len(result.slots) for result in shard.results[:4]] == [1, 1, 1, 1]
        # Four rows run out of memory, then twice two of them, in each of six steps.
        assert shard.status.heartbeat().num_memory_faults == 3 * 6


def test_request_that_has_no_room_alone_ends_and_the_others_go_on() -> None:
    def refuse(batch: ForwardBatch) -> Exception | None:
        return torch.OutOfMemoryError("none left") if 6 in batch.input_ids_T.tolist() else None

    with Shard() as shard:
        shard.runner.refuse = refuse
        shard.send(admits=[admit(0, PROMPT, max_new=6), admit(1, [6, 2], max_new=6), admit(2, [4, 4], max_new=6)])
        tokens = shard.run_to_end(0, 2)
        errors = [error for result in shard.results for error in result.errors]
        assert [(error.slot, error.request_id, error.code) for error in errors] == [(1, 101, SlotErrorCode.INTERNAL)]
        assert "memory" in errors[0].message
        assert tokens == {0: greedy(PROMPT, 6), 2: greedy([4, 4], 6)}
        assert not shard.executor.table.is_occupied.any()
        steps = [result.step for result in shard.results]
        assert steps == sorted(set(steps))


def test_step_whose_exception_says_nothing_of_memory_ends_the_process() -> None:
    error = RuntimeError("none of your business")
    with Shard() as shard:
        shard.runner.raises = error
        shard.send(admits=[admit(0, PROMPT)])
        item = shard.next_item()
        assert isinstance(item, StreamEnd)
        assert item.reason is EndReason.FAILED
    assert shard.error is error


def test_step_that_does_not_end_is_late_and_a_loop_that_waits_for_work_is_not() -> None:
    with gated() as shard:
        shard.status.progress.measure_warm_up(0.0)  # the limit is the slack alone
        shard.send(admits=[admit(0, PROMPT, max_new=1)])
        shard.hold()
        assert shard.status.overdue_ms() == 0
        deadline_s = time.monotonic() + WAIT_S
        while not shard.status.overdue_ms():
            assert time.monotonic() < deadline_s, "the step is never late"
            time.sleep(0.01)
        assert shard.status.heartbeat().overdue_ms > 0
        assert shard.gate is not None
        shard.gate.release()
        shard.next_result()
        while shard.status.overdue_ms():
            assert time.monotonic() < deadline_s, "the loop is late although no slot can run"
            time.sleep(0.01)
