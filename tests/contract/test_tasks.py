"""Every task over HTTP, in front of a shard whose numbers can be counted by hand."""

import base64
import json
import math
import struct
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

import httpx
import pytest

from tests.fakes.fake_row_shard import RowShardOptions, plain_logits, plain_vector
from tests.fakes.task_router import task_router
from tests.fakes.word_tokenizer import MASK_ID, make_word_tokenizer

NER_LABELS = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC")
KINDS = {
    "vectors": ("sentence-similarity", RowShardOptions(heads=("vectors", "token_vectors", "sparse_vectors"))),
    "classes": (
        "text-classification",
        RowShardOptions(heads=("labels",), labels=("contradiction", "neutral", "entailment"), max_row_tokens=32),
    ),
    "ranks": ("rerank", RowShardOptions(heads=("labels",), labels=("LABEL_0",))),
    "tokens": ("token-classification", RowShardOptions(heads=("token_labels",), labels=NER_LABELS, max_row_tokens=12)),
    "masks": ("fill-mask", RowShardOptions(heads=("masks",), mask_token_id=MASK_ID)),
    "spans": ("question-answering", RowShardOptions(heads=("spans",), max_row_tokens=24)),
}


@pytest.fixture(scope="module")
def routers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, httpx.Client]]:
    with ExitStack() as stack:
        clients = {}
        for kind, (task, options) in KINDS.items():
            running = stack.enter_context(task_router(tmp_path_factory.mktemp(kind), task, options))
            clients[kind] = stack.enter_context(running.client())
        yield clients


def ids_of(text: str, pair: str | None = None) -> list[int]:
    found: list[int] = make_word_tokenizer().encode(text, pair).ids
    return found


def unit(vector: list[float]) -> list[float]:
    length = sum(value * value for value in vector) ** 0.5
    return [value / length for value in vector]


def posted(client: httpx.Client, path: str, body: Any, **more: Any) -> Any:
    answer = client.post(path, json=body, **more)
    assert answer.status_code == 200, answer.text
    return answer.json()


def refused(client: httpx.Client, path: str, body: Any, status: int = 422) -> tuple[str, str]:
    answer = client.post(path, json=body)
    assert answer.status_code == status, answer.text
    found = answer.json()
    assert isinstance(found["error"], str)
    return found["error_type"], found["error"]


# ---- Vectors


def test_one_text_gives_a_vector_and_a_list_gives_a_list(routers: dict[str, httpx.Client]) -> None:
    client = routers["vectors"]
    one = posted(client, "/", {"inputs": "the happy dog"})
    assert one == plain_vector(ids_of("the happy dog"))
    assert posted(client, "/", {"inputs": ["the happy dog"]}) == [one]
    two = posted(client, "/", {"inputs": ["the happy dog", "a sunny day"], "normalize": True})
    assert two[0] == pytest.approx(unit(one), abs=1e-6)
    of_parameters = posted(client, "/", {"inputs": ["the happy dog", "a sunny day"], "parameters": {"normalize": True}})
    assert of_parameters == two


def test_similarity_is_the_cosine_of_vectors(routers: dict[str, httpx.Client]) -> None:
    sentences = ["a happy cat", "a sunny day"]
    body = {"inputs": {"source_sentence": "a happy dog", "sentences": sentences}}
    first, *others = [unit(plain_vector(ids_of(text))) for text in ("a happy dog", *sentences)]
    expected = [sum(a * b for a, b in zip(first, other, strict=True)) for other in others]
    for path in ("/", "/similarity", "/pipeline/sentence-similarity"):
        assert posted(routers["vectors"], path, body) == pytest.approx(expected, abs=1e-6)
    old = {"inputs": {"sourceSentence": "a happy dog", "sentences": sentences}}
    assert posted(routers["vectors"], "/", old) == pytest.approx(expected, abs=1e-6)


