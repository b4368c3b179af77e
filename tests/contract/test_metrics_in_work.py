"""/metrics while requests run: the gauges, and the times of one request, which add up."""

import re
import time
from pathlib import Path

import httpx

from tests.fakes.fake_shard import FakeShardOptions
from tests.fakes.running_router import RunningRouter

BLOCK_SIZE = 16


def scrape(client: httpx.Client) -> dict[str, float]:
    """Return all samples, by name with labels."""
    lines = [line.rpartition(" ") for line in client.get("/metrics").text.splitlines() if not line.startswith("#")]
    return {name: float(value) for name, _, value in lines}


def test_gauges_tell_of_what_runs_and_waits(tmp_path: Path) -> None:
    options = FakeShardOptions(num_slots=1, num_blocks=64)
    with RunningRouter(tmp_path, options, max_total_tokens=512) as router, router.client() as client:
        router.shard.pause()
        body = {"inputs": "x" * 40, "parameters": {"max_new_tokens": 9}}
        holders = [router.send("/generate", body)]
        router.wait_until_counts(running=1, waiting=0)
        holders.append(router.send("/generate", body))
        router.wait_until_counts(running=1, waiting=1)
        found = scrape(client)
        # 41 prompt tokens and 8 places for the output take four blocks of 16
        num_held = found['textmill_kv_blocks{state="held"}']
        assert num_held == 4
        assert found["textmill_kv_usage_ratio"] == num_held / 64
        assert found["tgi_batch_current_max_tokens"] == num_held * BLOCK_SIZE
        for name, value in {
            "textmill_requests_in_flight": 2,
            "textmill_requests_running": 1,
            "tgi_batch_current_size": 1,
            "textmill_requests_waiting": 1,
            "tgi_queue_size": 1,
            "textmill_waiting_tokens": 41,
            "textmill_slots_free": 0,
            "textmill_shard_up": 1,
        }.items():
            assert found[name] == value, name
        router.shard.resume()
        for holder in holders:
            assert holder.recv(15) == b"HTTP/1.1 200 OK"
            holder.close()
        router.wait_until_free()


def test_preemptions_are_counted(tmp_path: Path) -> None:
    options = FakeShardOptions(num_slots=4, num_blocks=16)
    with RunningRouter(tmp_path, options, max_total_tokens=240) as router, router.client() as client:
        router.shard.pause()
        holders = [router.send("/generate", {"inputs": f"{number}", "parameters": {}}) for number in range(2)]
        router.wait_until_counts(running=2, waiting=0)
        router.shard.resume()
        for holder in holders:  # each request fills the window, which is nearly all of the pool
            assert holder.recv(15) == b"HTTP/1.1 200 OK"
            holder.close()
        router.wait_until_free()
        assert scrape(client)["textmill_preemptions"] == router.stats().num_preemptions_total > 0


def test_times_of_a_request_add_up(tmp_path: Path) -> None:
    """The request is validated while its grammar compiles, waits while another has the slot, and gets ten tokens."""
    num_tokens, waited_s = 10, 0.2
    options = FakeShardOptions(num_slots=1, step_s=0.01)
    with RunningRouter(tmp_path, options) as router, router.client() as client:
        router.shard.pause()
        with router.send("/generate", {"inputs": "x"}):
            router.wait_until_counts(running=1, waiting=0)
            parameters = {"max_new_tokens": num_tokens, "grammar": {"type": "regex", "value": "[a-z]*"}}
            asking = router.send("/generate", {"inputs": "hi", "parameters": parameters})
            router.wait_until_counts(running=1, waiting=1)
            queued_s = time.monotonic()
            router.wait_until(lambda: time.monotonic() - queued_s > waited_s, "it has waited")
        router.shard.resume()
        head = asking.recv(4096).decode()
        asking.close()
        router.wait_until_free()
        found = scrape(client)
    assert found["tgi_request_success"] == 1
    names = ("validation", "queue", "inference", "mean_time_per_token")
    validation_s, queue_s, inference_s, mean_s = (found[f"tgi_request_{name}_duration_sum"] for name in names)
    total_s = found["tgi_request_duration_sum"]
    first_s = found["textmill_time_to_first_token_seconds_sum"]
    assert validation_s > 0
    assert queue_s >= waited_s
    assert inference_s >= (num_tokens - 1) * 0.01
    assert abs(mean_s - inference_s / num_tokens) < 1e-9
    assert validation_s + queue_s + inference_s <= total_s + 1e-3
    assert validation_s + queue_s <= first_s <= total_s
    shown = {name: int(value) for name, value in re.findall(r"(x-[a-z-]*time[a-z-]*): (\d+)\r\n", head)}
    assert shown["x-queue-time"] == int(queue_s * 1000)
    assert shown["x-validation-time"] == int(validation_s * 1000)
    assert abs(shown["x-inference-time"] - inference_s * 1000) <= 1
    assert abs(shown["x-time-per-token"] - mean_s * 1000) <= 1
    assert abs(shown["x-total-time"] - total_s * 1000) <= 2
