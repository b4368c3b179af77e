"""Texts of a call and images in tiny random models, against transformers' own pipelines."""

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from textmill_shard.errors import UnsupportedModelError
from textmill_shard.tasks.label_texts import MAX_KEPT_BYTES, KeptTexts, LabelTexts, find_text_tower
from textmill_shard.tasks.media_loader import LoadedMedia, MediaLimits, load_media
from textmill_shard.tasks.rows import Boxes, BoxParams, FailureCode, HeadName, MediaRow, Params, RowFailure
from textmill_shard.tasks.task_loader import TaskOptions
from transformers import (
    AutoModelForZeroShotImageClassification,
    AutoModelForZeroShotObjectDetection,
    AutoTokenizer,
    BlipForImageTextRetrieval,
    pipeline,
)
from transformers.modeling_outputs import BaseModelOutputWithPooling

from tests.fakes.tiny_media import picture_file, write_json
from tests.fakes.tiny_zero_shot import DESCRIBED_OBJECTS, MATCHES, make_picture_model
from tests.fakes.word_tokenizer import write_word_tokenizer

MATCH, DETECT = "zero-shot-image-classification", "zero-shot-object-detection"
LIMITS = MediaLimits(max_pixels=1_000_000, max_seconds=100.0)
TOLERANCE = 1e-5
FILES = [picture_file(96, 70, seed=1), picture_file(64, 64, seed=2, kind="JPEG"), picture_file(33, 90, seed=3)]
TEXTS = ("a happy dog", "the cat", "sarah in london and a sunny day", "ü 🐕")
SIDES = ("xmin", "ymin", "xmax", "ymax")
OTHER_TEXTS = ("my name", "i live in a dog")


def load(folder: Path, task: str) -> LoadedMedia:
    return load_media(TaskOptions(model_dir=folder, task=task), LIMITS, lambda phase, share: None)


def compute(loaded: LoadedMedia, rows: Sequence[tuple[bytes, tuple[str, ...]]], params: Params = None) -> list[Any]:
    return loaded.runner.run(loaded.head, loaded.runner.read([MediaRow(file, params, texts) for file, texts in rows]))


def opened(file: bytes) -> Image.Image:
    return Image.open(io.BytesIO(file)).convert("RGB")


@pytest.mark.parametrize("model_type", MATCHES)
def test_scores_of_texts_are_those_of_the_pipeline(tmp_path: Path, model_type: str) -> None:
    make_picture_model(tmp_path, model_type, AutoModelForZeroShotImageClassification)
    loaded = load(tmp_path, MATCH)
    assert (loaded.head, loaded.media, loaded.labels, loaded.max_batch_files) == (
        HeadName.PAIR_SCORES,
        "image",
        (),
        8,
    )
    peer = pipeline(MATCH, model=str(tmp_path))
    # Rows of two lists of texts in one batch, and the lists again, whose texts are kept.
    rows = [(file, texts) for file in FILES for texts in (TEXTS, OTHER_TEXTS)]
    for _ in range(2):
        for (file, texts), scores in zip(rows, compute(loaded, rows), strict=True):
            found = peer(opened(file), candidate_labels=list(texts), hypothesis_template="{}")
            expected = {each["label"]: each["score"] for each in found}
            assert dict(zip(texts, scores.tolist(), strict=True)) == pytest.approx(expected, abs=TOLERANCE)


def test_a_model_that_reads_image_and_text_together_scores_each_pair(tmp_path: Path) -> None:
    """Transformers has no pipeline for the class; a score is softmax over its two numbers, of which the last is yes."""
    model = make_picture_model(tmp_path, "blip", BlipForImageTextRetrieval)
    loaded = load(tmp_path, MATCH)
    tokenizer, processor = AutoTokenizer.from_pretrained(tmp_path), loaded.runner.read
    rows = [(file, TEXTS) for file in FILES]
    for (file, texts), scores in zip(rows, compute(loaded, rows), strict=True):
        (ready,) = processor([MediaRow(file, None, texts)])
        assert not isinstance(ready, RowFailure)
        for text, score in zip(texts, scores, strict=True):
            tokens = tokenizer(text, return_tensors="pt")
            with torch.inference_mode():
                output = model(
                    input_ids=tokens["input_ids"],
                    attention_mask=tokens["attention_mask"],
                    pixel_values=ready.inputs["pixel_values"][None],
                )
            assert score == pytest.approx(float(output.itm_score.softmax(dim=1)[0, 1]), abs=TOLERANCE)


