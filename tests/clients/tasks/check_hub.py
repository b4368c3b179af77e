"""Each task method of an older huggingface_hub: `check_hub.py URLS`, a JSON object by task."""

import asyncio
import json
import sys
from typing import Any

import huggingface_hub
from huggingface_hub import AsyncInferenceClient, InferenceClient
from huggingface_hub.utils import HfHubHTTPError

PICTURE = b"\x89PNG and so on"  # the servers' shards read no format, and take the bytes for sounds too
# Task of the server, method, arguments, and an attribute or a length by which the answer is known to be parsed.
CALLS: list[tuple[str, str, dict[str, Any]]] = [
    ("sentence-similarity", "feature_extraction", {"text": "the happy dog"}),
    ("sentence-similarity", "sentence_similarity", {"sentence": "a dog", "other_sentences": ["a cat", "a day"]}),
    ("text-classification", "text_classification", {"text": "a dog"}),
    ("text-classification", "zero_shot_classification", {"text": "a dog", "candidate_labels": ["dog", "cat"]}),
    ("token-classification", "token_classification", {"text": "my name is sarah"}),
    ("fill-mask", "fill_mask", {"text": "a [MASK] dog"}),
    ("question-answering", "question_answering", {"question": "my name?", "context": "Sarah is in London"}),
    ("summarization", "summarization", {"text": "a long text"}),
    ("table-question-answering", "table_question_answering", {"query": "how many?", "table": {"name": ["a", "b"]}}),
    ("image-classification", "image_classification", {"image": PICTURE}),
    ("object-detection", "object_detection", {"image": PICTURE, "threshold": 0.3}),
    ("image-segmentation", "image_segmentation", {"image": PICTURE}),
    (
        "zero-shot-image-classification",
        "zero_shot_image_classification",
        {"image": PICTURE, "candidate_labels": ["cat", "dog"]},
    ),
    ("audio-classification", "audio_classification", {"audio": PICTURE}),
    ("automatic-speech-recognition", "automatic_speech_recognition", {"audio": PICTURE}),
    ("text-to-audio", "text_to_speech", {"text": "hello"}),
    ("image-to-text", "image_to_text", {"image": PICTURE}),
    ("visual-question-answering", "visual_question_answering", {"image": PICTURE, "question": "What is it?"}),
    (
        "document-question-answering",
        "document_question_answering",
        {"image": PICTURE, "question": "How much?", "word_boxes": [["Total:", [1, 2, 3, 4]], ["9", [5, 2, 8, 4]]]},
    ),
]


def check(method: str, found: Any) -> None:
    """Look at what the client has parsed."""
    match method:
        case "feature_extraction":
            assert found.shape[-1] == 3
        case "sentence_similarity":
            assert [isinstance(one, float) for one in found] == [True, True]
        case "text_classification":
            assert found[0].label in ("contradiction", "neutral", "entailment")
        case "zero_shot_classification":
            assert {one.label for one in found} == {"dog", "cat"}
        case "token_classification":
            assert found[0].entity_group == "PER"
        case "fill_mask":
            assert found[0].score == 0.5
        case "question_answering":
            assert (found.answer, found.start, found.end) == ("Sarah", 0, 5)
        case "table_question_answering":
            assert isinstance(found.answer, str)
        case "image_classification" | "audio_classification" | "zero_shot_image_classification":
            assert {one.label for one in found} == {"cat", "dog"}
        case "object_detection":
            assert [one.label for one in found] == ["dog", "cow"]
        case "image_segmentation":
            assert [(one.label, one.mask.size) for one in found] == [("cat", (1, 1)), ("cow", (1, 1))]
        case "automatic_speech_recognition":
            assert found.text.startswith("0 ''")
        case "text_to_speech":
            assert found
        case "image_to_text":
            assert found.generated_text == ""
        case "visual_question_answering":
            assert (found[0].answer, found[0].score) == ("What is it?", 0.5)
        case "document_question_answering":
            assert (found[0].answer, found[0].start, found[0].end) == ("Total: 9", 0, 1)
        case "summarization":
            assert found.summary_text.startswith("abc")


async def called_async(url: str, method: str, arguments: dict[str, Any]) -> Any:
    return await getattr(AsyncInferenceClient(model=url), method)(**arguments)


def refused_status(url: str) -> int:
    """Return the status that the error of a text without a mask tells."""
    try:
        InferenceClient(model=url).fill_mask("no mask")
    except HfHubHTTPError as error:
        return 0 if error.response is None else int(error.response.status_code)
    return 200


def main() -> None:
    """Raise AssertionError at the first difference."""
    urls = json.loads(sys.argv[1])
    has_async = "--sync" not in sys.argv  # the async client of old versions needs a package of its own
    for task, method, arguments in CALLS:
        check(method, getattr(InferenceClient(model=urls[task]), method)(**arguments))
        if has_async:
            check(method, asyncio.run(called_async(urls[task], method, arguments)))
    assert refused_status(urls["fill-mask"]) == 422
    print(f"huggingface_hub {huggingface_hub.__version__}: {', '.join(dict.fromkeys(one[1] for one in CALLS))}")


if __name__ == "__main__":
    main()
