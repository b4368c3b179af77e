"""/tokenize and /detokenize in the shapes that vLLM and llama.cpp publish; a token of this tokenizer is a byte."""

from pathlib import Path
from typing import Any

import httpx
import pytest
from tokenizers import Tokenizer

from tests.fakes.byte_tokenizer import BEGIN_ID, END, END_ID, write_byte_tokenizer

USER = {"role": "user", "content": "hi"}
RENDERED = "user: hi\nassistant: "  # by the template of the byte tokenizer, behind its begin token


def tokenize(client: httpx.Client, **body: Any) -> Any:
    answer = client.post("/tokenize", json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_prompt_of_vllm(client: httpx.Client, tmp_path: Path) -> None:
    shown = tokenize(client, model="any", prompt="hé")
    ids = [BEGIN_ID, *"hé".encode()]
    assert shown == {"count": 4, "max_model_len": 2048, "tokens": ids, "token_strs": None}
    bare = tokenize(client, prompt="hé", add_special_tokens=False, return_token_strs=True)
    library = Tokenizer.from_file(str(write_byte_tokenizer(tmp_path) / "tokenizer.json"))
    assert bare["tokens"] == ids[1:]
    assert bare["token_strs"] == [library.id_to_token(token_id) for token_id in ids[1:]]
    assert tokenize(client, prompt="")["count"] == 1  # vLLM takes an empty prompt


def test_messages_of_vllm(client: httpx.Client) -> None:
    shown = tokenize(client, model="any", messages=[USER], return_token_strs=True)
    assert shown["tokens"] == [BEGIN_ID, *RENDERED.encode()]
    assert shown["count"] == len(shown["token_strs"]) == len(RENDERED) + 1
    usage = client.post("/v1/chat/completions", json={"messages": [USER], "max_tokens": 1}).json()["usage"]
    assert usage["prompt_tokens"] == shown["count"]
    assert tokenize(client, messages=[USER], add_special_tokens=True)["tokens"] == [BEGIN_ID, *shown["tokens"]]
    assert tokenize(client, messages=[USER], add_generation_prompt=False)["count"] < shown["count"]
    forged = tokenize(client, messages=[{"role": "user", "content": END}])
    assert END_ID not in forged["tokens"]


def test_content_of_llama_cpp(client: httpx.Client) -> None:
    assert tokenize(client, content="hé" + END) == {"tokens": [*"hé".encode(), END_ID]}
    assert tokenize(client, content="h", add_special=True) == {"tokens": [BEGIN_ID, ord("h")]}
    plain = tokenize(client, content="h" + END, add_special=True, parse_special=False)
    assert plain == {"tokens": [BEGIN_ID, *("h" + END).encode()]}
    pieces = tokenize(client, content="hé" + END, with_pieces=True)["tokens"]
    assert pieces == [
        {"id": ord("h"), "piece": "h"},
        {"id": 0xC3, "piece": [0xC3]},
        {"id": 0xA9, "piece": [0xA9]},
        {"id": END_ID, "piece": END},
    ]
    assert tokenize(client, content="") == {"tokens": []}


@pytest.mark.parametrize("length", [1, 3000])
def test_long_texts_are_the_same(client: httpx.Client, length: int) -> None:
    ids = list(b"a" * length)
    assert tokenize(client, content="a" * length)["tokens"] == ids
    assert [one["piece"] for one in tokenize(client, content="a" * length, with_pieces=True)["tokens"]] == [
        "a"
    ] * length
    shown = tokenize(client, prompt="a" * length, add_special_tokens=False, return_token_strs=True)
    assert (shown["tokens"], shown["token_strs"]) == (ids, ["a"] * length)
    assert client.post("/detokenize", json={"tokens": ids}).json()["prompt"] == "a" * length


def test_detokenize_has_the_names_of_both(client: httpx.Client) -> None:
    """The bodies are equal, so the answer has vLLM's `prompt` and llama.cpp's `content`; both show special tokens."""
    answer = client.post("/detokenize", json={"model": "any", "tokens": [BEGIN_ID, *"hé".encode(), END_ID]})
    assert answer.json() == {"prompt": "<|begin|>hé<|end|>", "content": "<|begin|>hé<|end|>"}
    assert client.post("/detokenize", json={"tokens": []}).json() == {"prompt": "", "content": ""}


def test_the_bodies_of_tgi_are_answered_as_before(client: httpx.Client) -> None:
    assert tokenize(client, inputs="h", prompt=None) == [
        {"id": BEGIN_ID, "text": "", "start": 0, "stop": 0},
        {"id": ord("h"), "text": "h", "start": 0, "stop": 1},
    ]
    assert client.post("/detokenize", json={"ids": [104]}).json() == {"text": "h"}


@pytest.mark.parametrize(
    ("route", "body", "word"),
    [
        ("/tokenize", {}, "inputs"),
        ("/tokenize", {"prompt": 5}, "prompt"),
        ("/tokenize", {"content": ["a"]}, "content"),
        ("/tokenize", {"messages": []}, "messages"),
        ("/tokenize", {"messages": "x"}, "messages"),
        ("/detokenize", {}, "ids"),
        ("/detokenize", {"tokens": "x"}, "tokens"),
        ("/detokenize", {"tokens": [1, 100_000]}, "tokens[1]"),
        ("/detokenize", {"tokens": [-1]}, "tokens[0]"),
    ],
)
def test_wrong_bodies_are_told_their_field(client: httpx.Client, route: str, body: dict[str, Any], word: str) -> None:
    answer = client.post(route, json=body)
    assert answer.status_code == 422
    assert f"`{word}`" in answer.json()["error"]


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"messages": [USER], "chat_template": "x"}, "chat_template"),
        ({"prompt": "a", "content": "b"}, "content"),
        ({"prompt": "a", "messages": [USER]}, "messages"),
        ({"inputs": "a", "prompt": "b"}, "prompt"),
    ],
)
def test_what_could_not_count_is_refused_by_name(client: httpx.Client, fields: dict[str, Any], name: str) -> None:
    answer = client.post("/tokenize", json=fields)
    assert answer.status_code == 422, answer.text
    assert f"`{name}`" in answer.json()["error"]