def test_embedding_servers_routes(routers: dict[str, httpx.Client]) -> None:
    client = routers["vectors"]
    assert posted(client, "/embed", {"inputs": "a dog"})[0] == pytest.approx(
        unit(plain_vector(ids_of("a dog"))), abs=1e-6
    )
    assert posted(client, "/embed", {"inputs": "a dog", "normalize": False}) == [plain_vector(ids_of("a dog"))]
    tokens = posted(client, "/embed_all", {"inputs": ["a dog"]})
    assert tokens == [[[float(token)] * 3 for token in ids_of("a dog")]]
    sparse = posted(client, "/embed_sparse", {"inputs": "a dog"})
    assert sparse == [[{"index": token, "value": token / 2} for token in sorted(set(ids_of("a dog")))]]


def test_openai_embeddings(routers: dict[str, httpx.Client]) -> None:
    client = routers["vectors"]
    body = {"input": ["a dog", "the sunny day"], "model": "any", "dimensions": 2}
    found = posted(client, "/v1/embeddings", body)
    assert found == posted(client, "/embeddings", body)
    assert [entry["embedding"] for entry in found["data"]] == [plain_vector(ids_of(text))[:2] for text in body["input"]]
    num_tokens = len(ids_of("a dog")) + len(ids_of("the sunny day"))
    assert found["usage"] == {"prompt_tokens": num_tokens, "total_tokens": num_tokens}
    assert (found["object"], found["model"], found["data"][1]["index"]) == ("list", "any", 1)
    coded = posted(client, "/v1/embeddings", {"input": "a dog", "encoding_format": "base64"})
    floats = struct.unpack("<3f", base64.b64decode(coded["data"][0]["embedding"]))
    assert list(floats) == plain_vector(ids_of("a dog"))
    assert posted(client, "/v1/embeddings", {"input": [2, 7, 3]})["data"][0]["embedding"] == plain_vector([2, 7, 3])
    refusal = client.post("/v1/embeddings", json={"input": [[2, 100_000]]}).json()
    assert "input[0][1]" in refusal["error"]["message"]
    assert refusal["error"]["type"] == "invalid_request_error"


def test_long_texts_are_cut_or_refused(routers: dict[str, httpx.Client]) -> None:
    client = routers["vectors"]
    text = "the dog and " * 30
    answer = client.post("/", json={"inputs": ["a", text, text]})
    assert answer.headers["x-truncated-inputs"] == "2"
    ids = ids_of(text)
    assert answer.json()[1] == plain_vector([*ids[:31], ids[-1]])
    left = posted(client, "/", {"inputs": text, "truncation_direction": "left"})
    assert left == plain_vector([ids[0], *ids[-31:]])
    kind, message = refused(client, "/", {"inputs": ["a", text], "truncate": False})
    assert (kind, "`inputs[1]` has 90 tokens" in message) == ("validation", True)


# ---- Labels


def softmax(values: list[float]) -> list[float]:
    powers = [math.exp(value) for value in values]
    return [power / sum(powers) for power in powers]


def logits(text: str, pair: str | None = None, count: int = 3) -> list[float]:
    return plain_logits(ids_of(text, pair), count)


LABELS = KINDS["classes"][1].labels


def test_classification_wraps_one_text_and_gives_a_list_for_each(routers: dict[str, httpx.Client]) -> None:
    client = routers["classes"]
    scores = softmax(logits("a happy dog"))
    expected = sorted(zip(LABELS, scores, strict=True), key=lambda pair: -pair[1])
    [found] = posted(client, "/", {"inputs": "a happy dog"})
    assert [entry["label"] for entry in found] == [label for label, _ in expected]
    assert [entry["score"] for entry in found] == pytest.approx([score for _, score in expected], abs=1e-6)
    two = posted(
        client, "/", {"inputs": ["a happy dog", {"text": "a", "text_pair": "dog"}], "parameters": {"top_k": 1}}
    )
    assert [len(entry) for entry in two] == [1, 1]
    assert two[0][0] == found[0]
    raw = posted(client, "/", {"inputs": "a happy dog", "parameters": {"function_to_apply": "none"}})
    assert sorted(entry["score"] for entry in raw[0]) == pytest.approx(sorted(logits("a happy dog")), abs=1e-6)


