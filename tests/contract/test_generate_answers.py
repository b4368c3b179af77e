"""Whole answers of TGI's dialect, field by field: shapes, null and omitted keys, defaults, headers."""

import json
import struct
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.fakes.fake_shard import FakeShardOptions
from tests.fakes.running_router import RunningRouter

TOKEN_A = {"id": 97, "text": "a", "logprob": -0.5, "special": False}
TOKEN_B = {"id": 98, "text": "b", "logprob": -0.5, "special": False}

# All parameters of TGI's published API page, with the page's example values.
PUBLISHED_PARAMETERS = {
    "adapter_id": None,
    "best_of": 1,
    "decoder_input_details": False,
    "details": True,
    "do_sample": True,
    "frequency_penalty": 0.1,
    "grammar": None,
    "max_new_tokens": 20,
    "repetition_penalty": 1.03,
    "return_full_text": False,
    "seed": None,
    "stop": ["photographer"],
    "temperature": 0.5,
    "top_k": 10,
    "top_n_tokens": 5,
    "top_p": 0.95,
    "truncate": None,
    "typical_p": 0.95,
    "watermark": True,
}


def generate(client: httpx.Client, route: str = "/generate", text: str = "hi", **parameters: Any) -> Any:
    answer = client.post(route, json={"inputs": text, "parameters": {"max_new_tokens": 2, **parameters}})
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_plain_answer_has_the_text_only(client: httpx.Client) -> None:
    assert generate(client) == {"generated_text": "ab"}


def test_compatible_route_answers_an_array_of_one_with_the_prompt(client: httpx.Client) -> None:
    assert generate(client, "/") == [{"generated_text": "hiab"}]
    assert generate(client, "/", return_full_text=False) == [{"generated_text": "ab"}]
    assert generate(client, "/generate", return_full_text=True) == {"generated_text": "hiab"}


def test_details_have_exactly_these_fields(client: httpx.Client) -> None:
    assert generate(client, details=True) == {
        "generated_text": "ab",
        "details": {
            "finish_reason": "length",
            "generated_tokens": 2,
            "seed": None,
            "prefill": [],
            "tokens": [TOKEN_A, TOKEN_B],
        },
    }


def test_prompt_details_imply_details_and_begin_with_null(client: httpx.Client) -> None:
    details = generate(client, decoder_input_details=True)["details"]
    assert details["prefill"] == [
        {"id": 256, "text": "<|begin|>", "logprob": None},
        {"id": 104, "text": "h", "logprob": -1.0},
        {"id": 105, "text": "i", "logprob": -1.0},
    ]
    assert details["tokens"] == [TOKEN_A, TOKEN_B]


def test_top_tokens_are_one_list_per_token(client: httpx.Client) -> None:
    details = generate(client, details=True, top_n_tokens=2)["details"]
    assert len(details["top_tokens"]) == 2
    assert details["top_tokens"][0][0] == TOKEN_A
    assert all(len(tokens) == 2 for tokens in details["top_tokens"])
    assert "top_tokens" not in generate(client, details=True, top_n_tokens=0)["details"]


def test_best_of_gives_the_others_in_the_details(client: httpx.Client) -> None:
    details = generate(client, details=True, best_of=2, do_sample=True, return_full_text=True)["details"]
    [other] = details["best_of_sequences"]
    assert set(other) == {"generated_text", "finish_reason", "generated_tokens", "seed", "prefill", "tokens"}
    assert other["generated_text"] == "hiab"
    assert other["seed"] != details["seed"]
    assert "best_of_sequences" not in generate(client, details=True, best_of=1)["details"]


def test_seed_is_reported_if_the_request_sampled(client: httpx.Client) -> None:
    assert generate(client, details=True, do_sample=True, seed=42)["details"]["seed"] == 42
    assert generate(client, details=True, seed=42)["details"]["seed"] is None
    drawn = [generate(client, details=True, temperature=0.5)["details"]["seed"] for _ in range(2)]
    assert all(isinstance(seed, int) for seed in drawn)
    assert drawn[0] != drawn[1]


