"""The facts of the shard's model decide how requests are admitted: rotary tables, shared prefixes."""

from dataclasses import replace

import pytest
from textmill_router.request import GenerationRequest, RequestId, token_array
from textmill_router.scheduler.config import SchedulerConfig
from textmill_router.scheduler.plan import Admit, Budget
from textmill_router.scheduler.scheduler import Scheduler

from tests.fakes.scheduler_hand import BUDGET, ENDED, make_pool, make_result

POOL = make_pool(num_blocks=32)


class OneByOne:
    """A scheduler over a pool, in which each request runs to its end before the next one."""

    def __init__(self, pool=POOL):
        self.scheduler = Scheduler(SchedulerConfig(budget=BUDGET, max_waiting_requests=9, max_waiting_tokens=999))
        self.scheduler.begin_epoch(pool, 0.0)
        self.num_requests = 0

    def run(self, num_prompt: int, *, max_new: int) -> Admit:
        self.num_requests += 1
        request = GenerationRequest(RequestId(self.num_requests), token_array(range(num_prompt)), max_new, 0.0)
        self.scheduler.on_submit(request, 0.0)
        (plan,) = self.scheduler.on_tick(0.0)
        (admit,) = plan.admits
        self.scheduler.on_step(make_result(applied=plan.number, rows=[(admit.slot, 7, ENDED)]), 0.0)
        return admit


@pytest.mark.parametrize(("max_new", "is_long"), [(11, False), (12, True)])
def test_a_request_that_may_grow_beyond_the_border_takes_the_long_table(max_new: int, is_long: bool):
    assert OneByOne(replace(POOL, rope_border=20)).run(9, max_new=max_new).is_long_rope is is_long
    assert not OneByOne().run(9, max_new=max_new).is_long_rope


def test_requests_on_two_sides_of_the_border_share_no_prefix():
    requests = OneByOne(replace(POOL, rope_border=20))
    assert requests.run(9, max_new=4).num_cached_tokens == 0
    assert requests.run(9, max_new=30).num_cached_tokens == 0
    assert requests.run(9, max_new=30).num_cached_tokens == 8
    assert requests.run(9, max_new=4).num_cached_tokens == 8


def test_what_encoders_read_counts_whole_towards_two_steps_of_prefill():
    budget = Budget(max_step_tokens=16, max_prefill_tokens=8, max_chunk_tokens=2)
    for num_encoder_tokens, num_admitted in ((7, 3), (0, 4)):  # 7 + 7 < 16 tokens; chunks of 2 let all in
        config = SchedulerConfig(budget=budget, max_waiting_requests=9, max_waiting_tokens=999, prefix_caching=False)
        scheduler = Scheduler(config)
        scheduler.begin_epoch(POOL, 0.0)
        for number in range(1, 5):
            request = GenerationRequest(
                RequestId(number), token_array(range(8)), 4, 0.0, num_encoder_tokens=num_encoder_tokens
            )
            scheduler.on_submit(request, 0.0)
        (plan,) = scheduler.on_tick(0.0)
        assert [admit.request.num_encoder_tokens for admit in plan.admits] == [num_encoder_tokens] * num_admitted


def test_an_encoder_rates_no_prompt_tokens():
    request = GenerationRequest(
        RequestId(1), token_array(range(8)), 4, 0.0, wants_prompt_logprobs=True, num_encoder_tokens=7
    )
    scheduler = Scheduler(SchedulerConfig(budget=BUDGET, max_waiting_requests=9, max_waiting_tokens=999))
    scheduler.begin_epoch(POOL, 0.0)
    scheduler.on_submit(request, 0.0)
    (plan,) = scheduler.on_tick(0.0)
    assert plan.admits[0].prompt_logprobs_from is None


def test_blocks_that_are_not_the_whole_past_are_not_shared():
    requests = OneByOne(replace(POOL, can_share_prefixes=False))
    assert [requests.run(9, max_new=4).num_cached_tokens for _ in range(2)] == [0, 0]
