"""/v1/completions field by field, on a fake shard that gives a, b, c ..., each with log-probability -0.5."""

import json
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from tests.fakes.byte_tokenizer import BEGIN_ID
from tests.fakes.fake_shard import FakeShardOptions, text_script
from tests.fakes.running_router import RunningRouter

# The body of TGI's published example.
PUBLISHED = {
    "frequency_penalty": 1.0,
    "max_tokens": 32,
    "model": "mistralai/Mistral-7B-Instruct-v0.2",
    "prompt": "What is Deep Learning?",
    "repetition_penalty": 0,
    "seed": 42,
    "stop": None,
    "stream": False,
    "suffix": None,
    "temperature": 1.0,
    "top_p": 0.95,
}


def complete(client: httpx.Client, prompt: Any = "hi", **fields: Any) -> Any:
    answer = client.post("/v1/completions", json={"prompt": prompt, "max_tokens": 2, **fields})
    assert answer.status_code == 200, answer.text
    return answer.json()


def chunks(client: httpx.Client, prompt: Any = "hi", **fields: Any) -> list[Any]:
    body = {"prompt": prompt, "max_tokens": 2, "stream": True, **fields}
    answer = client.post("/v1/completions", json=body)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "text/event-stream"
    *lines, done = [line.removeprefix("data: ") for line in answer.text.split("\n\n") if line]
    assert done == "[DONE]"
    return [json.loads(line) for line in lines]


def joined(events: list[Any]) -> dict[int, str]:
    texts: dict[int, str] = {}
    for event in events:
        for choice in event["choices"]:
            texts[choice["index"]] = texts.get(choice["index"], "") + choice["text"]
    return texts


def refusal(client: httpx.Client, error_type: str = "validation", **fields: Any) -> Any:
    answer = client.post("/v1/completions", json={"prompt": "hi", "max_tokens": 2, **fields})
    assert answer.status_code == 422, answer.text
    assert answer.json()["error_type"] == error_type
    return answer.json()["error"]


def test_answer_has_exactly_these_fields(client: httpx.Client) -> None:
    answer = complete(client)
    assert answer.pop("id").startswith("cmpl-")
    assert answer.pop("created") > 1_700_000_000
    assert answer.pop("system_fingerprint").endswith("-native")
    assert answer == {
        "object": "text_completion",
        "model": "fake/model",
        "choices": [{"index": 0, "text": "ab", "logprobs": None, "finish_reason": "length"}],
        "usage": {
            "prompt_tokens": 3,
            "completion_tokens": 2,
            "total_tokens": 5,
            "prompt_tokens_details": {"cached_tokens": 0},
        },
    }


def test_published_example_is_answered(client: httpx.Client) -> None:
    answer = client.post("/v1/completions", json=PUBLISHED)
    assert answer.status_code == 200, answer.text
    assert len(answer.json()["choices"][0]["text"]) == 32


@pytest.mark.parametrize(
    ("prompt", "num_prompt_tokens", "texts"),
    [
        ("hi", 3, ["ab"]),
        (["hi", "you"], 7, ["ab", "ab"]),
        ([BEGIN_ID, 104, 105], 3, ["ab"]),
        ([[104], [105, 105]], 3, ["ab", "ab"]),
    ],
)
def test_prompt_is_text_or_ids_one_or_several(
    client: httpx.Client, prompt: Any, num_prompt_tokens: int, texts: list[str]
) -> None:
    answer = complete(client, prompt)
    assert [choice["text"] for choice in answer["choices"]] == texts
    assert [choice["index"] for choice in answer["choices"]] == list(range(len(texts)))
    assert answer["usage"]["prompt_tokens"] == num_prompt_tokens
    assert answer["usage"]["completion_tokens"] == 2 * len(texts)


def test_prompts_parse_special_tokens(client: httpx.Client) -> None:
    assert complete(client, "a<|end|>b")["usage"]["prompt_tokens"] == 4


def test_choices_stand_in_the_order_of_prompts(client: httpx.Client) -> None:
    answer = complete(client, ["x", "y"], n=2, echo=True, temperature=1)
    assert [choice["text"] for choice in answer["choices"]] == ["xab", "xab", "yab", "yab"]
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2, 3]
    assert answer["usage"]["prompt_tokens"] == 4
    assert answer["usage"]["completion_tokens"] == 8


def test_echo_puts_the_prompt_first_and_alone_without_tokens(client: httpx.Client) -> None:
    assert complete(client, "hé", echo=True)["choices"][0]["text"] == "héab"
    answer = complete(client, "hé", echo=True, max_tokens=0)
    assert answer["choices"] == [{"index": 0, "text": "hé", "logprobs": None, "finish_reason": "length"}]
    assert answer["usage"]["completion_tokens"] == 0
    body = {"prompt": "hé", "max_tokens": 0, "echo": True}
    assert client.post("/v1/completions", json=body).headers["x-generated-tokens"] == "0"
    assert complete(client, [104, 0xC3, 0xA9, 257], echo=True)["choices"][0]["text"] == "hé<|end|>ab"


