"""Depths of images in tiny random models, against transformers' own pipeline."""

import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from textmill_shard.errors import UnsupportedModelError
from textmill_shard.tasks.depth_head import MAX_PIXELS, pick_resize
from textmill_shard.tasks.media_loader import LoadedMedia, MediaLimits, load_media
from textmill_shard.tasks.rows import Depth, FailureCode, HeadName, MediaRow, RowFailure
from textmill_shard.tasks.task_loader import TaskOptions
from transformers import AutoModelForDepthEstimation, pipeline
from transformers.models.zoedepth import image_processing_pil_zoedepth

from tests.fakes.tiny_media import picture_file
from tests.fakes.tiny_zero_shot import DEPTHS, make_picture_model

LIMITS = MediaLimits(max_pixels=50_000_000, max_seconds=100.0)
TOLERANCE = 1e-5
FILES = [picture_file(96, 70, seed=1), picture_file(64, 64, seed=2, kind="JPEG"), picture_file(65, 140, seed=3)]


def load(folder: Path) -> LoadedMedia:
    return load_media(TaskOptions(model_dir=folder, task="depth-estimation"), LIMITS, lambda phase, share: None)


def compute(loaded: LoadedMedia, files: list[bytes]) -> list[Any]:
    return loaded.runner.run(loaded.head, loaded.runner.read([MediaRow(file) for file in files]))


def resize(depth: torch.Tensor, *, size: list[int], interpolation: str, antialias: bool) -> torch.Tensor:
    """Resize as torchvision does tensors: `resize` of its v2 functions is torch's own interpolation."""
    return torch.nn.functional.interpolate(
        depth[None], size=size, mode=interpolation, align_corners=False, antialias=antialias
    )[0]


@pytest.mark.parametrize("model_type", DEPTHS)
def test_depths_are_those_of_the_pipeline(tmp_path: Path, model_type: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # The processor of ZoeDepth needs torchvision, which is not installed here.
    vision = SimpleNamespace(resize=resize, InterpolationMode=SimpleNamespace(BICUBIC="bicubic"))
    make_picture_model(tmp_path, model_type, AutoModelForDepthEstimation)
    loaded = load(tmp_path)
    assert (loaded.head, loaded.media, loaded.labels, loaded.max_batch_files) == (HeadName.DEPTHS, "image", (), 1)
    monkeypatch.setattr(image_processing_pil_zoedepth, "tvF", vision, raising=False)
    peer = pipeline("depth-estimation", model=str(tmp_path))
    for file, found in zip(FILES, compute(loaded, FILES), strict=True):
        expected = peer(Image.open(io.BytesIO(file)).convert("RGB"))
        assert isinstance(found, Depth)
        assert found.depths_HW.shape == expected["predicted_depth"].shape
        np.testing.assert_allclose(found.depths_HW, expected["predicted_depth"].numpy(), atol=TOLERANCE)
        assert found.depths_HW.max() > found.depths_HW.min()
        picture = Image.open(io.BytesIO(found.picture))
        assert (picture.format, picture.mode, picture.size) == ("PNG", "L", Image.open(io.BytesIO(file)).size)
        np.testing.assert_array_equal(np.asarray(picture), np.asarray(expected["depth"]))


def test_an_image_of_more_pixels_than_an_answer_has_is_refused_before_it_is_computed(tmp_path: Path) -> None:
    make_picture_model(tmp_path, "dpt", AutoModelForDepthEstimation)
    loaded = load(tmp_path)
    written = io.BytesIO()
    side = 1 << 11
    Image.new("RGB", (side, side + 1)).save(written, "PNG")
    assert side * side == MAX_PIXELS
    too_large, good = compute(loaded, [written.getvalue(), FILES[0]])
    assert isinstance(too_large, RowFailure)
    assert too_large.code is FailureCode.BAD_MEDIA
    assert "2048 x 2049 pixels, and depths are answered for at most 4194304" in too_large.message
    assert isinstance(good, Depth)


def test_depths_that_are_not_finite_fail_the_row(tmp_path: Path) -> None:
    make_picture_model(tmp_path, "dpt", AutoModelForDepthEstimation)
    loaded = load(tmp_path)
    (ready,) = loaded.runner.read([MediaRow(FILES[0])])
    assert not isinstance(ready, RowFailure)
    ready.inputs["pixel_values"][0, 0, 0] = float("nan")
    (found,) = loaded.runner.run(loaded.head, [ready])
    assert isinstance(found, RowFailure)
    assert found.code is FailureCode.NOT_FINITE


def test_an_image_of_one_depth_gives_a_black_picture(tmp_path: Path) -> None:
    """The pipeline divides by 0 there."""
    model = make_picture_model(tmp_path, "dpt", AutoModelForDepthEstimation)
    for parameter in model.head.parameters():
        parameter.data.zero_()
    model.save_pretrained(tmp_path)
    (found,) = compute(load(tmp_path), FILES[:1])
    assert np.asarray(Image.open(io.BytesIO(found.picture))).max() == 0


def test_a_processor_that_gives_no_depths_is_refused() -> None:
    with pytest.raises(UnsupportedModelError, match="the processor SimpleNamespace gives no depths"):
        pick_resize(SimpleNamespace())
