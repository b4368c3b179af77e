"""How a streamed request is written, and what its events tell, in each of the three dialects."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from textmill_bench.errors import BenchError


@dataclass(frozen=True, slots=True)
class Wish:
    """One request before a dialect writes it."""

    prompt: str
    max_output_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """What all requests of a run share. Without a temperature every request is greedy."""

    model: str
    temperature: float = 0.0
    ignore_eos: bool = False


@dataclass(slots=True)
class Told:
    """What the events of one stream have told so far. Counts of tokens are the server's; None where it says none."""

    num_prompt_tokens: int | None = None
    num_cached_tokens: int | None = None
    num_output_tokens: int | None = None
    error: str | None = None
    is_finished: bool = False
    text: list[str] = field(default_factory=list)


class Dialect(Protocol):
    """The way to speak to a server."""

    path: str

    def body(self, wish: Wish) -> dict[str, Any]:
        """Return the body of a streamed request."""

    def read(self, payload: str, told: Told) -> bool:
        """Take in the payload of one event, and return whether the event carries output."""


class _OpenAI:
    """The parts that both routes of OpenAI's dialect share."""

    def __init__(self, sampling: Sampling) -> None:
        self._sampling = sampling

    def _shared(self, wish: Wish) -> dict[str, Any]:
        body: dict[str, Any] = {
            "model": self._sampling.model,
            "max_tokens": wish.max_output_tokens,
            "temperature": self._sampling.temperature,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if self._sampling.ignore_eos:  # an extension that Textmill, vLLM, SGLang and llama.cpp know
            body["ignore_eos"] = True
        return body

    def _choice(self, payload: str, told: Told) -> dict[str, Any] | None:
        """Return the first choice of an event, or None for events without one."""
        if payload == "[DONE]":
            told.is_finished = True
            return None
        message = _object(payload, told)
        if message is None:
            return None
        if "error" in message:
            told.error = _error_text(message["error"])
            return None
        usage = message.get("usage")
        if usage:
            told.num_prompt_tokens = usage.get("prompt_tokens")
            told.num_output_tokens = usage.get("completion_tokens")
            told.num_cached_tokens = (usage.get("prompt_tokens_details") or {}).get("cached_tokens")
        choices = message.get("choices") or []
        if choices and choices[0].get("finish_reason"):
            told.is_finished = True
        return choices[0] if choices else None


class ChatDialect(_OpenAI):
    """`/v1/chat/completions`: the prompt is the message of a user. Reasoning and tool calls count as output."""

    path = "/v1/chat/completions"

    def body(self, wish: Wish) -> dict[str, Any]:
        """Return the body with one message."""
        return {**self._shared(wish), "messages": [{"role": "user", "content": wish.prompt}]}

    def read(self, payload: str, told: Told) -> bool:
        """Take in a chunk. The first chunk of a stream often has a role and no text, and is no output."""
        choice = self._choice(payload, told)
        if choice is None:
            return False
        delta = choice.get("delta") or {}
        text = "".join(delta.get(name) or "" for name in ("reasoning", "reasoning_content", "content"))
        if text:
            told.text.append(text)
        return bool(text or delta.get("tool_calls"))


class CompletionsDialect(_OpenAI):
    """`/v1/completions`: the prompt is continued as it stands."""

    path = "/v1/completions"

    def body(self, wish: Wish) -> dict[str, Any]:
        """Return the body with the prompt."""
        return {**self._shared(wish), "prompt": wish.prompt}

    def read(self, payload: str, told: Told) -> bool:
        """Take in a chunk, which is output where its text is not empty."""
        choice = self._choice(payload, told)
        text = "" if choice is None else choice.get("text") or ""
        if text:
            told.text.append(text)
        return bool(text)


class TgiDialect:
    """`/generate_stream`: an event for each token, and the server's counts in the last event."""

    path = "/generate_stream"

    def __init__(self, sampling: Sampling) -> None:
        self._sampling = sampling

    def body(self, wish: Wish) -> dict[str, Any]:
        """Return the body. `details` asks for the counts of tokens."""
        parameters: dict[str, Any] = {"max_new_tokens": wish.max_output_tokens, "details": True}
        if self._sampling.temperature > 0:
            parameters |= {"do_sample": True, "temperature": self._sampling.temperature}
        if self._sampling.ignore_eos:
            parameters["ignore_eos"] = True
        return {"inputs": wish.prompt, "parameters": parameters}

    def read(self, payload: str, told: Told) -> bool:
        """Take in the event of a token, or of an error."""
        message = _object(payload, told)
        if message is None:
            return False
        if "error" in message:
            told.error = _error_text(message["error"])
            return False
        token = message.get("token") or {}
        if token.get("text") and not token.get("special"):
            told.text.append(token["text"])
        if message.get("generated_text") is not None:
            told.is_finished = True
            details = message.get("details") or {}
            told.num_prompt_tokens = details.get("input_length")
            told.num_output_tokens = details.get("generated_tokens")
        return "token" in message


DIALECTS: dict[str, type[ChatDialect] | type[CompletionsDialect] | type[TgiDialect]] = {
    "chat": ChatDialect,
    "completions": CompletionsDialect,
    "tgi": TgiDialect,
}


def dialect_of(name: str, sampling: Sampling) -> Dialect:
    """Return the dialect of a name of `DIALECTS`."""
    return DIALECTS[name](sampling)


def first_model(answer: Any, names: Sequence[str] = ("data",)) -> str:
    """Return the name of the first model in the answer of `GET /v1/models`. Raises BenchError."""
    for name in names:
        models = answer.get(name) if isinstance(answer, dict) else None
        if isinstance(models, list) and models and isinstance(models[0], dict) and models[0].get("id"):
            return str(models[0]["id"])
    raise BenchError("/v1/models names no model: give --model")


def _object(payload: str, told: Told) -> dict[str, Any] | None:
    try:
        message = json.loads(payload)
    except ValueError:
        told.error = f"an event is no JSON: {payload[:100]}"
        return None
    if not isinstance(message, dict):
        told.error = f"an event is no object: {payload[:100]}"
        return None
    return message


def _error_text(error: Any) -> str:
    text = error.get("message") if isinstance(error, dict) else error
    return str(text or error)[:300]
