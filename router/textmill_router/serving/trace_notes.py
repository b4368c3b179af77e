"""The attributes of a call's span that tell of generation, by the names of OpenTelemetry's conventions for it.

The conventions (gen_ai, 0.1.0) are in development, and the constants of the Python package are deprecated, so the names
stand here as texts. No attribute has a prompt or an output. The latencies in seconds are those that vLLM sends, because
dashboards read them.
"""

from collections.abc import Sequence

from textmill_router.request import FinishReason, GenerationRequest, SamplingParameters
from textmill_router.text.events import GenerationResult
from textmill_router.tracing.call_trace import Attribute

PROVIDER = "textmill"


def call_attributes(*, operation: str, asked_model: object, served_model: str, streams: bool) -> dict[str, Attribute]:
    """Return the attributes that the body decides. `asked_model` is the body's field `model`, where it has one."""
    return {
        "gen_ai.operation.name": operation,
        "gen_ai.provider.name": PROVIDER,
        "gen_ai.request.model": asked_model if isinstance(asked_model, str) else served_model,
        "gen_ai.request.stream": streams,
    }


def request_attributes(
    request: GenerationRequest, stop_strings: Sequence[str], *, num_sequences: int
) -> dict[str, Attribute]:
    """Return the parameters with which the sequences of a call are generated; `request` is the first sequence.

    Parameters that change nothing are left out.
    """
    sampling = request.parameters.sampling
    attributes: dict[str, Attribute] = {
        "gen_ai.request.max_tokens": request.max_new_tokens,
        "gen_ai.request.temperature": sampling.temperature if sampling.do_sample else 0.0,
        **_sampling_attributes(sampling),
    }
    if stop_strings:
        attributes["gen_ai.request.stop_sequences"] = list(stop_strings)
    if num_sequences > 1:
        attributes["gen_ai.request.choice.count"] = num_sequences
    return attributes


def _sampling_attributes(sampling: SamplingParameters) -> dict[str, Attribute]:
    attributes: dict[str, Attribute] = {}
    if sampling.top_p != 1.0:
        attributes["gen_ai.request.top_p"] = sampling.top_p
    if sampling.top_k:
        attributes["gen_ai.request.top_k"] = sampling.top_k
    if sampling.do_sample:
        attributes["gen_ai.request.seed"] = sampling.seed
    if sampling.frequency_penalty:
        attributes["gen_ai.request.frequency_penalty"] = sampling.frequency_penalty
    if sampling.presence_penalty:
        attributes["gen_ai.request.presence_penalty"] = sampling.presence_penalty
    return attributes


_FINISH = {
    FinishReason.LENGTH: "length",
    FinishReason.EOS: "stop",
    FinishReason.STOP_ID: "stop",
    FinishReason.STOP_STRING: "stop",
}


def result_attributes(
    results: Sequence[GenerationResult], *, model: str, answer_id: str | None, num_prompts: int
) -> dict[str, Attribute]:
    """Return what the sequences of a complete call cost. Times are those of the longest sequence.

    `results` has the sequences of one prompt side by side.
    """
    attributes: dict[str, Attribute] = {
        "gen_ai.response.model": model,
        "gen_ai.response.finish_reasons": [_FINISH[result.finish_reason] for result in results],
        "gen_ai.output.type": "text",
        "gen_ai.usage.output_tokens": sum(result.num_output_tokens for result in results),
        "gen_ai.usage.cache_read.input_tokens": _num_cached_tokens(results, num_prompts),
        "gen_ai.latency.time_in_queue": max(result.queue_s for result in results),
        "gen_ai.latency.time_in_model_prefill": max(result.prefill_s for result in results),
        "gen_ai.latency.time_in_model_decode": max(result.decode_s for result in results),
    }
    if answer_id is not None:
        attributes["gen_ai.response.id"] = answer_id
    return attributes


def _num_cached_tokens(results: Sequence[GenerationResult], num_prompts: int) -> int:
    """Return the cached tokens of all prompts. Of the sequences of a prompt the first to run has the fewest."""
    num_each = len(results) // num_prompts
    prompts = [results[start : start + num_each] for start in range(0, len(results), num_each)]
    return sum(min(result.num_cached_tokens for result in of_prompt) for of_prompt in prompts)


EMBEDDING_TASKS = frozenset({"feature-extraction", "sentence-similarity"})


def row_attributes(task: str, *, model: str, num_rows: int, num_tokens: int, queue_s: float) -> dict[str, Attribute]:
    """Return what a complete call of a task without generation cost. The conventions name embeddings alone."""
    attributes: dict[str, Attribute] = {
        "gen_ai.provider.name": PROVIDER,
        "gen_ai.response.model": model,
        "gen_ai.usage.input_tokens": num_tokens,
        "gen_ai.latency.time_in_queue": queue_s,
        "textmill.task": task,
        "textmill.rows": num_rows,
    }
    if task in EMBEDDING_TASKS:
        attributes["gen_ai.operation.name"] = "embeddings"
    return attributes
