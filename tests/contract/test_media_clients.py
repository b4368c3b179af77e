"""The clients of huggingface_hub call every task of images and audio, parse each answer, and raise what users catch."""

import asyncio
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
from huggingface_hub import AsyncInferenceClient, InferenceClient
from huggingface_hub.utils import HfHubHTTPError

from tests.fakes.fake_row_shard import RowShardOptions
from tests.fakes.task_router import task_router

LABELS = ("cat", "dog", "bird", "fish", "cow", "horse")
KINDS = {
    "image-classification": RowShardOptions(heads=("labels",), labels=LABELS, media="image"),
    "object-detection": RowShardOptions(heads=("boxes",), labels=LABELS, media="image"),
    "image-segmentation": RowShardOptions(
        heads=("segments",), labels=LABELS, media="image", max_batch_files=1, subtasks=("panoptic", "semantic")
    ),
    "zero-shot-image-classification": RowShardOptions(heads=("pair_scores",), media="image"),
    "image-to-text": RowShardOptions(heads=("writings",), media="image"),
    "visual-question-answering": RowShardOptions(heads=("labels",), labels=LABELS, media="image"),
    "document-question-answering": RowShardOptions(heads=("documents",), media="image", max_row_tokens=512),
    "audio-classification": RowShardOptions(heads=("labels",), labels=LABELS, media="audio"),
    "automatic-speech-recognition": RowShardOptions(
        heads=("transcripts",), media="audio", max_batch_files=1, languages=("en", "english", "de", "german")
    ),
}
WORD_BOXES = [["Total:", [10, 20, 30, 40]], ["9", [40, 20, 50, 40]], ["euros", [55, 20, 80, 40]]]
# A picture is sent as bytes and a sound by its path; without parameters the client sends the file, else JSON.
CALLS: list[tuple[str, dict[str, Any]]] = [
    ("image-classification", {}),
    ("image-classification", {"top_k": 2, "function_to_apply": "sigmoid"}),
    ("object-detection", {}),
    ("object-detection", {"threshold": 0.3}),
    ("image-segmentation", {}),
    ("image-segmentation", {"threshold": 0.3, "subtask": "panoptic", "mask_threshold": 0.5}),
    ("image-segmentation", {"subtask": "semantic", "overlap_mask_area_threshold": 0.5}),
    ("zero-shot-image-classification", {"candidate_labels": ["cat", "a dog"]}),
    ("zero-shot-image-classification", {"candidate_labels": ["cat", "a dog"], "hypothesis_template": "{}, seen"}),
    ("image-to-text", {}),
    ("visual-question-answering", {"question": "What is it?"}),
    ("visual-question-answering", {"question": "What is it?", "top_k": 2}),
    ("document-question-answering", {"question": "How much?", "word_boxes": WORD_BOXES}),
    (
        "document-question-answering",
        {
            "question": "How much?",
            "word_boxes": WORD_BOXES,
            "top_k": 2,
            "max_answer_len": 4,
            "doc_stride": 8,
            "lang": "eng",
        },
    ),
    ("audio-classification", {}),
    ("audio-classification", {"top_k": 3, "function_to_apply": "none"}),
    ("automatic-speech-recognition", {}),
    (
        "automatic-speech-recognition",
        {"extra_body": {"return_timestamps": "word", "generation_parameters": {"language": "de", "num_beams": 2}}},
    ),
]
IDS = [f"{task}-{number}" for number, (task, _) in enumerate(CALLS)]
# The fake shard reads no format.
FILE = b"\x89PNG\r\n\x1a\n and so on"


