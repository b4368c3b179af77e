"""A small world in which the scheduler drives the model shard, with arrivals, cancels and deaths from one seed."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from random import Random
from types import MappingProxyType
from typing import Any

from textmill_router.media.media_item import MediaItem
from textmill_router.request import (
    FailureCode,
    FinishReason,
    GenerationParameters,
    GenerationRequest,
    RequestId,
    RequestOutput,
    Standing,
    token_array,
)
from textmill_router.scheduler.config import SchedulerConfig
from textmill_router.scheduler.plan import Budget, Plan, ShardPool
from textmill_router.scheduler.scheduler import QueueFull, Scheduler

from tests.fakes.model_shard import ModelShard, as_read, prompt_logprob, undisturbed_text
from tests.fakes.model_shard import digest_of as digest_of_prefix

BLOCK_SIZE = 4


@dataclass(slots=True)
class Client:
    """The outputs that the client of one request has got, and those that it must get."""

    request: GenerationRequest
    prompt: list[int]
    expected: list[int]
    is_poisoned: bool = False
    tokens: list[int] = field(default_factory=list)
    prompt_logprobs: list[float] = field(default_factory=list)
    finish: FinishReason | None = None
    failure: FailureCode | None = None
    is_cancelled: bool = False
    is_admitted: bool = False
    submitted_at: int = 0  # turn

    @property
    def is_over(self) -> bool:
        """Whether no further output may come."""
        return self.is_cancelled or self.finish is not None or self.failure is not None


@dataclass(slots=True)
class WorldCounts:
    """The events of a run, by which a test sees that the run was not a quiet one."""

    arrivals: int = 0
    follow_ups: int = 0
    equal_prompts: int = 0
    followers: int = 0
    copies: int = 0
    cancels: int = 0
    deaths: int = 0
    refused: int = 0
    preemptions: int = 0
    starvations: int = 0
    hit_tokens: int = 0
    passes: int = 0
    longest_wait: float = 0.0  # turns to the end, as a share of the bound

    def add(self, other: "WorldCounts") -> None:
        """Add the counts of another run."""
        for name in self.__slots__:
            if name != "longest_wait":
                setattr(self, name, getattr(self, name) + getattr(other, name))
        self.longest_wait = max(self.longest_wait, other.longest_wait)


class World:
    """One run. `step` is one turn of scheduler and shard; `run` goes on until each request is over.

    A request must be over within 40 + 2 N turns, times one more than the deaths in that time. N is the number of prompt
    and output tokens of all requests that are alive at some time between the arrival and the end of the request.
    """

    scheduler_type: type[Scheduler] = Scheduler
    shard_type: type[ModelShard] = ModelShard
    more_facts: Mapping[str, Any] = MappingProxyType({})  # of the pool

    def __init__(self, seed: int, *, num_arrivals: int = 30, death_rate: float = 0.004, num_callers: int = 1) -> None:
        self.num_callers = num_callers
        rng = self.rng = Random(seed)
        self.num_arrivals = num_arrivals
        self.death_rate = death_rate if rng.random() < 0.6 else 0.0
        self.has_overlap = rng.random() < 0.6
        self.max_delay = rng.choice([0, 1, 3, 3])
        self.num_slots = rng.choice([1, 3, 6, 8])
        self.num_blocks = rng.choice([9, 12, 16, 30])
        self.budget = Budget(
            max_step_tokens=rng.choice([8, 10, 24]),
            max_prefill_tokens=rng.choice([3, 6, 16]),
            max_chunk_tokens=rng.choice([2, 5, 16]),
        )
        ahead = rng.choice([1, 2, 4, 9])
        self.scheduler = self.scheduler_type(
            SchedulerConfig(
                budget=self.budget,
                max_waiting_requests=rng.choice([12, 100, 100]),
                max_waiting_tokens=rng.choice([200, 10_000, 10_000]),
                prefix_caching=rng.random() < 0.85,
                grant_ahead_tokens=ahead,
                regrant_below_tokens=rng.randint(1, ahead),
            )
        )
        self.clients: dict[int, Client] = {}
        self.poisoned: set[int] = set()
        self.counts = WorldCounts()
        self.turn = 0
        self.num_epochs = 0
        self.deaths_at: list[int] = []
        self.shard: ModelShard | None = None
        self._ended_at: dict[int, int] = {}
        self._births()

    # ---- The life of the shard.

    def _births(self) -> None:
        self.num_epochs += 1
        pool = replace(
            ShardPool(
                num_slots=self.num_slots,
                num_blocks=self.num_blocks + self.rng.choice([0, 0, 3]),
                block_size=BLOCK_SIZE,
                max_step_tokens=24,
            ),
            **self.more_facts,
        )
        self.shard = self.shard_type(
            pool,
            rng=self.rng,
            has_overlap=self.has_overlap,
            max_delay=self.max_delay,
            poisoned=frozenset(self.poisoned),
        )
        decision = self.scheduler.begin_epoch(pool, float(self.turn))
        self._send(decision.plans)
        self._deliver(decision.outputs)

    def _dies(self) -> None:
        self.counts.deaths += 1
        self.deaths_at.append(self.turn)
        self.shard = None
        self._deliver(self.scheduler.end_epoch(float(self.turn)))

    # ---- Requests.

    def _arrive(self) -> None:
        rng = self.rng
        self.counts.arrivals += 1
        # Failed requests count too, because the blocks that they wrote must not be found (rule 19).
        finished = [client for client in self.clients.values() if client.finish or client.failure]
        alive = [client for client in self.clients.values() if not client.is_over and not client.is_poisoned]
        kind = rng.random()
        salt = b""
        earlier_request: GenerationRequest | None = None
        if kind < 0.35 and finished:  # a follow-up turn: an earlier prompt, its output, a few tokens more
            earlier = rng.choice(finished)
            prompt = [*earlier.prompt, *earlier.tokens, *(rng.randrange(1, 24) for _ in range(rng.randint(0, 3)))]
            salt = earlier.request.cache_salt
            earlier_request = earlier.request
            self.counts.follow_ups += 1
        elif kind < 0.6 and alive:  # an equal prompt, or one that begins alike
            other = rng.choice(alive)
            prompt = [*other.prompt[: rng.choice([len(other.prompt), 9, 13])], *([7] * rng.randint(0, 2))]
            salt = other.request.cache_salt
            earlier_request = other.request
            # Another first token before equal blocks makes another prefix.
            if rng.random() < 0.2 and not other.request.media:
                prompt[0] = 1 + prompt[0] % 23
            self.counts.equal_prompts += 1
        else:
            prompt = [rng.randrange(1, 24) for _ in range(rng.randint(1, 20))]
            salt = rng.choice([b"", b"", b"tenant"])
        max_total = self.num_blocks * BLOCK_SIZE
        prompt = prompt[: max_total - 2]
        max_new = min(rng.choice([1, 2, 6, 14, 24, 30]), max_total - len(prompt))
        request_id = len(self.clients) + 1
        is_poisoned = rng.random() < 0.04
        if is_poisoned:
            salt = b"poison%d" % request_id
        stop_ids = (rng.randrange(1, 24),) if rng.random() < 0.3 else ()
        ignore_eos = rng.random() < 0.6
        wants_prompt_logprobs = rng.random() < 0.15
        leader = rng.choice(alive) if alive and rng.random() < 0.15 else None
        if leader is not None:  # the request is a further sequence of the leader's prompt
            prompt, max_new, salt = leader.prompt, leader.request.max_new_tokens, leader.request.cache_salt
            is_poisoned = False
            self.counts.followers += 1
        source = leader.request if leader is not None else earlier_request
        prompt, media = self._picture(prompt, source)
        request = GenerationRequest(
            request_id=RequestId(request_id),
            prompt_ids=token_array(prompt),
            max_new_tokens=max_new,
            arrival_s=float(self.turn),
            stop_ids=stop_ids,
            parameters=GenerationParameters(ignore_eos=ignore_eos),
            wants_prompt_logprobs=wants_prompt_logprobs,
            standing=leader.request.standing if leader is not None else self._standing_of(request_id),
            cache_salt=salt,
            shares_prompt_of=None if leader is None else leader.request.request_id,
            media=media,
        )
        client = Client(
            request,
            prompt,
            undisturbed_text(as_read(request), max_new, stop_ids, ignore_eos),
            is_poisoned,
            submitted_at=self.turn,
        )
        try:
            self.scheduler.on_submit(request, float(self.turn))
        except QueueFull:
            self.counts.refused += 1
            return
        self.clients[request_id] = client
        if is_poisoned:
            self.poisoned.add(request_id)
            if self.shard is not None:
                self.shard.poison(request_id)

    def _picture(self, prompt: list[int], source: GenerationRequest | None) -> tuple[list[int], tuple[MediaItem, ...]]:
        """Return the prompt with images, and the images. `source` is the request from which the prompt was made."""
        return prompt, ()

    def _after_plan(self) -> None:
        """Do what the scheduler asks for beside plans."""

    def _standing_of(self, request_id: int) -> Standing:
        """Callers take turns, and the weight of the second is 3."""
        number = request_id % self.num_callers
        return Standing(caller=str(number), weight=3.0 if number == 1 else 1.0)

    def _cancel(self) -> None:
        alive = [client for client in self.clients.values() if not client.is_over]
        if alive:
            client = self.rng.choice(alive)
            client.is_cancelled = True
            self._ended_at[client.request.request_id] = self.turn
            self.counts.cancels += 1
            self.scheduler.on_cancel(client.request.request_id)

    # ---- The wire.

    def _send(self, plans: tuple[Plan, ...]) -> None:
        for plan in plans:
            self._check_nobody_is_passed(plan)
            assert self.shard is not None
            self.shard.send(plan)

    def _check_nobody_is_passed(self, plan: Plan) -> None:
        """Check that first admissions of one caller keep the order of arrival.

        A request that shares two full blocks with a running request may be passed.
        """
        for admit in plan.admits:
            self.counts.copies += admit.copied_block_id is not None
            newcomer = self.clients[admit.request_id]
            if newcomer.is_admitted:
                continue
            newcomer.is_admitted = True
            for client in self.clients.values():
                if client.request.request_id >= admit.request_id or client.is_admitted or client.is_over:
                    continue
                if client.request.standing != newcomer.request.standing:
                    continue
                self.counts.passes += 1
                assert self._may_be_held(client), f"{admit.request_id} passes {client.request.request_id}"

    def _may_be_held(self, client: Client) -> bool:
        leader = self.clients.get(client.request.shares_prompt_of or 0)
        if leader is not None and not leader.tokens and not leader.is_over:
            return True
        head = (client.request.cache_salt, client.prompt[: 2 * BLOCK_SIZE])
        return len(client.prompt) > 2 * BLOCK_SIZE and any(
            other.is_admitted
            and not other.is_over
            and (other.request.cache_salt, other.prompt[: 2 * BLOCK_SIZE]) == head
            for other in self.clients.values()
        )

    def _deliver(self, outputs: tuple[RequestOutput, ...]) -> None:
        for output in outputs:
            client = self.clients[output.request_id]
            assert not client.is_over, f"request {output.request_id} is answered twice or after its end"
            if output.prompt_logprobs is not None:
                assert output.prompt_logprobs.start == len(client.prompt_logprobs) + 1
                client.prompt_logprobs.extend(output.prompt_logprobs.logprobs)
            client.tokens.extend(output.tokens)
            assert client.tokens == client.expected[: len(client.tokens)], (
                f"request {output.request_id} gets another text"
            )
            client.finish = output.finish
            client.failure = output.failure.code if output.failure else None
            if client.is_over:
                self._ended_at[output.request_id] = self.turn
                self._check_end(client)

    def _check_end(self, client: Client) -> None:
        if client.failure is not None:
            is_expected = client.is_poisoned and client.failure is FailureCode.NOT_FINITE
            assert is_expected or (client.failure is FailureCode.SUSPECT and len(self.deaths_at) >= 2)
            return
        assert client.tokens == client.expected
        assert not client.is_poisoned
        if client.request.wants_prompt_logprobs:
            prompt = as_read(client.request)
            wanted = [prompt_logprob(digest_of_prefix(prompt[:at]), prompt[at]) for at in range(1, len(prompt))]
            assert client.prompt_logprobs == wanted

    # ---- The run.

    def step(self) -> None:
        """Do one turn: arrivals and cancels, a tick of the loop, a turn of the shard, the results that have come."""
        self.turn += 1
        rng = self.rng
        if self.counts.arrivals < self.num_arrivals and rng.random() < 0.25:
            for _ in range(rng.choice([1, 1, 2, 5])):
                self._arrive()
        if rng.random() < 0.03:
            self._cancel()
        if self.shard is None:
            if rng.random() < 0.3:
                self._births()
        elif rng.random() < self.death_rate:
            self._dies()
        self._send(self.scheduler.on_tick(float(self.turn)))
        self._after_plan()
        self._check_state()
        if self.shard is not None and rng.random() < 0.9:
            self.shard.turn()
        while self.shard is not None and (result := self.shard.receive()) is not None:
            decision = self.scheduler.on_step(result, float(self.turn))
            self._send(decision.plans)
            self._deliver(decision.outputs)
            self._after_plan()
            self._check_state()

    def _check_state(self) -> None:
        stats = self.scheduler.stats()
        assert stats.num_free_blocks + stats.num_held_blocks + stats.num_cached_blocks == stats.num_blocks
        self.scheduler.check()

    def run(self) -> WorldCounts:
        """Go on until all requests are over. Check that each ended in time, and that all slots and blocks are free."""
        while self.counts.arrivals < self.num_arrivals or any(not client.is_over for client in self.clients.values()):
            self.step()
            self._check_nobody_waits_for_ever()
        if self.shard is None:
            self._births()
        for _ in range(40):  # until the last drops are acknowledged
            self.step()
        stats = self.scheduler.stats()
        assert stats.num_free_blocks + stats.num_cached_blocks == stats.num_blocks, "blocks are left behind"
        if self.shard is not None:
            assert stats.num_free_slots == stats.num_slots, "slots are left behind"
        assert stats.num_waiting == stats.num_running == 0
        self.counts.preemptions = stats.num_preemptions_total
        self.counts.starvations = stats.num_starvations_total
        self.counts.hit_tokens = stats.num_prefix_hit_tokens_total
        return self.counts

    def _check_nobody_waits_for_ever(self) -> None:
        if self.turn % 16:
            return
        for client in self.clients.values():
            if not client.is_over:
                share = (self.turn - client.submitted_at) / self._bound_turns(client)
                self.counts.longest_wait = max(self.counts.longest_wait, share)
                assert share <= 1.0, f"request {client.request.request_id} waits for ever"

    def _bound_turns(self, client: Client) -> int:
        num_deaths = sum(1 for turn in self.deaths_at if turn >= client.submitted_at)
        num_tokens = sum(
            len(other.prompt) + other.request.max_new_tokens
            for request_id, other in self.clients.items()
            if self._ended_at.get(request_id, self.turn) >= client.submitted_at
        )
        return (40 + 2 * num_tokens) * (num_deaths + 1)
