"""A world of several schedulers with a model shard each, in which shards die and their requests go on elsewhere."""

from random import Random

from textmill_router.request import (
    FailureCode,
    GenerationParameters,
    GenerationRequest,
    RequestId,
    RequestOutput,
    token_array,
)
from textmill_router.scheduler.config import SchedulerConfig
from textmill_router.scheduler.placement import Placement
from textmill_router.scheduler.plan import Budget, Plan, ShardPool
from textmill_router.scheduler.request_state import RequestState
from textmill_router.scheduler.scheduler import Scheduler

from tests.fakes.model_shard import ModelShard, undisturbed_text

BLOCK_SIZE = 4
NUM_BLOCKS = 24
BUDGET = Budget(max_step_tokens=24, max_prefill_tokens=16, max_chunk_tokens=8)


class ReplicaWorld:
    """One run from one seed.

    Each scheduler gives an ended epoch's requests to the other replicas, if one of them is up. `tokens` holds the
    output of each request so far, and `expected` the output that the model gives when no other request exists.
    """

    def __init__(self, seed: int, *, num_replicas: int, num_arrivals: int, death_rate: float) -> None:
        self._rng = Random(seed)
        self._death_rate = death_rate
        self.num_arrivals = num_arrivals
        config = SchedulerConfig(BUDGET, max_waiting_requests=1000, max_waiting_tokens=100_000, grant_ahead_tokens=4,
                                 regrant_below_tokens=2)  # fmt: skip
        self.schedulers = [Scheduler(config) for _ in range(num_replicas)]
        self.shards: list[ModelShard | None] = [None] * num_replicas
        self._placement = Placement(num_replicas)
        self._turn = 0
        self.prompts: dict[int, list[int]] = {}
        self.tokens: dict[int, list[int]] = {}
        self.expected: dict[int, list[int]] = {}
        self.ended: set[int] = set()
        self.suspects: set[int] = set()  # three shards died while each read their prompts (rule 22)
        self.num_deaths = self.num_moved = 0
        for replica in range(num_replicas):
            self._births(replica)

    def run(self) -> None:
        """Go on until each request has ended. Raises AssertionError when one waits for too long."""
        while len(self.prompts) < self.num_arrivals or len(self.ended) < len(self.prompts):
            self._step()
            assert self._turn < 20_000, f"{len(self.prompts) - len(self.ended)} requests wait for ever"

    def _step(self) -> None:
        rng = self._rng
        self._turn += 1
        if len(self.prompts) < self.num_arrivals and rng.random() < 0.3:
            self._arrive()
        for replica, shard in enumerate(self.shards):
            if shard is None and rng.random() < 0.2:
                self._births(replica)
            elif shard is not None and rng.random() < self._death_rate:
                self._dies(replica)
        for replica, scheduler in enumerate(self.schedulers):
            self._send(replica, scheduler.on_tick(float(self._turn)))
            scheduler.check()
            shard = self.shards[replica]
            if shard is None or rng.random() < 0.1:
                continue
            shard.turn()
            while (result := shard.receive()) is not None:
                decision = scheduler.on_step(result, float(self._turn))
                self._send(replica, decision.plans)
                self._deliver(decision.outputs)

    def _open(self) -> list[Scheduler | None]:
        return [
            scheduler if shard is not None else None
            for scheduler, shard in zip(self.schedulers, self.shards, strict=True)
        ]

    def _births(self, replica: int) -> None:
        pool = ShardPool(3, NUM_BLOCKS, BLOCK_SIZE, BUDGET.max_step_tokens)
        self.shards[replica] = ModelShard(pool, rng=self._rng, has_overlap=replica % 2 == 0)
        self._send(replica, self.schedulers[replica].begin_epoch(pool, float(self._turn)).plans)
        for other, shard in enumerate(self.shards):
            if shard is None:
                self._move(other)

    def _dies(self, replica: int) -> None:
        self.num_deaths += 1
        self.shards[replica] = None
        self._deliver(self.schedulers[replica].end_epoch(float(self._turn)))
        self._move(replica)

    def _move(self, replica: int) -> None:
        """Hand the requests of a replica that is down to the replicas that are up, if there is one."""
        if any(self.shards):
            placed, homeless = self._placement.spread(self.schedulers[replica].give_away(), self._open())
            assert not homeless
            self.num_moved += len(placed)

    def _arrive(self) -> None:
        rng = self._rng
        request_id = len(self.prompts) + 1
        prompt = [rng.randrange(1, 24) for _ in range(rng.randint(1, 30))]
        leader = None
        if self.prompts and rng.random() < 0.5:
            other = rng.choice(list(self.prompts))
            if other not in self.ended and rng.random() < 0.3:
                leader = RequestId(other)
                prompt = self.prompts[other]
            else:  # a next turn
                prompt = [*self.prompts[other], *self.tokens[other], 5][:60]
        request = GenerationRequest(
            RequestId(request_id), token_array(prompt), 12, float(self._turn), GenerationParameters(),
            shares_prompt_of=leader,
        )  # fmt: skip
        self.prompts[request_id], self.tokens[request_id] = prompt, []
        self.expected[request_id] = undisturbed_text(prompt, 12, (), ignore_eos=False)
        state = RequestState(request)
        schedulers = self._open()
        replica = (self._placement.rank(state, schedulers) or [0])[0]
        self._placement.note(state, replica, self.schedulers[replica])
        self.schedulers[replica].on_submit(request, float(self._turn), state)

    def _send(self, replica: int, plans: tuple[Plan, ...]) -> None:
        for plan in plans:
            shard = self.shards[replica]
            assert shard is not None
            shard.send(plan)

    def _deliver(self, outputs: tuple[RequestOutput, ...]) -> None:
        for output in outputs:
            assert output.request_id not in self.ended, f"request {output.request_id} is answered twice"
            self.tokens[output.request_id].extend(output.tokens)
            if output.failure is not None:
                assert output.failure.code is FailureCode.SUSPECT, output.failure
                assert self.num_deaths >= 2
                self.suspects.add(output.request_id)
            if output.finish is not None or output.failure is not None:
                self.ended.add(output.request_id)
