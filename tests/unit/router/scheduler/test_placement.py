"""Where a router with several replicas sends a request, and what happens to the requests of a replica that dies."""

from collections.abc import Sequence

import pytest
from textmill_router.request import GenerationRequest, RequestId, token_array
from textmill_router.scheduler.config import SchedulerConfig
from textmill_router.scheduler.placement import TOKENS_PER_NEIGHBOUR, Placement
from textmill_router.scheduler.request_state import RequestState
from textmill_router.scheduler.scheduler import Scheduler

from tests.fakes.replica_world import ReplicaWorld
from tests.fakes.scheduler_hand import BUDGET, ENDED, make_pool, make_result

PREFIX = list(range(100, 140))  # ten blocks of four tokens


class Router:
    """Schedulers with one placement. No step runs unless the test gives its result."""

    def __init__(self, num_replicas: int = 2, *, num_slots: int = 8) -> None:
        config = SchedulerConfig(BUDGET, max_waiting_requests=100, max_waiting_tokens=10_000)
        self.schedulers: list[Scheduler | None] = [Scheduler(config) for _ in range(num_replicas)]
        for scheduler in self.schedulers:
            assert scheduler is not None
            scheduler.begin_epoch(make_pool(num_blocks=400, num_slots=num_slots), 0.0)
        self.placement = Placement(num_replicas)
        self.num_requests = 0

    def rank(self, prompt: Sequence[int], **wishes: object) -> tuple[RequestState, list[int]]:
        self.num_requests += 1
        request = GenerationRequest(
            RequestId(self.num_requests),
            token_array(prompt),
            8,
            float(self.num_requests),
            **wishes,  # type: ignore[arg-type]
        )
        state = RequestState(request)
        return state, self.placement.rank(state, self.schedulers)

    def submit(self, prompt: Sequence[int], **wishes: object) -> int:
        """Place a request, submit it, and return its replica. It stays in the queue until a `tick`."""
        state, ranking = self.rank(prompt, **wishes)
        self.put(state, ranking[0])
        return ranking[0]

    def put(self, state: RequestState, replica: int) -> None:
        scheduler = self.schedulers[replica]
        assert scheduler is not None
        self.placement.note(state, replica, scheduler)
        scheduler.on_submit(state.request, 0.0, state)

    def tick(self, replica: int) -> None:
        scheduler = self.schedulers[replica]
        assert scheduler is not None
        scheduler.on_tick(0.0)


def test_unrelated_requests_take_turns() -> None:
    router = Router(3)
    assert [router.submit([number] * 4) for number in range(1, 7)] == [0, 1, 2, 0, 1, 2]


def test_a_prefix_that_waits_counts_as_known_until_nothing_waits() -> None:
    router = Router()
    long_prefix = [*PREFIX * 10]
    assert router.submit(long_prefix) == 0
    # Both replicas have to compute 400 tokens before an answer, and the idle one has no neighbour.
    assert router.rank([*long_prefix, 1])[1] == [1, 0]
    for number in range(5):  # replica 1 costs 5 * (12 + 64) tokens more than an idle one, fewer than 464 + 400
        state, _ = router.rank([number + 1] * 12)
        router.put(state, 1)
    assert router.rank([*long_prefix, 1])[1] == [0, 1]
    assert router.rank([9, *long_prefix])[1] == [1, 0]


def test_a_prefix_that_is_computed_draws_its_next_request() -> None:
    router = Router()
    scheduler = router.schedulers[0]
    assert scheduler is not None
    long_prefix = [*PREFIX * 3]
    assert router.submit(long_prefix) == 0
    router.tick(0)
    scheduler.on_step(make_result(applied=2, rows=[(0, 7, ENDED)]), 0.0)
    router.submit([1])  # to the idle replica 1, so that the turn is at replica 0 again
    assert router.rank([*long_prefix, 1])[1] == [0, 1]
    assert router.rank([2])[1] == [0, 1]


