"""Calls that end in unusual ways count once. `contract/test_metrics.py` has the scripted runs."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from starlette.types import Message
from textmill_router.health.states import HealthState
from textmill_router.metrics.metrics import CacheNumbers, Metrics
from textmill_router.request import FinishReason, RequestId
from textmill_router.serving.call import serve
from textmill_router.text.events import GenerationResult


def shown(metrics: Metrics) -> list[str]:
    text = metrics.expose(None, CacheNumbers(0, 0, 0), num_in_flight=0, state=HealthState.READY)
    return text.decode().splitlines()


def test_call_that_time_ended_before_its_first_token_has_no_time_of_one() -> None:
    metrics = Metrics()
    metrics.set_limits(max_input_tokens=10, max_total_tokens=20)
    for num_output_tokens in (0, 2):
        result = GenerationResult(
            text="",
            finish_reason=FinishReason.LENGTH,
            num_prompt_tokens=1,
            num_output_tokens=num_output_tokens,
            tokens=[],
            prompt_tokens=[],
            num_cached_tokens=0,
            queue_s=5.0,
            inference_s=1.0,
            first_token_s=5.5,
            request_id=RequestId(1),
        )
        metrics.on_success(result, validation_s=0.5, total_s=6.5)
    lines = shown(metrics)
    for line in (
        "tgi_request_success 2",
        "tgi_request_queue_duration_count 2",
        "tgi_request_generated_tokens_count 2",
        "textmill_time_to_first_token_seconds_sum 6",
        "textmill_time_to_first_token_seconds_count 1",
        "tgi_request_mean_time_per_token_duration_sum 0.5",
        "tgi_request_mean_time_per_token_duration_count 1",
    ):
        assert line in lines


def test_mistake_of_ours_is_a_failure_too() -> None:
    async def answer() -> None:
        raise ZeroDivisionError

    async def send(message: Message) -> None:
        raise AssertionError("whoever stands outside answers")

    service: Any = SimpleNamespace(metrics=Metrics())
    with pytest.raises(ZeroDivisionError):
        asyncio.run(serve(service, {}, send, answer))
    lines = shown(service.metrics)
    assert "tgi_request_count 1" in lines
    assert 'tgi_request_failure{err="incomplete"} 1' in lines
