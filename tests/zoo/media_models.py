"""Which classes of tasks of images and audio are compared with transformers, and the difference of each.

Of each model type a tiny random model computes three files of other sizes at once in fp32. Each answer is compared with
that of transformers' own pipeline for the file alone, and where transformers has no pipeline, with a formula over its
class.
"""

import io
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from textmill_shard.tasks.media_loader import LoadedMedia, MediaLimits, load_media
from textmill_shard.tasks.rows import (
    BoxParams,
    DocumentParams,
    HeadName,
    MediaRow,
    RowFailure,
    SegmentParams,
    TableRow,
    Timestamps,
    TranscriptParams,
    WritingParams,
)
from textmill_shard.tasks.table_loader import load_tables
from textmill_shard.tasks.task_loader import TaskOptions
from transformers import (
    AutoModelForAudioClassification,
    AutoModelForCTC,
    AutoModelForDepthEstimation,
    AutoModelForImageClassification,
    AutoModelForImageSegmentation,
    AutoModelForObjectDetection,
    AutoModelForSemanticSegmentation,
    AutoModelForUniversalSegmentation,
    AutoModelForZeroShotImageClassification,
    AutoModelForZeroShotObjectDetection,
    pipeline,
)

from tests.fakes import answer_formulas as formulas
from tests.fakes.tiny_answers import MAX_PAGE_TOKENS, make_answering_model
from tests.fakes.tiny_media import (
    IMAGES,
    OBJECTS,
    RATE,
    SOUNDS,
    make_media_model,
    make_whisper,
    picture_file,
    sound,
    sound_file,
    write_character_tokenizer,
)
from tests.fakes.tiny_tapas import make_tapas
from tests.fakes.tiny_zero_shot import DEPTHS, DESCRIBED_OBJECTS, MATCHES, lent_resize, make_picture_model

FILES = [picture_file(96, 70, seed=1), picture_file(64, 64, seed=2, kind="JPEG"), picture_file(65, 140, seed=3)]
SECONDS = (0.3, 1.0, 0.7)
TEXTS = ("a happy dog", "the cat", "sarah in london and a sunny day")
PAGE = "my name is sarah and i live in london the happy dog is in the sunny day and a cat"
WORDS = PAGE.split()
TABLES: list[dict[str, list[str]]] = [
    {"Name": ["Ann", "Bob", "Chloe"], "Born": ["1 May 2010", "3rd of June 2011", ""], "Cats": ["1", "12", "3.5"]},
    {"Number": [str(number * 7 % 31) for number in range(60)], "Fox": ["the quick fox"] * 60},
    {"a": ["1"]},
]
TABLE_QUESTIONS = ("how many foxes are 12?", "which is more than 3, and before 2011")
SIDES = ("xmin", "ymin", "xmax", "ymax")
SEGMENTERS = {
    "segformer": AutoModelForSemanticSegmentation,
    "upernet": AutoModelForSemanticSegmentation,
    "beit": AutoModelForSemanticSegmentation,
    "maskformer": AutoModelForUniversalSegmentation,
    "mask2former": AutoModelForUniversalSegmentation,
    "detr": AutoModelForImageSegmentation,
}
CTC_TYPES = ("wav2vec2", "hubert", "wavlm", "unispeech-sat", "data2vec-audio")
Compare = Callable[[Path, str, str], float]


@dataclass(frozen=True, slots=True)
class MediaTask:
    """What of an answer is compared, and the model types. `compare` fails where a label or a place differs."""

    compared: str
    model_types: Sequence[str]
    compare: Compare


def load(folder: Path, task: str) -> LoadedMedia:
    limits = MediaLimits(max_pixels=1_000_000, max_seconds=100.0)
    return load_media(TaskOptions(model_dir=folder, task=task), limits, lambda phase, share: None)


def ran(loaded: LoadedMedia, rows: Sequence[MediaRow]) -> list[Any]:
    found = loaded.runner.run(loaded.head, loaded.runner.read(rows))
    assert not [answer for answer in found if isinstance(answer, RowFailure)], found
    return found


def opened(file: bytes) -> Image.Image:
    return Image.open(io.BytesIO(file)).convert("RGB")