def test_a_busy_replica_loses_the_requests_of_its_prefix() -> None:
    router = Router()
    scheduler = router.schedulers[0]
    assert scheduler is not None
    long_prefix = [*PREFIX * 3]
    assert router.submit(long_prefix) == 0
    router.tick(0)
    scheduler.on_step(make_result(applied=2, rows=[(0, 7, ENDED)]), 0.0)
    num_neighbours = len(long_prefix) // TOKENS_PER_NEIGHBOUR + 1
    for number in range(num_neighbours):
        state, _ = router.rank([number + 1])
        router.put(state, 0)
    assert router.rank([*long_prefix, 1])[1] == [1, 0]


def test_two_tenants_do_not_draw_each_other() -> None:
    router = Router()
    scheduler = router.schedulers[0]
    assert scheduler is not None
    assert router.submit(PREFIX, cache_salt=b"a") == 0
    router.tick(0)
    scheduler.on_step(make_result(applied=2, rows=[(0, 7, ENDED)]), 0.0)
    assert router.rank([*PREFIX, 1], cache_salt=b"a")[1] == [0, 1]
    assert router.rank([*PREFIX, 1], cache_salt=b"b")[1] == [1, 0]


def test_a_replica_that_is_down_gets_nothing() -> None:
    router = Router(3)
    router.schedulers[1] = None
    assert sorted(router.submit([number]) for number in range(1, 5)) == [0, 0, 2, 2]


def test_further_sequences_follow_their_leader_however_busy_it_is() -> None:
    router = Router()
    assert router.submit([1, 2, 3, 4]) == 0
    for number in range(4):
        state, _ = router.rank([number + 1])
        router.put(state, 0)
    assert router.rank([1, 2, 3, 4], shares_prompt_of=RequestId(1))[1] == [0, 1]
    assert router.rank([1, 2, 3, 4])[1] == [1, 0]


def test_a_request_goes_only_where_it_fits() -> None:
    router = Router()
    small = Scheduler(SchedulerConfig(BUDGET, max_waiting_requests=100, max_waiting_tokens=10_000))
    small.begin_epoch(make_pool(num_blocks=2), 0.0)
    router.schedulers[0] = small
    assert router.rank([*PREFIX])[1] == [1]
    assert router.placement.spread([router.rank([*PREFIX])[0]], [small, None])[0] == []


def test_followers_of_a_lost_replica_go_on_without_a_leader_elsewhere() -> None:
    """A leader's blocks are those of its own shard, so a follower in another shard must not copy them (rule 10)."""
    router = Router()
    lost, other = router.schedulers
    assert lost is not None
    assert other is not None
    assert router.submit([1, 2, 3, 4, 5, 6]) == 0
    router.tick(0)
    lost.on_step(make_result(applied=2, rows=[(0, 7, 0)]), 0.0)
    router.submit([1, 2, 3, 4, 5, 6], shares_prompt_of=RequestId(1))
    lost.end_epoch(1.0)
    leader, follower = lost.give_away()
    assert follower.leader is leader
    other.adopt(follower)
    assert follower.leader is None
    assert leader.epoch == 1
    other.adopt(leader)
    assert leader.epoch == 0  # the number 1 is the other shard's, whose epoch 1 is another


@pytest.mark.parametrize("num_replicas", [2, 3])
def test_texts_stay_the_same_while_replicas_die(num_replicas: int) -> None:
    num_deaths = num_moved = num_suspects = 0
    for seed in range(25):
        world = ReplicaWorld(seed, num_replicas=num_replicas, num_arrivals=25, death_rate=0.01)
        world.run()
        for request_id, tokens in world.tokens.items():
            expected = world.expected[request_id]
            assert tokens == (expected[: len(tokens)] if request_id in world.suspects else expected)
        for scheduler in world.schedulers:
            stats = scheduler.stats()
            assert stats.num_waiting == stats.num_running == 0
        num_deaths, num_moved = num_deaths + world.num_deaths, num_moved + world.num_moved
        num_suspects += len(world.suspects)
    assert num_suspects <= 2
    assert num_deaths > 20
    assert num_moved > 20
