"""The HTTP dialects of the servers that are measured: what to post, and how to read the events."""

import json
from dataclasses import dataclass, field
from typing import Any, Protocol


@dataclass(frozen=True, slots=True)
class GenerationWish:
    """One request, in no dialect. Greedy, so that peers do the same work."""

    prompt: str
    max_new_tokens: int
    ignore_eos: bool = False


@dataclass(slots=True)
class StreamState:
    """What the events of one stream have said so far."""

    num_events_with_text: int = 0
    num_prompt_tokens: int | None = None
    num_output_tokens: int | None = None  # as the server counts them, when it says so
    error: str | None = None
    is_finished: bool = False
    text: list[str] = field(default_factory=list)


class Dialect(Protocol):
    """How a server is spoken to."""

    path: str

    def body(self, wish: GenerationWish) -> bytes:
        """JSON of a streamed request."""

    def read(self, event: bytes, state: StreamState) -> bool:
        """Take in the payload of one `data:` event; true when it carries output tokens."""


class TgiDialect:
    """text-generation-inference: one token per event, the last one has the text."""

    path = "/generate_stream"

    def body(self, wish: GenerationWish) -> bytes:
        """`details` brings the server's own counts in the last event."""
        parameters: dict[str, Any] = {"max_new_tokens": wish.max_new_tokens, "do_sample": False, "details": True}
        if wish.ignore_eos:
            parameters["ignore_eos"] = True
        return json.dumps({"inputs": wish.prompt, "parameters": parameters}).encode()

    def read(self, event: bytes, state: StreamState) -> bool:
        """Events before the last are only counted, to keep the client light."""
        if b'"generated_text":null' in event:
            state.num_events_with_text += 1
            return True
        message = json.loads(event)
        if "error" in message:
            state.error = str(message["error"])
            return False
        state.num_events_with_text += 1
        if message.get("generated_text") is not None:
            state.is_finished = True
            state.text.append(message["generated_text"])
            details = message.get("details") or {}
            state.num_output_tokens = details.get("generated_tokens")
            state.num_prompt_tokens = details.get("input_length")
        return True


class OpenAiDialect:
    """`/v1/completions`: events may hold several tokens or none; usage comes last."""

    path = "/v1/completions"

    def __init__(self, model: str, *, knows_ignore_eos: bool = True) -> None:
        self._model = model
        self._knows_ignore_eos = knows_ignore_eos

    def body(self, wish: GenerationWish) -> bytes:
        """`ignore_eos` is an extension that vLLM and llama.cpp know; `transformers serve` refuses it."""
        message: dict[str, Any] = {
            "model": self._model,
            "prompt": wish.prompt,
            "max_tokens": wish.max_new_tokens,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if wish.ignore_eos and self._knows_ignore_eos:
            message["ignore_eos"] = True
        return json.dumps(message).encode()

    def read(self, event: bytes, state: StreamState) -> bool:
        """An event counts as output when its text is not empty."""
        if event == b"[DONE]":
            state.is_finished = True
            return False
        message = json.loads(event)
        if "error" in message:
            state.error = json.dumps(message["error"])
            return False
        usage = message.get("usage")
        if usage:
            state.num_prompt_tokens = usage.get("prompt_tokens")
            state.num_output_tokens = usage.get("completion_tokens")
        choices = message.get("choices")
        if not choices:
            return False
        if choices[0].get("finish_reason"):
            state.is_finished = True
        text = choices[0].get("text")
        if not text:
            return False
        state.num_events_with_text += 1
        state.text.append(text)
        return True


def pick_dialect(name: str, model: str) -> Dialect:
    """`name` is "tgi" or "openai"."""
    return TgiDialect() if name == "tgi" else OpenAiDialect(model)
