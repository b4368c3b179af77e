"""Captions, and questions about pictures and pages, over HTTP in front of a shard whose answers can be told by hand."""

import base64
import json
from collections.abc import Iterator
from contextlib import ExitStack
from math import exp
from typing import Any

import httpx
import pytest

from tests.fakes.fake_row_shard import RowShardOptions, plain_logits
from tests.fakes.running_router import RunningRouter
from tests.fakes.task_router import task_router

LABELS = ("yes", "no", "two", "red", "left", "cat")
KINDS = {
    "captions": ("image-to-text", RowShardOptions(heads=("writings",), media="image")),
    "labels": ("visual-question-answering", RowShardOptions(heads=("labels",), labels=LABELS, media="image")),
    "written": ("visual-question-answering", RowShardOptions(heads=("writings",), media="image")),
    "pages": (
        "document-question-answering",
        RowShardOptions(heads=("documents",), media="image", max_batch_files=1, max_row_tokens=64),
    ),
    "donut": ("document-question-answering", RowShardOptions(heads=("writings",), media="image")),
}
FILE = b"\x89PNG and so on"  # the fake shard reads no format
WORD_BOXES = [["Total:", [10, 20, 30, 40]], ["9", [40, 20, 50, 40]], ["euros", [55, 20, 80, 40]]]
SPANS = [
    {"score": 0.5, "answer": "9 euros", "start": 1, "end": 2},
    {"score": 0.25, "answer": "Total:", "start": 0, "end": 0},
]


@pytest.fixture(scope="module")
def routers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, RunningRouter]]:
    with ExitStack() as stack:
        yield {
            kind: stack.enter_context(task_router(tmp_path_factory.mktemp(kind), task, options))
            for kind, (task, options) in KINDS.items()
        }


@pytest.fixture(scope="module")
def clients(routers: dict[str, RunningRouter]) -> Iterator[dict[str, httpx.Client]]:
    with ExitStack() as stack:
        yield {kind: stack.enter_context(router.client()) for kind, router in routers.items()}


def coded(file: bytes) -> str:
    return base64.b64encode(file).decode()


def sent(client: httpx.Client, body: Any, path: str = "/", **headers: str) -> httpx.Response:
    """Send JSON, or bytes without a type."""
    return client.post(path, content=body if isinstance(body, bytes) else json.dumps(body), headers=headers)


def posted(client: httpx.Client, body: Any, path: str = "/", **headers: str) -> Any:
    answer = sent(client, body, path, **headers)
    assert answer.status_code == 200, answer.text
    return answer.json()


def refused(client: httpx.Client, body: Any, path: str = "/") -> str:
    answer = sent(client, body, path)
    assert (answer.status_code, answer.json()["error_type"]) == (422, "validation"), answer.text
    return str(answer.json()["error"])


def best(file: bytes, count: int) -> list[dict[str, Any]]:
    """Return the answers of a file by the formula of the fake shard, each with its own sigmoid."""
    scores = [1 / (1 + exp(-value)) for value in plain_logits(file, len(LABELS))]
    order = sorted(range(len(LABELS)), key=lambda index: -scores[index])[:count]
    return [{"score": pytest.approx(scores[index], abs=1e-6), "answer": LABELS[index]} for index in order]


# ---- image-to-text


def test_the_text_of_an_image(clients: dict[str, httpx.Client]) -> None:
    client = clients["captions"]
    assert posted(client, FILE) == [{"generated_text": ""}]
    assert posted(client, {"inputs": coded(FILE)}) == [{"generated_text": ""}]
    assert posted(client, FILE, "/?max_new_tokens=7&num_beams=2") == [
        {"generated_text": "max_new_tokens=7 num_beams=2"}
    ]


def test_texts_of_a_list_are_a_flat_list(clients: dict[str, httpx.Client]) -> None:
    files = {"inputs": [coded(FILE), coded(b"other")], "parameters": {"max_length": 9}}
    assert posted(clients["captions"], files) == [{"generated_text": "max_length=9"}] * 2
    one = {"inputs": [coded(FILE)]}
    assert posted(clients["captions"], one, **{"user-agent": "@huggingface/inference/4.13.30"}) == [
        {"generated_text": ""}
    ]