def test_a_model_whose_processor_puts_tokens_for_the_image_reads_the_same_texts(tmp_path: Path) -> None:
    """The processor of a BLIP-2 with `image_token_index` does so; the pipeline uses no processor, and puts none."""
    make_picture_model(tmp_path, "blip-2", AutoModelForZeroShotImageClassification)
    rows = [(FILES[0], TEXTS)]
    (expected,) = compute(load(tmp_path, MATCH), rows)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config.get("image_token_index") is None
    write_json(tmp_path / "config.json", {**config, "image_token_index": 7})
    (found,) = compute(load(tmp_path, MATCH), rows)
    np.testing.assert_allclose(found, expected, atol=TOLERANCE)


@pytest.mark.parametrize("model_type", DESCRIBED_OBJECTS)
def test_objects_of_texts_are_those_of_the_pipeline(tmp_path: Path, model_type: str) -> None:
    make_picture_model(tmp_path, model_type, AutoModelForZeroShotObjectDetection)
    loaded = load(tmp_path, DETECT)
    assert (loaded.head, loaded.labels, loaded.max_batch_files) == (HeadName.BOXES, (), 1)
    peer = pipeline(DETECT, model=str(tmp_path))
    threshold = 0.003 if model_type == "mm-grounding-dino" else 0.4  # of which the tiny model is less sure
    num_objects = 0
    for texts in (TEXTS, OTHER_TEXTS, TEXTS[:1]):
        rows = [(file, texts) for file in FILES]
        for file, found in zip(FILES, compute(loaded, rows, BoxParams(threshold)), strict=True):
            assert isinstance(found, Boxes)
            picture = opened(file)
            expected = peer(picture, candidate_labels=list(texts), threshold=threshold)
            np.testing.assert_allclose(found.scores, [each["score"] for each in expected], atol=TOLERANCE)
            limits = (picture.width, picture.height) * 2  # the pipeline also gives corners outside of the image
            wanted = [
                (
                    each["label"],
                    [min(max(each["box"][side], 0), most) for side, most in zip(SIDES, limits, strict=True)],
                )
                for each in expected
            ]
            ours = zip(found.label_ids.tolist(), found.corners.tolist(), strict=True)
            assert [(texts[label], corners) for label, corners in ours] == wanted
            num_objects += len(expected)
    assert num_objects


def test_a_text_that_is_too_long_is_refused_with_its_length(tmp_path: Path) -> None:
    make_picture_model(tmp_path, "clip", AutoModelForZeroShotImageClassification)
    loaded = load(tmp_path, MATCH)
    long = "a dog " * 15  # with the two special tokens 32, where the tiny model has 30 positions
    found = compute(loaded, [(FILES[0], ("the cat", long)), (FILES[0], TEXTS)])
    assert isinstance(found[0], RowFailure)
    assert (found[0].code, found[0].message) == (
        FailureCode.BAD_TEXT,
        f"{long[:64]!r} has 32 tokens, and the model reads at most 30; send a shorter text",
    )
    assert not isinstance(found[1], RowFailure)
    assert not isinstance(compute(loaded, [(FILES[0], ("the cat", "a dog " * 14))])[0], RowFailure)