@pytest.fixture(scope="module")
def urls(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    with ExitStack() as stack:
        yield {
            task: stack.enter_context(task_router(tmp_path_factory.mktemp(task), task, options)).url
            for task, options in KINDS.items()
        }


def file_for(task: str, folder: Path) -> Any:
    if not task.startswith("au"):
        return FILE
    path = folder / "speech.flac"
    path.write_bytes(FILE)
    return str(path)


def check(task: str, arguments: dict[str, Any], found: Any) -> None:
    """Check what the client has parsed."""
    match task:
        case "image-classification" | "audio-classification":
            assert len(found) == arguments.get("top_k", 5)
            assert found[0].label in LABELS
            assert found[0].score >= found[-1].score
        case "object-detection":
            assert [(one.label, one.box.xmin, one.box.ymax) for one in found][-1] == ("bird", 2, len(FILE))
            assert len(found) == (2 if "threshold" in arguments else 1)
        case "image-segmentation":
            assert [one.label for one in found] == ["cat", "bird"]
            assert (found[0].mask.format, found[0].mask.mode, found[0].mask.size) == ("PNG", "L", (1, 1))
            is_semantic = arguments.get("subtask") == "semantic"
            assert found[0].score == (None if is_semantic else pytest.approx(arguments.get("threshold", 0.9)))
        case "zero-shot-image-classification":
            length = len(arguments.get("hypothesis_template", "This is a photo of {}.")) - 2
            assert [(one.label, one.score) for one in found] == [
                ("a dog", (length + 5) / 64),
                ("cat", (length + 3) / 64),
            ]
        case "image-to-text":
            assert found.generated_text == ""
        case "visual-question-answering":
            assert len(found) == arguments.get("top_k", 5)
            assert found[0].answer in LABELS
            assert found[0].score >= found[-1].score
        case "document-question-answering":
            spans = [("9 euros", 1, 2), ("Total:", 0, 0)][: arguments.get("top_k", 1)]
            assert [(one.answer, one.start, one.end) for one in found] == spans
        case "automatic-speech-recognition":
            assert found.text.startswith("2 'de'" if arguments else "0 ''")
            assert [chunk.text for chunk in found.chunks or []] == (["one", "two"] if arguments else [])
        case _:
            pytest.fail("no check of this answer")


@pytest.mark.parametrize(("task", "arguments"), CALLS, ids=IDS)
def test_every_media_method_of_the_hub_client(
    urls: dict[str, str], tmp_path: Path, task: str, arguments: dict[str, Any]
) -> None:
    method = getattr(InferenceClient(model=urls[task]), task.replace("-", "_"))
    check(task, arguments, method(file_for(task, tmp_path), **arguments))


@pytest.mark.filterwarnings("ignore:Use 'content=<...>':DeprecationWarning")  # of the client's own code
@pytest.mark.parametrize(("task", "arguments"), CALLS, ids=IDS)
def test_every_media_method_of_the_async_hub_client(
    urls: dict[str, str], tmp_path: Path, task: str, arguments: dict[str, Any]
) -> None:
    async def call() -> Any:
        async with AsyncInferenceClient(model=urls[task]) as client:
            return await getattr(client, task.replace("-", "_"))(file_for(task, tmp_path), **arguments)

    check(task, arguments, asyncio.run(call()))


def test_errors_raise_what_users_of_the_hub_client_catch(urls: dict[str, str]) -> None:
    client = InferenceClient(model=urls["image-classification"])
    for arguments in ({}, {"top_k": 2}):
        with pytest.raises(HfHubHTTPError) as error:
            client.image_classification(b"BAD file", **arguments)
        assert error.value.response.status_code == 422
        assert "the file is bad" in str(error.value)
    speech = InferenceClient(model=urls["automatic-speech-recognition"])
    with pytest.raises(HfHubHTTPError, match="return_timestamps"):
        speech.automatic_speech_recognition(FILE, extra_body={"return_timestamps": "char"})


# The bodies of the published page for these tasks: curl and Python send the file, and no type or curl's own.
PUBLISHED = [
    ("automatic-speech-recognition", "sample1.flac", {"text"}),
    ("audio-classification", "sample1.flac", {"score", "label"}),
    ("image-classification", "cats.jpg", {"score", "label"}),
    ("object-detection", "cats.jpg", {"score", "label", "box"}),
    ("image-segmentation", "cats.jpg", {"score", "label", "mask"}),
]


@pytest.mark.parametrize("content_type", [None, "application/x-www-form-urlencoded", "image/jpeg", "audio/flac"])
@pytest.mark.parametrize(("task", "name", "keys"), PUBLISHED, ids=[task for task, _, _ in PUBLISHED])
def test_each_published_body_gets_the_published_shape(
    urls: dict[str, str], task: str, name: str, keys: set[str], content_type: str | None
) -> None:
    headers = {"authorization": "Bearer api_org_xxx"}
    if content_type is not None:
        headers["content-type"] = content_type
    answer = httpx.post(f"{urls[task]}/models/some/{name}", content=FILE, headers=headers, trust_env=False)
    assert answer.status_code == 200, answer.text
    found = answer.json()
    assert set(found[0] if isinstance(found, list) else found) == keys
