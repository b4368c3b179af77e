"""summarization, translation, text2text-generation and conversations on `POST /`, and which model may do which."""

import json
import re
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from huggingface_hub import InferenceClient
from jsonschema import Draft202012Validator
from textmill_proto.v1 import shard_pb2
from textmill_router.api.openapi.descriptions import WRITING_DESCRIPTIONS
from textmill_router.engine.wire import unpack_ids

from tests.fakes.byte_tokenizer import BEGIN, BEGIN_ID, END, END_ID, write_byte_tokenizer
from tests.fakes.fake_shard import FakeShardOptions, text_script
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
GENERATION = {
    **{"max_length": 7, "do_sample": False, "eos_token_id": 1, "no_repeat_ngram_size": 3, "forced_eos_token_id": 257},
    **{"bad_words_ids": [[5], [6, 7]], "suppress_tokens": None, "early_stopping": True, "length_penalty": 1.5},
}


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


def test_routes_of_platforms_are_those_of_the_task(router: RunningRouter, client: httpx.Client) -> None:
    body = {"inputs": "hi", "parameters": {"max_length": 6}}
    found = post(client, body)
    assert found == [{"summary_text": "abcd"}]
    assert post(client, body, "/invocations") == found
    assert router.shard.last_admit.beams.num_beams == 4  # of the checkpoint's files
    instances = {"instances": [body, "hi", {"inputs": "hi", "parameters": {"max_length": 5}}]}
    vertex = post(client, {**instances, "parameters": {"max_length": 6}}, "/vertex")
    assert vertex == {"predictions": [found, found, [{"summary_text": "abc"}]]}
    assert router.shard.prompts[-1].startswith(b"summarize: hi")
    wrong = {"inputs": "hi", "parameters": {"src_lang": "en", "tgt_lang": "de"}}  # of translation
    for path, asked in (("/invocations", wrong), ("/vertex", {"instances": [wrong]})):
        assert "parameters.src_lang`" in post(client, asked, path, 422)["error"]


def test_languages_in_the_path_are_those_of_the_translation(router: RunningRouter, client: httpx.Client) -> None:
    for path in ("/pipeline/translation_en_to_fr", "/models/a/b/pipeline/translation_en_to_fr"):
        assert post(client, {"inputs": "hi"}, path) == [{"translation_text": "abcdefgh"}]
        assert router.shard.prompts[-1].startswith(b"translate English to French: hi")
    half = {"inputs": "hi", "parameters": {"src_lang": "en"}}
    assert post(client, half, "/pipeline/translation_en_to_de") == [{"translation_text": "abcdefg"}]
    unknown = post(client, {"inputs": "hi"}, "/pipeline/translation_en_to_xx", 422)["error"]
    assert ("found 'en_to_xx'" in unknown, "en_to_de, en_to_fr" in unknown) == (True, True)
    other = {"inputs": "hi", "parameters": {"tgt_lang": "de"}}
    found = post(client, other, "/pipeline/translation_en_to_fr", 422)["error"]
    assert "must be those of the path, translation_en_to_fr" in found


def test_the_pair_of_a_tokenizer_is_the_pair_of_the_model(tmp_path: Path) -> None:
    model = write_byte_tokenizer(tmp_path / "model")
    config = json.loads((model / "tokenizer_config.json").read_text())
    pair = {"source_lang": "en", "target_lang": "ROMANCE"}  # as the folders of Marian have
    (model / "tokenizer_config.json").write_text(json.dumps({**config, **pair}))
    with RunningRouter(tmp_path, OPTIONS, model=model, task="translation") as router, router.client() as client:
        found = post(client, {"inputs": "hi", "parameters": {"max_length": 5}}, "/pipeline/translation_en_to_ROMANCE")
        assert found == [{"translation_text": "abc"}]
        body = {"inputs": "hi", "parameters": {"src_lang": "en", "tgt_lang": "de"}}
        assert "the pairs are en_to_ROMANCE" in post(client, body, status=422)["error"]


