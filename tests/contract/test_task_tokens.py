"""/tokenize and /decode of models of texts without generation, in the form of text-embeddings-inference."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import tokenizers

from tests.fakes.fake_row_shard import FakeRowShard, RowShardOptions
from tests.fakes.running_router import RunningRouter
from tests.fakes.task_router import task_router
from tests.fakes.word_tokenizer import write_word_tokenizer

TEXTS = ("my name is sarah", "The café is “happy” 🎉 day!", "שלום the dog 你好", "a [SEP] b", "", "x" * 3000)


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> tokenizers.Tokenizer:
    return tokenizers.Tokenizer.from_file(str(write_word_tokenizer(tmp_path_factory.mktemp("t")) / "tokenizer.json"))


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    options = RowShardOptions(heads=("labels",), labels=("a", "b"), max_row_tokens=8)
    folder = tmp_path_factory.mktemp("router")
    with task_router(folder, "text-classification", options) as router, router.client() as opened:
        yield opened


def expected(library: tokenizers.Tokenizer, text: str, *, adds: bool = True) -> list[dict[str, Any]]:
    """Return the tokens as the source of text-embeddings-inference makes them of an encoding."""
    found = library.encode(text, add_special_tokens=adds)
    tokens = []
    for number, token_id in enumerate(found.ids):
        start, stop = found.offsets[number]
        if found.special_tokens_mask[number]:
            tokens.append({"id": token_id, "text": found.tokens[number], "special": True, "start": None, "stop": None})
        else:
            shown = "".join(list(text)[start:stop])
            tokens.append({"id": token_id, "text": shown, "special": False, "start": start, "stop": stop})
    return tokens


def test_tokens_are_those_of_the_library(client: httpx.Client, library: tokenizers.Tokenizer) -> None:
    found = client.post("/tokenize", json={"inputs": list(TEXTS)})
    assert found.json() == [expected(library, text) for text in TEXTS]
    assert found.headers["x-compute-characters"] == str(sum(map(len, TEXTS)))
    for text in TEXTS:
        body = {"inputs": text, "add_special_tokens": False}
        assert client.post("/tokenize", json=body).json() == [expected(library, text, adds=False)]
    named = client.post("/tokenize", json={"inputs": "my name"}).json()[0]
    assert [token["text"] for token in named] == ["[CLS]", "my", "name", "[SEP]"]


def test_ids_become_texts(client: httpx.Client, library: tokenizers.Tokenizer) -> None:
    lists = [library.encode(text).ids for text in TEXTS]
    for skips in (True, False):
        body = {"ids": lists, "skip_special_tokens": skips}
        wanted = [library.decode(ids, skip_special_tokens=skips) for ids in lists]
        assert client.post("/decode", json=body).json() == wanted
    assert client.post("/decode", json={"ids": lists[0]}).json() == ["my name is sarah"]
    assert client.post("/decode", json={"ids": [[]]}).json() == [""]


@pytest.mark.parametrize(
    ("path", "body", "words"),
    [
        ("/tokenize", {"inputs": []}, "`inputs` must hold at least one text"),
        ("/tokenize", {"inputs": ["a", "x" * 100_001]}, "`inputs[1]` has 100001 characters"),
        ("/tokenize", {"inputs": ["a"] * 1025}, "makes 1025 rows"),
        ("/tokenize", {"inputs": "a", "prompt_name": "nobody"}, "`prompt_name` must be one of"),
        ("/tokenize", {"inputs": [1]}, "inputs"),
        ("/tokenize", {}, "inputs"),
        ("/decode", {"ids": [1, 100_000]}, "`ids[1]` must be the id of a token, found 100000"),
        ("/decode", {"ids": [[1], [-1]]}, "`ids[1][0]` must be the id of a token, found -1"),
        ("/decode", {"ids": [99999999999999]}, "`ids[0]` must be the id of a token"),
        ("/decode", {"ids": [[1], 2]}, "ids"),
        ("/decode", {"ids": ["a"]}, "ids"),
        ("/decode", {}, "ids"),
    ],
)
def test_what_cannot_be_told_is_refused_with_its_path(
    client: httpx.Client, path: str, body: dict[str, Any], words: str
) -> None:
    answer = client.post(path, json=body)
    assert answer.status_code == 422
    assert words in answer.json()["error"]


def test_the_prompt_of_a_name_stands_before_the_text(tmp_path: Path, library: tokenizers.Tokenizer) -> None:
    model = write_word_tokenizer(tmp_path / "model")
    prompts = {"prompts": {"query": "the dog "}, "default_prompt_name": None}
    (model / "config_sentence_transformers.json").write_text(json.dumps(prompts))
    with (
        RunningRouter(
            tmp_path, model=model, make_shard=lambda socket, _: FakeRowShard(socket), task="feature-extraction"
        ) as router,
        router.client() as client,
    ):
        found = client.post("/tokenize", json={"inputs": "my name", "prompt_name": "query"}).json()
        assert found == [expected(library, "the dog my name")]
        assert client.post("/tokenize", json={"inputs": "my name"}).json() == [expected(library, "my name")]


def test_a_model_of_images_has_no_tokens(tmp_path: Path) -> None:
    options = RowShardOptions(heads=("labels",), labels=("a",), media="image")
    with task_router(tmp_path, "image-classification", options) as router, router.client() as client:
        answer = client.post("/tokenize", json={"inputs": "a"})
        assert (answer.status_code, answer.json()["error_type"]) == (422, "task")
