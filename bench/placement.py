"""Simulates routers with several replicas, and prints how three ways to place requests compare. Computes no tokens.

Each replica is the real scheduler with a timed shard, whose step takes a fixed time, a time per prefill token and a
time per decoding request. One replica alone gives the prefix tokens that could be re-used at most.

Run with `python -m bench.placement`. The output is a Markdown table.
"""

import argparse
import heapq
import statistics
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from random import Random

from textmill_router.request import GenerationRequest, RequestId, token_array
from textmill_router.scheduler import placement as placement_module
from textmill_router.scheduler.config import SchedulerConfig
from textmill_router.scheduler.placement import Placement
from textmill_router.scheduler.plan import FLAG_FINISHED, FLAG_LENGTH, Admit, Budget, Plan, ShardPool, StepResult
from textmill_router.scheduler.request_state import RequestState
from textmill_router.scheduler.scheduler import Scheduler

# SmolLM2-135M on two cores: `docs/benchmarks.md` has the steps that these times come from.
STEP_S = 0.0085
PREFILL_TOKEN_S = 0.0005
DECODE_ROW_S = 0.00085
BUDGET = Budget(max_step_tokens=1024, max_prefill_tokens=1024, max_chunk_tokens=256)
BLOCK_SIZE = 16


class TimedShard:
    """A shard without a model: it takes plans, makes steps by the rule of the composer, and tells their seconds."""

    def __init__(self) -> None:
        self._seats: dict[int, Admit] = {}
        self._computed: dict[int, int] = {}
        self._num_tokens: dict[int, int] = {}
        self._num_places: dict[int, int] = {}
        self._plan_applied = 0
        self._plan_reported = 0
        self._num_steps = 0

    def apply(self, plan: Plan) -> None:
        """Take one plan whole."""
        for drop in plan.drops:
            if drop.slot in self._seats and self._seats[drop.slot].request_id == drop.request_id:
                del self._seats[drop.slot]
        for extend in plan.extends:
            if extend.slot in self._seats:
                self._num_places[extend.slot] += len(extend.block_ids) * BLOCK_SIZE
        for admit in plan.admits:
            self._seats[admit.slot] = admit
            self._computed[admit.slot] = admit.num_cached_tokens
            self._num_tokens[admit.slot] = len(admit.request.prompt_ids) + len(admit.output_ids)
            self._num_places[admit.slot] = len(admit.block_ids) * BLOCK_SIZE
        self._plan_applied = plan.number

    def step(self) -> tuple[StepResult, float] | None:
        """Make a step and return its result and seconds, or None when nothing runs and all plans are acknowledged."""
        takes = self._take_tokens()
        if not takes and self._plan_reported == self._plan_applied:
            return None
        rows: list[tuple[int, int]] = []
        prefills: list[tuple[int, int]] = []
        num_prefill = num_rows = 0
        for slot, take in takes.items():
            is_decode = self._computed[slot] + 1 == self._num_tokens[slot] and take == 1
            num_rows, num_prefill = num_rows + is_decode, num_prefill + (0 if is_decode else take)
            self._computed[slot] += take
            if self._computed[slot] < self._num_tokens[slot]:
                prefills.append((slot, self._computed[slot]))
                continue
            self._num_tokens[slot] += 1
            request = self._seats[slot].request
            has_ended = self._num_tokens[slot] == len(request.prompt_ids) + request.max_new_tokens
            rows.append((slot, FLAG_FINISHED | FLAG_LENGTH if has_ended else 0))
            if has_ended:
                del self._seats[slot]
        self._num_steps += bool(takes)
        self._plan_reported = self._plan_applied
        result = StepResult(
            step=self._num_steps if takes else 0,
            plan_applied=self._plan_applied,
            slots=array("I", [slot for slot, _ in rows]),
            tokens=array("I", [7] * len(rows)),
            flags=bytes(flags for _, flags in rows),
            prefill_slots=array("I", [slot for slot, _ in prefills]),
            prefill_computed=array("I", [computed for _, computed in prefills]),
            starved_slots=array("I"),
        )
        return result, STEP_S * bool(takes) + PREFILL_TOKEN_S * num_prefill + DECODE_ROW_S * num_rows

    def _take_tokens(self) -> dict[int, int]:
        takes: dict[int, int] = {}
        left = BUDGET.max_prefill_tokens
        for limit in (BUDGET.max_chunk_tokens, BUDGET.max_step_tokens):
            for slot in self._seats:
                taken = takes.get(slot, 0)
                wanted = min(self._num_tokens[slot], self._num_places[slot]) - self._computed[slot] - taken
                more = min(wanted, limit, max(left, 1) if self._num_tokens[slot] - self._computed[slot] == 1 else left)
                if more > 0:
                    takes[slot] = taken + more
                    left -= more
        return takes


