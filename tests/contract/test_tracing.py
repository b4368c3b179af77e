"""Traces: one span for each POST with a span for each phase of its work, sent to a collector and to nobody else."""

import itertools
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.fakes.fake_shard import FakeShardOptions
from tests.fakes.running_router import RunningRouter
from tests.fakes.span_collector import CollectedSpan, SpanCollector
from tests.fakes.task_router import task_router

SERVER, INTERNAL = 2, 1  # SpanKind of the wire
UNSET, ERROR = 0, 2  # StatusCode of the wire
SECRET = "the-prompt-of-nobody"
STEP_S = 0.02
PHASES = ["validate", "queue", "prefill", "decode"]
TRACE_ID, PARENT_ID = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


@pytest.fixture(autouse=True)
def _quick_export(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "20")  # ms


@pytest.fixture
def collector() -> Iterator[SpanCollector]:
    with SpanCollector() as running:
        yield running


@pytest.fixture
def router(tmp_path: Path, collector: SpanCollector) -> Iterator[RunningRouter]:
    options = FakeShardOptions(step_s=STEP_S, num_slots=8)
    with RunningRouter(tmp_path, options, otlp_endpoint=collector.url, otlp_service_name="mill") as running:
        yield running


@pytest.fixture
def client(router: RunningRouter) -> Iterator[httpx.Client]:
    with router.client() as opened:
        yield opened