def test_logprobs_are_the_legacy_object(client: httpx.Client) -> None:
    assert complete(client, logprobs=0)["choices"][0]["logprobs"] == {
        "tokens": ["a", "b"],
        "token_logprobs": [-0.5, -0.5],
        "top_logprobs": None,
        "text_offset": [0, 1],
    }
    top = complete(client, logprobs=2)["choices"][0]["logprobs"]["top_logprobs"]
    assert all(len(entry) in (2, 3) for entry in top)
    assert top[0]["a"] == -0.5


def test_echoed_logprobs_begin_with_null(client: httpx.Client) -> None:
    logprobs = complete(client, "héx", echo=True, logprobs=1)["choices"][0]["logprobs"]
    assert logprobs["tokens"] == ["<|begin|>", "h", "bytes:\\xc3", "bytes:\\xa9", "x", "a", "b"]
    assert logprobs["text_offset"] == [0, 0, 1, 1, 2, 3, 4]  # characters, not bytes
    assert logprobs["token_logprobs"][0] is None
    assert all(isinstance(logprob, float) for logprob in logprobs["token_logprobs"][1:])
    assert logprobs["top_logprobs"][0] is None
    for token, logprob, top in zip(
        logprobs["tokens"][1:], logprobs["token_logprobs"][1:], logprobs["top_logprobs"][1:], strict=True
    ):
        assert top[token] == logprob


def test_logprobs_of_the_prompt_alone(client: httpx.Client) -> None:
    [choice] = complete(client, [104, 105, 106], echo=True, logprobs=1, max_tokens=0)["choices"]
    assert choice["text"] == "hij"
    assert choice["logprobs"]["tokens"] == ["h", "i", "j"]
    assert choice["logprobs"]["text_offset"] == [0, 1, 2]
    assert len(choice["logprobs"]["token_logprobs"]) == len(choice["logprobs"]["top_logprobs"]) == 3


def test_stop_string_ends_the_text_before_it_and_shows_none_of_it(client: httpx.Client) -> None:
    [choice] = complete(client, max_tokens=9, stop=["cd"], logprobs=0)["choices"]
    assert (choice["text"], choice["finish_reason"]) == ("ab", "stop")
    assert choice["logprobs"]["tokens"] == ["a", "b"]
    assert complete(client, max_tokens=9, stop="c")["choices"][0]["text"] == "ab"


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"logprobs": 1},
        {"echo": True},
        {"echo": True, "logprobs": 1},
        {"echo": True, "logprobs": 0, "max_tokens": 0},
        {"n": 2, "echo": True, "logprobs": 1},
        {"max_tokens": 9, "stop": ["cd", "zz"], "logprobs": 0},
    ],
    ids=str,
)
def test_stream_says_what_the_whole_answer_says(client: httpx.Client, fields: dict[str, Any]) -> None:
    whole = complete(client, ["hé", "x"], **fields)
    events = chunks(client, ["hé", "x"], stream_options={"include_usage": True}, **fields)
    assert len({(event["id"], event["created"], event["model"]) for event in events}) == 1
    assert events[-1]["choices"] == []
    usage = {**events[-1]["usage"], "prompt_tokens_details": whole["usage"]["prompt_tokens_details"]}
    assert usage == whole["usage"]
    assert all(event["usage"] is None for event in events[:-1])
    for choice in whole["choices"]:
        own = [part for event in events for part in event["choices"] if part["index"] == choice["index"]]
        assert (own[-1]["text"], own[-1]["logprobs"]) == ("", None)  # the reason stands alone
        assert "".join(part["text"] for part in own) == choice["text"]
        assert [part["finish_reason"] for part in own] == [None] * (len(own) - 1) + [choice["finish_reason"]]
        for key, values in (choice["logprobs"] or {}).items():
            parts = [part["logprobs"][key] for part in own if part["logprobs"] is not None]
            if values is None:
                assert set(parts) == {None}
            else:
                assert [value for part in parts for value in part] == values


def test_stream_without_options_has_no_usage(client: httpx.Client) -> None:
    events = chunks(client)
    assert all("usage" not in event and event["choices"] for event in events)
    assert joined(events) == {0: "ab"}