@dataclass
class Call:
    """One call of a client, and the times in seconds at which it came, got its first token and ended."""

    prompt: list[int]
    max_new_tokens: int
    came_s: float = 0.0
    first_s: float = 0.0
    ended_s: float = 0.0
    on_end: Callable[[float], "tuple[float, Call] | None"] | None = None  # the next call, with its time


@dataclass
class Outcome:
    """The figures of one run."""

    hit_tokens: int
    prompt_tokens: int
    first_token_s: list[float]
    end_s: float
    total_s: list[float] = field(default_factory=list)


class Simulation:
    """One run of one workload with one policy. `choose` is given the request's state and the schedulers."""

    def __init__(self, num_replicas: int, policy: str, *, num_blocks: int, num_slots: int) -> None:
        self.schedulers = [
            Scheduler(SchedulerConfig(BUDGET, max_waiting_requests=100_000, max_waiting_tokens=1 << 40))
            for _ in range(num_replicas)
        ]
        self.shards = [TimedShard() for _ in range(num_replicas)]
        self._placement = Placement(num_replicas)
        self._policy = policy
        self._calls: dict[int, Call] = {}
        self._is_busy = [False] * num_replicas
        self._events: list[tuple[float, int, int, Call | StepResult]] = []  # time, order, replica or -1, what
        self._order = 0
        for number, scheduler in enumerate(self.schedulers):
            pool = ShardPool(num_slots, num_blocks, BLOCK_SIZE, BUDGET.max_step_tokens)
            for plan in scheduler.begin_epoch(pool, 0.0).plans:
                self.shards[number].apply(plan)

    def _push(self, time_s: float, replica: int, what: Call | StepResult) -> None:
        self._order += 1
        heapq.heappush(self._events, (time_s, self._order, replica, what))

    def run(self, arrivals: Iterator[tuple[float, Call]]) -> Outcome:
        """Run all calls, and the calls that follow them, to their end."""
        for time_s, call in arrivals:
            self._push(time_s, -1, call)
        now_s = 0.0
        while self._events:
            now_s, _, replica, what = heapq.heappop(self._events)
            if isinstance(what, Call):
                self._submit(what, now_s)
            else:
                self._is_busy[replica] = False
                self._read(replica, what, now_s)
        calls = list(self._calls.values())
        counters = [scheduler.counters for scheduler in self.schedulers]
        return Outcome(
            hit_tokens=sum(counter.num_prefix_hit_tokens for counter in counters),
            prompt_tokens=sum(len(call.prompt) for call in calls),
            first_token_s=[call.first_s - call.came_s for call in calls],
            end_s=now_s,
            total_s=[call.ended_s - call.came_s for call in calls],
        )

    def _submit(self, call: Call, now_s: float) -> None:
        call.came_s = now_s
        request_id = RequestId(len(self._calls) + 1)
        self._calls[request_id] = call
        request = GenerationRequest(request_id, token_array(call.prompt), call.max_new_tokens, now_s)
        state = RequestState(request)
        replica = self._choose(state)
        self._placement.note(state, replica, self.schedulers[replica])
        self.schedulers[replica].on_submit(request, now_s, state)
        for plan in self.schedulers[replica].on_tick(now_s):
            self.shards[replica].apply(plan)
        self._go_on(replica, now_s)

    def _choose(self, state: RequestState) -> int:
        if self._policy == "round robin":
            return state.request_id % len(self.schedulers)
        if self._policy == "fewest requests":
            return min(range(len(self.schedulers)), key=lambda replica: self.schedulers[replica].num_requests)
        return self._placement.rank(state, self.schedulers)[0]

    def _go_on(self, replica: int, now_s: float) -> None:
        if not self._is_busy[replica]:
            made = self.shards[replica].step()
            if made is not None:
                self._is_busy[replica] = True
                self._push(now_s + made[1], replica, made[0])

    def _read(self, replica: int, result: StepResult, now_s: float) -> None:
        decision = self.schedulers[replica].on_step(result, now_s)
        for plan in decision.plans:
            self.shards[replica].apply(plan)
        for output in decision.outputs:
            call = self._calls[output.request_id]
            call.first_s = call.first_s or now_s
            if output.finish is not None:
                call.ended_s = now_s
                following = call.on_end(now_s) if call.on_end else None
                if following is not None:
                    self._push(following[0], -1, following[1])
        self._go_on(replica, now_s)