@pytest.mark.parametrize("inner", ["generate_parameters", "generation_parameters", "generate_kwargs"])
def test_fields_of_an_inner_object_win(clients: dict[str, httpx.Client], inner: str) -> None:
    body = {"inputs": coded(FILE), "parameters": {"max_new_tokens": 5, "min_length": 2, inner: {"max_new_tokens": 6}}}
    assert posted(clients["captions"], body) == [{"generated_text": "max_new_tokens=6 min_length=2"}]


@pytest.mark.parametrize(
    ("parameters", "text"),
    [
        ({"temperature": 0.5}, "do_sample=1 temperature=0.5"),
        ({"top_k": 4, "do_sample": True}, "do_sample=1 top_k=4"),
        ({"top_p": 0.25}, "do_sample=1 top_p=0.25"),
        ({"temperature": 0, "top_k": 4}, "do_sample=0"),
        ({"do_sample": False, "temperature": 0.5}, "do_sample=0"),
        ({"temperature": 1.0, "top_p": 1, "top_k": 0}, "temperature=1 top_k=0 top_p=1"),
        ({"repetition_penalty": 0}, "repetition_penalty=1"),
        ({"repetition_penalty": 1.5}, "repetition_penalty=1.5"),
        (
            {"max_time": 2, "length_penalty": -1, "no_repeat_ngram_size": 3},
            "length_penalty=-1 max_time_s=2 no_repeat_ngram_size=3",
        ),
        ({"num_return_sequences": 1, "min_new_tokens": 3}, "min_new_tokens=3"),
    ],
)
def test_parameters_of_generation(clients: dict[str, httpx.Client], parameters: dict[str, Any], text: str) -> None:
    body = {"inputs": coded(FILE), "parameters": parameters}
    assert posted(clients["captions"], body) == [{"generated_text": text}]


@pytest.mark.parametrize(
    ("parameters", "sentence"),
    [
        ({"max_new_tokens": 0}, "`parameters.max_new_tokens` must be 1 to 4096, found 0"),
        ({"num_beams": 9}, "`parameters.num_beams` must be 1 to 8, found 9"),
        ({"temperature": -1}, "`parameters.temperature` must be 0 to 100, found -1"),
        ({"top_p": 1.5}, "`parameters.top_p` must be 0 to 1, found 1.5"),
        ({"top_p": 0}, "`parameters.top_p` must be above 0"),
        ({"top_k": -1}, "`parameters.top_k` must be 0 to 2147483647, found -1"),
        ({"max_time": 121}, "`parameters.max_time` must be 0 to 120, found 121"),
        ({"num_return_sequences": 2}, "`parameters.num_return_sequences` must be 1, found 2"),
        ({"min_length": 5, "max_length": 4}, "`parameters.min_length` must be at most `max_length`, 4, found 5"),
        ({"min_new_tokens": 5, "max_new_tokens": 4}, "`parameters.min_new_tokens` must be at most `max_new_tokens`"),
        ({"num_beams": 2, "do_sample": True}, "`parameters.num_beams` must be 1 where the call samples"),
        ({"max_new_tokens": "many"}, "parameters.max_new_tokens"),
        ({"generate_kwargs": {"num_beams": 0}}, "`parameters.num_beams` must be 1 to 8, found 0"),
    ],
)
def test_parameters_out_of_their_range_are_refused_with_their_path(
    clients: dict[str, httpx.Client], parameters: dict[str, Any], sentence: str
) -> None:
    assert sentence in refused(clients["captions"], {"inputs": coded(FILE), "parameters": parameters})


@pytest.mark.parametrize(
    ("headers", "is_object"),
    [
        ({}, False),
        ({"user-agent": "@huggingface/inference/4.13.14 Node.js"}, False),
        ({"user-agent": "@huggingface/inference/4.13.15 Node.js"}, True),
        ({"user-agent": "@huggingface/inference/5.0.0"}, True),
        ({"user-agent": "hf_hub/2.4.0"}, False),
        ({"user-agent": "Mozilla/5.0", "origin": "http://localhost:5173"}, True),
    ],
)
def test_the_shape_of_a_caption_follows_the_client(
    clients: dict[str, httpx.Client], headers: dict[str, str], is_object: bool
) -> None:
    answer = sent(clients["captions"], FILE, **headers)
    assert answer.status_code == 200
    text = {"generated_text": ""}
    assert answer.json() == (text if is_object else [text])
    assert answer.headers["vary"] == "User-Agent, Origin"


