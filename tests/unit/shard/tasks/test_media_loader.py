"""A loaded model of images or audio computes, from files, what transformers' own pipeline computes of them."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from textmill_shard.errors import UnsupportedModelError
from textmill_shard.tasks.media_loader import LoadedMedia, MediaLimits, load_media
from textmill_shard.tasks.rows import (
    Boxes,
    BoxParams,
    FailureCode,
    MediaRow,
    Params,
    RowFailure,
    SegmentParams,
    Segments,
    Timestamps,
    Transcript,
    TranscriptParams,
)
from textmill_shard.tasks.task_loader import TaskOptions
from transformers import (
    AutoModelForAudioClassification,
    AutoModelForCTC,
    AutoModelForImageClassification,
    AutoModelForImageSegmentation,
    AutoModelForObjectDetection,
    AutoModelForSemanticSegmentation,
    AutoModelForUniversalSegmentation,
    pipeline,
)

from tests.fakes.tiny_media import (
    IMAGES,
    OBJECTS,
    RATE,
    SOUNDS,
    make_media_model,
    picture_file,
    sound,
    sound_file,
    write_character_tokenizer,
)
from tests.fakes.valued_gpu import valued_gpu

LIMITS = MediaLimits(max_pixels=1_000_000, max_seconds=100.0)
TOLERANCE = 1e-5
FILES = [picture_file(40, 30, seed=1), picture_file(64, 64, seed=2, kind="JPEG"), picture_file(33, 90, seed=3)]


def load(folder: Path, task: str) -> LoadedMedia:
    return load_media(TaskOptions(model_dir=folder, task=task), LIMITS, lambda phase, share: None)


def compute(loaded: LoadedMedia, files: list[bytes], params: Params = None) -> list[Any]:
    return loaded.runner.run(loaded.head, loaded.runner.read([MediaRow(file, params) for file in files]))


@pytest.mark.parametrize("model_type", IMAGES)
def test_labels_of_images_are_those_of_the_pipeline(tmp_path: Path, model_type: str) -> None:
    make_media_model(tmp_path, model_type, AutoModelForImageClassification, num_labels=4)
    loaded = load(tmp_path, "image-classification")
    assert (loaded.media, loaded.labels[0]) == ("image", "LABEL_0")
    peer = pipeline("image-classification", model=str(tmp_path))
    for file, logits in zip(FILES, compute(loaded, FILES), strict=True):
        expected = {each["label"]: each["score"] for each in peer(Image.open(io.BytesIO(file)), top_k=4)}
        scores = torch.from_numpy(logits).softmax(dim=0).tolist()
        assert dict(zip(loaded.labels, scores, strict=True)) == pytest.approx(expected, abs=TOLERANCE)


@pytest.mark.parametrize("model_type", OBJECTS)
def test_objects_are_those_of_the_pipeline(tmp_path: Path, model_type: str) -> None:
    make_media_model(tmp_path, model_type, AutoModelForObjectDetection, num_labels=4)
    loaded = load(tmp_path, "object-detection")
    peer = pipeline("object-detection", model=str(tmp_path))
    for file, found in zip(FILES, compute(loaded, FILES, BoxParams(0.3)), strict=True):
        expected = peer(Image.open(io.BytesIO(file)).convert("RGB"), threshold=0.3)
        assert isinstance(found, Boxes)
        assert [loaded.labels[label] for label in found.label_ids] == [each["label"] for each in expected]
        np.testing.assert_allclose(found.scores, [each["score"] for each in expected], atol=TOLERANCE)
        width, height = Image.open(io.BytesIO(file)).size
        inside = [
            [min(max(each["box"][side], 0), most) for side, most in zip(SIDES, (width, height) * 2, strict=True)]
            for each in expected
        ]
        assert found.corners.tolist() == inside


SEGMENTERS = {
    "segformer": AutoModelForSemanticSegmentation,
    "upernet": AutoModelForSemanticSegmentation,
    "beit": AutoModelForSemanticSegmentation,
    "maskformer": AutoModelForUniversalSegmentation,
    "mask2former": AutoModelForUniversalSegmentation,
    "detr": AutoModelForImageSegmentation,
}


@pytest.mark.parametrize("model_type", SEGMENTERS)
def test_segments_are_those_of_the_pipeline(tmp_path: Path, model_type: str) -> None:
    make_media_model(tmp_path, model_type, SEGMENTERS[model_type], num_labels=4)
    loaded = load(tmp_path, "image-segmentation")
    is_semantic = SEGMENTERS[model_type] is AutoModelForSemanticSegmentation
    subtasks = ("semantic",) if is_semantic else ("panoptic", "instance", "semantic")
    assert (loaded.subtasks, loaded.max_batch_files) == (subtasks, 1)
    peer = pipeline("image-segmentation", model=str(tmp_path))
    num_segments = 0
    for subtask in ("", *subtasks):
        # Random models are sure of nothing, and their masks overlap.
        params = SegmentParams(0.3, 0.45, 0.1, subtask)
        for file, found in zip(FILES, compute(loaded, FILES, params), strict=True):
            options = {"threshold": 0.3, "mask_threshold": 0.45, "overlap_mask_area_threshold": 0.1}
            picture = Image.open(io.BytesIO(file)).convert("RGB")
            expected = peer(picture, subtask=subtask or None, **options)
            assert isinstance(found, Segments)
            assert [loaded.labels[label] for label in found.label_ids] == [each["label"] for each in expected]
            if (subtask or subtasks[0]) == "semantic":
                assert found.scores is None
            else:
                np.testing.assert_allclose(found.scores or [], [each["score"] for each in expected], atol=TOLERANCE)
            for mask, each in zip(found.masks, expected, strict=True):
                opened = Image.open(io.BytesIO(mask))
                assert (opened.mode, opened.format, opened.size) == ("L", "PNG", picture.size)
                np.testing.assert_array_equal(np.asarray(opened), np.asarray(each["mask"]))
            num_segments += len(expected)
    assert num_segments


def test_instances_on_a_gpu_are_those_on_a_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The processor of the family lays them on a map of the CPU, as transformers' pipeline hands it outputs there."""
    make_media_model(tmp_path, "mask2former", AutoModelForUniversalSegmentation, num_labels=4)
    params = SegmentParams(0.3, 0.45, 0.1, "instance")
    expected = compute(load(tmp_path, "image-segmentation"), FILES, params)
    with valued_gpu(monkeypatch):
        options = TaskOptions(model_dir=tmp_path, task="image-segmentation", device="cuda:0")
        found = compute(load_media(options, LIMITS, lambda phase, share: None), FILES, params)
    assert sum(len(segments.label_ids) for segments in expected) > 0
    for mine, other in zip(found, expected, strict=True):
        assert isinstance(mine, Segments)
        assert (mine.label_ids, mine.masks) == (other.label_ids, other.masks)
        np.testing.assert_allclose(mine.scores or [], other.scores, atol=TOLERANCE)