def growing_chats(rng: Random, *, num_chats: int = 8, num_turns: int = 12) -> Iterator[tuple[float, Call]]:
    """Chats whose next turn has the whole earlier turns as its prefix, after a pause of some seconds."""

    def turn(prompt: list[int], number: int) -> Call:
        def follow(now_s: float) -> tuple[float, Call] | None:
            if number == num_turns:
                return None
            longer = [*prompt, *([7] * 40), *(rng.randrange(10, 30_000) for _ in range(60))]
            return now_s + rng.uniform(0.0, 0.3), turn(longer, number + 1)

        return Call(prompt, 40, on_end=follow)

    for _ in range(num_chats):
        yield rng.uniform(0, 1), turn([rng.randrange(10, 30_000) for _ in range(120)], 1)


def shared_prefix(rng: Random, *, num_calls: int = 300, rate: float = 8.0) -> Iterator[tuple[float, Call]]:
    """Calls that all begin with one text of 1,500 tokens, at Poisson times."""
    prefix = [rng.randrange(10, 30_000) for _ in range(1500)]
    time_s = 0.0
    for _ in range(num_calls):
        time_s += rng.expovariate(rate)
        yield time_s, Call([*prefix, *(rng.randrange(10, 30_000) for _ in range(40))], 60)


def unrelated(rng: Random, *, num_calls: int = 300, rate: float = 4.0) -> Iterator[tuple[float, Call]]:
    """Calls without a common prefix, of 20 to 1,500 tokens, with 8 to 200 tokens of output, at Poisson times."""
    time_s = 0.0
    for _ in range(num_calls):
        time_s += rng.expovariate(rate)
        num_tokens = round(20 * 75 ** rng.random())
        yield time_s, Call([rng.randrange(10, 30_000) for _ in range(num_tokens)], rng.choice([8, 40, 100, 200]))


WORKLOADS: dict[str, Callable[[Random], Iterator[tuple[float, Call]]]] = {
    "8 chats of 12 turns": growing_chats,
    "one prefix of 1,500": shared_prefix,
    "unrelated": unrelated,
}


def run_all(num_replicas: int, seed: int) -> Iterator[str]:
    """Yield the rows of the table, the header first."""
    yield "| Workload | Policy | re-used prefix, of one replica's | TTFT mean / p95, ms | call mean, s | end, s |"
    yield "|---|---|---|---|---|---|"
    for name, workload in WORKLOADS.items():
        alone: Outcome | None = None
        for policy, count in (
            ("one replica", 1),
            ("placement", num_replicas),
            ("round robin", num_replicas),
            ("fewest requests", num_replicas),
        ):
            outcome = Simulation(count, policy, num_blocks=4096, num_slots=64).run(workload(Random(seed)))
            alone = alone or outcome
            share = f"{outcome.hit_tokens / alone.hit_tokens:.1%}" if alone.hit_tokens else "-"
            ttft = sorted(outcome.first_token_s)
            yield (
                f"| {name} | {policy} | {share} | {1000 * statistics.mean(ttft):,.0f} / "
                f"{1000 * ttft[int(0.95 * len(ttft))]:,.0f} | {statistics.mean(outcome.total_s):.2f} | "
                f"{outcome.end_s:.1f} |"
            )


def main() -> None:
    """Print the table for each weight of a neighbour that is given."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--num-replicas", type=int, default=2)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--tokens-per-neighbour", type=int, nargs="*", default=[placement_module.TOKENS_PER_NEIGHBOUR])
    arguments = parser.parse_args()
    for weight in arguments.tokens_per_neighbour:
        placement_module.TOKENS_PER_NEIGHBOUR = weight
        print(f"\n{arguments.num_replicas} replicas, {weight} tokens per neighbour:\n")
        for line in run_all(arguments.num_replicas, arguments.seed):
            print(line)


if __name__ == "__main__":
    main()