def test_the_published_shape_of_a_caption_for_each_client(tmp_path: Any) -> None:
    with (
        task_router(tmp_path, *KINDS["captions"], task_shapes="seed") as router,
        router.client() as client,
    ):
        answer = sent(client, FILE, **{"user-agent": "@huggingface/inference/4.13.30"})
        assert answer.json() == [{"generated_text": ""}]
        assert "vary" not in answer.headers or "User-Agent" not in answer.headers["vary"]


def test_a_kept_answer_has_the_shape_of_its_client_and_says_that_shapes_vary(tmp_path: Any) -> None:
    with (
        task_router(tmp_path, *KINDS["captions"], response_cache_bytes=1 << 20) as router,
        router.client() as client,
    ):
        for agent, is_object in (("hf_hub/2.4.0", False), ("@huggingface/inference/4.13.30", True)):
            for hit in (None, "hit"):
                answer = sent(client, FILE, **{"user-agent": agent})
                assert (answer.headers.get("x-cache"), isinstance(answer.json(), dict)) == (hit, is_object)
                assert answer.headers["vary"] == "User-Agent, Origin"


def test_a_drawn_text_is_not_kept_for_the_next_call(tmp_path: Any) -> None:
    with (
        task_router(tmp_path, *KINDS["captions"], response_cache_bytes=1 << 20) as router,
        router.client() as client,
    ):
        drawn = {"inputs": coded(FILE), "parameters": {"do_sample": True}}
        for body, hits in (({"inputs": coded(FILE)}, [None, "hit"]), (drawn, [None, None])):
            assert [sent(client, body).headers.get("x-cache") for _ in range(2)] == hits


# ---- visual-question-answering


def test_labels_answer_a_question_in_the_forms_of_clients(clients: dict[str, httpx.Client]) -> None:
    client = clients["labels"]
    image, question = coded(FILE), "What is it?"
    python = {"inputs": image, "question": question, "image": image, "parameters": {"top_k": 2}}
    assert posted(client, python) == best(FILE, 2)
    javascript = {"inputs": {"question": question, "image": image}}
    assert posted(client, javascript) == best(FILE, 5)
    assert posted(client, {"question": question, "image": image}) == best(FILE, 5)
    assert posted(client, {"inputs": {"image": image}, "question": question}) == best(FILE, 5)
    assert posted(client, FILE, "/?question=What%20is%20it%3F&top_k=1") == best(FILE, 1)
    assert posted(client, {"inputs": [javascript["inputs"]], "parameters": {"top_k": 1}}) == [best(FILE, 1)]


def test_each_picture_of_a_list_has_its_question(clients: dict[str, httpx.Client]) -> None:
    inputs = [{"image": coded(file), "question": file.decode()} for file in (b"one", b"two", b"three")]
    assert posted(clients["written"], {"inputs": inputs}) == [
        [{"score": 0.5, "answer": answer}] for answer in ("one", "two", "three")
    ]
    assert posted(clients["labels"], {"inputs": inputs}) == [best(file, 5) for file in (b"one", b"two", b"three")]


