"""Each field of each body: a number is taken or refused with its name, and null says that the field is absent.

The fields are found in the structs of the bodies, so that a new field is tried without a word here.
"""

import base64
import json
import types
import typing
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any, NamedTuple

import httpx
import msgspec
import pytest
from textmill_router.api.openai.chat_types import ChatBody
from textmill_router.api.openai.completion_types import CompletionBody
from textmill_router.api.platforms.kserve_types import V2GenerateBody
from textmill_router.api.tgi.conversational import ConversationBody
from textmill_router.api.tgi.types import CompatBody, GenerateBody
from textmill_router.api.tgi.writing_types import WritingBody
from textmill_router.tasks import forms
from textmill_router.tasks.forms import DECODE, EMBED, EMBEDDINGS, FORMS, PREDICT, SPEECH, TOKENIZE

from tests.fakes.byte_tokenizer import write_byte_tokenizer
from tests.fakes.fake_row_shard import RowShardOptions
from tests.fakes.fake_shard import FakeShardOptions
from tests.fakes.running_router import RunningRouter
from tests.fakes.task_router import task_router
from tests.fakes.word_tokenizer import MASK_ID

VALUES = [2**32, 2**63, 10**400, 1e-300, 1e-40, 1e300, 3.5e38, -1, -(2**63), -1e-300, -1e300]
FILE = base64.b64encode(b"\x89PNG and so on").decode()  # the fake shard reads no format
LABELS = {"candidate_labels": ["cat", "dog"]}
BOXES = {"word_boxes": [["one", [1, 2, 3, 4]]]}
QUESTION = {"image": FILE, "question": "Why?"}


class Kind(NamedTuple):
    """A shard of a task, and the bodies that are sent to its router, each with its path and its type."""

    options: RowShardOptions | FakeShardOptions
    bodies: tuple[tuple[str, Any, dict[str, Any]], ...]


def form(task: str, body: dict[str, Any], path: str = "/") -> tuple[str, Any, dict[str, Any]]:
    return path, FORMS[task].body, body


def of_files(head: str, media: str, task: str, body: dict[str, Any], **facts: Any) -> Kind:
    return Kind(RowShardOptions(heads=(head,), media=media, max_batch_files=1, **facts), (form(task, body),))