def test_zero_shot_by_candidate_labels(routers: dict[str, httpx.Client]) -> None:
    client = routers["classes"]
    body = {"inputs": "a sunny day", "parameters": {"candidate_labels": ["dog", "day", "name"]}}
    entailments = [logits("a sunny day", f"This example is {label}.")[2] for label in ("dog", "day", "name")]
    scores = softmax(entailments)
    found = posted(client, "/", body)
    assert (found["sequence"], sorted(found["labels"])) == ("a sunny day", ["day", "dog", "name"])
    assert found["scores"] == pytest.approx(sorted(scores, reverse=True), abs=1e-6)
    text = {"inputs": "a sunny day", "parameters": {"candidate_labels": "dog, day, name"}}
    assert posted(client, "/pipeline/zero-shot-classification", text) == found
    assert len(posted(client, "/", {**body, "inputs": ["a sunny day", "my dog"]})) == 2
    multi = posted(client, "/", {**body, "parameters": {"candidate_labels": ["dog"], "multi_label": True}})
    contradiction, _, entailment = logits("a sunny day", "This example is dog.")
    assert multi["scores"] == pytest.approx([softmax([contradiction, entailment])[1]], abs=1e-6)


def test_the_hub_client_gets_the_shape_that_it_parses(routers: dict[str, httpx.Client]) -> None:
    client = routers["classes"]
    body = {"inputs": "a sunny day", "parameters": {"candidate_labels": ["dog", "day"]}}
    for version, is_list in (("1.1.4", False), ("1.1.5", True), ("2.4.0", True), ("0.36.0", False)):
        agent = {"user-agent": f"unknown/None; hf_hub/{version}; python/3.11.7"}
        answer = client.post("/", json=body, headers=agent)
        assert isinstance(answer.json(), list) == is_list
        assert "User-Agent" in answer.headers["vary"]
    assert set(posted(client, "/", body, headers={"user-agent": "hf_hub/2.0.0"})[0]) == {"label", "score"}


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({"candidate_labels": []}, "1 to 256 labels"),
        ({"candidate_labels": ["a", "a"]}, "stands there twice"),
        ({"candidate_labels": ["a"], "hypothesis_template": "no place"}, "have {} once"),
        ({"candidate_labels": ["a"], "hypothesis_template": "{} {}"}, "have {} once"),
        ({"candidate_labels": ["a"], "hypothesis_template": "{:>9999999999} {}"}, "no other brace"),
        ({"candidate_labels": [str(number) for number in range(257)]}, "found 257"),
    ],
)
def test_zero_shot_refusals(routers: dict[str, httpx.Client], parameters: dict[str, Any], words: str) -> None:
    kind, message = refused(routers["classes"], "/", {"inputs": "a", "parameters": parameters})
    assert kind == "validation"
    assert words in message


def test_predict_of_embedding_servers(routers: dict[str, httpx.Client]) -> None:
    client = routers["classes"]
    one = posted(client, "/predict", {"inputs": "a dog"})
    assert [set(entry) for entry in one] == [{"label", "score"}] * 3
    pair = posted(client, "/predict", {"inputs": ["a", "dog"], "raw_scores": True})
    assert sorted(entry["score"] for entry in pair) == pytest.approx(sorted(logits("a", "dog")), abs=1e-6)
    assert len(posted(client, "/predict", {"inputs": [["a dog"], ["a", "dog"]]})) == 2


def test_long_text_of_a_classifier_is_refused_unless_it_may_be_cut(routers: dict[str, httpx.Client]) -> None:
    text = "the dog and " * 30
    kind, message = refused(routers["classes"], "/", {"inputs": ["a", text]})
    assert (kind, "`inputs[1]` has 90 tokens, and the model reads at most 30" in message) == ("validation", True)
    assert posted(routers["classes"], "/", {"inputs": text, "parameters": {"truncation": True}})


def test_rerank_in_both_forms(routers: dict[str, httpx.Client]) -> None:
    client = routers["ranks"]
    texts = ["a happy dog", "my name is sarah", "a"]
    scores = [1 / (1 + math.exp(-logits("the dog", text, 1)[0])) for text in texts]
    order = sorted(range(3), key=lambda index: -scores[index])
    found = posted(client, "/rerank", {"query": "the dog", "texts": texts, "return_text": True})
    assert [entry["index"] for entry in found] == order
    assert [entry["score"] for entry in found] == pytest.approx([scores[index] for index in order], abs=1e-6)
    assert found[0]["text"] == texts[order[0]]
    body = {"query": "the dog", "documents": texts, "top_n": 2, "return_documents": True, "model": "m"}
    cohere = posted(client, "/v1/rerank", body)
    assert [entry["index"] for entry in cohere["results"]] == order[:2]
    assert cohere["results"][0]["document"] == {"text": texts[order[0]]}
    assert cohere["model"] == "m"
    assert posted(client, "/", {"query": "the dog", "texts": texts, "return_text": True}) == found
    assert refused(routers["classes"], "/rerank", {"query": "a", "texts": ["b"]})[0] == "task"


