"""Adapters, none of which can be loaded yet (rule 23 of docs/wire.md)."""

import httpx
import pytest

from tests.fakes.running_router import RunningRouter


@pytest.mark.parametrize("route", ["/generate", "/generate_stream", "/"])
def test_rule_23_an_adapter_that_is_not_loaded_reaches_no_plan(
    router: RunningRouter, client: httpx.Client, route: str
) -> None:
    num_steps = router.shard.num_steps
    answer = client.post(route, json={"inputs": "a", "parameters": {"adapter_id": "mine", "max_new_tokens": 2}})
    assert answer.status_code == 422
    assert answer.json()["error_type"] == "validation"
    assert "adapter_id" in answer.json()["error"]
    assert router.stats().num_running == 0
    assert router.shard.num_steps == num_steps
