"""summarization, translation, text2text-generation and conversations on `POST /`, and which model may do which."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from huggingface_hub import InferenceClient

from tests.fakes.byte_tokenizer import write_byte_tokenizer
from tests.fakes.fake_shard import FakeShardOptions
from tests.fakes.running_router import RunningRouter

# The decoder begins with two tokens of its own, and the shard writes abcdef ...
OPTIONS = FakeShardOptions(
    num_slots=8, num_blocks=64, decoder_prompt_ids=(257, 256), max_encoder_tokens=60, max_model_tokens=40
)
TASK_PARAMS = {
    "summarization": {"prefix": "summarize: ", "max_length": 8, "min_length": 3, "num_beams": 4},
    "translation_en_to_de": {"prefix": "translate English to German: ", "max_length": 9},
    "translation_en_to_fr": {"prefix": "translate English to French: ", "max_length": 10},
}
GENERATION = {"max_length": 7, "do_sample": False, "eos_token_id": 1}


def model_folder(folder: Path) -> Path:
    model = write_byte_tokenizer(folder / "model")
    (model / "config.json").write_text(json.dumps({"task_specific_params": TASK_PARAMS}))
    (model / "generation_config.json").write_text(json.dumps(GENERATION))
    return model


@pytest.fixture(scope="module")
def router(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningRouter]:
    folder = tmp_path_factory.mktemp("router")
    with RunningRouter(folder, OPTIONS, model=model_folder(folder), task="summarization") as running:
        yield running


@pytest.fixture(scope="module")
def client(router: RunningRouter) -> Iterator[httpx.Client]:
    with router.client() as opened:
        yield opened


def post(client: httpx.Client, body: dict[str, Any], path: str = "/", status: int = 200) -> Any:
    answer = client.post(path, json=body)
    assert answer.status_code == status, answer.text
    return answer.json()


def test_the_key_of_the_answer_follows_the_task(client: httpx.Client) -> None:
    assert post(client, {"inputs": "hi"}) == [{"summary_text": "abcdef"}]  # 8 less two first tokens
    assert post(client, {"inputs": ["hi", "ho"]}) == [{"summary_text": "abcdef"}] * 2
    assert post(client, {"inputs": "hi"}, "/pipeline/text2text-generation") == [{"generated_text": "abcde"}]
    translation = {"inputs": "hi", "parameters": {"src_lang": "en", "tgt_lang": "fr"}}
    assert post(client, translation, "/pipeline/translation") == [{"translation_text": "abcdefgh"}]
    assert post(client, translation, "/models/a/b/pipeline/translation_en_to_fr") == [{"translation_text": "abcdefgh"}]


def test_the_prefix_of_the_task_stands_before_the_text(router: RunningRouter, client: httpx.Client) -> None:
    post(client, {"inputs": "hi"})
    assert router.shard.prompts[-1].startswith(b"summarize: hi")
    post(client, {"inputs": "hi", "parameters": {"src_lang": "en", "tgt_lang": "de"}}, "/pipeline/translation")
    assert router.shard.prompts[-1].startswith(b"translate English to German: hi")


def test_fields_of_the_call_win_and_the_inner_ones_over_those(client: httpx.Client) -> None:
    assert post(client, {"inputs": "hi", "parameters": {"max_length": 5}}) == [{"summary_text": "abc"}]
    assert post(client, {"inputs": "hi", "parameters": {"max_new_tokens": 2}}) == [{"summary_text": "ab"}]
    inner = {"max_new_tokens": 2, "generate_parameters": {"max_new_tokens": 4}}
    assert post(client, {"inputs": "hi", "parameters": inner}) == [{"summary_text": "abcd"}]


def test_what_the_checkpoint_wants_and_is_not_served_is_told(client: httpx.Client) -> None:
    answer = client.post("/", json={"inputs": "hi"})
    assert "num_beams 4" in answer.headers["x-warnings"]
    assert answer.headers["x-task"] == "summarization"


@pytest.mark.parametrize(
    ("parameters", "path"),
    [
        ({"num_beams": 2}, "parameters.num_beams"),
        ({"max_length": 0}, "parameters.max_length"),
        ({"max_length": 5, "min_length": 9}, "parameters.min_length"),
        ({"top_p": 1.5}, "parameters.top_p"),
        ({"num_return_sequences": 11}, "parameters.num_return_sequences"),
        ({"num_return_sequences": 2}, "parameters.num_return_sequences"),
        ({"src_lang": "en"}, "parameters.src_lang"),
    ],
)
def test_refusals_name_the_field(client: httpx.Client, parameters: dict[str, Any], path: str) -> None:
    found = post(client, {"inputs": "hi", "parameters": parameters}, status=422)
    assert found["error_type"] == "validation"
    assert f"`{path}`" in found["error"]


def test_unknown_languages_are_refused_with_the_pairs(client: httpx.Client) -> None:
    body = {"inputs": "hi", "parameters": {"src_lang": "en", "tgt_lang": "xx"}}
    assert "en_to_de, en_to_fr" in post(client, body, "/pipeline/translation", 422)["error"]


def test_a_long_text_is_refused_unless_it_may_be_cut(client: httpx.Client) -> None:
    body: dict[str, Any] = {"inputs": "x" * 100}
    assert post(client, body, status=422)["error_type"] == "validation"
    answer = client.post("/", json={**body, "parameters": {"truncation": "longest_first"}})
    assert (answer.status_code, answer.headers["x-truncated-inputs"]) == (200, "1")


def test_streams_and_details_stay_those_of_text_generation(client: httpx.Client) -> None:
    found = post(client, {"inputs": "hi", "parameters": {"details": True, "max_new_tokens": 2}})
    assert found[0]["details"]["generated_tokens"] == 2
    streamed = client.post("/", json={"inputs": "hi", "stream": True, "parameters": {"max_new_tokens": 2}})
    assert streamed.headers["content-type"] == "text/event-stream"


def test_the_hub_client_summarizes_and_translates(router: RunningRouter) -> None:
    client = InferenceClient(model=router.url)
    assert client.summarization("hi", generate_parameters={"max_new_tokens": 3}).summary_text == "abc"
    url = f"{router.url}/pipeline/translation"
    found = InferenceClient(model=url).translation("hi", src_lang="en", tgt_lang="de")
    assert found.translation_text == "abcdefg"


def test_conversations_become_chats(tmp_path: Path) -> None:
    with RunningRouter(tmp_path, task="text-generation") as router, router.client() as client:
        inputs = {"text": "and now?", "past_user_inputs": ["hi"], "generated_responses": ["hello"]}
        found = post(client, {"inputs": inputs, "parameters": {"max_length": 3}})
        assert found == {
            "generated_text": "abc",
            "conversation": {"past_user_inputs": ["hi", "and now?"], "generated_responses": ["hello", "abc"]},
            "warnings": [],
        }
        assert router.shard.prompts[-1].endswith(b"user: hi\nassistant: hello\nuser: and now?\nassistant: ")
        uneven = {"inputs": {"text": "a", "past_user_inputs": ["b"]}}
        assert "equally many" in post(client, uneven, status=422)["error"]
        assert post(client, {"inputs": "hi", "parameters": {"max_new_tokens": 2, "return_full_text": False}}) == [
            {"generated_text": "ab"}
        ]
        for path in ("/embed", "/rerank", "/v1/embeddings", "/similarity"):
            refused = client.post(path, json={"inputs": "a"})
            assert (refused.status_code, refused.json()["error_type"]) == (422, "task")
        wrong = post(client, {"inputs": "a"}, "/pipeline/fill-mask", 422)
        assert (wrong["error_type"], "text-generation" in wrong["error"]) == ("task", True)
        named = post(client, {"inputs": "hi", "parameters": {"max_new_tokens": 2}}, "/models/x/y")
        assert named[0]["generated_text"].endswith("ab")