def test_masks_of_an_image_above_the_memory_of_its_maps_are_enlarged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_media_model(tmp_path, "segformer", AutoModelForSemanticSegmentation, num_labels=4)
    loaded = load(tmp_path, "image-segmentation")
    params, file = SegmentParams(0.9, 0.5, 0.5), picture_file(200, 100, seed=4)
    (whole,) = compute(loaded, [file], params)
    monkeypatch.setattr("textmill_shard.tasks.segment_head.MAX_MAP_NUMBERS", 4 * 50 * 100)
    (small,) = compute(loaded, [file], params)
    assert small.label_ids == whole.label_ids
    masks = [[np.asarray(Image.open(io.BytesIO(mask))) for mask in found.masks] for found in (whole, small)]
    assert all(mask.shape == (100, 200) for found in masks for mask in found)
    agreed = np.mean([first == second for first, second in zip(*masks, strict=True)])
    assert 0.9 < agreed < 1.0


SIDES = ("xmin", "ymin", "xmax", "ymax")


@pytest.mark.parametrize("model_type", SOUNDS)
def test_labels_of_audio_are_those_of_the_pipeline(tmp_path: Path, model_type: str) -> None:
    make_media_model(tmp_path, model_type, AutoModelForAudioClassification, num_labels=4)
    loaded = load(tmp_path, "audio-classification")
    assert loaded.media == "audio"
    peer = pipeline("audio-classification", model=str(tmp_path))
    seconds = (0.3, 1.0, 0.3)
    found = compute(loaded, [sound_file(length, seed=index) for index, length in enumerate(seconds)])
    for index, logits in enumerate(found):
        answer = peer({"raw": sound(seconds[index], seed=index), "sampling_rate": RATE}, top_k=4)
        expected = {each["label"]: each["score"] for each in answer}
        scores = torch.from_numpy(logits).softmax(dim=0).tolist()
        assert dict(zip(loaded.labels, scores, strict=True)) == pytest.approx(expected, abs=TOLERANCE)