def test_info_names_the_task_and_its_family(client: httpx.Client, tmp_path: Path) -> None:
    info = client.get("/info").json()
    family = ["summarization", "text2text-generation", "translation", "conversational"]
    assert (info["task"], info["tasks"], info["labels"]) == ("summarization", family, {})
    assert info["model_pipeline_tag"] == "summarization"
    for task in family[:-1]:
        post(client, {"inputs": "hi"}, f"/pipeline/{task}")
    with RunningRouter(tmp_path, task="text-generation") as router, router.client() as other:
        turn = {"inputs": {"text": "hi"}, "parameters": {"max_new_tokens": 2}}
        info = other.get("/info").json()
        assert (info["task"], info["tasks"]) == ("text-generation", ["text-generation", "conversational"])
        assert post(other, turn, "/pipeline/conversational")["generated_text"] == "ab"


def test_the_prefix_of_the_task_stands_before_the_text(router: RunningRouter, client: httpx.Client) -> None:
    post(client, {"inputs": "hi"})
    assert router.shard.prompts[-1].startswith(b"summarize: hi")
    post(client, {"inputs": "hi", "parameters": {"src_lang": "en", "tgt_lang": "de"}}, "/pipeline/translation")
    assert router.shard.prompts[-1].startswith(b"translate English to German: hi")


def test_fields_of_the_call_win_and_the_inner_ones_over_those(client: httpx.Client) -> None:
    # `max_new_tokens` counts the forced first token, as transformers counts.
    assert post(client, {"inputs": "hi", "parameters": {"max_length": 5}}) == [{"summary_text": "abc"}]
    assert post(client, {"inputs": "hi", "parameters": {"max_new_tokens": 3}}) == [{"summary_text": "ab"}]
    inner = {"max_new_tokens": 3, "generate_parameters": {"max_new_tokens": 5}}
    assert post(client, {"inputs": "hi", "parameters": inner}) == [{"summary_text": "abcd"}]


def test_the_search_of_the_checkpoint_reaches_the_shard(router: RunningRouter, client: httpx.Client) -> None:
    answer = client.post("/", json={"inputs": "hi"})
    assert answer.headers["x-task"] == "summarization"
    assert "x-warnings" not in answer.headers
    admit = router.shard.last_admit
    assert (admit.beams.num_beams, admit.beams.num_sequences, admit.beams.length_penalty) == (4, 1, 1.5)
    assert admit.beams.early_stopping == shard_pb2.EARLY_STOPPING_YES
    assert (admit.sampling.no_repeat_ngram_size, admit.min_new_tokens) == (3, 2)
    # The first id begins the decoder, and the second one is the first of the answer, as transformers counts.
    assert (unpack_ids(admit.prompt_ids)[-1], unpack_ids(admit.sampling.forced_first_ids)) == (257, array("I", [256]))
    assert unpack_ids(admit.sampling.forced_last_ids) == array("I", [257])
    assert [unpack_ids(one) for one in admit.sampling.bad_sequences] == [array("I", [5]), array("I", [6, 7])]


def test_fields_of_the_call_win_over_the_search_of_the_checkpoint(router: RunningRouter, client: httpx.Client) -> None:
    parameters = {
        **{"num_beams": 3, "num_return_sequences": 2, "length_penalty": 0.5, "early_stopping": "never"},
        **{"no_repeat_ngram_size": 2, "forced_eos_token_id": [9, 8], "forced_bos_token_id": 77, "max_time": 100},
    }
    found = post(client, {"inputs": ["hi", "ho"], "parameters": parameters})
    assert found == [{"summary_text": "Mabcdef"}] * 4
    admit = router.shard.last_admit
    assert (admit.beams.num_beams, admit.beams.num_sequences, admit.beams.length_penalty) == (3, 2, 0.5)
    assert admit.beams.early_stopping == shard_pb2.EARLY_STOPPING_NEVER
    assert 50_000 < admit.beams.max_ms <= 100_000
    assert unpack_ids(admit.sampling.forced_first_ids) == array("I", [77])
    assert unpack_ids(admit.sampling.forced_last_ids) == array("I", [9, 8])
    post(client, {"inputs": "hi", "parameters": {"num_beams": 1}})
    assert not router.shard.last_admit.HasField("beams")
    assert router.shard.last_admit.sampling.no_repeat_ngram_size == 3