def test_the_texts_of_a_question_are_counted(clients: dict[str, httpx.Client]) -> None:
    answer = sent(clients["written"], {"inputs": {"image": coded(FILE), "question": "Why?"}})
    assert answer.headers["x-compute-images"] == "1"
    assert answer.headers["x-task"] == "visual-question-answering"


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        ({"question": "Why?"}, "`inputs` is missing"),
        ({"inputs": coded(FILE)}, "`inputs.question` is missing"),
        ({"inputs": {"image": coded(FILE)}}, "`inputs.question` is missing"),
        ({"inputs": [{"image": coded(FILE)}]}, "`inputs[0].question` is missing"),
        ({"inputs": {"image": coded(FILE), "question": "  "}}, "`inputs.question` must not be empty"),
        ({"inputs": {"image": coded(FILE), "question": "x" * 100_001}}, "`inputs.question` has 100001 characters"),
        ({"inputs": {"image": "", "question": "Why?"}}, "`inputs.image` is empty"),
        ({"inputs": [{"image": "", "question": "Why?"}]}, "`inputs[0].image` is empty"),
        ({"image": "", "question": "Why?"}, "`image` is empty"),
        ({"inputs": {"question": "Why?"}}, "image"),
        ({"inputs": {"image": "http://host/cat.png", "question": "Why?"}}, "the server fetches nothing"),
        ({"inputs": {"image": "###", "question": "Why?"}}, "must be a file in base64"),
        ({"inputs": []}, "`inputs` must hold at least one file"),
        ({"inputs": {"image": coded(FILE), "question": "Why?"}, "parameters": {"top_k": 0}}, "`parameters.top_k`"),
        ({"inputs": {"image": coded(b"BAD file"), "question": "Why?"}}, "`inputs.image`: the file is bad"),
        ({"inputs": [{"image": coded(FILE), "question": "BAD?"}]}, "`inputs[0].question`: the text is bad"),
    ],
)
def test_questions_that_lack_something_are_refused_with_the_path(
    clients: dict[str, httpx.Client], body: dict[str, Any], sentence: str
) -> None:
    assert sentence in refused(clients["labels"], body)


# ---- document-question-answering


def page(**parameters: Any) -> dict[str, Any]:
    body = {"inputs": {"image": coded(FILE), "question": "How much?"}}
    return {**body, "parameters": {"word_boxes": WORD_BOXES, **parameters}}


def test_words_of_a_page_answer_a_question(clients: dict[str, httpx.Client]) -> None:
    client = clients["pages"]
    assert posted(client, page()) == SPANS[:1]
    assert posted(client, page(top_k=2)) == SPANS
    by_turns = [part for pair in WORD_BOXES for part in pair]
    assert posted(client, page(top_k=2, word_boxes=by_turns)) == SPANS
    assert posted(client, {**page(), "inputs": [page()["inputs"]]}) == [SPANS[:1]]


def test_no_answer_joins_by_its_score(clients: dict[str, httpx.Client]) -> None:
    none = {"score": 0.375, "answer": "", "start": 0, "end": 0}
    found = posted(clients["pages"], page(top_k=5, handle_impossible_answer=True))
    assert found == [SPANS[0], none, SPANS[1]]


def test_a_page_travels_with_its_words_and_lengths(
    clients: dict[str, httpx.Client], routers: dict[str, RunningRouter]
) -> None:
    posted(clients["pages"], page(max_answer_len=3, doc_stride=5, max_seq_len=40, top_k=4))
    posted(clients["pages"], page())
    asked, plain = (batch.message for batch in routers["pages"].shard.batches[-2:])
    assert list(asked.media.texts[0].texts) == ["How much?", "Total:", "9", "euros"]
    boxes = [int.from_bytes(asked.documents.boxes[place : place + 4], "little") for place in range(0, 48, 4)]
    assert boxes == [10, 20, 30, 40, 40, 20, 50, 40, 55, 20, 80, 40]
    numbers = ("max_window_tokens", "strides", "max_span_tokens", "max_spans")
    values = [int.from_bytes(getattr(asked.documents, name), "little") for name in numbers]
    assert values == [40, 5, 3, 4]
    # As in the pipeline: the tokens of the model, a stride of half of them, 15 tokens, one answer.
    assert [int.from_bytes(getattr(plain.documents, name), "little") for name in numbers] == [64, 32, 15, 1]