def test_best_of_gives_the_best_n(client: httpx.Client) -> None:
    answer = complete(client, n=1, best_of=2, temperature=1.0)
    assert [choice["text"] for choice in answer["choices"]] == ["ab"]
    assert answer["choices"][0]["logprobs"] is None
    assert answer["usage"]["completion_tokens"] == 4


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"prompt": ""}, "prompt", "empty"),
        ({"prompt": []}, "prompt", "empty"),
        ({"prompt": ["a", ""]}, "prompt[1]", "empty"),
        ({"prompt": [[1], []]}, "prompt[1]", "empty"),
        ({"prompt": [1, "a"]}, "prompt", "only"),
        ({"prompt": [1, 258]}, "prompt", "258"),
        ({"prompt": [-1]}, "prompt", "-1"),
        ({"prompt": 5}, "prompt", "expected"),
        ({"max_tokens": 0}, "max_tokens", "echo"),
        ({"max_tokens": -1}, "max_tokens", "`max_tokens`"),
        ({"n": 0}, "n", "--max-n"),
        ({"n": 17}, "n", "--max-n"),
        ({"n": 2, "best_of": 1}, "best_of", "`n`"),
        ({"best_of": 3}, "best_of", "--max-best-of"),
        ({"best_of": 2, "stream": True}, "best_of", "streaming"),
        ({"logprobs": 21}, "logprobs", "20"),
        ({"logprobs": -1}, "logprobs", "`logprobs`"),
        ({"repetition_penalty": -1}, "repetition_penalty", ">= 0 (0 and 1 are off)"),
        ({"stop": [""]}, "stop", "empty"),
        ({"adapter_id": "org/lora"}, "adapter_id", "not loaded"),
        ({"truncate": 0}, "truncate", "1 to 1500"),
        ({"truncate": 2, "echo": True, "logprobs": 0}, "truncate", "`echo`"),
        ({"truncate": 2, "suffix": "b"}, "truncate", "`suffix`"),
        ({"grammar": {"type": "xml"}}, "grammar.type", "regex"),
        ({"grammar": {"type": "regex", "value": "("}}, "grammar", "regular expression"),
    ],
)
def test_refusals_name_the_field(client: httpx.Client, fields: dict[str, Any], param: str, words: str) -> None:
    error = refusal(client, **fields)
    assert error["param"] == param
    assert words in error["message"]
    assert error["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    ("error_type", "fields", "param", "words"),
    [
        ("batch size exceeded", {"prompt": ["a"] * 5}, "prompt", "--max-client-batch-size"),
        ("batch size exceeded", {"prompt": [[1]] * 5}, "prompt", "at most 4 prompts"),
        ("suffix not supported", {"suffix": "b"}, "suffix", "fill-in-the-middle"),
    ],
)
def test_refusals_that_have_a_type_of_their_own(
    client: httpx.Client, error_type: str, fields: dict[str, Any], param: str, words: str
) -> None:
    error = refusal(client, error_type, **fields)
    assert (error["param"], error["code"], error["type"]) == (param, None, "invalid_request_error")
    assert words in error["message"]


def test_too_long_a_prompt_says_it_in_openai_words(client: httpx.Client) -> None:
    answer = client.post("/v1/completions", json={"prompt": "x" * 1600, "max_tokens": 2})
    assert answer.status_code == 422
    error = answer.json()["error"]
    assert error["code"] == "context_length_exceeded"
    assert "context_length_exceeded" in error["message"]
    assert "This model's maximum context length is 2048 tokens" in error["message"]


def test_error_in_a_stream_that_has_not_begun_has_its_status(client: httpx.Client) -> None:
    answer = client.post("/v1/completions", json={"prompt": "", "stream": True})
    assert answer.status_code == 422
    assert answer.headers["content-type"] == "application/json"


def test_end_token_stops_and_has_an_entry_but_no_text(tmp_path: Path) -> None:
    """Evaluation harnesses need one entry for each generated token."""
    with (
        RunningRouter(tmp_path, FakeShardOptions(script=text_script("ok", 257))) as router,
        router.client() as client,
    ):
        [choice] = complete(client, "hi", max_tokens=9, logprobs=0)["choices"]
        assert (choice["text"], choice["finish_reason"]) == ("ok", "stop")
        assert choice["logprobs"]["tokens"] == ["o", "k", "<|end|>"]
        assert choice["logprobs"]["text_offset"] == [0, 1, 2]


def test_special_tokens_inside_have_entries_and_no_width(tmp_path: Path) -> None:
    """The text does not show special tokens, so the next token has the offset of the special one."""

    def script(prompt_ids: object, num_output: int) -> int:
        return (97, 257, 98, 99)[num_output]

    with RunningRouter(tmp_path, FakeShardOptions(script=script)) as router, router.client() as client:
        for fields, base in (({}, 0), ({"echo": True}, 2)):
            [choice] = complete(client, "hi", max_tokens=4, logprobs=0, ignore_eos=True, **fields)["choices"]
            assert choice["text"] == "hi"[:base] + "abc"
            assert choice["logprobs"]["tokens"][-4:] == ["a", "<|end|>", "b", "c"]
            assert choice["logprobs"]["text_offset"][-4:] == [base, base + 1, base + 1, base + 2]