def test_an_answer_that_nobody_bounds_ends_after_256_tokens(tmp_path: Path) -> None:
    """256 is the `max_new_tokens` with which the pipelines of transformers begin."""
    options = FakeShardOptions(decoder_prompt_ids=(257,), max_encoder_tokens=60, max_model_tokens=2000, num_blocks=200)
    with RunningRouter(tmp_path, options, task="text2text-generation") as router, router.client() as client:

        def longest(path: str = "/", **parameters: Any) -> int:
            post(client, {"inputs": "hi", "parameters": parameters}, path)
            return int(router.shard.last_admit.max_new_tokens)

        assert longest() == longest("/pipeline/summarization") == 256
        assert longest(forced_bos_token_id=77) == 255  # transformers counts the forced token as new
        assert longest(min_new_tokens=300) == 300
        assert longest(max_new_tokens=500) == 500
        assert longest("/generate") > 1000  # as TGI


def test_a_token_that_begins_the_answer_takes_room_of_the_answer(tmp_path: Path) -> None:
    options = FakeShardOptions(num_slots=8, num_blocks=8, decoder_prompt_ids=(257,), max_model_tokens=0)
    with RunningRouter(tmp_path, options, task="text2text-generation") as router, router.client() as client:
        post(client, {"inputs": "hi"})
        longest = router.shard.last_admit.max_new_tokens
        post(client, {"inputs": "hi", "parameters": {"forced_bos_token_id": 77}})
        assert router.shard.last_admit.max_new_tokens == longest - 1
        prompt = "h" * (client.get("/info").json()["max_input_tokens"] - 1)  # a token begins it
        found = post(client, {"inputs": prompt, "parameters": {"forced_bos_token_id": 77}}, status=422)
        assert "leaves no room for an answer behind the 1 tokens" in found["error"]


@pytest.mark.parametrize("parameters", [{"do_sample": True}, {"temperature": 0.7}, {"top_p": 0.9}])
def test_a_call_that_samples_has_no_beams(
    router: RunningRouter, client: httpx.Client, parameters: dict[str, Any]
) -> None:
    post(client, {"inputs": "hi", "parameters": parameters})
    assert not router.shard.last_admit.HasField("beams")
    assert router.shard.last_admit.sampling.do_sample
    found = post(client, {"inputs": "hi", "parameters": {**parameters, "num_beams": 2}}, status=422)
    assert "`parameters.num_beams`" in found["error"]


def test_a_shard_that_searches_no_beams_is_told(tmp_path: Path) -> None:
    with RunningRouter(
        tmp_path, OPTIONS, is_loading=True, model=model_folder(tmp_path), task="summarization"
    ) as router:
        router.shard.change_info(features=["grammar"])
        router.shard.load(None)
        router.wait_until_healthy()
        with router.client() as client:
            answer = client.post("/", json={"inputs": "hi"})
            assert "num_beams 4" in answer.headers["x-warnings"]
            found = post(client, {"inputs": "hi", "parameters": {"num_beams": 2}}, status=422)
            assert "this shard searches no beams" in found["error"]


def test_blanks_before_punctuation_are_left_out_where_a_call_asks(tmp_path: Path) -> None:
    options = FakeShardOptions(
        decoder_prompt_ids=(257,), max_encoder_tokens=60, script=text_script("It is n't here , is it ?", 257)
    )
    with RunningRouter(tmp_path, options, task="text2text-generation") as router, router.client() as client:
        assert post(client, {"inputs": "hi"}) == [{"generated_text": "It is n't here , is it ?"}]
        found = post(client, {"inputs": "hi", "parameters": {"clean_up_tokenization_spaces": True}})
        assert found == [{"generated_text": "It isn't here, is it?"}]