@pytest.mark.filterwarnings("ignore:Support for mismatched key_padding_mask")  # of transformers' code of WavLM
@pytest.mark.parametrize("model_type", ["wav2vec2", "hubert", "wavlm", "unispeech-sat", "data2vec-audio"])
@pytest.mark.parametrize("timestamps", [Timestamps.NONE, Timestamps.WORDS, Timestamps.CHARACTERS])
def test_characters_of_speech_are_those_of_the_pipeline(
    tmp_path: Path, model_type: str, timestamps: Timestamps
) -> None:
    make_media_model(tmp_path, model_type, AutoModelForCTC, pad_token_id=0)
    write_character_tokenizer(tmp_path)
    loaded = load(tmp_path, "automatic-speech-recognition")
    peer = pipeline("automatic-speech-recognition", model=str(tmp_path))
    asked = {Timestamps.WORDS: "word", Timestamps.CHARACTERS: "char"}.get(timestamps)
    for seconds, chunk_s, stride_s in ((0.5, 0.0, 0.0), (2.3, 0.5, 0.1)):
        params = TranscriptParams(timestamps=timestamps, chunk_s=chunk_s, stride_s=stride_s)
        (found,) = compute(loaded, [sound_file(seconds)], params)
        more: dict[str, Any] = {"chunk_length_s": chunk_s, "stride_length_s": stride_s} if chunk_s else {}
        more |= {"return_timestamps": asked} if asked else {}
        expected = peer({"raw": sound(seconds), "sampling_rate": RATE}, **more)
        assert isinstance(found, Transcript)
        assert found.text == expected["text"]
        assert found.text
        assert [(chunk.text, chunk.start_s, chunk.end_s) for chunk in found.chunks] == [
            (chunk["text"], *map(pytest.approx, chunk["timestamp"])) for chunk in expected.get("chunks", [])
        ]


def test_a_file_that_cannot_be_read_fails_alone(tmp_path: Path) -> None:
    make_media_model(tmp_path, "vit", AutoModelForImageClassification)
    loaded = load(tmp_path, "image-classification")
    found = compute(loaded, [FILES[0], b"hello", FILES[1], picture_file(2000, 600)])
    assert [each.code if isinstance(each, RowFailure) else None for each in found] == [
        *(None, FailureCode.BAD_MEDIA),
        *(None, FailureCode.BAD_MEDIA),
    ]


def test_audio_that_is_shorter_than_one_step_is_refused(tmp_path: Path) -> None:
    """Of 10, 8 and 4 samples in strides of 5, 8 and 4 the convolutions read ((4 - 1) * 8 + 8 - 1) * 5 + 10 samples."""
    make_media_model(tmp_path, "wav2vec2", AutoModelForAudioClassification)
    loaded = load(tmp_path, "audio-classification")
    shortest = ((4 - 1) * 8 + 8 - 1) * 5 + 10
    found = compute(loaded, [sound_file(shortest / RATE), sound_file((shortest - 1) / RATE)])
    assert not isinstance(found[0], RowFailure)
    assert isinstance(found[1], RowFailure)
    assert found[1].message == "the audio has 164 samples at 16000 Hz, the model reads 165 and more"


def test_files_of_one_shape_run_together(tmp_path: Path) -> None:
    make_media_model(tmp_path, "vit", AutoModelForImageClassification)
    loaded = load(tmp_path, "image-classification")
    passes: list[int] = []
    compute_rows = loaded.runner.run(
        loaded.head,
        loaded.runner.read([MediaRow(file) for file in FILES * 4]),
        on_part=passes.append,
    )
    assert len(compute_rows) == 12
    assert len(passes) == 2  # at most eight together


@pytest.mark.parametrize(
    ("task", "model_type", "auto_class"),
    [
        ("image-classification", "vit", AutoModelForImageClassification),
        ("audio-classification", "hubert", AutoModelForAudioClassification),
    ],
)
def test_the_file_of_the_warm_up_keeps_to_small_limits(
    tmp_path: Path, task: str, model_type: str, auto_class: Any
) -> None:
    make_media_model(tmp_path, model_type, auto_class)
    limits = MediaLimits(max_pixels=1000, max_seconds=0.5)
    assert load_media(TaskOptions(tmp_path, task), limits, lambda phase, share: None).batch_s > 0


def test_a_model_of_another_task_is_refused(tmp_path: Path) -> None:
    make_media_model(tmp_path, "vit", AutoModelForImageClassification)
    with pytest.raises(UnsupportedModelError, match="AutoModelForObjectDetection"):
        load(tmp_path, "object-detection")
