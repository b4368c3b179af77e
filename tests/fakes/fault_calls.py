"""Long calls of every kind for tests in which processes die, and the way to make them side by side."""

import json
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import httpx

CALL_LIMIT_S = 240.0  # some calls wait until a shard has started three times
SCORE_TOLERANCE = 1e-3
NUM_TOKENS = 1200  # of most calls, which take a second or more together

_STORY = {"inputs": "Once upon a time", "parameters": {"max_new_tokens": NUM_TOKENS, "ignore_eos": True}}
_TOOL = {
    "type": "function",
    "function": {
        "name": "note",
        "parameters": {
            "type": "object",
            "properties": {"text": {"type": "string", "minLength": 400, "maxLength": 500}},
            "required": ["text"],
        },
    },
}


@dataclass(frozen=True, slots=True)
class Call:
    """A call of the server: the path and the body."""

    path: str
    body: Mapping[str, Any]


@dataclass(slots=True)
class Answer:
    """What a call has brought so far. A call without events has one event, its whole body."""

    events: list[dict[str, Any]] = field(default_factory=list)
    times_s: list[float] = field(default_factory=list)  # of the events, on the monotonic clock
    num_comments: int = 0
    status: int = 0

    @property
    def longest_pause_s(self) -> float:
        """The longest time between two events."""
        return max((later - sooner for sooner, later in zip(self.times_s, self.times_s[1:], strict=False)), default=0.0)

    @property
    def meaning(self) -> Any:
        """Return the parts of the answer that must not depend on a fault: no ids, no times."""
        if self.events and self.events[0].get("object") == "chat.completion.chunk":
            return _joined(self.events)
        return self.events


def first_difference(wanted: Any, found: Any, where: str = "") -> str | None:
    """Return the place and the values of the first difference, or None.

    Scores may differ by `SCORE_TOLERANCE`, because fp32 sums depend on the shape of a step.
    """
    if isinstance(wanted, float) and isinstance(found, float):
        is_same = abs(wanted - found) <= SCORE_TOLERANCE
        return None if is_same else f"{where}: {wanted} became {found}"
    if isinstance(wanted, dict) and isinstance(found, dict) and wanted.keys() == found.keys():
        pairs = [(f"{where}.{key}", wanted[key], found[key]) for key in wanted]
    elif isinstance(wanted, list) and isinstance(found, list) and len(wanted) == len(found):
        pairs = [(f"{where}[{index}]", *pair) for index, pair in enumerate(zip(wanted, found, strict=True))]
    else:
        return None if wanted == found else f"{where}: {wanted} became {found}"
    return next((text for place, *pair in pairs if (text := first_difference(*pair, place))), None)


def _generate(parameters: Mapping[str, Any], stream: bool = True) -> Call:
    body = {**_STORY, "parameters": {**_STORY["parameters"], **parameters}}  # type: ignore[dict-item]
    return Call("/generate_stream" if stream else "/generate", body)


def make_calls(stop: str) -> dict[str, Call]:
    """Return one call of each kind by name. `stop` is a string that ends the greedy text late."""
    sampled = {"do_sample": True, "temperature": 1.3, "top_k": 50, "top_p": 0.95, "seed": 11}
    chat = {
        "messages": [{"role": "user", "content": "Write a note."}],
        "max_tokens": NUM_TOKENS,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    return {
        "greedy": _generate({}),
        "seeded": _generate(sampled),
        "penalties": _generate({"repetition_penalty": 1.2, "frequency_penalty": 0.2, "top_n_tokens": 3}),
        "whole answer": _generate({**sampled, "details": True, "decoder_input_details": True}, stream=False),
        "stop string": _generate({"stop": [stop]}),
        "grammar": _generate({"grammar": {"type": "regex", "value": "[a-z]{900}"}, "seed": 3, "do_sample": True}),
        "tool": Call("/v1/chat/completions", {**chat, "tools": [_TOOL], "tool_choice": "required"}),
        "choices": Call("/v1/chat/completions", {**chat, "max_tokens": 400, "n": 2, "temperature": 1, "seed": 5}),
    }


def ask(base_url: str, call: Call, answer: Answer, on_event: Callable[[], None] = lambda: None) -> Answer:
    """Make a call, and note its events as they come. `on_event` is called after each one."""
    with (
        httpx.Client(trust_env=False, timeout=CALL_LIMIT_S) as client,
        client.stream("POST", base_url + call.path, json=dict(call.body)) as response,
    ):
        answer.status = response.status_code
        if "text/event-stream" not in response.headers.get("content-type", ""):
            answer.events.append(json.loads(response.read()))
            answer.times_s.append(time.monotonic())
            return answer
        for line in response.iter_lines():
            if line.startswith(":"):
                answer.num_comments += 1
            elif line.startswith("data:") and line.removeprefix("data:").strip() != "[DONE]":
                answer.events.append(json.loads(line.removeprefix("data:")))
                answer.times_s.append(time.monotonic())
                on_event()
    return answer


def ask_all(
    base_url: str, calls: Mapping[str, Call], *, after: int = 0, then: Callable[[], None] = lambda: None
) -> dict[str, Answer]:
    """Make all calls at once. `then` is called once, when the calls have brought `after` events together."""
    answers = {name: Answer() for name in calls}
    lock, called = threading.Lock(), threading.Event()

    def on_event() -> None:
        if not called.is_set() and sum(len(answer.events) for answer in answers.values()) >= after:
            with lock:
                if not called.is_set():
                    called.set()
                    then()

    with ThreadPoolExecutor(len(calls)) as pool:
        running = [pool.submit(ask, base_url, calls[name], answers[name], on_event) for name in calls]
    for future in running:
        future.result()
    return answers


def _joined(chunks: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the text, the calls, the ends and the usage of a chat. How many tokens share a chunk depends on time."""
    joined: dict[str, Any] = {}
    for chunk in chunks:
        if usage := chunk.get("usage"):
            joined["usage"] = {name: usage[name] for name in ("prompt_tokens", "completion_tokens", "total_tokens")}
        for choice in chunk["choices"]:
            delta, index = choice["delta"], choice["index"]
            parts = [("text", delta.get("content")), ("end", choice.get("finish_reason"))]
            for call in delta.get("tool_calls") or ():
                parts += [("name", call["function"].get("name")), ("arguments", call["function"].get("arguments"))]
            for part, text in parts:
                joined[f"{part} {index}"] = joined.get(f"{part} {index}", "") + (text or "")
    return joined