@pytest.mark.parametrize(("body", "samples"), [({}, True), ({"parameters": None}, True), ({"parameters": {}}, False)])
def test_sampling_is_on_only_when_parameters_are_absent(
    client: httpx.Client, caplog: pytest.LogCaptureFixture, body: dict[str, Any], samples: bool
) -> None:
    """A call without parameters cannot ask for details, so the log gives the seed, and the answer fills the window."""
    with caplog.at_level("INFO", "textmill_router.serving.call_record"):
        answer = client.post("/generate", json={"inputs": "x" * 1490, **body})
    assert len(answer.json()["generated_text"]) == 2048 - 1491
    [record] = [record for record in caplog.records if record.message == "Success"]
    assert (vars(record)["seed"] is not None) == samples


def test_every_parameter_reaches_the_shard(router: RunningRouter, client: httpx.Client) -> None:
    wanted = {
        "temperature": 0.5,
        "top_k": 7,
        "top_p": 0.75,
        "min_p": 0.125,
        "typical_p": 0.875,
        "repetition_penalty": 1.25,
        "presence_penalty": 0.5,
        "frequency_penalty": -0.5,
        "seed": 2**63,
    }
    more = {"ignore_eos": True, "min_new_tokens": 3, "watermark": True, "top_n_tokens": 4, "logit_bias": {"5": 1.5}}
    generate(client, max_new_tokens=9, details=True, **wanted, **more)
    sent = router.shard.last_admit
    assert sent is not None
    assert {name: getattr(sent.sampling, name) for name in wanted} == wanted
    assert sent.sampling.do_sample
    assert (sent.ignore_eos, sent.min_new_tokens, sent.max_new_tokens, sent.watermark) == (True, 3, 9, True)
    assert (sent.logprobs, sent.top_n_tokens) == (True, 4)
    assert sent.sampling.logit_bias_ids == b"\x05\0\0\0"
    assert sent.sampling.logit_bias_values == struct.pack("<f", 1.5)
    generate(client, max_new_tokens=1)
    plain = router.shard.last_admit
    assert plain is not None
    assert (plain.sampling.do_sample, plain.ignore_eos, plain.min_new_tokens, plain.watermark) == (False,) * 4
    assert not plain.logprobs


def test_the_window_bounds_the_least_output_too(router: RunningRouter, client: httpx.Client) -> None:
    """A prompt of 1,491 tokens leaves 557 tokens of the window."""
    answer = client.post("/generate", json={"inputs": "x" * 1490, "parameters": {"min_new_tokens": 600}})
    assert answer.status_code == 200, answer.text
    sent = router.shard.last_admit
    assert sent is not None
    assert (sent.min_new_tokens, sent.max_new_tokens) == (557, 557)


def test_alternatives_that_nobody_is_shown_are_not_asked_for(router: RunningRouter, client: httpx.Client) -> None:
    generate(client, max_new_tokens=1, top_n_tokens=4)
    sent = router.shard.last_admit
    assert sent is not None
    assert (sent.logprobs, sent.top_n_tokens) == (False, 0)


def test_headers_of_best_of_tell_of_the_answer_only(client: httpx.Client) -> None:
    body = {"inputs": "hi", "parameters": {"max_new_tokens": 2, "best_of": 2, "do_sample": True}}
    assert client.post("/generate", json=body).headers["x-generated-tokens"] == "2"


