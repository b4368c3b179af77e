"""Headers that gateways and endpoint pickers add to a call, and a priority that they write into its body, are taken.

The names are those of llm-d's router 0.10 and of the inference extension of the Gateway API 1.6.
"""

from typing import Any

import httpx
import pytest

HEADERS = {
    "x-gateway-destination-endpoint": "10.0.0.7:8080",
    "x-llm-d-inference-fairness-id": "tenant-a",
    "x-llm-d-inference-objective": "interactive",
    "x-llm-d-slo-ttft-ms": "200",
    "x-llm-d-slo-tpot-ms": "20",
    "x-envoy-attempt-count": "2",
    "x-envoy-expected-rq-timeout-ms": "15000",
    "x-forwarded-for": "10.1.2.3",
    "x-forwarded-proto": "https",
    "x-request-id": "of-the-gateway",
    "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
}
CALLS: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "a"}], "max_tokens": 2},
    "/v1/completions": {"prompt": "a", "max_tokens": 2},
    "/generate": {"inputs": "a", "parameters": {"max_new_tokens": 2}},
}


@pytest.mark.parametrize("priority", [None, -1, 0, 3])
@pytest.mark.parametrize("route", CALLS)
def test_what_a_gateway_adds_is_taken(client: httpx.Client, route: str, priority: int | None) -> None:
    added = {} if priority is None or route == "/generate" else {"priority": priority}
    answer = client.post(route, json={**CALLS[route], **added}, headers=HEADERS)
    assert answer.status_code == 200, answer.text
    assert answer.headers["x-request-id"] == "of-the-gateway"