WRITER = FakeShardOptions(num_slots=16, num_blocks=128, max_model_tokens=40)
KINDS = {
    "feature-extraction": Kind(
        RowShardOptions(),
        (
            form("feature-extraction", {"inputs": "a"}),
            form("sentence-similarity", {"inputs": {"source_sentence": "a", "sentences": ["b"]}}),
            ("/embed", EMBED.body, {"inputs": "a"}),
            ("/v1/embeddings", EMBEDDINGS.body, {"input": "a"}),
            ("/tokenize", TOKENIZE.body, {"inputs": "a"}),
            ("/decode", DECODE.body, {"ids": [5]}),
        ),
    ),
    "text-classification": Kind(
        RowShardOptions(heads=("labels",), labels=("entailment", "contradiction")),
        (
            form("text-classification", {"inputs": "a"}),
            form("zero-shot-classification", {"inputs": "a", "parameters": LABELS}),
            ("/predict", PREDICT.body, {"inputs": "a"}),
        ),
    ),
    "rerank": Kind(
        RowShardOptions(heads=("labels",), labels=("LABEL_0",)), (form("rerank", {"query": "a", "documents": ["b"]}),)
    ),
    "token-classification": Kind(
        RowShardOptions(heads=("token_labels",), labels=("O", "B-PER")),
        (form("token-classification", {"inputs": "a"}),),
    ),
    "fill-mask": Kind(
        RowShardOptions(heads=("masks",), mask_token_id=MASK_ID), (form("fill-mask", {"inputs": "a [MASK]"}),)
    ),
    "question-answering": Kind(
        RowShardOptions(heads=("spans",)),
        (form("question-answering", {"inputs": {"question": "a", "context": "b"}}),),
    ),
    "table-question-answering": of_files(
        "cells", "table", "table-question-answering", {"inputs": {"query": "a", "table": {"b": ["c"]}}}
    ),
    "image-classification": of_files("labels", "image", "image-classification", {"inputs": FILE}, labels=("a", "b")),
    "audio-classification": of_files("labels", "audio", "audio-classification", {"inputs": FILE}, labels=("a", "b")),
    "object-detection": of_files("boxes", "image", "object-detection", {"inputs": FILE}, labels=("a", "b", "c")),
    "image-segmentation": of_files(
        "segments", "image", "image-segmentation", {"inputs": FILE}, labels=("a", "b", "c"), subtasks=("panoptic",)
    ),
    "zero-shot-image-classification": of_files(
        "pair_scores", "image", "zero-shot-image-classification", {"inputs": FILE, "parameters": LABELS}
    ),
    "zero-shot-object-detection": of_files(
        "boxes", "image", "zero-shot-object-detection", {"inputs": FILE, "parameters": LABELS}
    ),
    "depth-estimation": of_files("depths", "image", "depth-estimation", {"inputs": FILE}),
    "image-to-text": of_files("writings", "image", "image-to-text", {"inputs": FILE}),
    "visual-question-answering": of_files(
        "labels", "image", "visual-question-answering", {"inputs": QUESTION}, labels=("a", "b")
    ),
    "document-question-answering": of_files(
        "documents", "image", "document-question-answering", {"inputs": QUESTION, "parameters": BOXES}
    ),
    "automatic-speech-recognition": of_files("transcripts", "audio", "automatic-speech-recognition", {"inputs": FILE}),
    "text-to-audio": Kind(
        RowShardOptions(heads=("sounds",), media="text", max_batch_files=1, num_speakers=2),
        (form("text-to-audio", {"inputs": "a"}), ("/v1/audio/speech", SPEECH.body, {"input": "a"})),
    ),
    "summarization": Kind(
        WRITER,
        (
            ("/", WritingBody, {"inputs": "a", "parameters": {"max_new_tokens": 2}}),
            ("/generate", GenerateBody, {"inputs": "a", "parameters": {"max_new_tokens": 2}}),
            ("/v1/chat/completions", ChatBody, {"messages": [{"role": "user", "content": "a"}], "max_tokens": 2}),
            ("/v1/completions", CompletionBody, {"prompt": "a", "max_tokens": 2}),
        ),
    ),
    "text-generation": Kind(
        WRITER,
        (
            ("/", CompatBody, {"inputs": "a", "parameters": {"max_new_tokens": 2}}),
            ("/", ConversationBody, {"inputs": {"text": "a"}, "parameters": {"max_new_tokens": 2}}),
            ("/v2/models/fake/model/generate", V2GenerateBody, {"text_input": "a"}),
        ),
    ),
}


def test_each_form_of_a_task_is_tried() -> None:
    tried = [body for kind in KINDS.values() for _, body, _ in kind.bodies]
    assert [task for task, one in FORMS.items() if one.body not in tried] == []


@pytest.fixture(scope="module")
def clients(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, httpx.Client]]:
    with ExitStack() as stack:
        opened = {}
        for task, kind in KINDS.items():
            folder = tmp_path_factory.mktemp(task)
            if isinstance(kind.options, RowShardOptions):
                router = stack.enter_context(task_router(folder, task, kind.options))
            else:
                model = write_byte_tokenizer(folder / "model")
                router = stack.enter_context(RunningRouter(folder, kind.options, model=model, task=task))
            opened[task] = stack.enter_context(router.client())
        yield opened


def changed(body: dict[str, Any], path: tuple[str, ...], value: Any) -> dict[str, Any]:
    """Return the body with a value at a path of names."""
    inner = body.get(path[0])
    rest = changed(inner if isinstance(inner, dict) else {}, path[1:], value) if len(path) > 1 else value
    return {**body, path[0]: rest}


def number_fields(body: Any) -> list[tuple[tuple[str, ...], bool]]:
    """Return the paths of all fields of a struct that take numbers, and whether in a list alone."""
    found: list[tuple[tuple[str, ...], bool]] = []
    for field in msgspec.structs.fields(body):
        kinds = _parts(field.type)
        if int in kinds or float in kinds:
            found.append(((field.encode_name,), False))
        for kind in kinds:
            if typing.get_origin(kind) is list and {int, float} & set(_parts(typing.get_args(kind)[0])):
                found.append(((field.encode_name,), True))
            elif isinstance(kind, type) and issubclass(kind, msgspec.Struct) and kind is not body:
                found += [((field.encode_name, *path), is_list) for path, is_list in number_fields(kind)]
    return found


