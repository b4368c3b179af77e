"""Captions, and answers about pictures and pages, over HTTP with tiny random models, against the formulas, to 1e-5."""

import base64
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.fakes import answer_formulas as formulas
from tests.fakes.close_answers import close
from tests.fakes.hostile_pictures import HOSTILE_PICTURES
from tests.fakes.real_row_shard import RealRowShard
from tests.fakes.running_router import RunningRouter
from tests.fakes.tiny_answers import MAX_PAGE_TOKENS, make_answering_model
from tests.fakes.tiny_media import picture_file

CAPTIONS, QUESTIONS, PAGES = "image-to-text", "visual-question-answering", "document-question-answering"
KINDS = {CAPTIONS: "vit-gpt2", QUESTIONS: "vilt", PAGES: "layoutlm"}
FILES = [picture_file(40, 30, seed=1), picture_file(64, 64, seed=2, kind="JPEG"), picture_file(33, 90, seed=3)]
ASKED = ["what is the cat?", "is it a sunny day in london?", "und wer bist du? 你好 🐕 é"]
PAGE = "my name is sarah and i live in london the happy dog is in the sunny day and a cat"
WORD_BOXES = [(word, [40 * place, 10 + place, 40 * place + 30, 40 + place]) for place, word in enumerate(PAGE.split())]


class Served:
    """A model that is served, and the model itself for the formulas."""

    def __init__(self, folder: Path, model: Any, client: httpx.Client) -> None:
        self.folder = folder
        self.model = model
        self.client = client

    def post(self, body: Any, path: str = "/") -> Any:
        answer = self.client.post(path, **({"content": body} if isinstance(body, bytes) else {"json": body}))
        assert answer.status_code == 200, answer.text
        return answer.json()


@contextmanager
def serving(folder: Path, task: str) -> Iterator[Served]:
    model = make_answering_model(folder / "model", KINDS[task], task, seed=8)
    with (
        RunningRouter(
            folder,
            model=folder / "model",
            make_shard=lambda socket, path: RealRowShard(socket, path, task, "--max-image-pixels", "50000000"),
            task=task,
        ) as router,
        router.client() as client,
    ):
        yield Served(folder / "model", model, client)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Served]]:
    with ExitStack() as stack:
        yield {task: stack.enter_context(serving(tmp_path_factory.mktemp(task), task)) for task in KINDS}


def coded(file: bytes) -> str:
    return base64.b64encode(file).decode()


@pytest.mark.parametrize(
    "options", [{"max_new_tokens": 6}, {"max_length": 5, "num_beams": 3, "no_repeat_ngram_size": 2}]
)
def test_captions(served: dict[str, Served], options: dict[str, Any]) -> None:
    one = served[CAPTIONS]
    expected = [{"generated_text": formulas.caption(one.model, one.folder, file, **options)} for file in FILES]
    assert one.post({"inputs": [coded(file) for file in FILES], "parameters": options}) == expected
    query = "&".join(f"{name}={value}" for name, value in options.items())
    assert one.post(FILES[1], f"/?{query}") == expected[1:2]
    assert one.post({"inputs": coded(FILES[2]), "parameters": {"generation_parameters": options}}) == expected[2:]


def test_sixteen_captions_at_once_are_as_alone(served: dict[str, Served]) -> None:
    one = served[CAPTIONS]
    files = [picture_file(20 + 5 * number, 40, seed=number) for number in range(16)]
    texts = [formulas.caption(one.model, one.folder, file, max_new_tokens=5) for file in files]
    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(lambda file: one.post(file, "/?max_new_tokens=5"), files))
    assert found == [[{"generated_text": text}] for text in texts]


@pytest.mark.parametrize("top_k", [None, 2, 100])
def test_answers_about_pictures(served: dict[str, Served], top_k: int | None) -> None:
    one = served[QUESTIONS]
    expected = [
        [
            {"score": score, "answer": label}
            for score, label in formulas.label_scores(one.model, one.folder, file, question)[: top_k or 5]
        ]
        for file, question in zip(FILES, ASKED, strict=True)
    ]
    parameters = {} if top_k is None else {"top_k": top_k}
    inputs = [{"image": coded(file), "question": question} for file, question in zip(FILES, ASKED, strict=True)]
    close(one.post({"inputs": inputs, "parameters": parameters}), expected)
    for body, answer in zip(inputs, expected, strict=True):
        close(one.post({"inputs": body, "parameters": parameters}), answer)
    beside = {"inputs": inputs[0]["image"], **inputs[0], "parameters": parameters}
    close(one.post(beside), expected[0])


@pytest.mark.parametrize(
    "parameters",
    [
        {},
        {"top_k": 4},
        {"top_k": 3, "max_answer_len": 2, "handle_impossible_answer": True},
        {"top_k": 5, "max_seq_len": 40, "doc_stride": 7},
    ],
    ids=["plain", "four", "impossible", "windows"],
)
def test_answers_about_pages(served: dict[str, Served], parameters: dict[str, Any]) -> None:
    one = served[PAGES]
    lengths = {"max_seq_len": MAX_PAGE_TOKENS, "doc_stride": MAX_PAGE_TOKENS // 2}  # as the pipeline chooses them
    expected = [
        formulas.page_answers(one.model, one.folder, FILES[0], question, WORD_BOXES, **{**lengths, **parameters})
        for question in ASKED[:2]
    ]
    asked = {"word_boxes": WORD_BOXES, **parameters}
    inputs = [{"image": coded(FILES[0]), "question": question} for question in ASKED[:2]]
    close(one.post({"inputs": inputs, "parameters": asked}), expected)
    close(one.post({"inputs": inputs[1], "parameters": asked}), expected[1])


def test_hostile_pictures_are_refused_and_harm_no_call_beside(served: dict[str, Served]) -> None:
    bodies: dict[str, Any] = {
        CAPTIONS: lambda image: {"inputs": image, "parameters": {"max_new_tokens": 5}},
        QUESTIONS: lambda image: {"inputs": {"image": image, "question": ASKED[0]}},
        PAGES: lambda image: {
            "inputs": {"image": image, "question": ASKED[0]},
            "parameters": {"word_boxes": WORD_BOXES},
        },
    }
    files = [file for file, _ in HOSTILE_PICTURES.values() if file]
    for task, one in served.items():
        alone = one.post(bodies[task](coded(FILES[0])))
        with ThreadPoolExecutor(4) as pool:
            refusals = [pool.submit(one.client.post, "/", json=bodies[task](coded(file))) for file in files]
            close(one.post(bodies[task](coded(FILES[0]))), alone)
            for refusal in refusals:
                answer = refusal.result()
                assert (answer.status_code, answer.json()["error_type"]) == (422, "validation"), answer.text
                path = "inputs" if task == CAPTIONS else "inputs.image"
                assert f"error: `{path}`: " in answer.json()["error"]


def test_questions_that_the_model_cannot_read_are_refused_by_their_path(served: dict[str, Served]) -> None:
    body = {"inputs": [{"image": coded(FILES[0]), "question": "cat " * 50}]}
    answer = served[QUESTIONS].client.post("/", json=body)
    assert (answer.status_code, answer.json()["error_type"]) == (422, "validation")
    assert "error: `inputs[0].question`: the question has 52 tokens" in answer.json()["error"]
    page = {"inputs": {"image": coded(FILES[0]), "question": "cat " * 58}, "parameters": {"word_boxes": WORD_BOXES}}
    answer = served[PAGES].client.post("/", json=page)
    assert answer.status_code == 422
    assert "leaves 0 of 60 for the words" in answer.json()["error"]
