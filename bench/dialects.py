"""The HTTP dialects of the servers that are measured: the body of a request, and the way to read the events."""

import json
from dataclasses import dataclass, field
from typing import Any, Protocol


@dataclass(frozen=True, slots=True)
class GenerationWish:
    """One request before a dialect writes it. Every request is greedy, so that all servers do equal work."""

    prompt: str
    max_new_tokens: int
    ignore_eos: bool = False


@dataclass(slots=True)
class StreamState:
    """The facts that the events of one stream have told so far."""

    num_events_with_text: int = 0
    num_prompt_tokens: int | None = None
    num_output_tokens: int | None = None  # as the server counts them, when it says so
    error: str | None = None
    is_finished: bool = False
    text: list[str] = field(default_factory=list)


class Dialect(Protocol):
    """The way to speak to a server."""

    path: str

    def body(self, wish: GenerationWish) -> bytes:
        """Return the JSON of a streamed request."""

    def read(self, event: bytes, state: StreamState) -> bool:
        """Take in the payload of one `data:` event, and return whether it carries output tokens."""


class TgiDialect:
    """The dialect of text-generation-inference: one token per event, and the whole text in the last event."""

    path = "/generate_stream"

    def body(self, wish: GenerationWish) -> bytes:
        """Return the body. `details` asks for the server's own counts in the last event."""
        parameters: dict[str, Any] = {"max_new_tokens": wish.max_new_tokens, "do_sample": False, "details": True}
        if wish.ignore_eos:
            parameters["ignore_eos"] = True
        return json.dumps({"inputs": wish.prompt, "parameters": parameters}).encode()

    def read(self, event: bytes, state: StreamState) -> bool:
        """Take in an event. Events before the last are only counted, so that the client stays light."""
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
    """The dialect of `/v1/completions`. Events may hold several tokens or none, and the usage comes last."""

    path = "/v1/completions"

    def __init__(self, model: str, *, knows_ignore_eos: bool = True) -> None:
        self._model = model
        self._knows_ignore_eos = knows_ignore_eos

    def body(self, wish: GenerationWish) -> bytes:
        """Return the body. vLLM and llama.cpp know the extension `ignore_eos`, which `transformers serve` refuses."""
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
        """Take in an event, which counts as output when its text is not empty."""
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
    """Return the dialect with the name "tgi" or "openai"."""
    return TgiDialect() if name == "tgi" else OpenAiDialect(model)