# ---- Tokens


def test_entities_are_counted_in_characters_also_over_windows(routers: dict[str, httpx.Client]) -> None:
    client = routers["tokens"]
    text = "my name is sarah and i live in london " * 5
    none = posted(client, "/", {"inputs": text, "parameters": {"aggregation_strategy": "none", "ignore_labels": []}})
    ids = ids_of(text)[1:-1]
    assert [entry["entity"] for entry in none] == [NER_LABELS[token % 5] for token in ids]
    assert [entry["index"] for entry in none] == list(range(1, len(ids) + 1))
    assert [text[entry["start"] : entry["end"]] for entry in none] == text.split()
    assert [entry["score"] for entry in none] == pytest.approx([0.9] * len(ids), abs=1e-6)
    for stride in (0, 2, 5):
        parameters = {"aggregation_strategy": "none", "ignore_labels": [], "stride": stride}
        assert posted(client, "/", {"inputs": text, "parameters": parameters}) == none
    kind, message = refused(client, "/", {"inputs": text, "parameters": {"stride": 6}})
    assert (kind, "0 to 5, half of a window" in message) == ("validation", True)


def test_simple_groups_and_ignores(routers: dict[str, httpx.Client]) -> None:
    client = routers["tokens"]
    found = posted(client, "/", {"inputs": "my dog"})
    assert all(set(entry) == {"entity_group", "score", "word", "start", "end"} for entry in found)
    everything = {"parameters": {"ignore_labels": ["PER", "LOC", "O"]}}
    assert posted(client, "/", {"inputs": "my dog", **everything}) == []
    assert len(posted(client, "/pipeline/ner", {"inputs": ["my dog", "a cat"]})) == 2


def test_fill_mask(routers: dict[str, httpx.Client]) -> None:
    client = routers["masks"]
    found = posted(client, "/", {"inputs": "my [MASK] is happy", "parameters": {"top_k": 2}})
    tokenizer = make_word_tokenizer()
    assert [(entry["token"], entry["score"]) for entry in found] == [(20, 0.5), (21, 0.25)]
    assert found[0]["token_str"] == tokenizer.decode([20])
    assert found[0]["sequence"] == f"my {tokenizer.decode([20])} is happy"
    two = posted(client, "/", {"inputs": "[MASK] is [MASK]"})
    assert [len(entry) for entry in two] == [5, 5]
    assert two[1][0]["sequence"].startswith("[CLS] [MASK] is ")
    answer = client.post("/", json={"inputs": "a [MASK]", "parameters": {"targets": ["dog", "zebra"]}})
    assert [entry["token_str"] for entry in answer.json()] == ["dog", "z"]
    assert "'zebra' is no token; 'z' stands for it" in answer.headers["x-warnings"]
    kind, message = refused(client, "/", {"inputs": ["a [MASK]", "no mask"]})
    assert (kind, "`inputs[1]` must have the mask token '[MASK]'" in message) == ("validation", True)


