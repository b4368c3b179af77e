"""/metrics after a scripted run of known requests, the form of its text, and the page made from the table."""

import json
import re
import socket
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from textmill_router.metrics.page import write_page
from textmill_router.metrics.specs import SPECS, MetricKind

from tests.fakes.fake_shard import FakeShardOptions
from tests.fakes.running_router import RunningRouter

REPOSITORY = Path(__file__).parents[2]
SUFFIXES = {"histogram": ("_bucket", "_sum", "_count"), "summary": ("", "_sum", "_count")}
EOS = 257
X40 = {"inputs": "x" * 40, "parameters": {"max_new_tokens": 5}}


def script(prompt_ids: object, num_output: int) -> int:
    """Give abc...; after a prompt that ends with E the third token is the end."""
    ends = list(prompt_ids)[-1] == ord("E")  # type: ignore[call-overload]
    return EOS if ends and num_output == 2 else 97 + num_output % 26


@pytest.fixture(scope="module")
def scraped(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The text of /metrics after ten known requests."""
    options = FakeShardOptions(script=script, num_slots=4, num_blocks=64)
    folder = tmp_path_factory.mktemp("metrics")
    running = RunningRouter(folder, options, max_concurrent_requests=4, max_total_tokens=256)
    with running as router, router.client() as client:
        # 1: fails in its prefill
        router.shard.pause()
        failing = router.send("/generate", X40)
        router.wait_until_counts(running=1, waiting=0)
        router.shard.fail_slot(0)
        router.shard.resume()
        assert failing.recv(13) == b"HTTP/1.1 424 "
        failing.close()
        router.wait_until_free()
        # 2, 3, 4: the same 41 tokens, five new ones each
        for _ in range(3):
            assert client.post("/generate", json=X40).status_code == 200
        # 5: ended by a stop string after two tokens
        client.post("/generate_stream", json={"inputs": "hi", "parameters": {"max_new_tokens": 4, "stop": "ab"}})
        # 6: two sequences of one token
        parameters = {"do_sample": True, "best_of": 2, "max_new_tokens": 1}
        client.post("/generate", json={"inputs": "hi", "parameters": parameters})
        # 7: ended by EOS after three tokens
        client.post("/", json={"inputs": "theE", "parameters": {"max_new_tokens": 9}})
        # 8: breaks a rule
        client.post("/generate", json={"inputs": "hi", "parameters": {"top_k": 0}})
        # 9: its client leaves before the first token; meanwhile 10 finds no permit
        router.shard.pause()
        leaving = [router.send("/generate_stream", X40)]
        router.wait_until_counts(running=1, waiting=0)
        router.in_loop(lambda: setattr(router.service.permits, "_held", router.service.permits._held + 3))
        assert client.post("/generate", json=X40).status_code == 429
        router.in_loop(lambda: setattr(router.service.permits, "_held", router.service.permits._held - 3))
        leaving[0].close()
        router.wait_until_counts(running=0, waiting=0)
        router.shard.resume()
        router.wait_until_free()
        client.get("/nope/secret")
        client.request("PROPFIND", "/health")
        with socket.create_connection(("127.0.0.1", router.port), 10) as raw:
            raw.sendall(b"\x16\x03\x01 hello\r\n\r\n")
            assert raw.recv(13) == b"HTTP/1.1 400 "
        yield client.get("/metrics").text


def metric(text: str, name: str) -> float:
    match = re.search(rf"^{re.escape(name)} (\S+)$", text, re.MULTILINE)
    assert match is not None, name
    return float(match[1])


EXPECTED = {
    "tgi_request_count": 10,
    "tgi_request_success": 6,
    'tgi_request_failure{err="validation"}': 1,
    'tgi_request_failure{err="generation"}': 1,
    'tgi_request_failure{err="dropped"}': 1,
    'tgi_request_failure{err="overloaded"}': 1,
    "tgi_request_duration_count": 6,
    "tgi_request_validation_duration_count": 6,
    "tgi_request_queue_duration_count": 6,
    "tgi_request_inference_duration_count": 6,
    "tgi_request_mean_time_per_token_duration_count": 6,
    "textmill_time_to_first_token_seconds_count": 6,
    "tgi_request_generated_tokens_count": 7,
    "tgi_request_generated_tokens_sum": 3 * 5 + 2 + 2 * 1 + 3,
    # all requests but 8 and 10
    "tgi_request_input_length_count": 8,
    "tgi_request_input_length_sum": 5 * 41 + 3 + 3 + 5,
    'tgi_request_input_length_bucket{le="5.1"}': 3,
    "tgi_request_max_new_tokens_sum": 5 * 5 + 4 + 1 + 9,
    'tgi_request_max_new_tokens_bucket{le="256"}': 8,
    'tgi_request_skipped_tokens{quantile="1"}': 0,
    "tgi_request_skipped_tokens_sum": 0,
    "tgi_request_skipped_tokens_count": 3 * 5 + 2 + 2 * 1 + 3,
    "tgi_queue_size": 0,
    # the second sequence of best_of enters when the first has computed the prompt
    "tgi_batch_next_size_count": 9,
    "tgi_batch_next_size_sum": 9,
    'tgi_batch_next_size_bucket{le="1"}': 9,
    "tgi_batch_current_size": 0,
    "tgi_batch_current_max_tokens": 0,
    "tgi_batch_max_total_tokens": 64 * 16,
    'tgi_batch_inference_count{method="prefill"}': 8,
    'tgi_batch_inference_success{method="prefill"}': 7,
    'tgi_batch_inference_failure{method="prefill"}': 1,
    'tgi_batch_inference_duration_count{method="prefill"}': 7,
    'tgi_batch_forward_duration_count{method="prefill"}': 7,
    'tgi_batch_decode_duration_count{method="prefill"}': 8,
    'tgi_batch_filter_duration_count{method="prefill"}': 8,
    "textmill_inter_token_seconds_count": 3 * 4 + 1 + 0 + 2,
    "textmill_requests_in_flight": 0,
    "textmill_requests_running": 0,
    "textmill_requests_waiting": 0,
    "textmill_waiting_tokens": 0,
    "textmill_request_aborts": 1,
    'textmill_request_finish{reason="length"}': 3 + 2,
    'textmill_request_finish{reason="stop_string"}': 1,
    'textmill_request_finish{reason="eos"}': 1,
    "textmill_prompt_tokens": 5 * 41 + 3 + 3 + 5,
    "textmill_output_tokens": 3 * 5 + 2 + 2 * 1 + 3,
    # 41 prompt tokens fill two blocks of 16; 3, 4 and 9 find them
    "textmill_prefix_cache_hit_tokens": 3 * 32,
    "textmill_prefix_cache_lookup_tokens": 5 * 41 + 3 + 2 * 3 + 5,
    # 1: its prompt; 2 to 7: what no cache held, and the outputs; 9: what no cache held
    'textmill_caller_computed_tokens{caller=""}': 41 + 46 + 2 * 14 + 5 + 2 * 4 + 8 + 9,
    "textmill_prompt_tokens_computed": 41 + 2 * 9 + 3 + 2 * 3 + 5,
    "textmill_preemptions": 0,
    "textmill_starvations": 0,
    "textmill_kv_blocks_size": 64,
    "textmill_kv_block_size_tokens": 16,
    "textmill_kv_usage_ratio": 0,
    "textmill_slots_free": 4,
    "textmill_slots_size": 4,
    "textmill_epochs": 1,
    "textmill_shard_up": 1,
    'textmill_shard_restarts_total{reason="killed"}': 0,
    'textmill_shard_restarts_total{reason="exited"}': 0,
    'textmill_shard_restarts_total{reason="hung"}': 0,
    'textmill_health_state{state="ready"}': 1,
    'textmill_health_state{state="recovering"}': 0,
    'textmill_replica_up{replica="0"}': 1,
    'textmill_replica_requests_running{replica="0"}': 0,
    'textmill_replica_requests_waiting{replica="0"}': 0,
    'textmill_replica_kv_usage_ratio{replica="0"}': 0,
    'textmill_replica_output_tokens{replica="0"}': 3 * 5 + 2 + 2 * 1 + 3,
    'textmill_replica_prefix_cache_hit_tokens{replica="0"}': 3 * 32,
    'textmill_replica_epochs{replica="0"}': 1,
    "textmill_moved_requests": 0,
    'textmill_http_requests{route="/generate",method="POST",status="200"}': 4,
    'textmill_http_requests{route="/generate_stream",method="POST",status="200"}': 1,
    'textmill_http_requests{route="/generate_stream",method="POST",status="499"}': 1,
    'textmill_http_requests{route="/",method="POST",status="200"}': 1,
    'textmill_http_requests{route="/generate",method="POST",status="422"}': 1,
    'textmill_http_requests{route="/generate",method="POST",status="424"}': 1,
    'textmill_http_requests{route="/generate",method="POST",status="429"}': 1,
    'textmill_http_requests{route="other",method="GET",status="404"}': 1,
    'textmill_http_requests{route="/health",method="other",status="405"}': 1,
    'textmill_http_requests{route="other",method="other",status="400"}': 1,
}


def test_ten_known_requests_give_exactly_these_numbers(scraped: str) -> None:
    assert {name: metric(scraped, name) for name in EXPECTED} == EXPECTED
    steps = [metric(scraped, f'tgi_batch_inference_count{{method="{method}"}}') for method in ("prefill", "decode")]
    assert sum(steps) == metric(scraped, "textmill_steps")


def test_what_a_client_sends_is_no_label(scraped: str) -> None:
    assert "secret" not in scraped
    assert "PROPFIND" not in scraped


def test_blocks_add_up(scraped: str) -> None:
    blocks = [metric(scraped, f'textmill_kv_blocks{{state="{state}"}}') for state in ("free", "cached", "held")]
    assert sum(blocks) == 64


def test_metric_lines_agree_in_name(scraped: str) -> None:
    name, kind = "", ""
    for line in scraped.splitlines():
        if line.startswith("# TYPE "):
            _, _, name, kind = line.split(" ")
        elif not line.startswith("#"):
            sample = re.split(r"[{ ]", line)[0]
            assert sample in [name + suffix for suffix in SUFFIXES.get(kind, ("",))], line
    assert "# TYPE tgi_request_count counter\n" in scraped
    assert "tgi_request_count_total" not in scraped
    assert 'tgi_request_duration_bucket{le="0.00015"}' in scraped
    assert 'tgi_request_duration_bucket{le="145.' in scraped


def test_every_metric_shown_is_in_the_table(scraped: str) -> None:
    shown = dict(re.findall(r"^# TYPE (\S+) (\w+)$", scraped, re.MULTILINE))
    table = {spec.name: spec.kind.value for spec in SPECS}
    assert {name: kind for name, kind in shown.items() if not name.startswith("process_")}.items() <= table.items()
    # In that run no request was admitted beside a running one, no adapter was loaded, and the model takes no images.
    unseen = {"tgi_batch_concat", "tgi_batch_concat_duration"}
    unseen |= {f"textmill_adapter_{name}" for name in ("requests_total", "running", "waiting")}
    unseen |= {name for name in table if name.startswith("textmill_media_")}
    assert set(table) - set(shown) == unseen
    for spec in SPECS:
        labels = {
            tuple(re.findall(r'(\w+)="', line))
            for line in re.findall(rf"^{spec.name}\{{(.*)\}} ", scraped, re.MULTILINE)
        }
        if spec.kind in (MetricKind.COUNTER, MetricKind.GAUGE) and spec.name in shown:
            assert labels == ({spec.labels} if spec.labels else set()), spec.name


def test_requests_that_join_running_ones_are_counted(tmp_path: Path) -> None:
    with RunningRouter(tmp_path, FakeShardOptions(step_s=0.002)) as router, router.client() as client:
        long = router.send("/generate", {"inputs": "a", "parameters": {"max_new_tokens": 500}})
        router.wait_until_counts(running=1, waiting=0)
        assert client.post("/generate", json=X40).status_code == 200
        text = client.get("/metrics").text
        long.close()
    assert metric(text, 'tgi_batch_concat{reason="chunking"}') == 1
    assert metric(text, 'tgi_batch_concat_duration_count{method="prefill"}') == 1
    assert metric(text, 'tgi_batch_inference_duration_sum{method="decode"}') > 0


def test_lost_step_is_a_failure(tmp_path: Path) -> None:
    with RunningRouter(tmp_path, FakeShardOptions(step_s=0.002)) as router, router.client() as client:
        body = {"inputs": "hi", "parameters": {"max_new_tokens": 60}}
        with client.stream("POST", "/generate_stream", json=body) as stream:
            lines = stream.iter_lines()
            next(lines)
            router.shard.cut()
            assert json.loads([line for line in lines if line][-1].removeprefix("data: "))["index"] == 60
        text = client.get("/metrics").text
    assert metric(text, 'tgi_batch_inference_failure{method="decode"}') == 1
    assert metric(text, "textmill_epochs") == 2


def test_refused_body_counts_once(tmp_path: Path) -> None:
    with RunningRouter(tmp_path, body_timeout=0.1) as router, router.client() as client:
        with socket.create_connection(("127.0.0.1", router.port), 10) as raw:
            raw.sendall(b"POST /generate HTTP/1.1\r\nhost: x\r\ncontent-length: 10\r\n\r\nabc")
            assert raw.recv(13) == b"HTTP/1.1 408 "
        router.wait_until(lambda: 'status="408"' in router.service.expose_metrics().decode(), "the call has ended")
        text = client.get("/metrics").text
    found = re.findall(r"^textmill_http_requests\{(.*)\} (\d+)$", text, re.MULTILINE)
    assert found == [('route="/generate",method="POST",status="408"', "1")]


def test_content_type(client: httpx.Client) -> None:
    assert client.get("/metrics").headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"


def test_page_is_up_to_date() -> None:
    assert (REPOSITORY / "docs" / "metrics.md").read_text() == write_page(), "run make metrics-page"
