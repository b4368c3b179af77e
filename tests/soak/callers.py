"""The clients of a soak: good, slow, leaving and bad ones, in all dialects, and the judgement of each answer."""

import asyncio
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from random import Random
from typing import Any

import httpx

from tests.fakes.fault_calls import Answer, Call, first_difference
from tests.soak.mill import Mill, now_s

CALL_LIMIT_S = 180.0
MAX_FAULT_CHARACTERS = 400  # of one sentence about a wrong answer
SLOW_EVENTS = 12  # after so many pauses a slow client reads on without pausing

# Bodies that the server must refuse, with the status.
BAD_CALLS: tuple[tuple[str, bytes, int], ...] = (
    ("/generate", b"{", 400),
    ("/generate", b'{"inputs": 5}', 422),
    ("/generate", b'{"inputs": "x", "parameters": {"top_k": -4}}', 422),
    ("/generate", b'{"inputs": "x", "parameters": {"grammar": {"type": "regex", "value": "("}}}', 422),
    ("/generate_stream", b'{"inputs": "x", "parameters": {"max_new_tokens": 0}}', 422),
    ("/v1/chat/completions", b'{"messages": []}', 422),
    ("/v1/completions", b'{"prompt": "x", "temperature": -1}', 422),
    ("/nowhere", b"{}", 404),
    ("/generate", b"\xff\xfe" * 50, 400),
)


@dataclass
class Tally:
    """The outcomes of all calls. `faults` holds a sentence for each answer that was wrong."""

    counts: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    longest_pause_s: float = 0.0


def make_pool(num_tokens: int) -> dict[str, Call]:
    """Return calls of all dialects whose answers do not depend on what runs beside them."""
    story = {"max_new_tokens": num_tokens, "ignore_eos": True}
    chat = {"max_tokens": num_tokens, "temperature": 0, "stream": True, "stream_options": {"include_usage": True}}
    pool: dict[str, Call] = {}
    for number in range(3):
        text = f"Once upon a time {number}"
        seeded = {**story, "do_sample": True, "seed": number, "top_k": 40}
        messages = [{"role": "user", "content": text}]
        pool |= {
            f"greedy {number}": Call("/generate_stream", {"inputs": text, "parameters": story}),
            f"seeded {number}": Call("/generate_stream", {"inputs": text, "parameters": seeded}),
            f"whole {number}": Call(
                "/generate", {"inputs": text, "parameters": {**seeded, "details": True, "repetition_penalty": 1.1}}
            ),
            f"chat {number}": Call("/v1/chat/completions", {**chat, "messages": messages}),
            f"completion {number}": Call(
                "/v1/completions", {"prompt": text, "max_tokens": num_tokens, "temperature": 0.8, "seed": number}
            ),
            f"grammar {number}": Call(
                "/generate_stream",
                {"inputs": text, "parameters": {**seeded, "grammar": {"type": "regex", "value": "[a-z]{60}"}}},
            ),
            f"list {number}": Call("/", {"inputs": text, "parameters": {**seeded, "return_full_text": True}}),
        }
    return pool


def meaning_of(call: Call, answer: Answer) -> Any:
    """Return the parts of an answer that must not depend on a fault."""
    if call.path == "/v1/completions":
        return [{"choices": event["choices"], "usage": _plain_usage(event["usage"])} for event in answer.events]
    return answer.events if call.path == "/" else answer.meaning


def _plain_usage(usage: Mapping[str, Any]) -> dict[str, Any]:
    return {name: usage[name] for name in ("prompt_tokens", "completion_tokens", "total_tokens")}


async def ask(
    client: httpx.AsyncClient, call: Call, answer: Answer, *, pause_s: float = 0.0, leave_after: int = 0
) -> None:
    """Make a call, and note its events as they come.

    A client with `pause_s` waits so long after each of its first events. A client with `leave_after` leaves after so
    many events.
    """
    async with client.stream("POST", call.path, json=dict(call.body)) as response:
        answer.status = response.status_code
        if "text/event-stream" not in response.headers.get("content-type", ""):
            answer.events.append(json.loads(await response.aread()))
            return
        async for line in response.aiter_lines():
            if not line.startswith("data:") or line.removeprefix("data:").strip() == "[DONE]":
                continue
            answer.events.append(json.loads(line.removeprefix("data:")))
            answer.times_s.append(now_s())
            if len(answer.events) == leave_after:
                return
            if pause_s and len(answer.events) <= SLOW_EVENTS:
                await asyncio.sleep(pause_s)