def heard(index: int) -> dict[str, Any]:
    return {"raw": sound(SECONDS[index], seed=index), "sampling_rate": RATE}


def sounds() -> list[bytes]:
    return [sound_file(seconds, seed=index) for index, seconds in enumerate(SECONDS)]


def _labels(folder: Path, task: str, model_type: str) -> float:
    is_image = task == "image-classification"
    auto_class = AutoModelForImageClassification if is_image else AutoModelForAudioClassification
    make_media_model(folder, model_type, auto_class, num_labels=4)
    loaded, peer = load(folder, task), pipeline(task, model=str(folder))
    files = FILES if is_image else sounds()
    differences = []
    for index, logits in enumerate(ran(loaded, [MediaRow(file) for file in files])):
        expected = peer(opened(FILES[index]) if is_image else heard(index), top_k=4)
        scores = dict(zip(loaded.labels, torch.from_numpy(logits).softmax(dim=0).tolist(), strict=True))
        differences += [abs(scores[each["label"]] - each["score"]) for each in expected]
    return max(differences)


def _boxes(found: Any, expected: Sequence[Any], labels: Sequence[str], picture: Image.Image) -> float:
    """Return the largest difference of a score. Labels and corners are equal, but for corners outside of the image."""
    limits = (picture.width, picture.height) * 2
    inside = [np.clip([each["box"][side] for side in SIDES], 0, limits).tolist() for each in expected]
    assert [labels[label] for label in found.label_ids] == [each["label"] for each in expected]
    assert found.corners.tolist() == inside
    return _largest(found.scores, [each["score"] for each in expected]) if expected else 0.0


def _objects(folder: Path, task: str, model_type: str) -> float:
    make_media_model(folder, model_type, AutoModelForObjectDetection, num_labels=4)
    loaded, peer = load(folder, task), pipeline(task, model=str(folder))
    expected = [peer(opened(file), threshold=0.2) for file in FILES]
    found = ran(loaded, [MediaRow(file, BoxParams(0.2)) for file in FILES])
    return _boxes_of_files(found, expected, loaded.labels)


def _described_objects(folder: Path, task: str, model_type: str) -> float:
    make_picture_model(folder, model_type, AutoModelForZeroShotObjectDetection)
    loaded, peer = load(folder, task), pipeline(task, model=str(folder))
    threshold = 0.003 if model_type == "mm-grounding-dino" else 0.4  # of which the tiny model is less sure
    expected = [peer(opened(file), candidate_labels=list(TEXTS), threshold=threshold) for file in FILES]
    found = ran(loaded, [MediaRow(file, BoxParams(threshold), TEXTS) for file in FILES])
    return _boxes_of_files(found, expected, TEXTS)


def _boxes_of_files(found: Sequence[Any], expected: Sequence[Any], labels: Sequence[str]) -> float:
    assert any(expected)
    return max(
        _boxes(of_file, wanted, labels, opened(file))
        for file, of_file, wanted in zip(FILES, found, expected, strict=True)
    )


def _segments(folder: Path, task: str, model_type: str) -> float:
    make_media_model(folder, model_type, SEGMENTERS[model_type], num_labels=4)
    loaded, peer = load(folder, task), pipeline(task, model=str(folder))
    differences, num_segments = [0.0], 0
    options = {"threshold": 0.3, "mask_threshold": 0.45, "overlap_mask_area_threshold": 0.1}
    for subtask in loaded.subtasks:
        rows = [MediaRow(file, SegmentParams(0.3, 0.45, 0.1, subtask)) for file in FILES]
        for file, found in zip(FILES, ran(loaded, rows), strict=True):
            expected = peer(opened(file), subtask=subtask, **options)
            assert [loaded.labels[label] for label in found.label_ids] == [each["label"] for each in expected]
            for mask, each in zip(found.masks, expected, strict=True):
                np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(mask))), np.asarray(each["mask"]))
            if found.scores:
                differences.append(_largest(found.scores, [each["score"] for each in expected]))
            num_segments += len(expected)
    assert num_segments
    return max(differences)