def test_the_best_sequence_is_the_one_that_the_log_tells_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The second of the two sequences is the better one."""
    options = FakeShardOptions(logprob_of=lambda request_id: -1.0 / request_id)
    with RunningRouter(tmp_path, options) as router, router.client() as client:
        with caplog.at_level("INFO", "textmill_router.serving.call_record"):
            details = generate(client, details=True, best_of=2, do_sample=True)["details"]
        assert [token["logprob"] for token in details["tokens"]] == [-0.5, -0.5]
        assert [token["logprob"] for token in details["best_of_sequences"][0]["tokens"]] == [-1.0, -1.0]
        [record] = [record for record in caplog.records if record.message == "Success"]
        assert vars(record)["seed"] == details["seed"]


def test_log_line_names_the_ids_that_the_shard_knows(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with RunningRouter(tmp_path) as router, router.client() as client:
        with caplog.at_level("INFO", "textmill_router.serving.call_record"):
            generate(client, max_new_tokens=3)
        [record] = [record for record in caplog.records if record.message == "Success"]
        assert router.shard.last_admit is not None
        assert vars(record)["request_ids"] == [router.shard.last_admit.request_id]


def test_null_is_an_absent_field(client: httpx.Client) -> None:
    parameters = dict.fromkeys(PUBLISHED_PARAMETERS)
    answer = client.post("/", json={"inputs": "x" * 1490, "parameters": parameters, "stream": None})
    assert answer.status_code == 200
    assert answer.json()[0]["generated_text"].startswith("xxx")


@pytest.mark.parametrize("route", ["/", "/generate", "/generate_stream", "/tokenize"])
def test_published_example_is_taken(client: httpx.Client, route: str) -> None:
    body = {"inputs": "My name is Olivier and I", "parameters": PUBLISHED_PARAMETERS, "stream": False, "new": [1]}
    assert client.post(route, json=body).status_code == 200


def test_unknown_fields_are_ignored(client: httpx.Client) -> None:
    body = {"inputs": "hi", "parameters": {"max_new_tokens": 1, "novel": {"a": [None]}}, "other": 1}
    assert client.post("/generate", json=body).json() == {"generated_text": "a"}


def test_stop_string_is_kept_and_ends_the_text(client: httpx.Client) -> None:
    for stop in ("cd", ["zz", "cd"]):
        answer = generate(client, details=True, stop=stop, max_new_tokens=20)
        assert answer["generated_text"] == "abcd"
        assert answer["details"]["finish_reason"] == "stop_sequence"
        assert answer["details"]["generated_tokens"] == 4


def test_truncate_keeps_the_last_tokens(client: httpx.Client) -> None:
    answer = generate(client, text="hello", truncate=3, decoder_input_details=True, return_full_text=True)
    assert [token["text"] for token in answer["details"]["prefill"]] == ["l", "l", "o"]
    assert answer["generated_text"] == "helloab"


def test_truncate_makes_a_long_prompt_fit(client: httpx.Client) -> None:
    assert generate(client, text="x" * 30_000, truncate=1500) == {"generated_text": "ab"}


def test_more_tokens_than_the_window_has_end_with_length_when_it_is_full(client: httpx.Client) -> None:
    answer = client.post(
        "/generate", json={"inputs": "x" * 999, "parameters": {"max_new_tokens": 100_000, "details": True}}
    ).json()
    assert answer["details"]["generated_tokens"] == 2048 - 1000
    assert answer["details"]["finish_reason"] == "length"


def test_headers_of_a_whole_answer(client: httpx.Client) -> None:
    body = {"inputs": "hé 😀", "parameters": {"max_new_tokens": 3}}
    answer = client.post("/generate", json=body)
    headers = answer.headers
    assert headers["x-compute-type"] == "1-cpu"
    assert float(headers["x-compute-time"]) > 0
    assert headers["x-compute-characters"] == "4"
    assert headers["x-prompt-tokens"] == "9"
    assert headers["x-generated-tokens"] == "3"
    for name in ("x-total-time", "x-validation-time", "x-queue-time", "x-inference-time", "x-time-per-token"):
        assert headers[name] == str(int(headers[name]))
    assert int(headers["x-total-time"]) >= int(headers["x-inference-time"])


def test_cached_prompt_tokens_are_told(client: httpx.Client) -> None:
    body = {"inputs": "a prompt that no other test sends " * 4, "parameters": {"max_new_tokens": 1}}
    first, second = (client.post("/generate", json=body).headers for _ in range(2))
    assert first["x-cached-prompt-tokens"] == "0"
    # 137 tokens fill 8 blocks of 16; the last token is never taken from the cache.
    assert second["x-prompt-tokens"] == "137"
    assert second["x-cached-prompt-tokens"] == "128"


def test_request_id_comes_back_or_is_made(client: httpx.Client) -> None:
    assert client.get("/health", headers={"x-request-id": "abc-1"}).headers["x-request-id"] == "abc-1"
    made = {client.get("/health").headers["x-request-id"] for _ in range(2)}
    assert len(made) == 2
    odd = client.get("/health", headers={"x-request-id": "a" * 200}).headers["x-request-id"]
    assert odd != "a" * 200


def test_text_is_written_as_utf8(client: httpx.Client) -> None:
    answer = client.post("/", json={"inputs": '"\n\u2028é😀', "parameters": {"max_new_tokens": 1}})
    assert answer.json() == [{"generated_text": '"\n\u2028é😀a'}]
    assert "é😀".encode() in answer.content
    assert json.loads(answer.content)