@pytest.mark.parametrize(
    ("fields", "do_sample"),
    [
        ({}, True),
        ({"temperature": 0}, False),
        ({"do_sample": False}, False),
        ({"do_sample": None}, True),
        ({"do_sample": True, "temperature": 0}, False),
        ({"do_sample": False, "temperature": 0.7}, True),
        ({"do_sample": False, "top_k": 5}, True),
    ],
    ids=str,
)
def test_do_sample_means_what_it_means_on_native_routes(
    client: httpx.Client, router: RunningRouter, fields: dict[str, Any], do_sample: bool
) -> None:
    complete(client, **fields)
    assert router.shard.last_admit.sampling.do_sample is do_sample


def test_full_text_is_echo_where_echo_is_not_said(client: httpx.Client) -> None:
    assert complete(client, return_full_text=True)["choices"][0]["text"] == "hiab"
    assert complete(client, return_full_text=True, echo=False)["choices"][0]["text"] == "ab"
    assert complete(client, return_full_text=True, max_tokens=0)["choices"][0]["text"] == "hi"


@pytest.mark.parametrize("prompt", ["hello", list(b"hello")], ids=["text", "ids"])
def test_truncate_keeps_the_last_tokens(client: httpx.Client, router: RunningRouter, prompt: Any) -> None:
    answer = complete(client, prompt, truncate=3, echo=True)
    assert answer["usage"]["prompt_tokens"] == 3
    assert prompt_ids(router) == list(b"llo")
    assert answer["choices"][0]["text"] == "helloab"
    assert complete(client, "x" * 50_000, truncate=3)["usage"]["prompt_tokens"] == 3


def test_watermark_and_grammar_reach_the_shard(client: httpx.Client, router: RunningRouter) -> None:
    complete(client, watermark=True, grammar={"type": "regex", "value": "[a-z]+"})
    admit = router.shard.last_admit
    assert admit.watermark
    assert admit.grammar.text == "start: /[a-z]+/"


def prompt_ids(router: RunningRouter) -> list[int]:
    return np.frombuffer(router.shard.last_admit.prompt_ids, "<u4").tolist()


def test_stream_has_no_chunk_that_says_nothing(tmp_path: Path) -> None:
    """The parts of one character make one chunk, and text that may begin a stop string waits."""
    options = FakeShardOptions(script=text_script("é€ab", 257))
    with RunningRouter(tmp_path, options) as router, router.client() as client:
        events = chunks(client, max_tokens=20, stop="abc")
        assert joined(events) == {0: "é€ab"}
        assert [event["choices"][0]["text"] for event in events[:2]] == ["é", "€"]
        assert all(event["choices"][0]["text"] or event["choices"][0]["finish_reason"] for event in events)


def test_each_sequence_takes_a_permit(tmp_path: Path) -> None:
    with RunningRouter(tmp_path, max_concurrent_requests=3) as router, router.client() as client:
        body = {"prompt": ["a", "b"], "max_tokens": 1}
        for fields, status in (({}, 200), ({"n": 2}, 422), ({"best_of": 2}, 422), ({"prompt": "a", "n": 3}, 200)):
            assert client.post("/v1/completions", json={**body, **fields}).status_code == status


def test_alternatives_of_prompt_tokens_are_asked_for_an_echo(client: httpx.Client, router: RunningRouter) -> None:
    for fields, expected in (({"logprobs": 3, "echo": True}, 3), ({"logprobs": 3}, 0), ({"echo": True}, 0)):
        complete(client, **fields)
        assert router.shard.last_admit.prompt_top_n_tokens == expected
        assert router.shard.last_admit.HasField("prompt_logprobs_from") is (expected > 0)


def test_the_prompt_that_is_too_long_is_told_by_its_number(client: httpx.Client) -> None:
    long = "x" * 100_000
    message = refusal(client, "validation", prompt=["a", long, "b"])["message"]
    assert "However, prompt 2 of 3 has more than" in message
    assert "However, the prompt has more than" in refusal(client, "validation", prompt=[long])["message"]
    native = client.post("/generate", json={"inputs": ["a", "b", long]}).json()["error"]
    assert native.startswith("Input validation error: prompt 3 of 3 has more than ")
    alone = client.post("/generate", json={"inputs": long}).json()["error"]
    assert alone.startswith("Input validation error: the prompt has more than ")
    window = client.get("/info").json()["max_total_tokens"]
    ids = [[65], [65] * (window - 1)]
    over = refusal(client, "validation", prompt=ids, max_tokens=2)["message"]
    assert f"However, prompt 2 of 2 has {window - 1} tokens and `max_tokens` is 2." in over