def _characters(folder: Path, task: str, model_type: str) -> float:
    if model_type == "whisper":
        make_whisper(folder, seed=4)
        params = TranscriptParams(Timestamps.SEGMENTS, language="de", max_new_tokens=8)
        asked: dict[str, Any] = {"return_timestamps": True}
        asked["generate_kwargs"] = {"max_new_tokens": 8, "language": "de", "num_beams": 1}
    else:
        make_media_model(folder, model_type, AutoModelForCTC, pad_token_id=0)
        write_character_tokenizer(folder)
        params, asked = TranscriptParams(Timestamps.CHARACTERS), {"return_timestamps": "char"}
    loaded, peer = load(folder, task), pipeline(task, model=str(folder))
    differences = [0.0]
    for index, found in enumerate(ran(loaded, [MediaRow(file, params) for file in sounds()])):
        expected = peer(heard(index), **asked)
        assert found.text == expected["text"]
        assert found.text
        for chunk, each in zip(found.chunks, expected["chunks"], strict=True):
            assert chunk.text == each["text"]
            times = [(chunk.start_s, each["timestamp"][0]), (chunk.end_s, each["timestamp"][1])]
            differences += [abs(ours - theirs) for ours, theirs in times if theirs is not None and ours is not None]
    return max(differences)


def _matches(folder: Path, task: str, model_type: str) -> float:
    make_picture_model(folder, model_type, AutoModelForZeroShotImageClassification)
    loaded, peer = load(folder, task), pipeline(task, model=str(folder))
    differences = []
    for file, found in zip(FILES, ran(loaded, [MediaRow(file, None, TEXTS) for file in FILES]), strict=True):
        scores = dict(zip(TEXTS, found.tolist(), strict=True))
        expected = peer(opened(file), candidate_labels=list(TEXTS), hypothesis_template="{}")
        differences += [abs(scores[each["label"]] - each["score"]) for each in expected]
    return max(differences)


def _depths(folder: Path, task: str, model_type: str) -> float:
    make_picture_model(folder, model_type, AutoModelForDepthEstimation)
    loaded, peer = load(folder, task), pipeline(task, model=str(folder))
    with lent_resize() if model_type == "zoedepth" else nullcontext():
        return max(
            _largest(found.depths_HW, peer(opened(file))["predicted_depth"].numpy())
            for file, found in zip(FILES, ran(loaded, [MediaRow(file) for file in FILES]), strict=True)
        )


def _captions(folder: Path, task: str, model_type: str) -> float:
    model = make_answering_model(folder, model_type, task, seed=8)
    rows = [MediaRow(file, WritingParams(max_new_tokens=7)) for file in FILES]
    found = [answer.text for answer in ran(load(folder, task), rows)]
    assert found == [formulas.caption(model, folder, file, max_new_tokens=7) for file in FILES]
    return 0.0


def _picture_answers(folder: Path, task: str, model_type: str) -> float:
    question = "what is the cat?"
    if model_type == "vilt":
        model = make_answering_model(folder, model_type, task)
        loaded = load(folder, task)
        differences = []
        for file, logits in zip(FILES, ran(loaded, [MediaRow(file, None, (question,)) for file in FILES]), strict=True):
            scores = dict(zip(loaded.labels, torch.from_numpy(logits).sigmoid().tolist(), strict=True))
            expected = formulas.label_scores(model, folder, file, question)
            differences += [abs(scores[label] - score) for score, label in expected]
        return max(differences)
    formula = {"blip": formulas.blip_answer, "git": formulas.git_answer, "donut": formulas.donut_answer}[model_type]
    model = make_answering_model(folder, model_type, task, seed=8)
    rows = [MediaRow(file, WritingParams(max_new_tokens=4, with_probability=True), (question,)) for file in FILES]
    found = ran(load(folder, task), rows)
    expected = [formula(model, folder, file, question, max_new_tokens=4) for file in FILES]
    assert [answer.text for answer in found] == [text for text, _ in expected]
    return _largest([answer.probability for answer in found], [probability for _, probability in expected])