def chat(**further: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": SECRET}], "max_tokens": 5, "temperature": 0, **further}


def tree(spans: list[CollectedSpan]) -> tuple[CollectedSpan, list[CollectedSpan]]:
    """Return the span of the call and those below it."""
    [root] = [span for span in spans if span.kind == SERVER]
    below = [span for span in spans if span is not root]
    assert {span.parent_id for span in below} <= {root.span_id}
    assert {span.kind for span in below} <= {INTERNAL}
    assert len({span.span_id for span in spans}) == len(spans)
    assert {span.trace_id for span in spans} == {root.trace_id}
    return root, below


def test_call_has_a_span_and_one_for_each_phase(client: httpx.Client, collector: SpanCollector) -> None:
    before_ns = time.time_ns()
    answer = client.post("/v1/chat/completions", json=chat(), headers={"x-request-id": "mine"})
    after_ns = time.time_ns()
    root, below = tree(collector.wait_for(5))
    assert root.name == "POST /v1/chat/completions"
    assert (root.parent_id, root.status) == ("", UNSET)
    assert [span.name for span in below] == PHASES
    assert before_ns <= root.start_ns == below[0].start_ns
    for earlier, later in itertools.pairwise(below[1:]):
        assert abs(later.start_ns - earlier.end_ns) < 1000  # a phase begins where the one before has ended
    assert below[0].end_ns <= below[1].start_ns + 1000
    assert below[-1].end_ns <= root.end_ns <= after_ns + 1_000_000
    assert (root.service["service.name"], root.service["telemetry.sdk.name"]) == ("mill", "opentelemetry")
    timings = dict(pair.split("=") for pair in answer.headers["x-textmill-timings"].split(", "))
    for span in below[1:]:
        assert (span.end_ns - span.start_ns) / 1e6 == pytest.approx(float(timings[f"{span.name}-ms"]), abs=0.01)
    assert (below[-1].end_ns - below[-1].start_ns) / 1e9 > 2 * STEP_S  # of the four further tokens


def test_span_has_the_facts_of_http_and_of_the_generation(client: httpx.Client, collector: SpanCollector) -> None:
    body = chat(model="fake/model", temperature=0.5, seed=7, top_p=0.9, top_k=3, stop=["zz"], frequency_penalty=1.5)
    answer = client.post("/v1/chat/completions", json=body, headers={"x-request-id": "mine"}).json()
    root, _ = tree(collector.wait_for(5))
    found = dict(root.attributes)
    latencies = {name: found.pop(name) for name in list(found) if name.startswith("gen_ai.latency.")}
    assert found == {
        "http.request.method": "POST",
        "http.route": "/v1/chat/completions",
        "http.response.status_code": 200,
        "url.path": "/v1/chat/completions",
        "server.address": "127.0.0.1",
        "server.port": client.base_url.port,
        "textmill.request.id": "mine",
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "textmill",
        "gen_ai.request.model": "fake/model",
        "gen_ai.request.stream": False,
        "gen_ai.request.max_tokens": 5,
        "gen_ai.request.temperature": 0.5,
        "gen_ai.request.seed": 7,
        "gen_ai.request.top_p": 0.9,
        "gen_ai.request.top_k": 3,
        "gen_ai.request.frequency_penalty": 1.5,
        "gen_ai.request.stop_sequences": ["zz"],
        "gen_ai.response.id": answer["id"],
        "gen_ai.response.model": "fake/model",
        "gen_ai.response.finish_reasons": ["length"],
        "gen_ai.output.type": "text",
        "gen_ai.usage.input_tokens": answer["usage"]["prompt_tokens"],
        "gen_ai.usage.output_tokens": 5,
        "gen_ai.usage.cache_read.input_tokens": 0,
    }
    assert set(latencies) == {
        "gen_ai.latency.time_in_queue",
        "gen_ai.latency.time_in_model_prefill",
        "gen_ai.latency.time_in_model_decode",
        "gen_ai.latency.time_to_first_token",
        "gen_ai.latency.e2e",
    }
    parts = ["time_in_queue", "time_in_model_prefill", "time_in_model_decode"]
    assert sum(latencies[f"gen_ai.latency.{part}"] for part in parts) <= latencies["gen_ai.latency.e2e"]
    assert latencies["gen_ai.latency.time_to_first_token"] > latencies["gen_ai.latency.time_in_model_prefill"]


def test_callers_trace_goes_on_and_its_decision_not_to_sample_holds(
    client: httpx.Client, collector: SpanCollector
) -> None:
    body = {"inputs": SECRET, "parameters": {"max_new_tokens": 3}}

    def call(flags: str) -> None:
        headers = {"traceparent": f"00-{TRACE_ID}-{PARENT_ID}-{flags}", "tracestate": "vendor=x"}
        assert client.post("/generate", json=body, headers=headers).status_code == 200

    call("00")
    call("01")
    root, below = [span for span in collector.wait_for(5) if span.kind == SERVER], collector.wait_for(5)
    assert [(span.trace_id, span.parent_id, span.trace_state) for span in root] == [(TRACE_ID, PARENT_ID, "vendor=x")]
    assert len(below) == 5
    assert root[0].attributes["gen_ai.operation.name"] == "text_completion"


@pytest.mark.parametrize("parent", [None, "nonsense", f"00-{TRACE_ID}-{PARENT_ID}-01-more"])
def test_log_line_has_the_trace_id_of_the_spans(
    client: httpx.Client, collector: SpanCollector, caplog: pytest.LogCaptureFixture, parent: str | None
) -> None:
    headers = {} if parent is None else {"traceparent": parent}
    with caplog.at_level("INFO", "textmill_router"):
        for _ in range(2):
            assert client.post("/v1/chat/completions", json=chat(), headers=headers).status_code == 200
        assert client.post("/v1/chat/completions", json={}, headers=headers).status_code == 422
        collector.wait_for(2 * 5 + 1)
    logged = [vars(record)["trace"] for record in caplog.records if record.message in ("Success", "Refused")]
    assert len(logged) == 3
    assert {span.trace_id for span in collector.spans if span.kind == SERVER} == set(logged)
    assert len(set(logged)) == (1 if parent is not None and TRACE_ID in parent else 3)


def test_several_sequences_are_one_call(client: httpx.Client, collector: SpanCollector) -> None:
    body = {"prompt": ["a" * 40, "b"], "n": 2, "max_tokens": 3, "temperature": 1.0}
    usage = client.post("/v1/completions", json=body).json()["usage"]
    root, below = tree(collector.wait_for(5))
    assert [span.name for span in below] == PHASES
    assert root.attributes["gen_ai.request.choice.count"] == 2
    assert root.attributes["gen_ai.usage.input_tokens"] == usage["prompt_tokens"]
    assert root.attributes["gen_ai.usage.output_tokens"] == usage["completion_tokens"] == 12
    assert root.attributes["gen_ai.response.finish_reasons"] == ["length"] * 4


@pytest.mark.parametrize(
    ("path", "body", "status", "error_type", "phases", "route"),
    [
        ("/generate", {"inputs": SECRET, "parameters": {"top_k": 0}}, 422, "validation", [], "/generate"),
        ("/v1/chat/completions", {"messages": 5}, 422, "validation", [], "/v1/chat/completions"),
        ("/tokenize", {"inputs": SECRET}, 200, None, [], "/tokenize"),
        ("/nowhere/at/all", {}, 404, "not_found", [], None),
    ],
)
def test_calls_that_do_not_generate_have_one_span(
    path: str,
    body: Any,
    status: int,
    error_type: str | None,
    phases: list[str],
    route: str | None,
    client: httpx.Client,
    collector: SpanCollector,
) -> None:
    assert client.post(path, json=body).status_code == status
    root, below = tree(collector.wait_for(1))
    assert [span.name for span in below] == phases
    assert root.name == ("POST" if route is None else f"POST {route}")
    shown = [root.attributes.get(f"http.{name}") for name in ("route", "response.status_code")]
    assert shown == [route, status]
    assert (root.attributes.get("error.type"), root.attributes["url.path"], root.status) == (error_type, path, UNSET)


def test_embeddings_tell_their_rows_and_tokens(tmp_path: Path, collector: SpanCollector) -> None:
    folder = tmp_path / "rows"
    folder.mkdir()
    with task_router(folder, "feature-extraction", otlp_endpoint=collector.url) as router, router.client() as client:
        answer = client.post("/", json={"inputs": ["a b", "c"]})
        assert answer.status_code == 200
        root, below = tree(collector.wait_for(1))
    assert below == []
    found = {
        name: value
        for name, value in root.attributes.items()
        if name.startswith(("gen_ai", "textmill.r", "textmill.t"))
    }
    assert found.pop("gen_ai.latency.time_in_queue") >= 0
    found.pop("textmill.request.id")
    assert found == {
        "gen_ai.operation.name": "embeddings",
        "gen_ai.provider.name": "textmill",
        "gen_ai.response.model": router.settings.model_names[0],
        "gen_ai.usage.input_tokens": int(answer.headers["x-prompt-tokens"]),
        "textmill.task": "feature-extraction",
        "textmill.rows": 2,
    }


def test_failure_after_the_first_event_is_an_error(
    router: RunningRouter, client: httpx.Client, collector: SpanCollector
) -> None:
    headers = {"x-request-timeout-ms": "400"}
    body = {"inputs": SECRET, "parameters": {"max_new_tokens": 1000}}
    events = client.post("/generate_stream", json=body, headers=headers).text
    assert '"error_type":"timeout"' in events
    root, below = tree(collector.wait_for(4))
    assert [span.name for span in below] == PHASES[:3]  # the decoding never ended
    assert root.attributes["http.response.status_code"] == 200
    assert (root.attributes["error.type"], root.status) == ("timeout", ERROR)


def test_client_that_leaves_is_no_fault_of_the_server(router: RunningRouter, collector: SpanCollector) -> None:
    router.shard.pause()
    holder = router.send("/generate", {"inputs": SECRET})
    router.wait_until_counts(running=1, waiting=0)
    holder.close()
    root, below = tree(collector.wait_for(2))
    router.shard.resume()
    router.wait_until_free()
    assert [span.name for span in below] == ["validate"]
    assert (root.attributes["error.type"], root.status) == ("client_left", UNSET)
    assert "http.response.status_code" not in root.attributes


def test_probes_and_scrapes_have_no_span(client: httpx.Client, collector: SpanCollector) -> None:
    for path in ("/health", "/metrics", "/info"):
        assert client.get(path).status_code == 200
    client.post("/tokenize", json={"inputs": "a"})
    assert [span.name for span in collector.wait_for(1)] == ["POST /tokenize"]


def test_no_span_has_the_prompt_or_the_output(client: httpx.Client, collector: SpanCollector) -> None:
    output = client.post("/v1/chat/completions", json=chat()).json()["choices"][0]["message"]["content"]
    assert output == "abcde"
    shown = str(collector.wait_for(5))
    assert SECRET not in shown
    assert output not in shown


def test_sampler_of_the_environment_is_honoured(
    tmp_path: Path, collector: SpanCollector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "parentbased_always_off")
    with RunningRouter(tmp_path, otlp_endpoint=collector.url) as router, router.client() as client:
        headers = {"traceparent": f"00-{TRACE_ID}-{PARENT_ID}-01"}
        assert client.post("/tokenize", json={"inputs": "a"}).status_code == 200
        assert client.post("/tokenize", json={"inputs": "a"}, headers=headers).status_code == 200
        [span] = collector.wait_for(1)
    assert span.parent_id == PARENT_ID


def test_spans_that_wait_are_sent_at_the_end(
    tmp_path: Path, collector: SpanCollector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "3600000")
    with RunningRouter(tmp_path, otlp_endpoint=collector.url) as router, router.client() as client:
        assert client.post("/tokenize", json={"inputs": "a"}).status_code == 200
        assert collector.spans == []
    assert [span.name for span in collector.spans] == ["POST /tokenize"]


@pytest.mark.parametrize("is_there", [False, True], ids=["refuses", "never answers"])
def test_dead_collector_costs_calls_nothing_and_the_end_two_seconds(
    is_there: bool, tmp_path: Path, collector: SpanCollector, caplog: pytest.LogCaptureFixture
) -> None:
    collector.stick()
    url = collector.url if is_there else "http://127.0.0.1:1"
    with RunningRouter(tmp_path, otlp_endpoint=url) as router:
        with router.client() as client:
            begin_s = time.monotonic()
            for _ in range(50):
                assert client.post("/tokenize", json={"inputs": "a"}).status_code == 200
            assert time.monotonic() - begin_s < 9.0  # an export takes ten seconds to fail
        begin_s = time.monotonic()
    assert time.monotonic() - begin_s < 4.0
    assert collector.spans == []
    assert any("the last spans are lost" in record.getMessage() for record in caplog.records)


def test_without_an_endpoint_nothing_is_traced(router: RunningRouter, tmp_path: Path) -> None:
    folder = tmp_path / "plain"
    folder.mkdir()
    with RunningRouter(folder) as plain:
        assert plain.service.tracer is None
    assert router.service.tracer is not None
    assert "OTEL_EXPORTER_OTLP_ENDPOINT" not in os.environ