def test_more_objects_than_an_answer_has_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_picture_model(tmp_path, "owlvit", AutoModelForZeroShotObjectDetection)
    loaded = load(tmp_path, DETECT)
    monkeypatch.setattr("textmill_shard.tasks.text_box_head.MAX_OBJECTS", 16)  # the places of one text
    (one,) = compute(loaded, [(FILES[0], TEXTS[:1])], BoxParams(0.0))
    assert len(one.scores) == 16
    (many,) = compute(loaded, [(FILES[0], TEXTS)], BoxParams(0.0))
    assert isinstance(many, RowFailure)
    assert "send a higher `parameters.threshold`" in many.message


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
@pytest.mark.parametrize(
    ("task", "auto_class", "model_type"),
    [
        (MATCH, AutoModelForZeroShotImageClassification, "clip"),
        (DETECT, AutoModelForZeroShotObjectDetection, "owlvit"),
    ],
)
def test_scores_that_are_not_finite_fail_the_row(
    tmp_path: Path, task: str, auto_class: Any, model_type: str, number: float
) -> None:
    make_picture_model(tmp_path, model_type, auto_class)
    loaded = load(tmp_path, task)
    (ready,) = loaded.runner.read([MediaRow(FILES[0], BoxParams(0.1), TEXTS)])
    assert not isinstance(ready, RowFailure)
    ready.inputs["pixel_values"][0, 0, 0] = number
    (found,) = loaded.runner.run(loaded.head, [ready])
    assert isinstance(found, RowFailure)
    assert found.code is FailureCode.NOT_FINITE


def test_a_model_whose_processor_needs_torchvision_is_refused(tmp_path: Path) -> None:
    write_json(tmp_path / "config.json", {"model_type": "omdet-turbo"})
    save_file({"weight": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(UnsupportedModelError, match="omdet-turbo cannot be served: their processor needs torchvision"):
        load(tmp_path, DETECT)


class Tower(torch.nn.Module):
    """Counts its passes, and gives each text its number of tokens."""

    num_passes = 0

    def forward(self, input_ids: torch.Tensor) -> BaseModelOutputWithPooling:
        self.num_passes += 1
        return BaseModelOutputWithPooling(pooler_output=input_ids.sum(dim=1).float())


def test_texts_that_come_again_are_not_computed_again() -> None:
    tower = Tower()
    kept = KeptTexts(tower)
    for texts, sums, num_passes in ((("a",), [3.0], 1), (("b",), [4.0], 2), (("a",), [3.0], 2)):
        kept.expect(texts)
        output = tower(input_ids=torch.tensor([[1, int(sums[0]) - 1]]))
        assert (output.pooler_output.tolist(), tower.num_passes) == (sums, num_passes)
        output.pooler_output = None  # as CLIP writes into the outputs of its tower


def test_kept_texts_are_bounded_in_bytes() -> None:
    tower = Tower()
    kept = KeptTexts(tower)
    large = torch.ones(MAX_KEPT_BYTES // 4, 1, dtype=torch.int64)
    for texts, ids, num_passes in ((("a",), large, 1), (("b",), large[:9], 2), (("a",), large, 3)):
        kept.expect(texts)
        assert len(tower(input_ids=ids).pooler_output) == len(ids)
        assert tower.num_passes == num_passes


def test_the_text_tower_of_a_model_is_found_and_its_texts_are_kept(tmp_path: Path) -> None:
    model = make_picture_model(tmp_path, "siglip", AutoModelForZeroShotImageClassification)
    assert find_text_tower(model) is model.text_model
    assert find_text_tower(torch.nn.Linear(1, 1)) is None


def test_texts_are_padded_to_the_longest_or_to_a_length(tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(write_word_tokenizer(tmp_path))
    longest = LabelTexts(tokenizer, max_tokens=0)(("a dog", "the happy cat is in london"))
    assert longest["input_ids"].shape == (2, 8)
    assert longest["attention_mask"].sum(dim=1).tolist() == [4, 8]
    fixed = LabelTexts(tokenizer, max_tokens=10, fixed_tokens=10)(("a dog",))
    assert fixed["input_ids"].shape == (1, 10)