def test_question_answering(routers: dict[str, httpx.Client]) -> None:
    client = routers["spans"]
    inputs = {"question": "my name?", "context": "Sarah is in London"}
    found = posted(client, "/", {"inputs": inputs})
    assert found == {"score": 0.5, "start": 0, "end": 5, "answer": "Sarah"}
    three = posted(client, "/", {"inputs": inputs, "parameters": {"top_k": 3, "handle_impossible_answer": True}})
    assert [entry["answer"] for entry in three] == ["Sarah", "London", ""]
    assert [entry["score"] for entry in three] == [0.5, 0.25, 0.125]
    # 24 tokens hold the question, three special tokens and windows of 18; equal texts of windows add their scores.
    context = "london " * 40
    [one] = posted(
        client, "/", {"inputs": [{"question": "my name?", "context": context}], "parameters": {"doc_stride": 4}}
    )
    assert (one["answer"], one["start"]) == ("london", 0)
    windows = 1 + -(-(40 - 18) // (18 - 4))
    assert one["score"] == pytest.approx(0.75 * windows)
    kind, message = refused(client, "/", {"inputs": {"question": "dog " * 15, "context": "a"}})
    assert (kind, "leaves 6 of 24 for the context" in message) == ("validation", True)


# ---- What all tasks share


def test_headers_of_an_answer(routers: dict[str, httpx.Client]) -> None:
    answer = routers["classes"].post("/", json={"inputs": ["a dog", "a cat"]})
    found = answer.headers
    assert (found["x-task"], found["x-compute-type"], found["x-compute-characters"]) == (
        "text-classification",
        "1-cpu",
        "10",
    )
    assert found["x-prompt-tokens"] == str(2 * len(ids_of("a dog")))
    assert all(name in found for name in ("x-compute-time", "x-total-time", "x-queue-time", "x-inference-time"))


@pytest.mark.parametrize(
    ("headers", "content", "status"),
    [
        ({}, b'{"inputs": "a dog"}', 200),
        ({"content-type": "application/x-www-form-urlencoded"}, b' {"inputs": "a dog"}', 200),
        ({"content-type": "application/octet-stream"}, b'{"inputs": "a dog"}', 200),
        ({"content-type": "text/plain; charset=utf-8"}, b"a dog", 200),
        ({"content-type": "image/png"}, b"\x89PNG", 415),
        ({"content-type": "multipart/form-data; boundary=x"}, b"--x", 415),
        ({"content-type": "application/json"}, b"[1]", 422),
        ({"content-type": "application/json"}, b"{", 400),
        ({"content-type": "text/plain"}, b"\xff\xfe", 422),
    ],
)
def test_bytes_decide_what_a_body_is(
    routers: dict[str, httpx.Client], headers: dict[str, str], content: bytes, status: int
) -> None:
    answer = routers["vectors"].post("/", content=content, headers=headers)
    assert answer.status_code == status, answer.text
    if status == 200:
        assert answer.json() == plain_vector(ids_of("a dog"))


@pytest.mark.parametrize(
    ("kind", "body", "path"),
    [
        ("vectors", {"inputs": []}, "inputs"),
        ("vectors", {"inputs": ""}, "inputs"),
        ("vectors", {"inputs": ["a", 3]}, "inputs[1]"),
        ("vectors", {"inputs": "a", "dimensions": 9}, "dimensions"),
        ("vectors", {"inputs": "a", "parameters": {"dimensions": 9}}, "parameters.dimensions"),
        ("vectors", {"inputs": "a", "dimensions": 2, "parameters": {"dimensions": 0}}, "parameters.dimensions"),
        ("vectors", {"inputs": "a", "parameters": {"prompt_name": "none"}}, "parameters.prompt_name"),
        ("vectors", {"inputs": "a", "prompt_name": "query"}, "prompt_name"),
        ("vectors", {"inputs": {"sentences": ["a"]}}, "inputs.source_sentence"),
        ("vectors", {"inputs": {"source_sentence": "a", "sentences": ["b", ""]}}, "inputs.sentences[1]"),
        ("classes", {"inputs": ["a", ""]}, "inputs[1]"),
        ("classes", {"inputs": "a", "parameters": {"top_k": 0}}, "parameters.top_k"),
        ("classes", {}, "inputs"),
        ("tokens", {"inputs": "a", "parameters": {"aggregation_strategy": "best"}}, "parameters.aggregation_strategy"),
        ("masks", {"inputs": "a [MASK]", "parameters": {"top_k": 1001}}, "parameters.top_k"),
        ("spans", {"inputs": {"question": "", "context": "a"}}, "inputs.question"),
        ("spans", {"inputs": "a"}, "inputs"),
        ("vectors", {"inputs": "a" * 100_001}, "inputs"),
    ],
)
def test_a_bad_field_is_refused_with_its_path(
    routers: dict[str, httpx.Client], kind: str, body: dict[str, Any], path: str
) -> None:
    error_type, message = refused(routers[kind], "/", body)
    assert error_type == "validation"
    assert f"`{path}`" in message


def test_too_many_rows_are_refused_before_they_are_tokenised(routers: dict[str, httpx.Client]) -> None:
    error_type, message = refused(routers["vectors"], "/", {"inputs": ["a"] * 1025})
    assert error_type == "batch size exceeded"
    assert "1025 rows" in message
    labels = [str(number) for number in range(256)]
    body = {"inputs": ["a"] * 5, "parameters": {"candidate_labels": labels}}
    assert refused(routers["classes"], "/", body)[0] == "batch size exceeded"


@pytest.mark.parametrize(
    "path", ["/generate", "/generate_stream", "/v1/chat/completions", "/v1/completions", "/detokenize"]
)
def test_generation_on_a_model_without_it_names_the_task_and_its_routes(
    routers: dict[str, httpx.Client], path: str
) -> None:
    answer = routers["classes"].post(path, json={"inputs": "a", "messages": [], "prompt": "a"})
    assert answer.status_code == 422
    found = answer.json()
    message = found["error"]["message"] if path.startswith("/v1") else found["error"]
    assert found["error_type"] == "task"
    assert "the model's task is text-classification" in message
    assert "/predict" in message


def test_vectors_of_a_classifier_are_refused(routers: dict[str, httpx.Client]) -> None:
    for path in ("/embed", "/embed_all", "/similarity", "/v1/embeddings", "/embeddings"):
        answer = routers["classes"].post(path, json={"inputs": "a", "input": "a"})
        assert (answer.status_code, answer.json()["error_type"]) == (422, "task"), path
    kind, message = refused(routers["classes"], "/pipeline/fill-mask", {"inputs": "a"})
    assert kind == "task"
    assert "(a call may ask for text-classification, zero-shot-classification)" in message


@pytest.mark.parametrize(
    ("content_type", "body", "found"),
    [
        (None, b"hi", "a body without a content-type that begins otherwise"),
        (None, b" ", "an empty body without a content-type"),
        (
            "application/x-www-form-urlencoded",
            b"inputs=hi",
            "a body of the content-type 'application/x-www-form-urlencoded' that begins otherwise",
        ),
    ],
)
def test_a_body_that_is_neither_json_nor_a_text_is_told_by_type_and_start(
    routers: dict[str, httpx.Client], content_type: str | None, body: bytes, found: str
) -> None:
    headers = {} if content_type is None else {"content-type": content_type}
    answer = routers["classes"].post("/", content=body, headers=headers)
    assert answer.status_code == 415
    wanted = "a JSON object, which begins with '{', or a text of the content-type text/plain"
    assert answer.json()["error"] == f"the body must be {wanted}, found {found}"


def test_sparse_vectors_are_told_to_callers_of_a_model_that_has_them(
    routers: dict[str, httpx.Client], tmp_path: Path
) -> None:
    body = {"query": "a", "texts": ["b"]}
    both = "its routes are POST /, /embed, /embed_all, /embed_sparse, /similarity, /v1/embeddings"
    assert refused(routers["vectors"], "/rerank", body)[1].endswith(both)
    options = RowShardOptions(heads=("vectors", "token_vectors"))
    with task_router(tmp_path, "feature-extraction", options) as router, router.client() as client:
        found = refused(client, "/rerank", body)[1]
        assert found.endswith("its routes are POST /, /embed, /embed_all, /similarity, /v1/embeddings")


def test_routes_of_ranks_are_told_to_callers_of_a_ranking_model_alone(routers: dict[str, httpx.Client]) -> None:
    body = {"inputs": "a"}
    assert refused(routers["classes"], "/embed", body)[1].endswith("its routes are POST /, /predict")
    assert refused(routers["ranks"], "/embed", body)[1].endswith("its routes are POST /, /predict, /rerank, /v1/rerank")
    assert "(a call may ask for rerank, text-classification)" in refused(routers["ranks"], "/pipeline/ner", body)[1]


def test_paths_of_models_and_pipelines(routers: dict[str, httpx.Client]) -> None:
    client = routers["classes"]
    body = {"inputs": "a dog"}
    found = posted(client, "/", body)
    for path in (
        "/models/org/name",
        "/pipeline/sentiment-analysis",
        "/models/org/name/pipeline/text-classification",
        "/invocations",
    ):
        assert posted(client, path, body) == found, path
    vertex = posted(client, "/vertex", {"instances": ["a dog", body], "parameters": {"top_k": 3}})
    assert vertex == {"predictions": [found, found]}


@pytest.mark.parametrize(
    "path", ["/", "/models/org/name", "/models/org/name/pipeline/text-classification", "/invocations"]
)
def test_errors_have_one_shape_at_each_path(routers: dict[str, httpx.Client], path: str) -> None:
    kind, message = refused(routers["classes"], path, {"inputs": 7})
    assert kind == "validation"
    assert "`inputs" in message


def test_instances_of_vertex_share_parameters_and_an_error_names_its_instance(routers: dict[str, httpx.Client]) -> None:
    client = routers["classes"]
    best, all_labels = (posted(client, "/", {"inputs": "a dog", "parameters": {"top_k": k}}) for k in (1, 3))
    own = {"inputs": "a dog", "parameters": {"top_k": 3}}
    instances = ["a dog", {"inputs": "a dog"}, {"inputs": "a dog", "parameters": None}, own]
    found = posted(client, "/vertex", {"instances": instances, "parameters": {"top_k": 1}})
    assert found == {"predictions": [best, best, best, all_labels]}
    kind, message = refused(client, "/vertex", {"instances": ["a dog", {"inputs": 7}]})
    assert kind == "validation"
    assert "`instances[1].inputs`: expected" in message
    shared = refused(client, "/vertex", {"instances": ["a dog"], "parameters": {"top_k": 0}})[1]
    assert shared.startswith("instances[0]: Input validation error: `parameters.top_k` ")


def test_info_names_task_family_and_labels(routers: dict[str, httpx.Client]) -> None:
    info = routers["classes"].get("/info").json()
    assert (info["task"], info["model_pipeline_tag"]) == ("text-classification", "text-classification")
    assert info["tasks"] == ["text-classification", "zero-shot-classification"]
    assert info["labels"] == {"0": "contradiction", "1": "neutral", "2": "entailment"}
    assert routers["ranks"].get("/info").json()["tasks"] == ["rerank", "text-classification"]
    assert routers["vectors"].get("/info").json()["tasks"] == ["sentence-similarity", "feature-extraction"]


def test_the_document_shows_the_tasks_own_form(routers: dict[str, httpx.Client]) -> None:
    document = routers["masks"].get("/openapi.json").json()
    assert "/generate" not in document["paths"]
    body = document["paths"]["/"]["post"]["requestBody"]["content"]["application/json"]
    assert "[MASK]" in body["example"]["inputs"]
    schemas = document["components"]["schemas"]
    assert set(schemas["FillMaskParameters"]["properties"]) == {"top_k", "targets"}
    assert all(field["description"] for field in schemas["FillMaskBody"]["properties"].values())
    assert "/v1/embeddings" in routers["vectors"].get("/openapi.json").json()["paths"]
    assert json.dumps(document)


def test_the_playground_of_prompts_leads_to_the_page_that_sends_calls_of_the_task(
    routers: dict[str, httpx.Client],
) -> None:
    client = routers["masks"]
    answer = client.get("/playground")
    assert (answer.status_code, answer.headers["location"], answer.content) == (307, "docs", b"")
    assert urljoin("https://host/prefix/playground", answer.headers["location"]) == "https://host/prefix/docs"
    assert client.get("/playground/main.js").status_code == 404
    page = client.get("/playground", follow_redirects=True)
    assert (page.status_code, page.url.path) == (200, "/docs")
    assert "swagger" in page.text
    assert "/playground" not in page.text


def test_metrics_count_by_task(routers: dict[str, httpx.Client]) -> None:
    client = routers["masks"]
    before = client.get("/metrics").text
    posted(client, "/", {"inputs": "a [MASK]"})
    after = client.get("/metrics").text

    def count(text: str) -> float:
        lines = [line for line in text.splitlines() if line.startswith('textmill_task_calls{task="fill-mask"}')]
        return float(lines[0].rpartition(" ")[2]) if lines else 0.0

    assert count(after) == count(before) + 1
    assert "textmill_row_batch_size_bucket" in after
    assert "tgi_queue_size" not in after