def test_text_generation_on_post_begins_from_the_checkpoint_and_generate_does_not(tmp_path: Path) -> None:
    model = write_byte_tokenizer(tmp_path / "model")
    generation = {"max_length": 9, "no_repeat_ngram_size": 4, "num_beams": 2, "min_length": 3, "temperature": 0.1}
    (model / "generation_config.json").write_text(json.dumps(generation))
    with RunningRouter(tmp_path, model=model, task="text-generation") as router, router.client() as client:
        own = {"do_sample": False, "return_full_text": False}
        # A begin, two bytes and six more come to nine tokens.
        assert post(client, {"inputs": "hi", "parameters": own}) == [{"generated_text": "abcdef"}]
        assert router.shard.last_admit.beams.num_beams == 2
        assert post(client, {"inputs": "hi", "parameters": {"do_sample": False}}) == [{"generated_text": "hiabcdef"}]
        post(client, {"inputs": "hi"})  # without parameters a call samples, as in TGI
        admit = router.shard.last_admit
        assert (admit.sampling.do_sample, admit.HasField("beams"), admit.max_new_tokens) == (True, False, 6)
        assert (admit.sampling.temperature, admit.sampling.no_repeat_ngram_size) == (1.0, 4)
        # A prompt beyond the bound of the checkpoint is read nevertheless, one beyond the bound of the call is not.
        post(client, {"inputs": "h" * 20, "parameters": {**own, "max_new_tokens": 2}})
        found = post(client, {"inputs": "h" * 20, "parameters": {"max_length": 8}}, status=422)
        assert "`max_length` must be larger than the prompt, which has 21 tokens" in found["error"]
        streamed = client.post("/", json={"inputs": "hi", "stream": True, "parameters": {"do_sample": False}})
        assert streamed.status_code == 200
        assert not router.shard.last_admit.HasField("beams")
        for field, value in (("stop", ["x"]), ("details", True), ("best_of", 2), ("frequency_penalty", 1.0)):
            body = {"inputs": "hi", "parameters": {"num_beams": 2, field: value}}
            assert post(client, body, status=422)["error_type"] == "validation"
        post(client, {"inputs": "hi", "parameters": {"do_sample": False, "max_new_tokens": 3}}, "/generate")
        admit = router.shard.last_admit
        assert (admit.HasField("beams"), admit.sampling.no_repeat_ngram_size, admit.min_new_tokens) == (False, 0, 0)


