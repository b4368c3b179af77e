"""vLLM's names on /metrics (`--metrics-alias vllm`): names, labels and values as an endpoint picker reads them."""

from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.fakes.fake_shard import FakeShardOptions
from tests.fakes.running_router import RunningRouter

Samples = dict[str, list[tuple[dict[str, str], float]]]
NAMES = {
    "vllm:num_requests_running",
    "vllm:num_requests_waiting",
    "vllm:kv_cache_usage_perc",
    "vllm:cache_config_info",
}
# Two of these run in two slots. 10 characters and the mark of the beginning are 11 prompt tokens, and the last of seven
# output tokens is never computed: 11 + 7 - 1 = 17 places are two blocks of 16. Prompts that differ share no block.
BODIES = [{"inputs": letter * 10, "parameters": {"max_new_tokens": 7}} for letter in "abcde"]


def gauges(text: str) -> Samples:
    """Return labels and values of each gauge of vLLM, as Prometheus' own parser reads the page."""
    families = [one for one in text_string_to_metric_families(text) if one.name.startswith("vllm:")]
    assert {one.type for one in families} <= {"gauge"}
    return {one.name: [(sample.labels, sample.value) for sample in one.samples] for one in families}


def page(router: RunningRouter) -> Samples:
    with router.client() as client:
        return gauges(client.get("/metrics").text)


@pytest.mark.parametrize(
    ("served", "name"), [((), "fake/model"), (("first", "second"), "first")], ids=["model-id", "served-model-name"]
)
def test_a_picker_finds_queue_and_cache_under_the_names_of_vllm(
    tmp_path: Path, served: tuple[str, ...], name: str
) -> None:
    options = FakeShardOptions(num_slots=2, num_blocks=64, block_size=16)
    model = {"model_name": name}
    config = [({**model, "block_size": "16", "num_gpu_blocks": "64"}, 1.0)]
    with RunningRouter(tmp_path, options, metrics_alias="vllm", served_model_name=served) as router:
        idle = page(router)
        router.shard.pause()
        calls = [router.send("/generate", body) for body in BODIES]
        router.wait_until_counts(running=2, waiting=3)
        busy = page(router)
        router.shard.resume()
        for call in calls:
            assert call.recv(13) == b"HTTP/1.1 200 "
            call.close()
        router.wait_until_free()
        after = page(router)
    assert set(idle) == NAMES
    assert idle == {**{one: [(model, 0.0)] for one in NAMES}, "vllm:cache_config_info": config}
    assert busy == {
        "vllm:num_requests_running": [(model, 2.0)],
        "vllm:num_requests_waiting": [(model, 3.0)],
        "vllm:kv_cache_usage_perc": [(model, 2 * 2 / 64)],
        "vllm:cache_config_info": config,
    }
    assert after == idle


def test_no_name_of_vllm_is_shown_before_the_model_is_loaded(tmp_path: Path) -> None:
    with RunningRouter(tmp_path, metrics_alias="vllm", is_loading=True) as router:
        assert page(router) == {}


def test_the_names_of_vllm_come_with_the_flag_alone(tmp_path: Path) -> None:
    with RunningRouter(tmp_path) as router:
        assert page(router) == {}