class Callers:
    """All clients of one soak. `undisturbed` holds the meaning of each call's answer when nothing else runs."""

    def __init__(self, mill: Mill, pool: Mapping[str, Call], seed: int) -> None:
        self._mill = mill
        self._pool = pool
        self._rng = Random(seed)
        self._names = list(pool)
        self.undisturbed: dict[str, Any] = {}
        self.tally = Tally()
        self._leaves = asyncio.Event()

    async def learn(self) -> None:
        """Ask for each answer once, one after the other."""
        async with self._client() as client:
            for name, call in self._pool.items():
                answer = Answer()
                await ask(client, call, answer)
                assert answer.status == 200, (name, answer.events)
                self.undisturbed[name] = meaning_of(call, answer)

    async def run(self, *, num_good: int, num_slow: int, num_leaving: int, num_bad: int) -> None:
        """Call without a pause until `end` is called, and let the last calls come to their ends."""
        await asyncio.gather(
            *(self._go_on(self._call_well, 0.0) for _ in range(num_good)),
            *(self._go_on(self._call_well, 0.05) for _ in range(num_slow)),
            *(self._go_on(self._leave, 0.0) for _ in range(num_leaving)),
            *(self._go_on(self._call_badly, 0.0) for _ in range(num_bad)),
        )

    def end(self) -> None:
        """Begin no further call."""
        self._leaves.set()

    def _client(self) -> httpx.AsyncClient:
        return httpx.AsyncClient(base_url=self._mill.url, trust_env=False, timeout=CALL_LIMIT_S)

    async def _go_on(self, act: Any, pause_s: float) -> None:
        async with self._client() as client:
            while not self._leaves.is_set():
                began_s = now_s()
                try:
                    await act(client, pause_s)
                except (httpx.TransportError, httpx.StreamError) as error:
                    await asyncio.sleep(0.05)  # the router is away
                    if self._mill.was_router_away(began_s, now_s()):
                        self.tally.counts["reset with the router"] += 1
                    else:
                        self._blame(f"connection broke: {type(error).__name__} {error}")

    async def _call_well(self, client: httpx.AsyncClient, pause_s: float) -> None:
        name = self._rng.choice(self._names)
        answer = Answer()
        await ask(client, self._pool[name], answer, pause_s=pause_s)
        if answer.status == 200:
            found = meaning_of(self._pool[name], answer)
            difference = first_difference(self.undisturbed[name], found, name)
            if difference is not None:
                self._blame(difference)
            self.tally.counts["answered"] += 1
            if not pause_s:
                self.tally.longest_pause_s = max(self.tally.longest_pause_s, answer.longest_pause_s)
        elif answer.status in (429, 503):
            self.tally.counts[f"refused with {answer.status}"] += 1
            await asyncio.sleep(0.2)
        else:
            self._blame(f"{name} got {answer.status}: {answer.events}")

    async def _leave(self, client: httpx.AsyncClient, pause_s: float) -> None:
        call = self._pool[f"greedy {self._rng.randrange(3)}"]
        await ask(client, call, Answer(), leave_after=self._rng.randint(1, 8))
        self.tally.counts["left"] += 1
        await asyncio.sleep(0.1)

    async def _call_badly(self, client: httpx.AsyncClient, pause_s: float) -> None:
        path, body, wanted = self._rng.choice(BAD_CALLS)
        response = await client.post(path, content=body, headers={"content-type": "application/json"})
        if response.status_code == wanted:
            self.tally.counts["refused as bad"] += 1
        elif response.status_code in (429, 503):
            self.tally.counts[f"refused with {response.status_code}"] += 1
        else:
            self._blame(f"{path} {body!r} got {response.status_code}, wanted {wanted}: {response.text}")
        await asyncio.sleep(0.1)

    def _blame(self, text: str) -> None:
        self.tally.faults.append(text[:MAX_FAULT_CHARACTERS])