@pytest.mark.parametrize(
    ("parameters", "path"),
    [
        ({"num_beams": 9}, "parameters.num_beams"),
        ({"num_return_sequences": 5}, "parameters.num_return_sequences"),
        ({"no_repeat_ngram_size": -1}, "parameters.no_repeat_ngram_size"),
        ({"length_penalty": 1e9}, "parameters.length_penalty"),
        ({"forced_bos_token_id": 258}, "parameters.forced_bos_token_id"),
        ({"max_length": 0}, "parameters.max_length"),
        ({"max_length": 5, "min_length": 9}, "parameters.min_length"),
        ({"top_p": 1.5}, "parameters.top_p"),
        ({"num_return_sequences": 11}, "parameters.num_return_sequences"),
        ({"num_return_sequences": 2, "num_beams": 1}, "parameters.num_return_sequences"),
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
    assert "prompt 2 of 2 has " in post(client, {"inputs": ["hi", "x" * 100]}, status=422)["error"]
    answer = client.post("/", json={**body, "parameters": {"truncation": "longest_first"}})
    assert (answer.status_code, answer.headers["x-truncated-inputs"]) == (200, "1")


def test_streams_and_details_stay_those_of_text_generation(client: httpx.Client) -> None:
    found = post(client, {"inputs": "hi", "parameters": {"details": True, "max_new_tokens": 2}})
    assert found[0]["details"]["generated_tokens"] == 2
    streamed = client.post("/", json={"inputs": "hi", "stream": True, "parameters": {"max_new_tokens": 2}})
    assert streamed.headers["content-type"] == "text/event-stream"


def test_the_hub_client_summarizes_and_translates(router: RunningRouter) -> None:
    client = InferenceClient(model=router.url)
    assert client.summarization("hi", generate_parameters={"max_new_tokens": 4}).summary_text == "abc"
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
        pictured = {"inputs": {"text": "What is in the picture?", "image": "iVBORw0KGgo="}}
        assert "`inputs.image` is not taken" in post(client, pictured, status=422)["error"]
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


@pytest.mark.parametrize(
    ("headers", "content", "status"),
    [
        ({}, b'{"inputs": "hi", "parameters": {"max_new_tokens": 2}}', 200),
        ({"content-type": "application/x-www-form-urlencoded"}, b' {"inputs": "hi"}', 200),
        ({"content-type": "application/octet-stream"}, b'{"inputs": "hi"}', 200),
        ({"content-type": "text/plain;charset=UTF-8"}, b'{"inputs": "hi"}', 200),
        ({"content-type": "text/plain"}, b"hi", 200),
        ({"content-type": "image/png"}, b"\x89PNG", 415),
        ({}, b"hi", 415),
        ({"content-type": "multipart/form-data; boundary=x"}, b"--x", 415),
        ({"content-type": "text/plain"}, b"\xff", 422),
        ({"content-type": "text/plain", "content-encoding": "gzip"}, b"hi", 415),
        ({}, b'{"inputs": 5}', 422),
    ],
)
@pytest.mark.parametrize("path", ["/", "/models/a/b", "/pipeline/summarization", "/predict"])
def test_bytes_decide_what_a_body_is(
    client: httpx.Client, path: str, headers: dict[str, str], content: bytes, status: int
) -> None:
    answer = client.post(path, content=content, headers=headers)
    assert answer.status_code == status, answer.text
    if status == 200:
        assert answer.json()[0]["summary_text"].startswith("a")
    else:
        assert isinstance(answer.json()["error"], str)  # not the object of the dialect of `GET /models/{id}`


def test_routes_of_other_dialects_want_the_type(client: httpx.Client) -> None:
    for path in ("/generate", "/invocations", "/v1/completions", "/tokenize"):
        assert client.post(path, content=b'{"inputs": "hi"}').status_code == 415


def test_a_conversation_without_a_template_is_its_turns(tmp_path: Path) -> None:
    model = write_byte_tokenizer(tmp_path / "model")
    (model / "tokenizer_config.json").write_text(json.dumps({"bos_token": BEGIN, "eos_token": END}))
    with RunningRouter(tmp_path, model=model, task="text-generation") as router, router.client() as client:
        inputs = {"text": "and now?", "past_user_inputs": ["hi"], "generated_responses": ["hello"]}
        parameters = {"max_length": 4, "top_k": 0, "repetition_penalty": 0}
        found = post(client, {"inputs": inputs, "parameters": parameters})
        assert found == {
            "generated_text": "abcd",
            "conversation": {"past_user_inputs": ["hi", "and now?"], "generated_responses": ["hello", "abcd"]},
            "warnings": [],
        }
        ids = list(unpack_ids(router.shard.last_admit.prompt_ids))
        assert ids == [BEGIN_ID, *b"hi", END_ID, *b"hello", END_ID, *b"and now?", END_ID]
        assert "equally many" in post(client, {"inputs": {"text": "a", "past_user_inputs": ["b"]}}, status=422)["error"]


def test_too_many_texts_are_a_batch_that_is_too_large(client: httpx.Client) -> None:
    found = post(client, {"inputs": ["hi"] * 5}, status=422)
    assert found["error_type"] == "batch size exceeded"
    assert "`inputs` has 5 texts, and a call has at most 4 (--max-client-batch-size)" in found["error"]
    found = post(client, {"inputs": []}, status=422)
    assert (found["error_type"], "`inputs` must hold at least one text" in found["error"]) == ("validation", True)


@pytest.mark.parametrize(
    "parameters",
    [
        *({name: 2**32} for name in ("no_repeat_ngram_size", "encoder_no_repeat_ngram_size", "min_length", "top_k")),
        *({name: 10**400} for name in ("max_length", "max_new_tokens", "no_repeat_ngram_size", "seed")),
        *({"top_p": value} for value in (0, 1e-300, 1.5)),
        {"repetition_penalty": 1e-300},
        {"max_time": 120.5},
    ],
)
def test_a_number_out_of_its_range_is_named_by_its_path(client: httpx.Client, parameters: dict[str, Any]) -> None:
    (name,) = parameters
    found = post(client, {"inputs": "hi", "parameters": parameters}, status=422)
    assert (found["error_type"], f"`parameters.{name}` must be" in found["error"]) == ("validation", True), found
    assert len(found["error"]) < 200


def test_no_time_is_a_wish_too(client: httpx.Client) -> None:
    for max_time in (0, 1e-300):
        found = post(client, {"inputs": "hi", "parameters": {"max_time": max_time, "num_beams": 1}})
        assert [list(one) for one in found] == [["summary_text"]]


# The fields of writing, with their ranges, in the contract of the tasks.
RANGES: dict[str, dict[str, float]] = {
    "max_new_tokens": {"minimum": 1},
    "max_length": {"minimum": 1},
    "temperature": {"minimum": 0, "maximum": 100},
    "top_k": {"minimum": 0},
    "top_p": {"exclusiveMinimum": 0, "maximum": 1},
    "repetition_penalty": {"minimum": 0, "maximum": 100},
    "max_time": {"minimum": 0, "maximum": 120},
    "num_return_sequences": {"minimum": 1, "maximum": 10},
    "num_beams": {"minimum": 1, "maximum": 8},
}
FIELDS = {*RANGES, "min_length", "do_sample", "clean_up_tokenization_spaces", "truncation", "src_lang", "tgt_lang"}
INNER = {"generate_parameters", "generation_parameters"}
KEYS = {
    "summarization": "summary_text",
    "translation": "translation_text",
    "text2text-generation": "generated_text",
}
PATHS = ("/", "/models/{model}", "/pipeline/{task}", "/models/{model}/pipeline/{task}", "/predict", "/invocations")


def operation_of(document: dict[str, Any], path: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the JSON body of `POST` of a path, and the content of its good answer by media type."""
    operation = document["paths"][path]["post"]
    return operation["requestBody"]["content"]["application/json"], operation["responses"]["200"]["content"]


def validator_of(document: dict[str, Any], schema: dict[str, Any]) -> Draft202012Validator:
    return Draft202012Validator({**schema, "components": document["components"]})


@pytest.mark.parametrize("task", KEYS)
def test_the_document_shows_the_form_of_the_task(tmp_path: Path, task: str) -> None:
    options = FakeShardOptions(num_slots=8, num_blocks=64, decoder_prompt_ids=(257,), max_encoder_tokens=100)
    with RunningRouter(tmp_path, options, task=task) as router, router.client() as client:
        document = client.get("/openapi.json").json()
        for path in PATHS:
            body, answers = operation_of(document, path)
            assert body["schema"]["anyOf"][0] == {"$ref": "#/components/schemas/WritingBody"}, path
            own = answers["application/json"]["schema"]["anyOf"][0]
            name = own["items"]["$ref"].rpartition("/")[2]
            assert list(document["components"]["schemas"][name]["properties"]) == [KEYS[task]], path
            found = post(client, body["example"], path.format(model="fake/model", task=task))
            validator_of(document, own).validate(found)
            assert [list(one) for one in found] == [[KEYS[task]]], path
        example = operation_of(document, "/vertex")[0]["example"]
        assert [list(one) for one in post(client, example, "/vertex")["predictions"][0]] == [[KEYS[task]]]


def test_the_document_has_each_field_of_writing_with_its_range_and_a_sentence(client: httpx.Client) -> None:
    document = client.get("/openapi.json").json()
    schemas = document["components"]["schemas"]
    fields = set(schemas["WritingParameters"]["properties"])
    assert fields >= FIELDS | INNER
    assert set(schemas["WritingFields"]["properties"]) >= set(RANGES) | {"min_length", "do_sample"}
    assert fields & {"details", "stop", "watermark", "grammar", "return_full_text"} == set()
    text = json.dumps([operation_of(document, path)[0]["schema"] for path in PATHS])
    names: set[str] = set()
    while wanted := set(re.findall(r'#/components/schemas/(\w+)"', text)) - names:
        names |= wanted
        text = json.dumps([schemas[name] for name in wanted])
    assert names >= {"WritingBody", "WritingParameters", "WritingFields", "RequestOptions", "Conversation"}
    for name in names:
        for field, schema in schemas[name]["properties"].items():
            assert len(schema.get("description", "")) > 10, (name, field)
    assert set(WRITING_DESCRIPTIONS) <= fields  # none is left of a field that is gone
    for name, edges in RANGES.items():
        for schema in ("WritingParameters", "WritingFields"):
            [number] = [one for one in schemas[schema]["properties"][name]["anyOf"] if "minimum" in str(one).lower()]
            found = {key: value for key, value in number.items() if key in edges}
            assert found == edges, (schema, name)
        assert {"maximum"} & set(edges) or number["maximum"] >= 2**31 - 1, name


def test_the_ranges_of_the_document_are_those_of_the_route(client: httpx.Client) -> None:
    document = client.get("/openapi.json").json()
    drawn = {"do_sample": True}  # without which `typical_p` is not read, and several sequences are equal
    beside = {"num_return_sequences": drawn, "typical_p": drawn, "max_length": {"min_length": 0}}
    tried = 0
    for name, schema in document["components"]["schemas"]["WritingParameters"]["properties"].items():
        for number in (one for one in schema.get("anyOf", ()) if one.get("type") in ("integer", "number")):
            step = 1 if number["type"] == "integer" else 0.001
            beyond = [number[key] for key in ("exclusiveMinimum",) if key in number]
            beyond += [number["minimum"] - step] if "minimum" in number else []
            beyond += [number["maximum"] + step] if "maximum" in number else []
            for value in beyond:
                refused = client.post("/", json={"inputs": "hi", "parameters": {**beside.get(name, {}), name: value}})
                assert (refused.status_code, f"`parameters.{name}`" in refused.text) == (422, True), (name, value)
                tried += 1
            for value in (number[key] for key in ("minimum", "maximum") if abs(number.get(key, 1000)) < 1000):
                body = {"inputs": "hi", "parameters": {**beside.get(name, {}), name: value}}
                assert client.post("/", json=body).status_code == 200, (name, value)
    assert tried >= 2 * len(RANGES)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/", {"inputs": ["hi", "ho"], "parameters": {"generate_parameters": {"max_length": 5}}}),
        ("/", {"inputs": "hi", "parameters": {"details": True, "max_new_tokens": 2}}),
        ("/", {"inputs": {"text": "hi", "past_user_inputs": ["a"], "generated_responses": ["b"]}}),
        ("/pipeline/{task}", {"inputs": "hi"}),
        ("/invocations", {"prompt": "hi", "max_tokens": 2}),
        ("/invocations", {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}),
        ("/predict", {"inputs": "hi", "stream": True, "parameters": {"max_new_tokens": 2}}),
    ],
)
def test_what_a_route_answers_is_what_the_document_says(client: httpx.Client, path: str, body: dict[str, Any]) -> None:
    document = client.get("/openapi.json").json()
    described, answers = operation_of(document, path)
    validator_of(document, described["schema"]).validate(body)
    for task in (*KEYS, "conversational") if "{task}" in path else ("",):
        answer = client.post(path.format(task=task), json=body)
        assert answer.status_code == 200, answer.text
        media_type = answer.headers["content-type"].partition(";")[0]
        parts = [answer.text]
        if media_type == "text/event-stream":
            parts = [part.removeprefix("data:") for part in answer.text.strip().split("\n\n")]
            assert len(parts) == 2
        for part in parts:
            validator_of(document, answers[media_type]["schema"]).validate(json.loads(part))


def test_a_model_that_continues_texts_starts_whatever_its_numbers_are(tmp_path: Path) -> None:
    model = write_byte_tokenizer(tmp_path / "model")
    (model / "generation_config.json").write_text('{"num_beams": 10000, "top_k": -1, "max_new_tokens": 3}')
    with RunningRouter(tmp_path, model=model) as router, router.client() as other:
        assert post(other, {"inputs": "hi", "parameters": {"return_full_text": False}}) == [{"generated_text": "abc"}]
        assert not router.shard.last_admit.HasField("beams")
