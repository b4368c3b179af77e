"""Reads answers and metrics of a server, for integration tests."""

from dataclasses import dataclass
from typing import Any

import httpx

from tests.fakes.processes import LaunchedServer

TIMEOUT_S = 120.0


@dataclass(frozen=True, slots=True)
class Answer:
    """The result of a generation: ids, log-probabilities, text, headers."""

    ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    text: str
    finish_reason: str
    headers: dict[str, str]


def generate(server: LaunchedServer, prompt: str, **parameters: Any) -> Answer:
    """Call POST /generate with details, and return the answer."""
    body = {"inputs": prompt, "parameters": {"do_sample": False, **parameters, "details": True}}
    reply = httpx.post(f"{server.base_url}/generate", json=body, timeout=TIMEOUT_S, trust_env=False)
    assert reply.status_code == 200, reply.text
    answer = reply.json()
    details = answer["details"]
    return Answer(
        ids=tuple(token["id"] for token in details["tokens"]),
        logprobs=tuple(token["logprob"] for token in details["tokens"]),
        text=answer["generated_text"],
        finish_reason=details["finish_reason"],
        headers=dict(reply.headers),
    )


def metric(server: LaunchedServer, name: str, labels: str = "") -> float:
    """Return a sample of /metrics. `labels` has the labels as the page writes them, for example `state="free"`."""
    text = httpx.get(f"{server.base_url}/metrics", timeout=TIMEOUT_S, trust_env=False).text
    wanted = f"{name}{{{labels}}} " if labels else f"{name} "
    (line,) = [line for line in text.splitlines() if line.startswith(wanted)]
    return float(line.removeprefix(wanted))
