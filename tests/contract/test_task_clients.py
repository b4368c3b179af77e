"""The clients of huggingface_hub and OpenAI call every task, parse each answer, and raise what their users catch."""

import asyncio
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from huggingface_hub import AsyncInferenceClient, InferenceClient
from huggingface_hub.errors import HfHubHTTPError, InferenceTimeoutError
from openai import OpenAI, UnprocessableEntityError

from tests.fakes.fake_row_shard import RowShardOptions
from tests.fakes.task_router import task_router
from tests.fakes.word_tokenizer import MASK_ID

LABELS = ("contradiction", "neutral", "entailment")
KINDS = {
    "sentence-similarity": RowShardOptions(),
    "text-classification": RowShardOptions(heads=("labels",), labels=LABELS, max_row_tokens=40),
    "token-classification": RowShardOptions(heads=("token_labels",), labels=("O", "B-PER", "I-PER")),
    "fill-mask": RowShardOptions(heads=("masks",), mask_token_id=MASK_ID),
    "question-answering": RowShardOptions(heads=("spans",)),
    "table-question-answering": RowShardOptions(heads=("cells",), labels=("NONE", "SUM"), media="table"),
}
# The calls of each task: the kind of model, the method, its arguments.
CALLS: list[tuple[str, str, dict[str, Any]]] = [
    ("sentence-similarity", "feature_extraction", {"text": "the happy dog"}),
    ("sentence-similarity", "feature_extraction", {"text": "the happy dog", "normalize": True, "truncate": True}),
    ("sentence-similarity", "feature_extraction", {"text": ["a dog", "a cat"], "truncation_direction": "left"}),
    (
        "sentence-similarity",
        "sentence_similarity",
        {"sentence": "a dog", "other_sentences": ["a cat", "the sunny day"]},
    ),
    ("text-classification", "text_classification", {"text": "a dog", "top_k": 2, "function_to_apply": "softmax"}),
    ("text-classification", "zero_shot_classification", {"text": "a dog", "candidate_labels": ["dog", "cat"]}),
    (
        "text-classification",
        "zero_shot_classification",
        {
            "text": "a dog",
            "candidate_labels": ["dog", "cat"],
            "multi_label": True,
            "hypothesis_template": "my name is {}",
        },
    ),
    (
        "token-classification",
        "token_classification",
        {"text": "my name is sarah", "aggregation_strategy": "simple", "stride": 4, "ignore_labels": ["O"]},
    ),
    ("token-classification", "token_classification", {"text": "my name is sarah", "aggregation_strategy": "none"}),
    ("fill-mask", "fill_mask", {"text": "a [MASK] dog", "top_k": 3}),
    ("fill-mask", "fill_mask", {"text": "a [MASK] dog", "targets": ["cat", "dog"]}),
    ("question-answering", "question_answering", {"question": "my name?", "context": "Sarah is in London"}),
    (
        "question-answering",
        "question_answering",
        {"question": "my name?", "context": "Sarah is in London", "top_k": 2, "handle_impossible_answer": True},
    ),
    (
        "table-question-answering",
        "table_question_answering",
        {"table": {"Name": ["Ann", "Bob"], "Pet": ["a cat", "a dog"]}, "query": "who?", "sequential": True},
    ),
]
IDS = [f"{method}-{number}" for number, (_, method, _) in enumerate(CALLS)]


@pytest.fixture(scope="module")
def urls(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    with ExitStack() as stack:
        yield {
            task: stack.enter_context(task_router(tmp_path_factory.mktemp(task), task, options)).url
            for task, options in KINDS.items()
        }


def check(method: str, arguments: dict[str, Any], found: Any) -> None:
    """Check what the client has parsed."""
    match method:
        case "feature_extraction":
            assert found.shape == ((2, 3) if isinstance(arguments["text"], list) else (3,))
        case "sentence_similarity":
            assert len(found) == 2
            assert all(isinstance(value, float) for value in found)
        case "text_classification":
            assert [entry.label in LABELS for entry in found] == [True, True]
        case "zero_shot_classification":
            assert {entry.label for entry in found} == {"dog", "cat"}
            assert found[0].score >= found[1].score
        case "token_classification":
            names = {entry.entity_group or entry.entity for entry in found}
            assert names
            assert "O" not in names
        case "fill_mask":
            assert found[0].score == 0.5
            assert found[0].token_str in found[0].sequence
        case "question_answering":
            first = found[0] if isinstance(found, list) else found
            assert (first.answer, first.start, first.end) == ("Sarah", 0, 5)
        case "table_question_answering":
            assert (found.answer, found.cells, found.aggregator) == ("Ann, a dog", ["Ann", "a dog"], "NONE")
            assert found.coordinates == [[0, 0], [1, 1]]
        case _:
            pytest.fail("no check of this answer")


@pytest.mark.parametrize(("kind", "method", "arguments"), CALLS, ids=IDS)
def test_every_task_method_of_the_hub_client(
    urls: dict[str, str], kind: str, method: str, arguments: dict[str, Any]
) -> None:
    client = InferenceClient(model=urls[kind])
    check(method, arguments, getattr(client, method)(**arguments))


@pytest.mark.parametrize(("kind", "method", "arguments"), CALLS, ids=IDS)
def test_every_task_method_of_the_async_hub_client(
    urls: dict[str, str], kind: str, method: str, arguments: dict[str, Any]
) -> None:
    async def call() -> Any:
        async with AsyncInferenceClient(model=urls[kind]) as client:
            return await getattr(client, method)(**arguments)

    check(method, arguments, asyncio.run(call()))


def test_errors_raise_what_users_of_the_hub_client_catch(urls: dict[str, str]) -> None:
    client = InferenceClient(model=urls["fill-mask"])
    with pytest.raises(HfHubHTTPError, match="must have the mask token") as error:
        client.fill_mask("no mask")
    assert error.value.response.status_code == 422
    with pytest.raises((HfHubHTTPError, InferenceTimeoutError)):
        client.token_classification("my dog")


def test_openai_embeddings(urls: dict[str, str]) -> None:
    client = OpenAI(base_url=urls["sentence-similarity"] + "/v1", api_key="-", max_retries=0)
    plain = client.embeddings.create(model="m", input=["a dog", "the sunny day"], encoding_format="float")
    coded = client.embeddings.create(model="m", input=["a dog", "the sunny day"])  # the client asks for base64
    assert [entry.embedding for entry in coded.data] == [entry.embedding for entry in plain.data]
    assert plain.usage.prompt_tokens == plain.usage.total_tokens > 0
    with pytest.raises(UnprocessableEntityError, match="dimensions"):
        client.embeddings.create(model="m", input="a", dimensions=9)