def _parts(kind: Any) -> list[Any]:
    if isinstance(kind, types.UnionType) or typing.get_origin(kind) is typing.Union:
        return [part for one in typing.get_args(kind) for part in _parts(one)]
    return [kind]


@pytest.mark.parametrize(
    ("task", "number"), [(task, number) for task, kind in KINDS.items() for number in range(len(kind.bodies))]
)
def test_a_number_is_taken_or_refused_with_its_name(clients: dict[str, httpx.Client], task: str, number: int) -> None:
    client = clients[task]
    path, kind, body = KINDS[task].bodies[number]
    wrong = []
    for names, is_list in number_fields(kind):
        for value in VALUES:
            sent = changed(body, names, [value, value] if is_list else value)
            answer = client.post(path, content=json.dumps(sent), headers={"content-type": "application/json"})
            # TGI has names without paths, and `dimensions` has one name for both places where it may stand.
            has_path = path == "/" and kind not in (CompatBody, ConversationBody) and names[-1] != "dimensions"
            name = names[0] if has_path else names[-1]
            is_told = answer.status_code == 422 and name in answer.text and names[-1] in answer.text
            if answer.status_code != 200 and not is_told:
                wrong.append((".".join(names), str(value)[:12], answer.status_code, answer.text[:200]))
    assert wrong == []
    assert client.post(path, json=body).status_code == 200


def optional_fields(body: Any) -> list[tuple[str, ...]]:
    """Return the paths of all fields of a struct, and of the structs in the struct, that a client may leave out."""
    found: list[tuple[str, ...]] = []
    for field in msgspec.structs.fields(body):
        if not field.required:
            found.append((field.encode_name,))
        for kind in _parts(field.type):
            if isinstance(kind, type) and issubclass(kind, msgspec.Struct) and kind is not body:
                found += [(field.encode_name, *path) for path in optional_fields(kind)]
    return found


def _value_at(body: Any, path: tuple[str, ...]) -> Any:
    for name in path:
        body = body.get(name) if isinstance(body, dict) else None
    return body


@pytest.mark.parametrize(
    ("task", "number"), [(task, number) for task, kind in KINDS.items() for number in range(len(kind.bodies))]
)
def test_null_says_that_a_field_is_absent(clients: dict[str, httpx.Client], task: str, number: int) -> None:
    path, kind, body = KINDS[task].bodies[number]
    sent = body
    for names in optional_fields(kind):
        # Other objects that are empty ask for something.
        is_beside = len(names) == 1 or names[0] == "parameters" or isinstance(_value_at(body, names[:-1]), dict)
        if is_beside and _value_at(body, names) is None:
            sent = changed(sent, names, None)
    assert sent != body or task in ("depth-estimation",)
    plain, nulls = (clients[task].post(path, json=one) for one in (body, sent))
    assert (plain.status_code, nulls.status_code) == (200, 200), nulls.text
    if path == "/" and task != "text-to-audio":  # ids, times and seeds differ
        assert nulls.json() == plain.json()


BODIES = [form.body for form in vars(forms).values() if isinstance(form, forms.TaskForm)]
OF_FORMS = {body.__name__: body for body in [form.body for form in FORMS.values()] + BODIES}


@pytest.mark.parametrize("name", [name for name in OF_FORMS if name != "TranscriptionFields"])  # a form has no null
def test_each_field_that_may_be_left_out_may_be_null(name: str) -> None:
    refused = []
    for path in optional_fields(OF_FORMS[name]):
        kind = OF_FORMS[name]
        for step in path[:-1]:
            (types_of,) = (one.type for one in msgspec.structs.fields(kind) if one.encode_name == step)
            kind = next(one for one in _parts(types_of) if isinstance(one, type) and issubclass(one, msgspec.Struct))
        (field,) = (one for one in msgspec.structs.fields(kind) if one.encode_name == path[-1])
        try:
            msgspec.convert(None, field.type)
        except msgspec.ValidationError:
            refused.append(".".join(path))
    assert refused == []


def test_numbers_are_found_in_each_place_of_a_body() -> None:
    """Hold the walk through the structs to fields that are known."""
    captions = {".".join(names) for names, _ in number_fields(FORMS["image-to-text"].body)}
    assert {"parameters.top_k", "parameters.generate_kwargs.temperature"} <= captions
    speech = number_fields(FORMS["automatic-speech-recognition"].body)
    assert {(("parameters", "stride_length_s"), True), (("parameters", "stride_length_s"), False)} <= set(speech)