def _page_answers(folder: Path, task: str, model_type: str) -> float:
    if model_type == "donut":
        return _picture_answers(folder, task, model_type)
    model = make_answering_model(folder, model_type, task, seed=2)
    word_boxes = [(word, [40 * place, 10 + place, 40 * place + 30, 40 + place]) for place, word in enumerate(WORDS)]
    boxes = np.array([box for _, box in word_boxes])
    rows = [MediaRow(file, DocumentParams(boxes, MAX_PAGE_TOKENS, 30, 15, 3), ("who am i", *WORDS)) for file in FILES]
    differences = []
    for file, found in zip(FILES, ran(load(folder, task), rows), strict=True):
        expected = formulas.page_answers(
            model,
            folder,
            file,
            "who am i",
            word_boxes,
            max_seq_len=MAX_PAGE_TOKENS,
            doc_stride=30,
            max_answer_len=15,
            top_k=3,
            handle_impossible_answer=False,
        )
        places = zip(found.starts.tolist(), found.ends.tolist(), strict=True)
        assert list(places) == [(each["start"], each["end"]) for each in expected]
        differences.append(_largest(found.scores, [each["score"] for each in expected]))
    return max(differences)


def _table_answers(folder: Path, task: str, model_type: str) -> float:
    make_tapas(folder, seed=7)  # of this seed the model chooses some cells and not all
    loaded, peer = load_tables(TaskOptions(folder, task), lambda phase, share: None), pipeline(task, model=str(folder))
    rows, expected = [], []
    for question in TABLE_QUESTIONS:
        for table in TABLES:
            columns, lines = list(table), list(zip(*table.values(), strict=True))
            cells = tuple(cell for line in lines for cell in line)
            rows.append(TableRow(tuple(columns), cells, (question,), is_sequential=False))
            expected.append(peer(table=table, query=question))
    found = loaded.runner.run(HeadName.CELLS, loaded.reader.read(rows))
    for answer, wanted in zip(found, expected, strict=True):
        assert not isinstance(answer, RowFailure)
        (choice,) = answer.choices
        assert choice.cells == sorted(tuple(place) for place in wanted["coordinates"])
        assert loaded.labels[choice.label] == wanted["aggregator"]
    assert {len(answer.choices[0].cells) for answer in found} != {0}
    return 0.0


def _largest(found: Any, expected: Any) -> float:
    return float(np.abs(np.asarray(found) - np.asarray(expected)).max())


MEDIA_TASKS: Mapping[str, MediaTask] = {
    "image-classification": MediaTask("the score of each label", tuple(IMAGES), _labels),
    "object-detection": MediaTask("labels and boxes; the score of each object", tuple(OBJECTS), _objects),
    "image-segmentation": MediaTask(
        "labels and masks of each subtask; the score of each segment", tuple(SEGMENTERS), _segments
    ),
    "zero-shot-image-classification": MediaTask("the score of each label", tuple(MATCHES), _matches),
    "zero-shot-object-detection": MediaTask(
        "labels and boxes; the score of each object", tuple(DESCRIBED_OBJECTS), _described_objects
    ),
    "depth-estimation": MediaTask("the depth of each pixel", tuple(DEPTHS), _depths),
    "image-to-text": MediaTask(
        "the text (formula)", ("vit-gpt2", "trocr", "donut", "blip", "git", "pix2struct"), _captions
    ),
    "visual-question-answering": MediaTask(
        "answers; the score of each (formula)", ("vilt", "blip", "git"), _picture_answers
    ),
    "document-question-answering": MediaTask(
        "words of the answers; the score of each (formula)", ("layoutlm", "layoutlmv3", "lilt", "donut"), _page_answers
    ),
    "table-question-answering": MediaTask(
        "answers, cells and what is done with them (equal)", ("tapas",), _table_answers
    ),
    "audio-classification": MediaTask("the score of each label", tuple(SOUNDS), _labels),
    "automatic-speech-recognition": MediaTask(
        "text and parts; the times of each part in seconds", (*CTC_TYPES, "whisper"), _characters
    ),
}
MEDIA_CASES = tuple((task, model_type) for task, one in MEDIA_TASKS.items() for model_type in one.model_types)


def compare_media(folder: Path, task: str, model_type: str) -> float:
    """Make a model of the type, compare its answers, and return the largest difference of a number."""
    return MEDIA_TASKS[task].compare(folder, task, model_type)