@pytest.mark.parametrize(
    ("parameters", "sentence"),
    [
        ({"word_boxes": None}, "`parameters.word_boxes` is missing: this server reads no words from pictures"),
        ({"word_boxes": []}, "`parameters.word_boxes` must hold at least one word"),
        ({"word_boxes": [["", [1, 2, 3, 4]]]}, "`parameters.word_boxes[0]` is blank, and so is each other word"),
        ({"word_boxes": [[" ", [1, 2, 3, 4]], ["\n", [1, 2, 3, 4]]]}, "`parameters.word_boxes[0]` is blank"),
        ({"word_boxes": ["one"]}, '[word, [left, top, right, bottom]], found ["one"]'),
        ({"word_boxes": [["one", [1, 2, 3, 0.5]]]}, "found [1.0,2.0,3.0,0.5]"),
        ({"word_boxes": [["one"]]}, "`parameters.word_boxes[0]` must be a word and its box"),
        ({"word_boxes": [WORD_BOXES[0], ["two", [1, 2, 3]]]}, "`parameters.word_boxes[1]` must be a word and its box"),
        ({"word_boxes": ["one", [1, 2, 3, 4], "two"]}, "`parameters.word_boxes[2]` must be a word and its box"),
        ({"word_boxes": [["one", [1, 2, 3, 1001]]]}, "`parameters.word_boxes[0]` must have a box with"),
        ({"word_boxes": [["one", [9, 2, 3, 10]]]}, "`parameters.word_boxes[0]` must have a box with"),
        ({"word_boxes": [["x" * 100_001, [1, 2, 3, 4]]]}, "`parameters.word_boxes` has 100001 characters"),
        ({"word_boxes": 3}, "parameters.word_boxes"),
        ({"top_k": 0}, "`parameters.top_k` must be 1 to 100, found 0"),
        ({"max_answer_len": 0}, "`parameters.max_answer_len` must be 1 to 100000, found 0"),
        ({"max_seq_len": 65}, "`parameters.max_seq_len` must be 1 to 64, the tokens that the model reads, found 65"),
        ({"doc_stride": 64}, "`parameters.doc_stride` must be 0 to 63, found 64"),
        ({"max_seq_len": 20, "doc_stride": 20}, "`parameters.doc_stride` must be 0 to 19, found 20"),
    ],
)
def test_pages_out_of_order_are_refused_with_the_path(
    clients: dict[str, httpx.Client], parameters: dict[str, Any], sentence: str
) -> None:
    assert sentence in refused(clients["pages"], page(**parameters))


def test_a_model_that_writes_its_answer_reads_the_picture(clients: dict[str, httpx.Client]) -> None:
    body = {"inputs": {"image": coded(FILE), "question": "How much?"}}
    answer = sent(clients["donut"], body)
    assert answer.json() == [{"score": 0.5, "answer": "How much?"}]
    assert "x-warnings" not in answer.headers
    warned = sent(clients["donut"], page(top_k=3)).headers["x-warnings"]
    assert warned.startswith("top_k changes nothing")
    assert "word_boxes changes nothing" in warned
    assert posted(clients["donut"], FILE, "/?question=Who") == [{"score": 0.5, "answer": "Who"}]


def test_the_language_of_words_that_come_with_the_call_changes_nothing(clients: dict[str, httpx.Client]) -> None:
    assert "lang changes nothing" in sent(clients["pages"], page(lang="eng")).headers["x-warnings"]


@pytest.mark.parametrize(("kind", "task"), [(kind, task) for kind, (task, _) in KINDS.items()])
def test_vertex_and_paths_of_the_task(clients: dict[str, httpx.Client], kind: str, task: str) -> None:
    body: Any = page() if kind == "pages" else {"inputs": {"image": coded(FILE), "question": "Why?"}}
    if kind == "captions":
        body = {"inputs": coded(FILE)}
    alone = posted(clients[kind], body)
    for path in (
        f"/pipeline/{task}",
        "/models/some/one",
        f"/models/some/one/pipeline/{task}",
        "/predict",
        "/invocations",
    ):
        assert posted(clients[kind], body, path) == alone
    bare = {"instances": [body["inputs"]], "parameters": body.get("parameters")}
    for instances in ({"instances": [body]}, bare):
        found = clients[kind].post("/vertex", json=instances)
        assert found.json() == {"predictions": [alone]}


@pytest.mark.parametrize("kind", KINDS)
def test_the_document_describes_each_field_and_its_example_is_taken(
    clients: dict[str, httpx.Client], kind: str
) -> None:
    document = clients[kind].get("/openapi.json").json()
    schemas = document["components"]["schemas"]
    content = document["paths"]["/"]["post"]["requestBody"]["content"]
    [body] = content["application/json"]["schema"]["anyOf"]
    name = body["$ref"].rpartition("/")[2]
    fields = schemas[name]["properties"]
    if kind != "captions":
        assert set(fields) == {"inputs", "question", "image", "parameters"}
        fields = {**fields, **schemas["PictureQuestion"]["properties"]}
    assert all(len(field["description"]) > 10 for field in fields.values())
    assert list(content) == ["application/octet-stream", "application/json"]
    assert posted(clients[kind], content["application/json"]["example"])
