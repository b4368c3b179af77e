"""The bodies of the Inference API's page of detailed parameters, in the forms in which its snippets send them."""

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import httpx
import pytest

from tests.fakes.fake_row_shard import RowShardOptions
from tests.fakes.task_router import task_router
from tests.fakes.word_tokenizer import MASK_ID

ROOM = 400
KINDS = {
    "fill-mask": RowShardOptions(heads=("masks",), mask_token_id=MASK_ID, max_row_tokens=ROOM),
    "question-answering": RowShardOptions(heads=("spans",), max_row_tokens=ROOM),
    "sentence-similarity": RowShardOptions(max_row_tokens=ROOM),
    "text-classification": RowShardOptions(
        heads=("labels",), labels=("contradiction", "neutral", "entailment"), max_row_tokens=ROOM
    ),
    "token-classification": RowShardOptions(
        heads=("token_labels",), labels=("O", "B-PER", "I-PER"), max_row_tokens=ROOM
    ),
}
COMPLAINT = (
    "Hi, I recently bought a device from your company but it is not working as advertised and I would like to get "
    "reimbursed!"
)


def has_keys(*keys: str) -> Callable[[Any], bool]:
    return lambda answer: set(answer) == set(keys)


def each(check: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda answer: isinstance(answer, list) and bool(answer) and all(check(one) for one in answer)


# The model's task, the published body, and whether an answer has the published shape.
BODIES: list[tuple[str, dict[str, Any], Callable[[Any], bool]]] = [
    (
        "fill-mask",
        {"inputs": "The answer to the universe is [MASK]."},
        each(has_keys("sequence", "score", "token", "token_str")),
    ),
    (
        "question-answering",
        {"inputs": {"question": "What's my name?", "context": "My name is Clara and I live in Berkeley."}},
        has_keys("answer", "score", "start", "end"),
    ),
    (
        "sentence-similarity",
        {
            "inputs": {
                "source_sentence": "That is a happy person",
                "sentences": ["That is a happy dog", "That is a very happy person", "Today is a sunny day"],
            }
        },
        each(lambda value: isinstance(value, float)),
    ),
    (
        "text-classification",
        {"inputs": "I like you. I love you"},
        each(each(has_keys("label", "score"))),
    ),
    (
        "token-classification",
        {"inputs": "My name is Sarah Jessica Parker but you can call me Jessica"},
        each(has_keys("entity_group", "score", "word", "start", "end")),
    ),
    (
        "text-classification",
        {"inputs": COMPLAINT, "parameters": {"candidate_labels": ["refund", "legal", "faq"]}},
        has_keys("sequence", "labels", "scores"),
    ),
    (
        "sentence-similarity",
        {"inputs": "Today is a sunny day and I will get some ice cream."},
        each(lambda value: isinstance(value, float)),
    ),
]
# As curl sends a body, as Python's requests sends a string, and as fetch sends a string.
FORMS: dict[str, dict[str, str]] = {
    "curl": {"content-type": "application/x-www-form-urlencoded"},
    "python": {},
    "fetch": {"content-type": "text/plain;charset=UTF-8"},
}


@pytest.fixture(scope="module")
def clients(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, httpx.Client]]:
    with ExitStack() as stack:
        found = {}
        for task, options in KINDS.items():
            router = stack.enter_context(task_router(tmp_path_factory.mktemp("rows"), task, options))
            found[task] = stack.enter_context(router.client())
        yield found


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("task", "body", "has_shape"), BODIES, ids=range(len(BODIES)))
def test_a_published_body_gets_an_answer_of_the_published_shape(
    clients: dict[str, httpx.Client], task: str, body: dict[str, Any], has_shape: Callable[[Any], bool], form: str
) -> None:
    more = {"options": {"wait_for_model": True, "use_cache": False}} if form == "python" else {}
    answer = clients[task].post("/", content=json.dumps({**body, **more}), headers=FORMS[form])
    assert answer.status_code == 200, answer.text
    assert has_shape(answer.json()), answer.text
